"""`kdx evaluate` scores the last weights, and a student's snapshots beside them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from conftest import kdx
from helpers import add_snapshots

import kdextract
from kdextract import api
from kdextract.models.classifier import Classifier
from kdextract.storage.artifacts import read_manifest
from kdextract.training import supervised

STEPS = (1000, 80, 400)


@pytest.fixture
def student(run_copy: Path) -> Path:
    """A student with three snapshots: the teacher, the student itself, and an untrained one."""
    student = run_copy / "students" / "lenet_half"
    untrained = api.distill(run=run_copy, steps=1, inherit=False, name="untrained", threads=1).directory
    models = [run_copy / "teacher", student, untrained]
    add_snapshots(student, STEPS, [model / "model.safetensors" for model in models])
    return student


def evaluate(run: Path, **options: Any) -> dict[str, Any]:
    outcome = api.evaluate(run=run, artifact="students/lenet_half", threads=1, **options)
    assert outcome.manifest is not None
    return outcome.manifest.metrics


def test_the_curve_is_in_order_of_the_steps(run_copy: Path, student: Path) -> None:
    before = json.loads((run_copy / "evaluations" / "lenet_half" / "scores.json").read_text())
    metrics = evaluate(run_copy)
    curve = metrics["curve"]
    assert [point["step"] for point in curve] == sorted(STEPS)
    by_step = {point["step"]: point for point in curve}
    assert by_step[1000] == {"step": 1000, "accuracy": metrics["teacher_accuracy"], "agreement": 1.0}
    assert by_step[80]["accuracy"] == metrics["accuracy"]
    assert by_step[80]["agreement"] == metrics["agreement"]
    untrained = api.evaluate(run=run_copy, artifact="students/untrained", threads=1).manifest.metrics
    assert by_step[400] == {"step": 400, "accuracy": untrained["accuracy"], "agreement": untrained["agreement"]}
    assert {name: value for name, value in metrics.items() if name != "curve"} == before, "the last weights count"
    assert json.loads((run_copy / "evaluations" / "lenet_half" / "scores.json").read_text()) == metrics


def test_data_and_teacher_are_read_once(run_copy: Path, student: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []
    predict = supervised.predict
    monkeypatch.setattr(supervised, "predict", lambda *arguments: calls.append(1) or predict(*arguments))
    evaluate(run_copy)
    assert len(calls) == 2 + len(STEPS)
    manifest = read_manifest(run_copy / "evaluations" / "lenet_half")
    assert [entry["split"] for entry in manifest.real_data] == ["test"]


def test_without_snapshots_there_is_no_curve(run_copy: Path, student: Path) -> None:
    for artifact in ("teacher", "untrained", student / "model.safetensors"):
        outcome = api.evaluate(run=run_copy, artifact=str(artifact), threads=1, name="other", force=True)
        assert outcome.manifest is not None
        assert "curve" not in outcome.manifest.metrics


def test_the_path_of_an_artifact_is_the_artifact(run_copy: Path, student: Path) -> None:
    by_label = evaluate(run_copy)
    outcome = api.evaluate(run=run_copy, artifact=str(student), threads=1)
    assert outcome.manifest is not None
    assert outcome.manifest.metrics == by_label


def test_a_changed_snapshot_is_refused(run_copy: Path, student: Path) -> None:
    file = student / "snapshot-000400.safetensors"
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(kdextract.errors.ArtifactError, match=r"snapshot-000400"):
        evaluate(run_copy)


def test_the_list_is_not_printed(run_copy: Path, student: Path) -> None:
    done = kdx("evaluate", "students/lenet_half", "--run", run_copy, "--threads", "1", cwd=run_copy)
    shown = kdx("show", "evaluations/lenet_half", "--run", run_copy, cwd=run_copy)
    of_student = kdx("show", "students/lenet_half", "--run", run_copy, cwd=run_copy)
    assert done.returncode == 0, done.stderr
    assert ["snapshots", "scored", "3"] in [line.split() for line in done.stdout.splitlines()]
    assert ["snapshots_scored", "3"] in [line.split() for line in shown.stdout.splitlines()]
    for text in (done.stdout, shown.stdout, of_student.stdout):
        assert "'step'" not in text


def test_batch_size_is_the_number_of_images_per_pass(run_copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Scores do not depend on it; no pass of the classifier or the teacher has more images."""
    before = json.loads((run_copy / "evaluations" / "lenet_half" / "scores.json").read_text())
    sizes: list[int] = []
    forward = Classifier.forward
    monkeypatch.setattr(Classifier, "forward", lambda self, p: sizes.append(len(p)) or forward(self, p))
    assert evaluate(run_copy, batch_size=70) == before
    assert max(sizes) == 70
    assert sum(sizes) == 2 * before["num_images"]
    sizes.clear()
    again = api.compute_stats(run=run_copy, covariance_rank=16, spectral_max=8, threads=1, batch_size=40, force=True)
    assert again.manifest is not None
    assert max(sizes) == 40
    assert sum(sizes) == again.manifest.budget["teacher_queries_by_purpose"]["statistics"]


@pytest.mark.parametrize("command", ["evaluate", "compute-stats"])
@pytest.mark.parametrize("value", ["0", "-3"])
def test_a_batch_has_an_image(command: str, value: str, run_copy: Path) -> None:
    done = kdx(command, "--run", run_copy, "--batch-size", value, cwd=run_copy)
    assert done.returncode == 2
    assert "--batch-size must be at least 1" in done.stderr
