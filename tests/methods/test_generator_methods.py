"""Contract of every method that trains generators: `kdx train-generator`, `kdx generate`, and their students."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import Crash, sha256s, teacher_only
from helpers import drawings, write_idx
from PIL import Image
from scipy.io import savemat

from kdextract import api
from kdextract.errors import ArtifactError, ConfigError, UsageError
from kdextract.methods import generator_method, generator_names, live_method
from kdextract.methods.keflow import FLOWS
from kdextract.methods.kegnet import PRESETS
from kdextract.models.architectures import InputShape
from kdextract.models.classifier import Classifier, ClassifierSpec, load_classifier
from kdextract.models.hooks import count_multiply_adds
from kdextract.models.pixels import to_uint8
from kdextract.stages.distill.config import DistillConfig
from kdextract.stages.inputs.distill_settings import fill_in
from kdextract.stages.inputs.image_source import (
    GeneratorImages,
    LiveImages,
    NoiseImages,
    RealImages,
    TransferSetImages,
)
from kdextract.stages.inputs.method_inputs import MethodInputs
from kdextract.stages.outputs.transfer_set import PICTURED_IMAGES
from kdextract.storage.artifacts import Input, Manifest, read_manifest
from kdextract.storage.run_dir import Artifact, RunDir
from kdextract.storage.tensor_files import encode_safetensors, read_npy, read_safetensors
from kdextract.synthesis.generators.encodings import Encodings
from kdextract.synthesis.generators.flows import Flow
from kdextract.synthesis.generators.generator import encode_generator, load_generator
from kdextract.synthesis.generators.mix import GeneratorMix
from kdextract.synthesis.generators.networks import NETWORKS
from kdextract.synthesis.generators.source import GeneratorSource
from kdextract.synthesis.generators.training import GeneratorTraining, Samples, multiply_adds
from kdextract.training import observer

WAYS: dict[str, dict[str, Any]] = {
    "kegnet": {"method": "kegnet"},
    "kegnet-fashion": {"method": "kegnet", "preset": "fashion"},
    "kegnet-strided": {"method": "kegnet", "network": "strided"},
    "kegnet-dense": {"method": "kegnet", "network": "dense"},
    "dafl": {"method": "dafl"},
    **{f"keflow-{flow}": {"method": "keflow", "flow": flow} for flow in FLOWS},
    "keflow-samples": {"method": "keflow", "samples": 10},
}
"""Every method at least once, each kind of network that it may train."""
QUICK: dict[str, Any] = {"steps": 3, "batch_size": 6, "width": 4, "threads": 1}

every_way = pytest.mark.parametrize("way", WAYS)
OF_EACH_METHOD = ("kegnet", "dafl", "keflow-nice", "keflow-samples")


def train(run: Path, way: str, **options: Any) -> Any:
    """Train generators for few steps, and return the outcome."""
    return api.train_generator(run=run, **{**QUICK, "name": way, **WAYS[way], **options})


def test_every_method_is_tried() -> None:
    assert {options["method"] for options in WAYS.values()} == set(generator_names())


@pytest.fixture(scope="module")
def straight(finished_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """A function that returns a run with a teacher and two generators that were trained without interruption."""

    @cache
    def made(way: str) -> Path:
        run = teacher_only(finished_run, tmp_path_factory.mktemp("straight") / "run")
        train(run, way, generators=2)
        return run

    return made


@every_way
def test_it_makes_generators_from_the_teacher_alone(
    way: str, finished_run: Path, straight: Callable[[str], Path]
) -> None:
    run = straight(way)
    directory = run / "generators" / way
    manifest = read_manifest(directory)
    assert manifest.needs == ("teacher+samples" if "samples" in WAYS[way] else "teacher")
    assert len(manifest.real_data) == ("samples" in WAYS[way])
    assert manifest.budget["teacher_queries_by_purpose"]["synthesis"] == 2 * 3 * 6
    assert 0 <= manifest.metrics["mean_confidence"] <= 1
    assert 0 <= manifest.metrics["rarest_class_share"] <= 0.1
    assert sha256s(run / "teacher") == sha256s(finished_run / "teacher")
    teacher = load_classifier(run / "teacher" / "model.safetensors")
    files = [load_generator(directory / f"generator-{index}.safetensors") for index in range(2)]
    noise, labels = files[0].draw(5, torch.Generator().manual_seed(0)), torch.arange(5)
    images = [generator(noise, labels) for generator in files]
    for made in images:
        assert made.shape == (5, *teacher.input_shape)
        assert made.isfinite().all()
        assert 0 <= made.min() <= made.max() <= 1
    assert not torch.equal(*images)
    assert torch.equal(images[0][:2], files[0](noise[:2], labels[:2]).contiguous()) or torch.allclose(
        images[0][:2], files[0](noise[:2], labels[:2]), atol=1e-6
    )
    for picture in ("grid.png", "walk.png", "terms.png"):
        assert Image.open(directory / picture).size[1] > 100


@pytest.mark.parametrize(
    "way", [pytest.param(way, marks=() if way in OF_EACH_METHOD else pytest.mark.slow) for way in WAYS]
)
def test_interrupted_it_ends_with_the_same_bytes(
    way: str, straight: Callable[[str], Path], teacher_run: Path, saves_until_crash: Callable[[], list[int]]
) -> None:
    made = sha256s(straight(way) / "generators" / way)
    left = saves_until_crash()
    for stop in (2, 2):  # in the first generator, and, three steps being left there and here, in the second
        left[0] = stop
        with pytest.raises(Crash):
            train(teacher_run, way, generators=2)
    left[0] = 1000
    train(teacher_run, way, generators=2)
    assert left[0] == 1000 - 2
    assert sha256s(teacher_run / "generators" / way) == made


@pytest.mark.parametrize("way", ["kegnet", "dafl", "keflow-nice_affine"])
def test_training_lowers_the_loss(way: str, teacher_run: Path) -> None:
    outcome = train(teacher_run, way, steps=40, batch_size=32, generators=1)
    rows = [json.loads(line) for line in (outcome.directory / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == list(range(1, 41))
    assert sum(row["loss"] for row in rows[-5:]) < sum(row["loss"] for row in rows[:5])


@every_way
@pytest.mark.slow
def test_a_generator_costs_no_more_than_the_teacher_by_default(
    way: str, straight: Callable[[str], Path], teacher_run: Path
) -> None:
    metrics = train(teacher_run, way, width=None, steps=1, generators=1).manifest.metrics
    assert metrics["teacher_multiply_adds"] == 416_520
    narrowest = read_manifest(straight(way) / "generators" / way).metrics
    assert QUICK["width"] == 4
    limit = max(metrics["teacher_multiply_adds"], narrowest["generator_multiply_adds"])
    assert metrics["generator_multiply_adds"] <= limit


def test_multiply_adds_of_a_strided_generator_are_those_of_its_layers(teacher_run: Path) -> None:
    directory = train(teacher_run, "kegnet-strided", generators=1, width=8).directory
    generator = load_generator(directory / "generator-0.safetensors")
    linear = 20 * 256 + 256 * 128 + 128 * 32 * 16
    by_hand = linear + 8 * 8 * 8 * 32 * 4 + 16 * 16 * 2 * 8 * 4 + 32 * 32 * 1 * 2 * 4
    assert multiply_adds(generator.spec) == by_hand
    noise = generator.draw(3, torch.Generator())
    assert count_multiply_adds(generator.network, noise, torch.zeros(3, dtype=torch.int64)) == by_hand


# ---- transfer sets of generators -----------------------------------------------------------------------------------


def test_generate_writes_a_transfer_set_that_trains_a_student(teacher_run: Path) -> None:
    train(teacher_run, "kegnet", generators=2)
    made = api.generate(run=teacher_run, images_per_class=7, batch_size=16, threads=1)
    assert made.manifest.metrics["num_images"] == 70
    assert made.manifest.needs == "teacher"
    images, labels = (read_npy(made.directory / name) for name in ("images.npy", "labels.npy"))
    assert images.shape == (70, 1, 32, 32)
    assert np.bincount(labels).tolist() == [7] * 10
    again = api.generate(run=teacher_run, images_per_class=7, batch_size=16, threads=1, name="again")
    assert sha256s(again.directory) == sha256s(made.directory)
    wider = api.generate(run=teacher_run, images_per_class=7, noise_scale=3.0, threads=1, name="wider")
    assert sha256s(wider.directory)["images.npy"] != sha256s(made.directory)["images.npy"]
    student = api.distill(run=teacher_run, data="transfer-sets/kegnet", steps=2, threads=1)
    assert student.manifest.metrics["num_images"] == 70


def test_several_artifacts_are_mixed_and_the_teacher_labels_images_without_classes(teacher_run: Path) -> None:
    for way in ("kegnet", "dafl"):
        train(teacher_run, way, generators=1)
    made = api.generate(run=teacher_run, generator="kegnet,dafl", images_per_class=4, threads=1)
    assert made.manifest.label == "transfer-sets/kegnet"
    assert {entry.role: entry.path for entry in made.manifest.inputs if entry.role == "generator"}
    assert made.manifest.metrics["teacher_agrees_with_label"] == 1.0
    alone = api.generate(run=teacher_run, generator="kegnet", images_per_class=4, threads=1, name="alone")
    ours, theirs = (read_npy(d / "images.npy") for d in (made.directory, alone.directory))
    assert not np.array_equal(ours[1::2], theirs[1::2])


def test_a_mix_takes_its_generators_in_turn(teacher_run: Path) -> None:
    directories = [train(teacher_run, way, generators=1).directory for way in ("kegnet", "keflow-nice")]
    generators = [load_generator(directory / "generator-0.safetensors") for directory in directories]
    labels = torch.arange(7)
    mixed = GeneratorMix(generators).sample(labels, torch.Generator().manual_seed(5))
    rng = torch.Generator().manual_seed(5)
    for index, generator in enumerate(generators):
        own = torch.arange(index, 7, 2)
        assert torch.equal(mixed[own], generator(generator.draw(len(own), rng), labels[own]))


# ---- as a source of distillation -----------------------------------------------------------------------------------


def test_a_student_draws_new_images_from_generators_at_every_step(teacher_run: Path) -> None:
    train(teacher_run, "kegnet", generators=2)
    outcome = api.distill(run=teacher_run, steps=3, batch_size=16, threads=1)
    assert outcome.manifest.metrics["source"] == "kegnet"
    assert outcome.manifest.budget["images"] == 3 * 16
    assert outcome.manifest.budget["teacher_queries_by_purpose"] == {
        "probe": 2 * observer.HELD_OUT_IMAGES, "targets": 3 * 16, "pictures": PICTURED_IMAGES, "blank": 1
    }  # fmt: skip
    assert outcome.manifest.needs == "teacher"


def test_a_restored_source_continues_and_holds_out_other_images(teacher_run: Path) -> None:
    directory = train(teacher_run, "kegnet", generators=2).directory
    teacher = load_classifier(teacher_run / "teacher" / "model.safetensors")

    def source() -> GeneratorSource:
        generators = [load_generator(directory / f"generator-{index}.safetensors") for index in range(2)]
        return GeneratorSource(GeneratorMix(generators), teacher, seed=3)

    first, second = source(), source()
    first.sample(5)
    state = copy.deepcopy(first.state())
    following = first.sample(6).images
    second.restore(state)
    assert torch.equal(second.sample(6).images, following)
    assert first.num_images == second.num_images == 11
    assert first.update(teacher) == {}
    held_out = first.held_out(7)
    assert held_out.dtype == torch.uint8
    assert torch.equal(held_out, source().held_out(7))
    assert not torch.equal(held_out[:6], to_uint8(source().sample(6).images))


@pytest.mark.parametrize("change", ["network", "options", "mean", "weights"])
def test_a_file_that_is_no_generator_is_refused(teacher_run: Path, tmp_path: Path, change: str) -> None:
    directory = train(teacher_run, "kegnet", generators=1).directory
    tensors, metadata = read_safetensors(directory / "generator-0.safetensors")
    record = metadata["generator"]
    if change == "network":
        record["network"] = "nothing"
    elif change == "options":
        record["options"] = {"width": 10**9}
    elif change == "mean":
        del record["mean"]
    else:
        tensors.popitem()
    path = tmp_path / "generator-0.safetensors"
    path.write_bytes(encode_safetensors(tensors, metadata))
    with pytest.raises(ArtifactError, match="generator"):
        load_generator(path)


def test_needs_are_handed_down(teacher_run: Path) -> None:
    train(teacher_run, "keflow-samples")
    made = api.generate(run=teacher_run, images_per_class=2, threads=1)
    assert made.manifest.needs == "teacher+samples"
    student = api.distill(run=teacher_run, data="generators/keflow-samples", steps=1, threads=1)
    assert student.manifest.needs == "teacher+samples"


# ---- errors --------------------------------------------------------------------------------------------------------


def test_a_name_of_both_kinds_is_refused_as_ambiguous(teacher_run: Path) -> None:
    train(teacher_run, "kegnet", generators=1)
    api.generate(run=teacher_run, images_per_class=1, threads=1)
    with pytest.raises(ConfigError, match=r"transfer-sets/kegnet.*generators/kegnet|generators/kegnet.*transfer-sets"):
        api.distill(run=teacher_run, steps=1, threads=1)
    with pytest.raises(ConfigError, match="say which"):
        api.distill(run=teacher_run, data="kegnet", steps=1, threads=1)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"method": "kegnett"}, "Did you mean 'kegnet'"),
        ({"method": "kegnet", "samples": 10}, "--samples has no effect on kegnet; it is for keflow"),
        ({"method": "keflow", "data": "digits"}, "--data has no effect without --samples"),
        ({"method": "kegnet", "flow": "nice"}, "--flow has no effect on kegnet"),
        ({}, "method is missing"),
    ],
)
def test_usage(teacher_run: Path, options: dict[str, Any], says: str) -> None:
    with pytest.raises(UsageError, match=says):
        api.train_generator(run=teacher_run, threads=1, **options)


def test_generate_names_what_is_missing(teacher_run: Path) -> None:
    with pytest.raises(ConfigError, match="no generator; make one with: kdx train-generator"):
        api.generate(run=teacher_run, threads=1)
    train(teacher_run, "dafl")
    with pytest.raises(UsageError, match="Did you mean 'dafl'"):
        api.generate(run=teacher_run, generator="dalf", threads=1)


def test_generators_of_another_teacher_do_not_fit(teacher_run: Path, tmp_path: Path) -> None:
    train(teacher_run, "kegnet", generators=1)
    other = tmp_path / "other"
    api.train(run=other, model="hinton800", input_size="1x8x8", epochs=1, threads=1)
    with pytest.raises(ConfigError, match="makes images of shape"):
        api.generate(run=other, generator=str(teacher_run / "generators" / "kegnet"), threads=1)


# ---- terms of the losses -------------------------------------------------------------------------------------------


@pytest.fixture
def normalized_teacher() -> Classifier:
    torch.manual_seed(0)
    return Classifier(ClassifierSpec("lenet5_bn", (1, 32, 32), tuple("abc"), (0.5,), (0.3,))).frozen()


def loss_of(teacher: Classifier, method: str, samples: Samples | None = None, **options: Any) -> float:
    """Return the first loss of a method."""
    chosen = generator_method(method)
    training = chosen.build_training(teacher, chosen.config(batch_size=8, **options), 0, samples)
    torch.manual_seed(1)
    with torch.no_grad():
        for weight in training.network.train().parameters():
            weight.add_(0.02 * torch.randn(weight.shape))
    return float(training.loss().detach())


TRAINED_BY: dict[str, dict[str, Any]] = {
    "resized": {"method": "kegnet", "network": "resized"},
    "strided": {"method": "kegnet", "network": "strided"},
    "dense": {"method": "kegnet", "network": "dense"},
    "latent": {"method": "dafl"},
    **{flow: {"method": "keflow", "flow": flow} for flow in FLOWS},
}
"""Every network that a generator may have -> the method that trains it, with its options."""
STANDARDIZED = ["resized", "strided", "dense", "latent"]
DARK, BRIGHT, MIDDLE = (0.13, 0.31), (0.87, 0.31), (0.44, 0.2)
"""Mean and deviation of a teacher's data: drawings, for which a third of a fresh image is out of [0, 1], or others."""


