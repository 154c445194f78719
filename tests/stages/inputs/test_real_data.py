"""Real data that does not fit a classifier is detected before any work: classes, their order, size and channels."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits

from kdextract import api
from kdextract.data.real_data import RealData
from kdextract.errors import ConfigError
from kdextract.stages import STAGES
from kdextract.stages.inputs.real_data import images_for
from kdextract.stages.running.runner import run_stage
from kdextract.storage.artifacts import read_manifest
from kdextract.training.progress import Reporter

NAMES = ("nought", "one", "two")


def given(
    shape: tuple[int, int, int], names: tuple[str, ...] | None, data_shape: tuple[int, ...], data_names: tuple[str, ...]
) -> tuple[torch.Tensor, list[str]]:
    """Return the data that a classifier gets from data of this shape with these names, and the printed lines."""
    lines: list[str] = []
    context: Any = SimpleNamespace(reporter=SimpleNamespace(line=lines.append))
    images = torch.arange(2 * int(np.prod(data_shape)), dtype=torch.int64).remainder(256).to(torch.uint8)
    data = RealData(images.view(2, *data_shape), torch.zeros(2, dtype=torch.int64), data_names)
    return images_for(shape, names, data, "folder:x", context), lines


def test_fitting_data_is_unchanged_and_nothing_is_printed() -> None:
    images, lines = given((1, 4, 4), NAMES, (1, 4, 4), NAMES)
    assert images.flatten().tolist() == list(range(32))
    assert lines == []


@pytest.mark.parametrize(
    ("data_shape", "shape", "says"),
    [
        ((3, 28, 28), (1, 32, 32), "images of 3x28x28 are given to a classifier of 1x32x32: resized, made grey"),
        ((1, 28, 28), (3, 28, 28), "images of 1x28x28 are given to a classifier of 3x28x28: made coloured"),
        ((1, 8, 8), (1, 32, 32), "images of 1x8x8 are given to a classifier of 1x32x32: resized"),
    ],
)
@pytest.mark.parametrize("names", [None, NAMES])
def test_other_sizes_and_channels_are_reported_in_one_line(
    data_shape: tuple[int, ...], shape: tuple[int, int, int], says: str, names: tuple[str, ...] | None
) -> None:
    images, lines = given(shape, names, data_shape, NAMES)
    assert images.shape == (2, *shape)
    assert lines == [f"folder:x: {says}"]


REFUSED: dict[str, tuple[tuple[str, ...], tuple[str, ...], str]] = {
    "fewer": (NAMES, ("nought", "one"), r"has 2 classes, the classifier 3; only the classifier has 'two'$"),
    "more": (NAMES, (*NAMES, "three"), r"has 4 classes, the classifier 3; only the data has 'three'$"),
    "others": (NAMES, tuple("abcde"), r"has 5 classes, the classifier 3; only the data has 'a', 'b', 'c'$"),
    "fewer numbers": (NAMES, ("0", "1"), r"has 2 classes, the classifier 3$"),
    "more than numbers": (("0", "1"), NAMES, r"has 3 classes, the classifier 2$"),
    "another order": (NAMES, ("one", "nought", "two"), r"another order .*'one' is number 0 in the data, and number 1"),
    "a shared name elsewhere": (NAMES, ("one", "b", "c"), r"another order .*'one' is number 0 in the data"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_other_classes_are_refused(case: str) -> None:
    wanted, names, says = REFUSED[case]
    with pytest.raises(ConfigError, match=rf"^folder:x {says}" if says.startswith("has ") else says) as caught:
        given((1, 4, 4), wanted, (1, 4, 4), names)
    assert caught.value.exit_code == 3
    images, lines = given((1, 4, 4), None, (1, 4, 4), names)
    assert (len(images), lines) == (2, []), "classes do not matter where labels are not used"


@pytest.mark.parametrize("names", [("0", "1", "2"), ("3", "1", "0")])
def test_class_names_that_are_numbers_match_any_names(names: tuple[str, ...]) -> None:
    assert given((1, 4, 4), NAMES, (1, 4, 4), names)[1] == []
    assert given((1, 4, 4), names, (1, 4, 4), NAMES)[1] == []


def test_other_names_for_as_many_classes_are_reported() -> None:
    wanted, names = ("plane", "car", "bird", "cat", "deer"), ("airplane", "car", "b", "c", "d")
    assert given((1, 4, 4), wanted, (1, 4, 4), names)[1] == [
        "folder:x: class names differ from those of the classifier: 'airplane' counts as 'plane', "
        "'b' counts as 'bird', 'c' counts as 'cat' and 1 more"
    ]


def test_tables_and_images_are_distinguished_before_classes() -> None:
    for names in (None, NAMES):
        with pytest.raises(ConfigError, match="rows of 4 features cannot be given to a classifier of images of 1x4x4"):
            given((1, 4, 4), names, (1, 1, 4), ("a", "b"))


# ---- stages ----------------------------------------------------------------------------------------------------


def save_digits(path: Path, names: tuple[str, ...] | None, numbers: tuple[int, ...]) -> str:
    """Write scikit-learn's digits of these numbers, as classes 0, 1 ... of these names."""
    digits = load_digits()
    labels = np.full(len(digits.target), -1)
    for label, number in enumerate(numbers):
        labels[digits.target == number] = label
    images = np.rint(digits.images[labels >= 0] * (255 / 16)).astype(np.uint8)
    extra = {} if names is None else {"class_names": np.array(names)}
    np.savez(path, images=images, labels=labels[labels >= 0], **extra)
    return f"npz:{path}"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A teacher of three digits with names, and a transfer set; beside it are archives of other digits."""
    folder = tmp_path_factory.mktemp("fit")
    spec = save_digits(folder / "own.npz", NAMES, (0, 1, 2))
    save_digits(folder / "order.npz", ("two", "one", "nought"), (2, 1, 0))
    save_digits(folder / "fewer.npz", NAMES[:2], (0, 1))
    save_digits(folder / "more.npz", (*NAMES, "three"), (0, 1, 2, 3))
    save_digits(folder / "numbers.npz", None, (0, 1, 2))
    api.train(run=folder / "run", data=spec, epochs=1, threads=1)
    api.optimize_dataset(run=folder / "run", objective="structured_noise", name="made", images_per_class=2, threads=1)
    return folder / "run"


STAGES_WITH_LABELS: dict[str, Callable[..., Any]] = {
    "compute-stats": lambda run, data: api.compute_stats(run=run, data=data, spectral=False, threads=1),
    "evaluate": lambda run, data: api.evaluate(run=run, artifact="teacher", data=data, name="x", threads=1),
    "neighbours": lambda run, data: api.neighbours(run=run, data=data, name="x", threads=1),
    "train-generator": lambda run, data: api.train_generator(
        run=run, method="keflow", samples=3, data=data, steps=1, name="x", threads=1
    ),
}


@pytest.mark.parametrize(
    ("data", "says"),
    [
        ("order", "has its classes in another order"),
        ("fewer", "has 2 classes, the classifier 3; only the classifier has 'two'"),
        ("more", "has 4 classes, the classifier 3; only the data has 'three'"),
    ],
)
@pytest.mark.parametrize("stage", STAGES_WITH_LABELS)
def test_stages_that_use_labels_refuse_other_classes(
    stage: str, data: str, says: str, run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*arguments: Any, **options: Any) -> None:
        raise AssertionError("work has begun")

    for work in (
        "training.supervised.predict",
        "synthesis.statistics.recorded.compute_statistics",
        "synthesis.nearest_real.nearest",
        "training.loop.take_steps",
    ):
        monkeypatch.setattr(f"kdextract.{work}", never)
    before = set(run.rglob("manifest.json"))
    with pytest.raises(ConfigError, match=says):
        STAGES_WITH_LABELS[stage](run, f"npz:{run.parent / data}.npz")
    assert set(run.rglob("manifest.json")) == before


def test_a_student_may_be_trained_on_images_of_other_classes(run: Path) -> None:
    for name in ("order", "fewer", "more"):
        spec = f"npz:{run.parent / name}.npz"
        made = api.distill(run=run, data=spec, name=name, student="lenet_half", steps=1, threads=1)
        assert read_manifest(made.directory).real_data[0]["spec"] == spec


def test_classes_without_names_are_those_of_the_teacher(run: Path) -> None:
    spec = f"npz:{run.parent / 'numbers'}.npz"
    own, numbers = (
        api.evaluate(run=run, artifact="teacher", data=data, name=name, threads=1).manifest.metrics
        for name, data in (("own", None), ("numbers", spec))
    )
    assert numbers["accuracy"] == own["accuracy"]
    assert list(numbers["per_class_accuracy"]) == list(NAMES)


@pytest.mark.parametrize(
    ("stage", "options"),
    [
        ("train", {"epochs": 1, "force": True}),
        ("compute-stats", {"spectral": False, "covariance_rank": 2}),
        ("evaluate", {"artifact": "teacher", "name": "said"}),
        ("neighbours", {"artifact": "made", "name": "said"}),
        ("distill", {"name": "said", "student": "lenet_half", "steps": 1}),
        ("train-generator", {"method": "keflow", "samples": 3, "method_options": {"steps": 1}, "name": "said"}),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_every_stage_reports_once_that_images_are_resized(
    stage: str, options: dict[str, Any], run: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    spec = f"npz:{run.parent / 'own'}.npz"
    entry = STAGES[stage]
    run_stage(entry, entry.config(run=run, data=spec, threads=1, **options), Reporter(terminal=False))
    said = [line for line in capfd.readouterr().err.splitlines() if line.startswith("npz:")]
    assert said == [f"{spec}: images of 1x8x8 are given to a classifier of 1x32x32: resized"]
