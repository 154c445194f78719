"""The pipeline with few steps on real MNIST: a student of synthetic images classifies most real digits correctly."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import torch

from kdextract import api
from kdextract.data.load import load_data
from kdextract.models.classifier import load_classifier

DATA_DIR = Path(os.environ.get("KDX_DATA_DIR") or "no-data-dir")
IMAGES_PER_CLASS = 30

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not (DATA_DIR / "MNIST" / "raw" / "train-images-idx3-ubyte").is_file(),
        reason="no MNIST: KDX_DATA_DIR does not name a directory that holds MNIST/raw",
    ),
]


def errors_of_class_means() -> float:
    """Return the share of errors on test images of a classifier that predicts the class of the nearest mean image."""
    train, test = (load_data("mnist", split, DATA_DIR) for split in ("train", "test"))
    means = torch.stack([train.images[train.labels == label].float().mean(0) for label in range(10)])
    nearest = torch.cdist(test.images.flatten(1).float(), means.flatten(1)).argmin(1)
    return float((nearest != test.labels).float().mean())


def test_chain_on_mnist(tmp_path: Path) -> None:
    run, data = tmp_path / "run", {"data_dir": DATA_DIR}
    of_means = errors_of_class_means()
    teacher = api.train(run=run, model="lenet", data="mnist", epochs=1, **data)
    assert teacher.manifest.metrics["num_images"] == 57_000
    assert teacher.manifest.metrics["validation_images"] == 3000
    assert 1 - teacher.manifest.metrics["train_accuracy"] < of_means

    statistics = api.compute_stats(run=run, covariance_rank=30, max_units=2000, spectral=False, **data)
    assert statistics.manifest.metrics["smallest_class"] == 5421, "the number of fives among MNIST's training images"
    assert statistics.manifest.metrics["layers_without_covariance"] == ["conv1"]
    assert statistics.manifest.budget["teacher_queries_by_purpose"]["statistics"] == 60_000

    made = api.optimize_dataset(run=run, objective="all_layers", images_per_class=IMAGES_PER_CLASS)
    images = np.load(made.directory / "images.npy")
    assert images.shape == (10 * IMAGES_PER_CLASS, 1, 32, 32)
    assert np.bincount(np.load(made.directory / "labels.npy")).tolist() == [IMAGES_PER_CLASS] * 10
    noise = torch.rand((1000, 1, 32, 32), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        answers = load_classifier(teacher.directory / "model.safetensors").frozen()(noise).argmax(1)
    of_noise = 1 - float((answers == torch.arange(1000) % 10).float().mean())
    assert 1 - made.manifest.metrics["teacher_agrees_with_label"] < 0.5 * of_noise

    student = api.distill(run=run, student="lenet_half", data="all_layers", steps=200, batch_size=128)
    assert student.manifest.needs == "teacher+statistics"
    assert not student.manifest.real_data

    names = ("teacher", "students/lenet_half")
    of_teacher, of_student = (api.evaluate(run=run, artifact=name, **data).manifest.metrics for name in names)
    assert of_teacher["num_images"] == 10_000
    assert 1 - of_teacher["accuracy"] < 0.5 * of_means
    assert 1 - of_student["accuracy"] < 0.5 * of_noise