def fresh_training(network: str, shape: InputShape, data: tuple[float, float]) -> tuple[Classifier, GeneratorTraining]:
    """Return a teacher whose output depends on every value of an image, and the training of a new generator for it."""
    mean, std = ((value,) * shape[0] for value in data)
    torch.manual_seed(0)
    teacher = Classifier(ClassifierSpec("hinton800", shape, tuple("abcd"), mean, std)).frozen()
    options = dict(TRAINED_BY[network])
    method = generator_method(options.pop("method"))
    training = method.build_training(teacher, method.config(batch_size=8, width=8, **options), 0, None)
    training.network.train()
    return teacher, training


def networks_and_shapes(networks: list[str]) -> pytest.MarkDecorator:
    """Run a test for these networks with images of one and of three channels, and with tables if they take them."""
    cases = [(name, (channels, 16, 16)) for name in networks for channels in (1, 3)]
    cases += [(name, (1, 1, 12)) for name in networks if name in ("dense", "nice", "nice_affine")]
    return pytest.mark.parametrize(("network", "shape"), cases)


def test_every_network_is_trained_by_a_method() -> None:
    assert TRAINED_BY.keys() == NETWORKS.keys()
    built = {name: fresh_training(name, (1, 16, 16), DARK)[1].generator.network for name in NETWORKS}
    assert {name for name, network in built.items() if network.standardized} == {*STANDARDIZED}


