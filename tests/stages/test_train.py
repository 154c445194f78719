"""Training of teachers: validation images, recipes, few images with a transfer set."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import Crash, errors_of_one_answer, sha256s

from kdextract import api
from kdextract.data.load import load_data
from kdextract.data.real_data import RealData
from kdextract.errors import ConfigError, UsageError
from kdextract.models.architectures.airbench import Whitening
from kdextract.models.classifier import load_classifier
from kdextract.models.pixels import fit_images, to_pixels
from kdextract.stages.inputs.real_data import few_images
from kdextract.stages.running.runner import Outcome
from kdextract.stages.train import RECIPES, TrainConfig, _split, chosen_recipe
from kdextract.training.augmentation import Augmenter
from kdextract.training.sources import ImagePool, MirroringPool, Mixture
from kdextract.training.supervised import predict

COUNT = 200


@pytest.fixture
def images() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (COUNT, 8, 8), dtype=np.uint8)


def train(directory: Path, images: np.ndarray, validation: float) -> Outcome:
    labels = (images[:, :4].mean((1, 2)) > images[:, 4:].mean((1, 2))).astype(np.int64)
    directory.mkdir()
    file = directory / "data.npz"
    np.savez(file, x_train=images, y_train=labels, x_test=images[:20], y_test=labels[:20])
    return api.train(
        run=directory / "run", data=f"npz:{file}", model="lenet_half", epochs=2, threads=1, validation=validation
    )


@pytest.mark.parametrize("share", [0.0, 0.05, 0.5])
def test_the_split_is_whole_and_disjoint(share: float) -> None:
    learned, aside = _split(COUNT, share, seed=3)
    assert len(aside) == round(share * COUNT)
    assert sorted([*learned.tolist(), *aside.tolist()]) == list(range(COUNT))
    assert not torch.equal(learned, _split(COUNT, share, seed=4)[0]) or share == 0


def test_validation_images_do_not_change_the_teacher(tmp_path: Path, images: np.ndarray) -> None:
    """With other pixels there (of equal brightness, which keeps the labels), every byte of the teacher is the same."""
    _, aside = _split(COUNT, 0.25, seed=0)
    changed = images.copy()
    changed[aside.numpy()] = changed[aside.numpy()][:, :, ::-1]
    made = [train(tmp_path / name, x, validation=0.25) for name, x in (("a", images), ("b", changed))]
    one, other = ((outcome.directory / "model.safetensors").read_bytes() for outcome in made)
    assert one == other
    assert made[0].manifest.metrics["num_images"] == COUNT - len(aside)


def test_validation_accuracy_is_that_of_the_images_set_aside(tmp_path: Path, images: np.ndarray) -> None:
    metrics = train(tmp_path / "a", images, validation=0.3).manifest.metrics
    teacher = load_classifier(tmp_path / "a" / "run" / "teacher" / "model.safetensors")
    with np.load(tmp_path / "a" / "data.npz") as data:
        labels = torch.from_numpy(data["y_train"])
    _, aside = _split(COUNT, 0.3, seed=0)
    stored = fit_images(torch.from_numpy(images).unsqueeze(1), teacher.input_shape)
    right = predict(teacher, stored[aside]).argmax(1) == labels[aside]
    assert metrics["validation_images"] == len(aside) == 60
    assert metrics["validation_accuracy"] == pytest.approx(float(right.float().mean()), abs=1e-6)


def test_without_validation_images_there_is_no_validation_accuracy(tmp_path: Path, images: np.ndarray) -> None:
    metrics = train(tmp_path / "a", images, validation=0.0).manifest.metrics
    assert metrics["num_images"] == COUNT
    assert not [name for name in metrics if name.startswith("validation")]


# ---- recipes --------------------------------------------------------------------------------------------------------


def test_a_recipe_sets_what_is_not_given() -> None:
    assert chosen_recipe(TrainConfig()) == RECIPES["adam"]
    assert chosen_recipe(TrainConfig(recipe="sgd")) == RECIPES["sgd"]
    given: dict[str, Any] = {"lr": 0.5, "weight_decay": 0.25, "shift": 0, "warp": 0.75}
    for name, recipe in RECIPES.items():
        assert chosen_recipe(TrainConfig(recipe=name, **given)) == replace(recipe, **given)


@pytest.mark.slow
def test_each_recipe_learns_digits_and_another_teacher(tmp_path: Path) -> None:
    made, of_one_answer = {}, errors_of_one_answer(load_data("digits", "train", Path()).labels)
    for recipe in RECIPES:
        options: dict[str, Any] = {"model": "lenet5_bn", "recipe": recipe, "epochs": 15, "threads": 1}
        made[recipe] = api.train(run=tmp_path / recipe, **options)
        assert 1 - made[recipe].manifest.metrics["validation_accuracy"] < 0.25 * of_one_answer
    files = {sha256s(outcome.directory)["model.safetensors"] for outcome in made.values()}
    assert len(files) == len(RECIPES)


@pytest.mark.parametrize(
    "options",
    [{"model": "lenet_half", "recipe": "sgd"}, {"model": "airbench", "input_size": "1x16x16", "recipe": "fast"}],
)
def test_training_with_momentum_is_the_same_after_a_stop(
    options: dict[str, Any], tmp_path: Path, saves_until_crash: Callable[[], list[int]]
) -> None:
    options = {**options, "shots": 30, "epochs": 2, "flip": True, "batch_size": 32, "threads": 1}
    straight = api.train(run=tmp_path / "straight", **options)
    left = saves_until_crash()
    left[0] = 3
    with pytest.raises(Crash):
        api.train(run=tmp_path / "stopped", **options)
    again = api.train(run=tmp_path / "stopped", **options)
    assert sha256s(again.directory) == sha256s(straight.directory)


# ---- the recipe fast ------------------------------------------------------------------------------------------------


def small_photographs(folder: Path, channels: int) -> Path:
    """Write images of two classes and return the file: the lower half is the darker one, or the upper half."""
    rng = np.random.default_rng(0)
    labels = np.arange(COUNT) % 2
    images = rng.integers(0, 120, (COUNT, 16, 16, channels), dtype=np.uint8)
    for half in (0, 1):
        images[labels == half, 8 * half : 8 * half + 8] += 100
    file = folder / "photographs.npz"
    np.savez(file, x_train=images, y_train=labels, x_test=images[:20], y_test=labels[:20])
    return file


@pytest.mark.parametrize("channels", [1, 3])
def test_the_fast_recipe_whitens_learns_and_leaves_the_whitening_alone(tmp_path: Path, channels: int) -> None:
    options: dict[str, Any] = {"model": "airbench", "recipe": "fast", "batch_size": 20, "validation": 0.0, "threads": 1}
    data = f"npz:{small_photographs(tmp_path, channels)}"
    made = api.train(run=tmp_path / "run", data=data, input_size=f"{channels}x16x16", epochs=6, **options)
    assert made.manifest.metrics["train_accuracy"] > 0.9
    teacher = load_classifier(made.directory / "model.safetensors")
    (layer,) = [layer for layer in teacher.network.modules() if isinstance(layer, Whitening)]
    images = load_data(data, "train", Path()).images
    expected = Whitening(channels)
    expected.fit((to_pixels(images) - teacher.mean) / teacher.std)  # of all images: fewer than `WHITENED`
    assert torch.allclose(layer.weight, expected.weight, atol=1e-4)
    assert layer.bias is not None
    assert layer.bias.any(), "the bias is trained"


def test_the_fast_recipe_suits_every_network(tmp_path: Path) -> None:
    made = api.train(run=tmp_path / "run", model="lenet5_bn", recipe="fast", shots=20, epochs=30, threads=1)
    assert made.manifest.metrics["train_accuracy"] > 0.3


@pytest.mark.parametrize(("options", "alternates"), [({"flip": True}, True), ({"flip": False}, False), ({}, False)])
def test_mirrored_images_alternate_in_the_fast_recipe_alone(
    options: dict[str, Any], alternates: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    used: list[tuple[type, bool]] = []

    def note(teacher: Any, pool: Any, batch_size: int, schedule: Any, augmenter: Augmenter, *rest: Any) -> list[Any]:
        used.append((type(pool), augmenter.flip))
        teacher.eval()
        return []

    monkeypatch.setattr("kdextract.training.supervised.fit", note)
    for recipe in ("fast", "sgd"):
        api.train(run=tmp_path / recipe, recipe=recipe, shots=5, epochs=1, threads=1, **options)
    assert used == [(MirroringPool if alternates else ImagePool, False), (ImagePool, alternates)]


# ---- few real images and a transfer set ----------------------------------------------------------------------------


def test_shots_are_n_images_of_each_class_drawn_by_the_seed() -> None:
    labels = torch.tensor([0, 1, 1, 0, 2, 2, 2, 0, 1] * 4)
    data = RealData(torch.zeros(36, 1, 2, 2, dtype=torch.uint8), labels, ("a", "b", "c"))
    chosen = few_images(data, 9, seed=0)
    assert torch.bincount(labels[chosen]).tolist() == [3, 3, 3]
    assert len(chosen.unique()) == 9
    assert torch.equal(chosen, few_images(data, 9, seed=0))
    assert not torch.equal(chosen, few_images(data, 9, seed=1))
    with pytest.raises(ConfigError, match="class 'a' has 12 images, fewer than the 13 that are needed"):
        few_images(data, 39, seed=0)


def pool_of(value: int, targets: torch.Tensor) -> ImagePool:
    images = torch.full((len(targets), 1, 2, 2), value, dtype=torch.uint8)
    return ImagePool(images, targets, 0, torch.device("cpu"))


@pytest.mark.parametrize(("share", "expected"), [(0.0, 0), (0.25, 2), (0.5, 5), (1.0, 10)])
def test_a_mixture_takes_its_share_of_each_batch(share: float, expected: int) -> None:
    mixture = Mixture(pool_of(0, torch.zeros(7)), pool_of(255, torch.ones(9)), share)
    for _ in range(5):
        batch = mixture.sample(10)
        assert batch.targets is not None
        assert (
            batch.targets.tolist()
            == batch.images.amax((1, 2, 3)).tolist()
            == [0.0] * (10 - expected) + [1.0] * expected
        )


def test_a_mixture_continues_after_a_restore() -> None:
    def mixture() -> Mixture:
        return Mixture(pool_of(1, torch.arange(7)), pool_of(2, torch.arange(100, 109)), 0.5)

    first, second = mixture(), mixture()
    first.sample(6)
    second.restore(copy.deepcopy(first.state()))
    for _ in range(4):
        (one, other) = (m.sample(6).targets for m in (first, second))
        assert one is not None
        assert other is not None
        assert torch.equal(one, other)


def test_augmented_training_learns_from_both(finished_run: Path, tmp_path: Path) -> None:
    options: dict[str, Any] = {"shots": 4, "epochs": 30, "validation": 0.0, "threads": 1}
    artifact = str(finished_run / "transfer-sets" / "all_layers")
    made = {
        name: api.train(run=tmp_path / name, **options, **more)
        for name, more in {
            "plain": {},
            "soft": {"augment": artifact},
            "hard": {"augment": artifact, "augment_labels": "hard"},
            "more": {"augment": artifact, "augment_share": 0.9},
        }.items()
    }
    files = {name: (outcome.directory / "model.safetensors").read_bytes() for name, outcome in made.items()}
    assert len(set(files.values())) == 4, "every option has an effect"
    assert {outcome.manifest.metrics["num_images"] for outcome in made.values()} == {40}
    roles = [entry.role for entry in made["soft"].manifest.inputs]
    assert roles == ["data", "transfer-set"]
    assert api.train(run=tmp_path / "soft", **options, augment=artifact).status == "cached"


def test_the_transfer_set_for_augmentation_must_exist_and_fit(finished_run: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="--augment-share has no effect without --augment"):
        api.train(run=tmp_path, augment_share=0.3)
    with pytest.raises(UsageError, match="--augment 'nothing' is no transfer set"):
        api.train(run=tmp_path, augment="nothing")
    artifact = str(finished_run / "transfer-sets" / "all_layers")
    with pytest.raises(ConfigError, match="is needed"):
        api.train(run=tmp_path, model="hinton800", augment=artifact, epochs=1)
