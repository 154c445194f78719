"""`kdx extend`: classes added to a classifier without its data, once and again, and what is refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import Crash, Here, error_of, sha256s
from sklearn.datasets import load_digits

from kdextract import api
from kdextract.errors import ArtifactError, ConfigError, UsageError
from kdextract.models.classifier import load_classifier
from kdextract.stages.inputs.class_selection import images_of_classes, parse_classes
from kdextract.stages.outputs.task_scores import TaskScores
from kdextract.storage.artifacts import NEEDS, read_manifest, with_new_data
from kdextract.storage.run_dir import RunDir
from kdextract.training import extension
from kdextract.training.crossing import Crossings
from kdextract.training.extension import ALONE_NOT_NEW_WEIGHT

OLD, NEW, THIRD = (0, 1, 2, 3), (4, 5), (6, 7)
QUICK: dict[str, Any] = {"steps": 2, "batch_size": 8, "threads": 1, "method": "structured_noise", "pool": 200}


def save(path: Path, numbers: tuple[int, ...], channels: int = 1, names: tuple[str, ...] | None = None) -> str:
    """Write scikit-learn's digits of these numbers; their classes have the numbers as names, or `names`."""
    digits = load_digits()
    members = np.isin(digits.target, numbers)
    images = np.rint(digits.images[members] * (255 / 16)).astype(np.uint8)
    labels = digits.target[members]
    if channels == 3:
        images = np.repeat(images[:, None], 3, 1)
    extra = {}
    if names is not None:
        labels = np.searchsorted(numbers, labels)
        extra = {"class_names": np.array(names)}
    np.savez(path, images=images, labels=labels, **extra)
    return f"npz:{path}"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a run whose teacher knows four digits and whose training data is gone, and data of others."""
    folder = tmp_path_factory.mktemp("extend")
    old = save(folder / "old.npz", OLD)
    save(folder / "new.npz", NEW)
    save(folder / "third.npz", THIRD)
    api.train(run=folder / "run", model="lenet", data=old, epochs=12, threads=1)
    api.optimize_dataset(run=folder / "run", objective="structured_noise", name="drawn", images_per_class=60, threads=1)
    api.train_generator("kegnet", run=folder / "run", generators=1, steps=1, batch_size=8, threads=1)
    (folder / "old.npz").unlink()
    return folder


@pytest.fixture
def run(made: Path, tmp_path: Path) -> Path:
    """A copy of the run; the data is beside it."""
    return Path(shutil.copytree(made, tmp_path / "copy")) / "run"


def spec(run: Path, name: str) -> str:
    return f"npz:{run.parent / name}.npz"


def extend(run: Path, data: str = "new", **options: Any) -> Any:
    return api.extend(run=run, data=spec(run, data), **{**QUICK, **options})


# ---- what it is for ------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_old_classes_are_kept_without_their_data(run: Path) -> None:
    """Fine-tuning forgets them, and so does the term on new images alone: they answer with new classes only."""
    teacher = sha256s(run / "teacher")
    usual = {"steps": 150, "batch_size": 32, "test_data": "digits"}
    found = {
        "synthetic": extend(run, name="synthetic", **usual),
        "lwf": extend(run, name="lwf", old_images="none", method=None, pool=None, **usual),
        "tuned": extend(run, name="tuned", old_images="none", method=None, pool=None, lwf=False, **usual),
    }
    metrics = {name: outcome.manifest.metrics for name, outcome in found.items()}
    for name in ("lwf", "tuned"):
        assert metrics["synthetic"]["old_accuracy"] > metrics[name]["old_accuracy"] + 0.25
        assert metrics["synthetic"]["accuracy"] > metrics[name]["accuracy"] + 0.1
        assert metrics[name]["source"] == "none"
        assert metrics[name]["num_old_images"] == 0
        assert "held_out_agreement" not in metrics[name]
    assert all(figures["new_accuracy"] > 0.8 for figures in metrics.values())
    assert metrics["tuned"]["old_accuracy"] <= metrics["lwf"]["old_accuracy"] + 0.1
    assert sha256s(run / "teacher") == teacher
    assert found["synthetic"].manifest.needs == "teacher+new-data"


@pytest.mark.parametrize(
    ("options", "joins"),
    [
        ({}, True),
        ({"classes": "4"}, False),
        pytest.param({"old_images": "noise:normal", "method": None, "pool": None}, True, marks=pytest.mark.slow),
        pytest.param({"old_images": "digits", "method": None, "pool": None}, False, marks=pytest.mark.slow),
        pytest.param({"old_images": "none", "method": None, "pool": None}, False, marks=pytest.mark.slow),
    ],
)
def test_new_images_are_joined_if_there_are_two_new_classes_and_synthetic_images(
    options: dict[str, Any], joins: bool, run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []
    joined = Crossings.__call__
    monkeypatch.setattr(Crossings, "__call__", lambda self, *batch: (calls.append(batch), joined(self, *batch))[1])
    extend(run, **options)
    assert len(calls) == (2 if joins else 0)


@pytest.mark.parametrize(
    ("options", "weight"),
    [
        ({}, 1.0),
        ({"classes": "4"}, ALONE_NOT_NEW_WEIGHT),
        ({"old_images": "digits", "method": None, "pool": None}, 1.0),
    ],
)
def test_only_synthetic_images_alone_need_a_large_weight_against_new_classes(
    options: dict[str, Any], weight: float, run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the large weight and real old images, a network of CIFAR-10 took all new images for old ones."""
    weights = []
    loss = extension.old_images_loss
    monkeypatch.setattr(extension, "old_images_loss", lambda *given: (weights.append(given[2]), loss(*given))[1])
    extend(run, **options)
    assert weights == [weight] * 2


