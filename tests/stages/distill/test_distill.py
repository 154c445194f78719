"""`kdx distill` with live methods: every method, auto, budgets, patience, snapshots."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from conftest import Crash, kdx, sha256s, teacher_only

from kdextract import api
from kdextract.errors import UsageError
from kdextract.methods import live_method, live_names
from kdextract.models.classifier import load_classifier
from kdextract.stages.running import checkpoints
from kdextract.stages.running.checkpoints import Checkpoints
from kdextract.storage.artifacts import read_manifest
from kdextract.synthesis.inversion import deep_inversion
from kdextract.synthesis.natural_noise.names import ALL_KINDS
from kdextract.training.budget import Timetable

STEPS, PERIOD = 30, 10  # the pools of the other methods take new images in at step 20
SMALL: dict[str, dict[str, Any]] = {
    name: {"pool": 200, "fresh": 4} for name in ("structured_noise", "zskt", "dfad", "dfq", "dafl")
} | {
    name: {"pool_batch": 20, "period": PERIOD, "pixel_steps": 4}
    for name in ("deep_dream", "deep_inversion", "adaptive_deep_inversion")
}
SMALL["natural_noise"] = {"pool": 200, "fresh": 4, "trials": 10}
SMALL["natural_inversion"] = {"pool": 200, "trials": 10, "pixel_steps": 2}
SMALL |= {name: {"pool_batch": 20, "period": PERIOD, "pixel_steps": 4, "warmup": 2} for name in ("fast", "nayer")}
"""Options that make a method quick."""

OF_EACH_KIND = ("adaptive_deep_inversion", "dafl", "structured_noise")
every_live_method = pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name in OF_EACH_KIND else pytest.mark.slow) for name in live_names()]
)
"""A method that inverts, one that trains a generator, and one that does neither."""


def distill(run: Path, method: str, **options: Any) -> dict[str, Any]:
    """Distil with a live method, and return the student's metrics."""
    given = {"steps": STEPS, "batch_size": 16, "threads": 1, "name": "made", **SMALL.get(method, {}), **options}
    outcome = api.distill(run=run, method=method, **given)
    assert outcome.manifest is not None
    return outcome.manifest.metrics


def with_statistics(run: Path, method: str) -> None:
    """Record statistics if the method matches them, the teacher having no batch normalization."""
    if live_method(method).matches_batch_norm:
        api.compute_stats(run=run, spectral=False, covariance_rank=4, threads=1)