@pytest.mark.parametrize("data", [DARK, BRIGHT, MIDDLE])
@networks_and_shapes(list(TRAINED_BY))
def test_every_value_of_a_fresh_generator_has_a_gradient(
    network: str, shape: InputShape, data: tuple[float, float]
) -> None:
    _, training = fresh_training(network, shape, data)
    made: list[torch.Tensor] = []

    def keep(module: torch.nn.Module, inputs: object, output: Any) -> None:
        made.append(output[0] if isinstance(output, tuple) else output)
        made[0].retain_grad()

    layers = training.generator.network
    (layers.steps if isinstance(layers, Flow) else layers).register_forward_hook(keep)
    training.loss().backward()
    assert made[0].grad is not None
    assert float((made[0].grad == 0).float().mean()) < 0.01


@networks_and_shapes(list(TRAINED_BY))
def test_pixels_are_normalized_values_with_the_scale_of_the_data_and_clipped(network: str, shape: InputShape) -> None:
    teacher, training = fresh_training(network, shape, DARK)
    generator = training.generator.frozen()
    noise, labels = generator.draw(4, torch.Generator().manual_seed(0)), torch.arange(4)
    values, pixels = generator.normalized(noise, labels), generator(noise, labels)
    torch.testing.assert_close(pixels, (teacher.mean + teacher.std * values).clamp(0, 1))
    assert 0 <= float(pixels.min()) < float(pixels.max()) <= 1