def test_two_extensions_one_after_the_other(run: Path) -> None:
    first = extend(run, name="first", test_data="digits")
    second = extend(run, "third", artifact="extended/first", name="second", test_data="digits")
    before, after = (load_classifier(outcome.directory) for outcome in (first, second))
    assert after.spec.class_names == tuple("01234567")
    assert second.manifest.metrics["old_classes"] == before.num_classes == 6
    assert second.manifest.inputs[0].path == "extended/first"
    scores = json.loads((second.directory / "scores.json").read_text())
    assert [task["classes"] for task in scores["tasks"]] == [list("0123"), list("45"), list("67")]
    assert [row["stage"] for row in scores["rows"]] == ["teacher", "extended/first", "extended/second"]
    assert [sum(share is None for share in row["tasks"]) for row in scores["rows"]] == [2, 1, 0]
    earlier = json.loads((first.directory / "scores.json").read_text())["rows"]
    assert [row["tasks"][:2] for row in scores["rows"][:2]] == [row["tasks"] for row in earlier]
    metrics = second.manifest.metrics
    counts = [sum(load_digits().target[4::5] == digit) for digit in range(8)]
    assert sum(counts) > 0
    last = scores["rows"][-1]
    assert last["all"] == metrics["accuracy"]
    assert last["tasks"][2] == metrics["new_accuracy"]
    evaluated = api.evaluate("extended/second", run=run, data="digits", threads=1).manifest.metrics
    assert evaluated["accuracy"] == metrics["accuracy"]
    assert set(evaluated["per_class_accuracy"]) == set("01234567")
    known = first.manifest.metrics
    assert evaluated["teacher_accuracy"] == scores["rows"][0]["all"]
    assert known["num_parameters"] < metrics["num_parameters"]
    assert second.picture("scores.png").size[1] > first.picture("scores.png").size[1]


def test_an_extended_classifier_is_a_teacher_like_any_other(run: Path) -> None:
    first = extend(run, name="first")
    exported = api.export("extended/first", run=run, format="safetensors", threads=1)
    card = (exported.directory / "README.md").read_text()
    assert "**New classes.** 4, 5." in card
    assert "real images of the classes that were added" in card
    again = run.parent / "again"
    api.import_model(model=str(first.directory), run=again, threads=1)
    api.distill(run=again, student="half", method="structured_noise", pool=200, steps=1, batch_size=8, threads=1)
    second = extend(run, "third", artifact=str(first.directory / "model.safetensors"), name="second")
    assert load_classifier(second.directory).num_classes == 8
    with pytest.raises(UsageError, match="name data with --data"):
        api.evaluate("extended/first", run=run, threads=1)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("model", ["lenet5_bn", "hinton800"])
