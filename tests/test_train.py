"""Training of teachers: what is set aside, and what is learned from."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

import kdextract
from kdextract.classifier import load_classifier
from kdextract.images import fit_images
from kdextract.stage_runner import Outcome
from kdextract.stages.train import _split
from kdextract.training import predict

COUNT = 200


@pytest.fixture
def images() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (COUNT, 8, 8), dtype=np.uint8)


def train(directory: Path, images: np.ndarray, validation: float) -> Outcome:
    labels = (images[:, :4].mean((1, 2)) > images[:, 4:].mean((1, 2))).astype(np.int64)
    directory.mkdir()
    file = directory / "data.npz"
    np.savez(file, x_train=images, y_train=labels, x_test=images[:20], y_test=labels[:20])
    return kdextract.train(
        run=directory / "run", data=f"npz:{file}", model="lenet_half", epochs=2, threads=1, validation=validation
    )


@pytest.mark.parametrize("share", [0.0, 0.05, 0.5])
def test_the_split_is_whole_and_disjoint(share: float) -> None:
    learned, aside = _split(COUNT, share, seed=3)
    assert len(aside) == round(share * COUNT)
    assert sorted([*learned.tolist(), *aside.tolist()]) == list(range(COUNT))
    assert not torch.equal(learned, _split(COUNT, share, seed=4)[0]) or share == 0


def test_images_that_are_set_aside_leave_no_trace_in_the_teacher(tmp_path: Path, images: np.ndarray) -> None:
    """Other pixels there (brightness kept, so that labels are), the same teacher to the byte."""
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


def test_nothing_set_aside_means_no_validation_accuracy(tmp_path: Path, images: np.ndarray) -> None:
    metrics = train(tmp_path / "a", images, validation=0.0).manifest.metrics
    assert metrics["num_images"] == COUNT
    assert not [name for name in metrics if name.startswith("validation")]