@networks_and_shapes(STANDARDIZED)
def test_a_teacher_gets_the_outputs_of_a_standardized_network_and_students_get_them_clipped(
    network: str, shape: InputShape
) -> None:
    teacher, training = fresh_training(network, shape, DARK)
    made: list[torch.Tensor] = []
    training.generator.network.register_forward_hook(lambda module, inputs, output: made.append(output.detach()))
    shown = {"teacher": teacher.network, **training.helpers}
    seen: dict[str, torch.Tensor] = {}
    for name, module in shown.items():
        module.register_forward_pre_hook(lambda module, inputs, name=name: seen.update({name: inputs[0].detach()}))
    training.loss()
    assert seen.keys() == shown.keys()
    for values in seen.values():
        assert torch.equal(values, made[0])
    pixels = DARK[0] + DARK[1] * made[0]
    assert float(((pixels < 0) | (pixels > 1)).float().mean()) > 0.1
    mix = GeneratorMix([training.generator])
    images = mix.sample(torch.arange(4), torch.Generator().manual_seed(0))
    torch.testing.assert_close(images, (DARK[0] + DARK[1] * made[-1]).clamp(0, 1))


@pytest.mark.parametrize(
    ("method", "weight"),
    [
        ("kegnet", "alpha"), ("kegnet", "beta"), ("dafl", "oh"), ("dafl", "act"), ("dafl", "ie"), ("keflow", "spread"),
        ("keflow", "bn"),
    ],
)  # fmt: skip
def test_every_term_is_multiplied_by_its_weight(normalized_teacher: Classifier, method: str, weight: str) -> None:
    without, once, twice = (loss_of(normalized_teacher, method, **{weight: value}) for value in (0.0, 1.0, 2.0))
    assert once != pytest.approx(without, abs=1e-4)
    assert twice - once == pytest.approx(once - without, rel=1e-3, abs=1e-4)