def test_channels_and_networks(channels: int, model: str, tmp_path: Path) -> None:
    old = save(tmp_path / "old.npz", (0, 1), channels, ("nought", "one"))
    new = save(tmp_path / "new.npz", (2,), 4 - channels, ("two",))
    size = f"{channels}x32x32" if model == "lenet5_bn" else f"{channels}x12x12"
    api.train(run=tmp_path / "run", model=model, data=old, input_size=size, epochs=1, threads=1)
    made = api.extend(run=tmp_path / "run", data=new, **QUICK)
    classifier = load_classifier(made.directory)
    assert classifier.spec.class_names == ("nought", "one", "two")
    assert classifier.input_shape[0] == channels, "images of other channels are converted, as everywhere"


# ---- where old images come from ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("old_images", "role", "needs"),
    [
        ("transfer-sets/drawn", "transfer-set", "teacher+new-data"),
        ("generators/kegnet", "generator", "teacher+new-data"),
        ("noise:normal", None, "teacher+new-data"),
        ("real", "data", "teacher+data"),
    ],
)
def test_old_images_of_every_kind(old_images: str, role: str | None, needs: str, run: Path) -> None:
    if old_images == "real":
        old_images = save(run.parent / "real.npz", OLD)
    made = extend(run, method=None, pool=None, old_images=old_images, name="made")
    roles = [entry.role for entry in made.manifest.inputs]
    assert roles == ["classifier", "new-data", *([] if role is None else [role])]
    assert made.manifest.needs == needs
    purposes = {entry["purpose"] for entry in made.manifest.real_data}
    assert purposes == {"new classes"} | ({"distillation"} if role == "data" else set())
    assert 0 <= made.manifest.metrics["held_out_agreement"] <= 1


@pytest.mark.parametrize("method", ["dfq", "deep_dream"])
def test_live_methods_make_old_images(method: str, run: Path) -> None:
    small: dict[str, Any] = {"generator_batch": 6, "student_steps": 1} if method == "dfq" else {"pixel_steps": 2}
    small |= {"pool_batch": 8} if method == "deep_dream" else {}
    made = extend(run, method=method, pool=None, name="made", **small)
    assert made.manifest.metrics["source"] == method
    assert made.manifest.metrics["num_old_images"] > 0
    assert "grid.png" in made.files
    assert made.manifest.budget["student_steps"] == 2
    asked = made.manifest.budget["teacher_queries_by_purpose"]
    assert asked["targets"] >= 2 * 2 * 8, "old and new images of both steps"
    assert asked["synthesis"] > 0


def test_statistics_of_the_run_are_those_of_its_teacher_alone(run: Path) -> None:
    extend(run, name="first")
    with pytest.raises(ConfigError, match=r"needs batch normalization in .*first"):
        extend(run, "third", artifact="extended/first", method="deep_inversion", pool=None, name="x")
    with pytest.raises(ConfigError, match=r"targets of shape|has 4"):
        extend(run, "third", artifact="extended/first", old_images="drawn", method=None, pool=None, name="x")


def test_needs_of_combinations() -> None:
    assert with_new_data("", "teacher") == "teacher+new-data"
    assert with_new_data("teacher+new-data", "teacher+statistics") == "teacher+statistics+new-data"
    assert with_new_data("teacher+samples+new-data", "teacher") == "teacher+samples+new-data"
    assert with_new_data("teacher+data", "teacher") == "teacher+data"
    assert {with_new_data(value) for value in NEEDS} <= set(NEEDS)


# ---- what is recorded ----------------------------------------------------------------------------------------------


