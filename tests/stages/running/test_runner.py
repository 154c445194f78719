"""A command finds and hashes its inputs once, and uses the bytes whose hash it records."""

from __future__ import annotations

import collections
import dataclasses
import hashlib
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import sha256s

from kdextract import api
from kdextract.errors import ArtifactError, ConfigError
from kdextract.options.entries import config_from_options
from kdextract.stages import STAGES
from kdextract.stages.running.runner import run_stage
from kdextract.storage.artifacts import write_file
from kdextract.storage.run_dir import MODEL_FILE, RunDir
from kdextract.training.progress import Reporter

SMALL: dict[str, Any] = {"steps": 1, "batch_size": 8, "threads": 1}


@pytest.fixture(scope="module")
def full_run(finished_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that has an artifact of every kind that another command reads, and a verifier beside it."""
    folder = tmp_path_factory.mktemp("full")
    run = shutil.copytree(finished_run, folder / "run")
    api.train_generator("kegnet", run=run, generators=2, steps=1, batch_size=8, threads=1)
    api.generate("kegnet", run=run, images_per_class=1, threads=1)
    api.compress(run=run, threads=1)
    api.prune(run=run, name="smaller", criterion="fold", threads=1)
    api.train(run=folder / "other", epochs=1, seed=3, threads=1)
    for name in ("new", "newer"):
        images = np.random.default_rng(0).integers(0, 256, (30, 8, 8), dtype=np.uint8)
        np.savez(folder / f"{name}.npz", images=images, labels=np.zeros(30, int), class_names=np.array([name]))
    api.extend(run=run, data=f"npz:{folder / 'new.npz'}", old_images="none", name="more", **SMALL)
    return run


@pytest.fixture
def run(full_run: Path, tmp_path: Path) -> Path:
    """A copy of the run that a test may change."""
    shutil.copytree(full_run.parent, tmp_path / "copy")
    return tmp_path / "copy" / "run"


def verifier(run: Path) -> Path:
    return run.parent / "other" / "teacher" / MODEL_FILE


def commands(run: Path) -> dict[str, tuple[str, dict[str, Any]]]:
    """Return commands that read every kind of input, as (input, command, options)."""
    teacher = run / "teacher" / MODEL_FILE
    made = {"objective": "adaptive_deep_inversion", "student": "lenet_half", "images_per_class": 1}
    return {
        "data": ("train", {"run": run.parent / "new", "epochs": 1}),
        "data, transfer set": (
            "train",
            {"run": run.parent / "new", "epochs": 1, "augment": str(run / "transfer-sets" / "all_layers")},
        ),
        "a file": ("import_model", {"run": run.parent / "new", "model": str(run)}),
        "teacher, data": ("compute_stats", {"spectral": False, "covariance_rank": 2, "force": True}),
        "teacher, statistics": (
            "optimize_dataset",
            {"objective": "top_layer", "images_per_class": 1, "verifier": verifier(run)},
        ),
        "teacher, statistics, student": ("optimize_dataset", made),
        "teacher, samples": ("train_generator", {"method": "keflow", "samples": 10, **SMALL}),
        "teacher, generators": ("generate", {"images_per_class": 1, "name": "b", "verifier": verifier(run)}),
        "transfer set": ("distill", {"data": "transfer-sets/kegnet", "name": "b", **SMALL}),
        "transfer set by path": ("distill", {"data": str(run / "transfer-sets" / "kegnet"), "name": "b", **SMALL}),
        "generators": ("distill", {"data": "generators/kegnet", "name": "b", "verifier": verifier(run), **SMALL}),
        "real data": ("distill", {"data": "digits", "name": "b", **SMALL}),
        "a live method": ("distill", {"method": "auto", "name": "b", **SMALL}),
        "compressed": ("distill", {"data": "kegnet", "student": "compressed/tucker", "name": "b", **SMALL} | {
            "data": "transfer-sets/kegnet"}),
        "pruned": ("distill", {"data": "noise:normal", "student": "pruned/smaller", "name": "b", **SMALL}),
        "a teacher to prune": ("prune", {"data": "transfer-sets/kegnet"}),
        "a student to prune": ("prune", {"artifact": "students/lenet_half", "data": "noise:normal"}),
        "the teacher's file": (
            "distill",
            {"data": "noise:normal", "student": str(teacher), "name": "b", **SMALL},
        ),
        "teacher, new data, transfer set": (
            "extend",
            {"data": f"npz:{run.parent / 'new.npz'}", "old_images": "transfer-sets/kegnet", "name": "b", **SMALL},
        ),
        "an extended classifier": (
            "extend",
            {"artifact": "extended/more", "data": f"npz:{run.parent / 'newer.npz'}", "method": "auto", "name": "b",
             **SMALL},
        ),
        "a classifier": ("evaluate", {"force": True}),
        "the teacher": ("evaluate", {"artifact": "teacher"}),
        "a foreign file": ("evaluate", {"artifact": str(verifier(run))}),
        "a classifier to quantize, transfer set": ("quantize", {"data": "transfer-sets/all_layers"}),
        "neighbours": ("neighbours", {"artifact": "all_layers"}),
        "a student to export": ("export", {"format": "safetensors"}),
        "a teacher to export": ("export", {"artifact": "teacher", "format": "safetensors"}),
    }  # fmt: skip


SLOW = ("a classifier to quantize, transfer set", "data", "an extended classifier", "teacher, statistics, student")


@pytest.mark.parametrize(
    "what", [pytest.param(what, marks=pytest.mark.slow) if what in SLOW else what for what in commands(Path())]
)
def test_every_input_is_hashed_once(what: str, run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before inputs were resolved once, each file of a transfer set was hashed three times by one `distill`."""
    counts: collections.Counter[str] = collections.Counter()
    digest = hashlib.file_digest

    def count(stream: Any, algorithm: str) -> Any:
        counts[os.path.realpath(stream.name)] += 1
        return digest(stream, algorithm)

    name, options = commands(run)[what]
    monkeypatch.setattr(hashlib, "file_digest", count)
    outcome = getattr(api, name)(**{"run": run, "threads": 1, **options})
    assert outcome.status == "made"
    partial = (".staged", ".partial")
    hashed = {path: count for path, count in counts.items() if not Path(path).parent.name.endswith(partial)}
    assert set(hashed.values()) == {1}, hashed
    inputs = [entry for entry in outcome.manifest.inputs if entry.role != "data"]
    assert len(hashed) >= len({entry.path for entry in inputs})


REPLACED = {  # file -> the command whose options are in `commands`
    "teacher/model.safetensors": "transfer set",
    "transfer-sets/kegnet/images.npy": "transfer set",
    "transfer-sets/kegnet/targets.npy": "transfer set by path",
    "transfer-sets/all_layers/labels.npy": "data, transfer set",
    "transfer-sets/all_layers/images.npy": "neighbours",
    "generators/kegnet/generator-1.safetensors": "generators",
    "statistics/statistics.safetensors": "teacher, statistics",
    "students/lenet_half/model.safetensors": "a classifier",
    "compressed/tucker/model.safetensors": "compressed",
    "extended/more/model.safetensors": "an extended classifier",
    "extended/more/scores.json": "an extended classifier",
    "pruned/smaller/model.safetensors": "pruned",
    "../other/teacher/model.safetensors": "teacher, generators",
    "./teacher/model.safetensors": "a file",
    "././teacher/model.safetensors": "a teacher to export",
}


@pytest.mark.parametrize("how", ["replaced", "written to", "removed"])
@pytest.mark.parametrize("file", list(REPLACED))
def test_what_changes_after_it_was_hashed_is_not_used(file: str, how: str, run: Path) -> None:
    """Another process replaces an input between plan and execution: once, its bytes were used under the old hash."""
    name, options = commands(run)[REPLACED[file]]
    stage, path = STAGES[name.replace("_", "-")], run / file

    def plan_and_change(config: Any, place: RunDir) -> Any:
        planned = stage.plan(config, place)
        content = path.read_bytes()
        if how == "replaced":  # by the same bytes: what counts is that nobody knows them
            write_file(path, content)
        elif how == "written to":
            path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
        else:
            path.unlink()
        return planned

    config = config_from_options(stage.config, {"run": run, "threads": 1, **options})
    before = {str(p) for p in run.parent.rglob("manifest.json")}
    with pytest.raises(ArtifactError, match=r"was changed while the command ran|does not exist"):
        run_stage(dataclasses.replace(stage, plan=plan_and_change), config, Reporter(quiet=True))
    assert {str(p) for p in run.parent.rglob("manifest.json")} == before, "nothing was written"


def test_a_file_is_hashed_once_for_all_spellings_of_its_path(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(run)
    place = RunDir(run)
    typed = place.file(Path("teacher") / MODEL_FILE)
    assert typed.path == Path("teacher") / MODEL_FILE, "errors and records name what was typed"
    known = place.artifact(place.teacher()).file(MODEL_FILE)
    assert (known.sha256, known.state) == (typed.sha256, typed.state)
    with pytest.raises(ArtifactError, match=r"has no file model\.onnx"):
        place.artifact(place.teacher()).file("model.onnx")
    with pytest.raises(ArtifactError, match="nothing does not exist"):
        place.file(Path("nothing"))
    with pytest.raises(ArtifactError, match="teacher does not exist"):
        place.file(Path("teacher"))


def test_an_artifact_found_by_its_path_must_be_in_its_place_too(run: Path) -> None:
    (run / "students" / "lenet_half").rename(run / "students" / "moved")
    place = RunDir(run)
    moved = place.place("student", "moved")
    place.artifact_at(moved.directory)
    with pytest.raises(ArtifactError, match="renamed or moved"):
        place.artifact(moved)


def test_a_plan_made_before_the_run_existed_is_executed(run: Path) -> None:
    """The command plans before it makes a directory, and records the inputs that it found then."""
    plans: list[Any] = []
    stage = STAGES["train"]

    def plan(config: Any, place: RunDir) -> Any:
        plans.append(stage.plan(config, place))
        return plans[-1]

    config = config_from_options(stage.config, {"run": run.parent / "new", "epochs": 1, "threads": 1})
    outcome = run_stage(dataclasses.replace(stage, plan=plan), config, Reporter(quiet=True))
    assert len(plans) == 1
    assert outcome.plan is plans[0]
    again = run_stage(stage, config, Reporter(quiet=True))
    assert again.status == "cached"
    with pytest.raises(ConfigError, match="epochs: 1 -> 2"):
        run_stage(stage, dataclasses.replace(config, epochs=2), Reporter(quiet=True))


def test_a_cached_result_is_found_with_inputs_that_are_equal(run: Path) -> None:
    """An input that was replaced by equal bytes before the command began changes nothing."""
    before = sha256s(run / "students" / "lenet_half")
    write_file(run / "teacher" / MODEL_FILE, (run / "teacher" / MODEL_FILE).read_bytes())
    outcome = api.distill(run=run, data="all_layers", steps=20, student="lenet_half", threads=1, dry_run=True)
    assert outcome.status == "planned"
    forced = api.distill(run=run, data="all_layers", steps=20, student="lenet_half", threads=1, force=True)
    assert sha256s(forced.directory) == before