def test_the_loss_of_samples_is_multiplied_by_its_weight(normalized_teacher: Classifier) -> None:
    samples = Samples(torch.rand(3, 1, 32, 32), torch.arange(3))
    plain = loss_of(normalized_teacher, "keflow")
    once, twice = (loss_of(normalized_teacher, "keflow", samples, aided=value) for value in (1.0, 2.0))
    assert twice - once == pytest.approx(once - plain, rel=1e-3)


def test_a_flow_stores_samples_and_makes_similar_images(normalized_teacher: Classifier) -> None:
    samples = Samples(drawings(2, (1, 32, 32)), torch.tensor([2, 1]))
    method = generator_method("keflow")
    training = method.build_training(normalized_teacher, method.config(noise_scale=0.8, widen=2.0), 0, samples)
    training.finish()
    generator = training.generator
    assert (generator.spec.noise_scale, generator.spec.widen) == (0.8, 2.0)
    encodings = generator.encodings
    assert encodings is not None
    assert encodings.labels.tolist() == [1] * 320 + [2] * 320
    copies = generator(encodings.noise, encodings.labels)
    assert copies.amin() >= 0.009  # dequantized: the flow gives back what it was shown, to the last digits
    first = copies.view(2, 320, 1, 32, 32)[0]
    far = (first[:, None] - first[None, :20]).abs().mean((2, 3, 4))
    assert (far[far > 0] > 1e-3).all(), "copies of one sample differ"
    means = [images.mean(0) for images in copies.view(2, 320, 1, 32, 32)]
    labels = torch.tensor([1, 2] * 100)
    noise = generator.draw(200, torch.Generator().manual_seed(0), 0.01, labels)
    near = noise.norm(dim=1) > 2 * noise.norm(dim=1).median().clamp_max(1.0)
    assert 60 < int(near.sum()) < 140
    for label, mean in zip((1, 2), means, strict=True):
        made = generator(noise, labels)[near & (labels == label)].mean(0)
        other = means[0] if label == 2 else means[1]
        assert (made - mean).abs().mean() < 0.5 * (made - other).abs().mean()