def test_test_data_is_read_only_if_it_is_named_and_changes_nothing_else(run: Path) -> None:
    without = extend(run, name="without")
    named = extend(run, name="named", test_data="digits")
    assert [entry["spec"] for entry in without.manifest.real_data] == [spec(run, "new")]
    assert [entry["spec"] for entry in named.manifest.real_data] == [spec(run, "new"), "digits"]
    assert "accuracy" not in without.manifest.metrics
    files = [sha256s(outcome.directory) for outcome in (without, named)]
    assert files[0]["model.safetensors"] == files[1]["model.safetensors"]
    assert files[0]["metrics.jsonl"] == files[1]["metrics.jsonl"]
    rows = json.loads((without.directory / "scores.json").read_text())["rows"]
    assert [(row["measured_on"], row["all"]) for row in rows] == [("held-out images", None)]
    assert rows[0]["tasks"][0] == without.manifest.metrics["held_out_agreement"]
    assert rows[0]["tasks"][1] == without.manifest.metrics["held_out_new_accuracy"]


def test_images_that_are_set_aside_are_not_learned_from(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from kdextract.training import sources

    drawn: set[bytes] = set()
    real = sources.ImagePool.sample

    def sample(self: Any, count: int) -> Any:
        batch = real(self, count)
        drawn.update((image * 255).round().to(torch.uint8).numpy().tobytes() for image in batch.images)
        return batch

    kept: list[torch.Tensor] = []
    held_out = sources.ImagePool.held_out

    def aside(self: Any, count: int) -> torch.Tensor:
        kept.append(held_out(self, count))
        return kept[-1]

    monkeypatch.setattr(sources.ImagePool, "sample", sample)
    monkeypatch.setattr(sources.ImagePool, "held_out", aside)
    extend(run, old_images="none", method=None, pool=None, steps=60)
    assert len(kept[0]) == 290 // 20
    assert len(drawn) > 250
    assert not {image.numpy().tobytes() for image in kept[0]} & drawn


def test_cached_changed_and_resumed(run: Path, saves_until_crash: Callable[[], list[int]]) -> None:
    options = {"steps": 8, "method": "dfq", "pool": 200, "generator_batch": 6, "student_steps": 2}
    made = extend(run, name="made", **options)
    assert extend(run, name="made", **options).status == "cached"
    with pytest.raises(ConfigError, match=r"lwf: True -> False"):
        extend(run, name="made", lwf=False, **options)
    before = sha256s(made.directory)
    shutil.rmtree(made.directory)
    left = saves_until_crash()
    for stop in (3, 3):
        left[0] = stop
        with pytest.raises(Crash):
            extend(run, name="made", **options)
    left[0] = 10_000
    resumed = extend(run, name="made", **options)
    assert resumed.manifest.budget["attempts"] == 3
    assert sha256s(resumed.directory) == before


def test_scores_that_are_malformed_are_refused(run: Path) -> None:
    path = run.parent / "scores.json"
    for text in ("", "[]", '{"tasks": [], "rows": [{}]}', '{"tasks": [], "rows": [{"tasks": [0.5], "all": null}]}'):
        path.unlink(missing_ok=True)
        path.write_text(text)
        with pytest.raises(ArtifactError, match=r"scores.json is malformed"):
            TaskScores.read(RunDir(run).file(path))


# ---- what is refused -----------------------------------------------------------------------------------------------


def test_refusals_are_one_line_and_write_nothing(run: Path, here: Here) -> None:
    shutil.rmtree(run / "generators")
    new, table = spec(run, "new"), "iris"
    both = save(run.parent / "both.npz", (3, 4))
    named = save(run.parent / "named.npz", (4, 5), names=("four", "five"))
    small = ("--steps", "1", "--threads", "1", "--run", str(run), "--data")
    for words, code, says in (
        ([both], 3, "class '3' of npz:"),
        ([named, "--classes", "six"], 2, "has no class 'six'"),
        ([named, "--classes", "four,,five"], 2, "names classes once each"),
        ([new, "--classes", "5-4"], 2, "no range of classes"),
        ([new, "--classes", "2"], 3, "has no images of class '2'"),
        ([table], 3, "rows of 4 features cannot be given to a classifier of images"),
        ([new, "--old-images", "none", "--method", "dfq"], 2, "exclude each other"),
        ([new, "--old-images", "drawn", "--method", "dfq"], 2, "--old-images and --method both name a source"),
        ([new, "--old-images", "nothing"], 2, "--old-images 'nothing' is no transfer set or generator"),
        ([new, "--pool", "3"], 2, "--pool has no effect on extend without --method"),
        ([new, "--test-data", new], 3, "has no images of class '0'"),
        ([new, "nothing"], 2, "no artifact 'nothing'"),
        (["npz:nothing.npz"], 4, "cannot read"),
    ):
        line = error_of(here("extend", *small, *words), code)
        assert says in line, line
    assert not (run / "extended").exists() or not [p for p in (run / "extended").iterdir() if p.name[0] != "."]
    error_of(here("extend", "--run", run), 2)
    error_of(here("extend", "--run", run.parent / "empty", "--data", new), 3)


class Labels:
    """What `images_of_classes` uses of a data set."""

    def __init__(self, names: tuple[str, ...], labels: list[int]) -> None:
        self.class_names, self.labels = names, torch.tensor(labels)


@pytest.mark.parametrize(
    ("names", "text", "chosen"),
    [
        (tuple("0123456789"), "5-9", tuple("56789")),
        (tuple("0123456789"), "9, 5,6", tuple("569")),
        (("cat", "dog", "emu"), "emu,cat", ("cat", "emu")),
        (("cat", "dog", "emu"), "1-2", ("dog", "emu")),
        (("cat", "dog", "emu"), "2", ("emu",)),
        (("5", "6", "7"), "5-7", ("5", "6", "7")),
        (("2", "1", "0"), "2", ("2",)),
        (("a-b", "0-1", "c"), "0-1", ("0-1",)),
        (("cat", "dog", "emu"), None, ("cat", "dog", "emu")),
    ],
)
def test_classes_by_name_or_number(names: tuple[str, ...], text: str | None, chosen: tuple[str, ...]) -> None:
    labels = list(range(len(names))) * 2
    found = images_of_classes(Labels(names, labels), text, "data")  # type: ignore[arg-type]
    assert found.names == chosen
    assert [names[labels[row]] for row in found.rows] == [chosen[label] for label in found.labels]
    assert len(found.rows) == 2 * len(chosen)


def test_classes_without_images_are_not_new() -> None:
    found = images_of_classes(Labels(("a", "b", "c"), [2, 2, 1]), None, "data")  # type: ignore[arg-type]
    assert found.names == ("b", "c")
    assert found.labels.tolist() == [1, 1, 0]
    assert parse_classes(None) is None


def test_classes_of_an_extended_classifier_are_found_by_name(run: Path) -> None:
    """A data set has its classes in the order of their names, an extended classifier in the order of their addition."""
    save(run.parent / "last.npz", (4, 5), names=("a four", "a five"))
    extend(run, "last", name="named")
    names = ("0", "1", "2", "3", "a five", "a four")
    data = save(run.parent / "all.npz", (0, 1, 2, 3, 4, 5), names=("0", "1", "2", "3", "a four", "a five"))
    classifier = load_classifier(run / "extended" / "named")
    assert set(classifier.spec.class_names) == set(names)
    swapped = save(run.parent / "swapped.npz", (0, 1, 2, 3, 4, 5), names=("3", "1", "2", "0", "a four", "a five"))
    right = api.evaluate("extended/named", run=run, data=data, name="right", threads=1).manifest.metrics
    wrong = api.evaluate("extended/named", run=run, data=swapped, name="wrong", threads=1).manifest.metrics
    assert list(right["per_class_accuracy"]) == list(classifier.spec.class_names)
    assert right["per_class_accuracy"]["1"] == wrong["per_class_accuracy"]["1"]
    assert wrong["confusion_matrix"][0] == right["confusion_matrix"][3]
    assert read_manifest(run / "evaluations" / "right").real_data[0]["spec"] == data