@pytest.fixture(scope="module")
def straight(finished_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """A function that returns a run with a teacher, and the student that a method made of it without interruption."""

    @cache
    def made(method: str) -> Path:
        run = teacher_only(finished_run, tmp_path_factory.mktemp("straight") / "run")
        with_statistics(run, method)
        distill(run, method, snapshots=2)
        return run

    return made


@every_live_method
def test_every_method_makes_a_student_from_the_teacher_alone(
    name: str, finished_run: Path, straight: Callable[[str], Path]
) -> None:
    run = straight(name)
    manifest = read_manifest(run / "students" / "made")
    assert manifest.metrics["source"] == name
    assert manifest.needs == ("teacher+statistics" if live_method(name).matches_batch_norm else "teacher")
    assert not manifest.real_data
    assert manifest.budget["images"] > 0
    assert manifest.budget["teacher_queries"] > 0
    assert manifest.budget["seconds"]["synthesis"] <= manifest.budget["seconds"]["distillation"]
    assert 0 <= manifest.metrics["held_out_agreement"] <= 1
    assert sha256s(run / "teacher") == sha256s(finished_run / "teacher")


@every_live_method
def test_interrupted_it_ends_with_the_same_bytes(
    name: str, straight: Callable[[str], Path], teacher_run: Path, saves_until_crash: Callable[[], list[int]]
) -> None:
    made = sha256s(straight(name) / "students" / "made")
    with_statistics(teacher_run, name)
    left = saves_until_crash()
    for stop in (7, 16):  # before new images enter a pool at step 20, and after that
        left[0] = stop
        with pytest.raises(Crash):
            distill(teacher_run, name, snapshots=2)
    left[0] = 10_000
    distill(teacher_run, name, snapshots=2)
    assert sha256s(teacher_run / "students" / "made") == made


def test_after_an_interruption_no_image_is_made_again(
    teacher_run: Path, saves_until_crash: Callable[[], list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    made = []
    real = deep_inversion.invert

    def invert(*arguments: Any, **options: Any) -> Any:
        made.append(1)
        return real(*arguments, **options)

    monkeypatch.setattr(deep_inversion, "invert", invert)
    left = saves_until_crash()
    left[0] = 20
    with pytest.raises(Crash):
        distill(teacher_run, "deep_dream")
    left[0] = 10_000
    distill(teacher_run, "deep_dream")
    assert len(made) == 1 + 1 + STEPS // PERIOD  # held out, the first batch, one every 10 steps


def test_the_mixture_of_natural_noise_is_printed_and_recorded(teacher_run: Path, tmp_path: Path) -> None:
    words = ["--method", "natural_noise", "--pool", "100", "--trials", "10", "--steps", "1", "--threads", "1", "--json"]
    done = kdx("distill", *words, "--run", teacher_run, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    facts = json.loads(done.stdout)["source_facts"]
    assert "loss" in facts
    assert f"loss of equal shares: {facts['loss_of_equal_shares']}" in done.stderr
    assert sum(facts.get(kind, 0) for kind in ALL_KINDS) == pytest.approx(1, abs=0.001)
    made = teacher_run / "students" / "lenet_half"
    assert read_manifest(made).metrics["source_facts"] == facts


def test_without_a_transfer_set_auto_selects_a_method_and_prints_why(teacher_run: Path, tmp_path: Path) -> None:
    done = kdx("distill", "--steps", "2", "--run", teacher_run, "--threads", "1", "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert result["source"] in live_names()
    assert f"--method auto: {result['source']}, because " in done.stderr
    again = kdx("distill", "--steps", "2", "--run", teacher_run, "--threads", "1", "--json", cwd=tmp_path)
    assert json.loads(again.stdout)["status"] == "cached"


def test_auto_uses_the_defaults_of_the_selected_method(teacher_run: Path) -> None:
    metrics = api.distill(run=teacher_run, method="auto", steps=1, threads=1).manifest.metrics
    settings = live_method(metrics["source"]).settings
    assert {name: metrics["settings"][name] for name in settings if name in metrics["settings"]} == settings


def test_given_options_override_the_defaults_of_the_method(teacher_run: Path) -> None:
    metrics = distill(teacher_run, "structured_noise", steps=1, temperature=3.0, warp=0.1, lr=0.01)
    assert metrics["settings"] == {
        "batch_size": 16, "lr": 0.01, "loss": "kl", "temperature": 3.0, "shift": 0, "warp": 0.1, "flip": False,
        "splice": False, "redraw": False,
    }  # fmt: skip


def test_images_like_photographs_are_mirrored_and_joined_unless_told_otherwise(teacher_run: Path) -> None:
    made = {}
    for name, options in {"usual": {}, "no-flip": {"flip": False}, "no-splice": {"splice": False}}.items():
        metrics = distill(teacher_run, "natural_noise", steps=2, name=name, **options)
        made[name] = (metrics["settings"]["flip"], metrics["settings"]["splice"])
    assert made == {"usual": (True, True), "no-flip": (False, True), "no-splice": (True, False)}
    assert len({sha256s(teacher_run / "students" / name)["model.safetensors"] for name in made}) == 3
    settings = distill(teacher_run, "structured_noise", steps=1)["settings"]
    assert not settings["flip"]
    assert not settings["splice"]


def test_every_optimizer_makes_another_student(teacher_run: Path) -> None:
    for optimizer in ("soap", "adam"):
        distill(teacher_run, "structured_noise", steps=3, optimizer=optimizer, name=optimizer)
    students = teacher_run / "students"
    assert sha256s(students / "soap") != sha256s(students / "adam")


def test_the_rate_suits_the_student(finished_run: Path, run_copy: Path) -> None:
    rates = {}
    for student in ("lenet_half", "hinton800"):
        outcome = api.distill(
            run=run_copy, student=student, data="all_layers", steps=1, name=f"one_{student}", threads=1
        )
        rates[student] = outcome.manifest.metrics["settings"]["lr"]
    assert rates["hinton800"] < rates["lenet_half"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--method", "structured_nois"], "Did you mean 'structured_noise'"),
        (["--method", "structured_noise", "--data", "noise:normal"], "--data and --method both name a source"),
        (["--pool", "500"], "--pool has no effect on distill without --method"),
        (["--method", "auto", "--pool", "500"], "--pool has no effect on --method auto"),
        (["--budget", "soon"], "--budget is a time such as 120s"),
        (["--budget", "60s", "--steps", "10"], "--budget and --steps both set the number of steps"),
        (["--patience", "0"], "--patience must be at least 1"),
        (["--snapshots", "-1"], "--snapshots must be at least 0"),
        (["--optimizer", "soup"], "Did you mean 'soap'"),
    ],
)
def test_options_that_do_not_fit_are_refused(
    options: list[str], message: str, teacher_run: Path, tmp_path: Path
) -> None:
    done = kdx("distill", *options, "--run", teacher_run, cwd=tmp_path)
    assert done.returncode == 2
    assert message in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert not (teacher_run / "students").exists()


@pytest.fixture
def never_late(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep the planned number of steps, however fast or slow the machine is."""
    monkeypatch.setattr(Timetable, "last_step", lambda self, step, planned: planned)


@pytest.mark.usefixtures("never_late")
@pytest.mark.slow
def test_a_budget_becomes_a_number_of_steps(teacher_run: Path, tmp_path: Path) -> None:
    """The same number of steps gives the same student."""
    distill(teacher_run, "structured_noise", steps=1, name="one")
    alone = read_manifest(teacher_run / "students" / "one").budget["seconds"]["total"]
    metrics = distill(teacher_run, "structured_noise", steps=None, budget=f"{4 * alone + 4:.0f}s")
    assert metrics["steps"] >= 3, "after as long as `alone`, time for at least three steps is left"
    seconds = read_manifest(teacher_run / "students" / "made").budget["seconds"]
    assert seconds["trial"] > 0
    distill(teacher_run, "structured_noise", steps=metrics["steps"], name="by_steps")
    students = teacher_run / "students"
    assert sha256s(students / "by_steps") == sha256s(students / "made")


@pytest.mark.usefixtures("never_late")
@pytest.mark.slow
def test_an_interrupted_budget_keeps_its_number_of_steps(teacher_run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    decided = []
    real = Checkpoints.once

    def once(self: Checkpoints, name: str, decide: Any) -> int:
        decided.append(real(self, name, decide))
        return decided[-1]

    monkeypatch.setattr(Checkpoints, "once", once)
    monkeypatch.setattr(checkpoints, "CHECKPOINT_SECONDS", 0.0)
    real_offer = Checkpoints.offer

    def crash(self: Checkpoints, state: Any) -> None:
        real_offer(self, state)
        raise Crash

    with monkeypatch.context() as patch:
        patch.setattr(Checkpoints, "offer", crash)
        with pytest.raises(Crash):
            distill(teacher_run, "structured_noise", steps=None, budget="7s")
    assert distill(teacher_run, "structured_noise", steps=None, budget="7s")["steps"] == decided[0]["steps"]
    assert decided[0] == decided[1]


def test_patience_stops_a_student_that_no_longer_improves(teacher_run: Path) -> None:
    """With a learning rate near 0, agreement does not increase."""
    metrics = distill(teacher_run, "structured_noise", steps=400, patience=3, lr=1e-9)
    assert metrics["stopped_early"]
    assert metrics["steps"] < 100
    rows = [json.loads(line) for line in (teacher_run / "students/made/metrics.jsonl").read_text().splitlines()]
    assert rows[-1]["lr"] < 1e-10
    assert sum("agreement" in row for row in rows) >= 4
    assert not distill(teacher_run, "structured_noise", steps=40, lr=1e-9, name="patient")["stopped_early"]


def test_snapshots_are_kept_and_verified(teacher_run: Path, tmp_path: Path) -> None:
    distill(teacher_run, "structured_noise", snapshots=3)
    student = teacher_run / "students" / "made"
    files = sorted(path.name for path in student.glob("snapshot-*.safetensors"))
    listed = read_manifest(student).budget["snapshots"]
    assert files == [entry["file"] for entry in listed]
    assert [load_classifier(student / name).spec.architecture for name in files] == ["lenet_half"] * 3
    assert kdx("verify", "--run", teacher_run, cwd=tmp_path).returncode == 0
    (student / files[1]).write_bytes(b"x")
    assert kdx("verify", "--run", teacher_run, cwd=tmp_path).returncode == 4


def test_unknown_live_method_is_refused_with_the_most_similar_name() -> None:
    with pytest.raises(UsageError, match="Did you mean 'structured_noise'"):
        live_method("structured-noise")