def test_noise_near_encodings_is_only_for_their_class() -> None:
    encodings = Encodings.of(torch.tensor([[50.0], [-50.0], [60.0]]), torch.tensor([3, 0, 3]))
    wanted = torch.tensor([0, 1, 2, 3, 5]).repeat(200)
    fresh = torch.randn(1000, 1, generator=torch.Generator().manual_seed(1))
    drawn = encodings.mixed_in(fresh, wanted, torch.Generator().manual_seed(2))
    for label, low, high in ((0, -51, -44), (3, 44, 61)):
        own = drawn[wanted == label]
        near = own.abs() > 20
        assert 0.4 < near.float().mean() < 0.6
        assert low < own[near].min() < own[near].max() < high
        assert torch.equal(own[~near], fresh[wanted == label][~near])
    for label in (1, 2, 5):
        assert torch.equal(drawn[wanted == label], fresh[wanted == label])


def test_encodings_are_kept_in_the_file(teacher_run: Path, tmp_path: Path) -> None:
    path = train(teacher_run, "keflow-samples", generators=1).directory / "generator-0.safetensors"
    generator, labels = load_generator(path), torch.arange(10)
    assert generator.spec.encoded == 640
    assert encode_generator(generator) == path.read_bytes()
    plain, near = (generator.draw(10, torch.Generator().manual_seed(0), labels=given) for given in (None, labels))
    changed = (plain != near).any(dim=1)
    assert 0 < int(changed.sum()) < 10
    tensors, metadata = read_safetensors(path)
    tensors["encodings.labels"] += 1
    (tmp_path / "wrong.safetensors").write_bytes(encode_safetensors(tensors, metadata))
    with pytest.raises(ArtifactError, match="labels of encodings"):
        load_generator(tmp_path / "wrong.safetensors")


@pytest.mark.parametrize(("way", "widen"), [("kegnet", 1.5), ("keflow-nice_affine", 2.0), ("dafl", 1.0)])
def test_students_get_noise_of_a_larger_deviation_than_generators(way: str, widen: float, teacher_run: Path) -> None:
    directory = train(teacher_run, way, generators=1).directory
    generator = load_generator(directory / "generator-0.safetensors")
    assert generator.spec.widen == widen
    labels, rng = torch.arange(10).repeat(2), torch.Generator().manual_seed(4)
    wide = GeneratorMix([generator]).sample(labels, rng, widened=True)
    same = generator(generator.draw(20, rng.manual_seed(4), widen), labels)
    assert torch.equal(wide, same)
    if way != "dafl":
        directory = train(teacher_run, way, generators=1, widen=3.0, name="wide").directory
        assert load_generator(directory / "generator-0.safetensors").spec.widen == 3.0


def test_students_of_generators_get_redrawn_images(teacher_run: Path) -> None:
    train(teacher_run, "kegnet", generators=1)

    def learned(name: str, **options: Any) -> dict[str, Any]:
        options = {"data": "generators/kegnet", "steps": 2, "threads": 1, "name": name, **options}
        outcome = api.distill(run=teacher_run, **options)
        assert not [name for name in outcome.manifest.metrics if name.startswith("estimated")]
        settings: dict[str, Any] = outcome.manifest.metrics["settings"]
        return settings

    assert not learned("plain")["redraw"], "digits are neither drawings on black nor on white"
    assert learned("redrawn", redraw=True)["redraw"]
    made = api.generate(run=teacher_run, images_per_class=2, threads=1)
    images = TransferSetImages.of(RunDir(teacher_run).artifact_at(made.directory))
    assert (images.learned_from, images.low_diversity, images.makes_images) == ("trained generators", True, False)
    live = LiveImages.of(live_method("dafl"), live_method("dafl").config(), MethodInputs())
    assert (live.learned_from, live.low_diversity, live.makes_images) == ("dafl", False, True)
    students = teacher_run / "students"
    assert sha256s(students / "plain")["model.safetensors"] != sha256s(students / "redrawn")["model.safetensors"]


@pytest.mark.parametrize(("brightness", "redraw"), [(0.13, True), (0.87, True), (0.3, False), (0.5, False)])
def test_drawings_are_redrawn_by_default(brightness: float, redraw: bool) -> None:
    teacher = Classifier(ClassifierSpec("lenet5", (1, 32, 32), tuple("abc"), (brightness,), (0.3,)))
    given = DistillConfig()
    data = Input("data", "mnist (train)", "0" * 64)
    noise, real = NoiseImages.named("noise:normal"), RealImages.of("mnist", data, "distillation")
    manifest = Manifest("generator", "generators/kegnet", "train-generator", "0.1.0", {}, (), ())
    generators = GeneratorImages.of(Artifact(Path("generators/kegnet"), "generators/kegnet", manifest, {}))
    assert fill_in(given, generators, teacher, teacher).redraw == redraw
    assert not fill_in(given, noise, teacher, teacher).redraw
    settings = fill_in(DistillConfig(redraw=True), real, teacher, teacher)
    assert settings.augmenter(teacher, 0).background == float(brightness >= 0.5)


def test_presets_set_what_is_not_given(normalized_teacher: Classifier) -> None:
    for preset, settings in PRESETS.items():
        config = generator_method("kegnet").config(preset=preset)
        training = generator_method("kegnet").build_training(normalized_teacher, config, 0, None)
        assert training.lr == settings["lr"]
    assert PRESETS["diverse"] != PRESETS["mnist"]
    assert loss_of(normalized_teacher, "kegnet", preset="fashion", beta=0.0, decoder_layers=1) == pytest.approx(
        loss_of(normalized_teacher, "kegnet", preset="mnist")
    )


def test_few_images_are_evenly_spread(tmp_path: Path, teacher_run: Path) -> None:
    first = train(teacher_run, "keflow-samples", samples=13, name="a").manifest
    assert first.real_data[0]["purpose"] == "13 samples"
    assert first.real_data[0]["spec"] == "digits"


# ---- the published data sets that have presets, on small files of their formats --------------------------------------


@pytest.mark.usefixtures("known_checksums")
@pytest.mark.slow
@pytest.mark.parametrize(
    ("preset", "spec", "shape"), [("fashion", "fashion_mnist", (1, 32, 32)), ("svhn", "svhn", (3, 32, 32))]
)
def test_presets_run_on_small_files_of_their_data(
    preset: str, spec: str, shape: tuple[int, int, int], tmp_path: Path
) -> None:
    rng = np.random.default_rng(0)
    labels = np.arange(40, dtype=np.uint8) % 10
    for part in ("train", "test"):
        if spec == "svhn":
            pixels = rng.integers(0, 256, (32, 32, 3, 40), dtype=np.uint8)
            savemat(tmp_path / f"{part}_32x32.mat", {"X": pixels, "y": labels[:, None]})
    if spec == "fashion_mnist":
        arrays = {part: rng.integers(0, 256, (40, 28, 28), dtype=np.uint8) for part in ("train", "test")}
        write_idx(tmp_path / "FashionMNIST" / "raw", arrays, dict.fromkeys(arrays, labels))
    run = tmp_path / "run"
    size = "x".join(map(str, shape))
    api.train(run=run, data=spec, data_dir=tmp_path, model="resnet14", input_size=size, epochs=1, threads=1)
    quick = {**QUICK, "generators": 1}
    made = api.train_generator(run=run, method="kegnet", preset=preset, **quick).manifest
    assert made.config["preset"] == preset
    flow = {"flow": "realnvp", "samples": 10, "data_dir": tmp_path}
    flows = api.train_generator(run=run, method="keflow", **flow, **quick).manifest
    assert flows.real_data[0]["spec"] == spec
    api.compress(run=run, preset="bdnf-3", threads=1)
    student = api.distill(
        run=run,
        data="kegnet",
        student="compressed/bdnf-3",
        batch_norm="frozen-affine",
        steps=2,
        batch_size=8,
        threads=1,
    )
    scores = api.evaluate(run=run, artifact=student.manifest.label, data_dir=tmp_path, threads=1).manifest.metrics
    assert scores["num_images"] == 40


@pytest.mark.parametrize("method", generator_names())
def test_terms_are_logged_between_evaluations(method: str, normalized_teacher: Classifier) -> None:
    chosen = generator_method(method)
    training = chosen.build_training(normalized_teacher, chosen.config(batch_size=8), 0, None)
    training.network.train()
    losses = [float(training.loss().detach()) for _ in range(3)]
    row = training.log.on_step(training, 3)
    assert len(row) >= 2
    assert sum(row.values()) == pytest.approx(sum(losses) / 3, rel=1e-3, abs=1e-4)
    assert training.log.on_step(training, 4) == {}
