"""The trial of `--method auto`: what it measures, what it selects, and that it changes nothing else."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from conftest import Crash, Here, sha256s

from kdextract import api
from kdextract.methods.auto import candidates
from kdextract.models.classifier import load_classifier
from kdextract.stages.distill import trial
from kdextract.storage.artifacts import read_manifest
from kdextract.storage.run_dir import MODEL_FILE

ALL = ("structured_noise", "natural_noise", "dfq")
"""The methods that are tried for the teacher of these tests; the first one is used without a trial."""
BUDGET = "220s"
ARGUMENTS = ("--student", "lenet_half", "--batch-size", "16", "--threads", "1")
SMALL = {"student": "lenet_half", "batch_size": 16, "threads": 1}


def figures(**agreement: float) -> dict[str, Any]:
    return {name: {"agreement": share, "steps": 9} for name, share in agreement.items()}


@pytest.fixture
def six_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let each budget become six steps, without measuring."""
    command = importlib.import_module("kdextract.stages.distill.command")
    monkeypatch.setattr(command, "plan_steps", lambda *inputs: {"steps": 6, "closing": 0.0})
    monkeypatch.setattr("kdextract.training.observer.Observer._keep_to", lambda self, timetable, step: None)


@pytest.fixture
def found(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """A function that sets what the trial finds."""

    def use(values: dict[str, Any]) -> None:
        monkeypatch.setattr(trial, "_found", lambda *inputs: values)

    return use


def distill(run: Path, name: str = "made", **options: Any) -> dict[str, Any]:
    return api.distill(run=run, name=name, **{**SMALL, **options}).manifest.metrics


def test_the_methods_of_these_tests(teacher_run: Path) -> None:
    assert tuple(candidates(load_classifier(teacher_run / "teacher" / MODEL_FILE))) == ALL


@pytest.mark.usefixtures("six_steps")
@pytest.mark.parametrize(
    ("shares", "chosen"),
    [
        ((0.5, 0.4, 0.3), "structured_noise"),
        ((0.5, 0.52, 0.3), "structured_noise"),  # two standard errors of 600 images are 0.041
        pytest.param((0.5, 0.55, 0.3), "natural_noise", marks=pytest.mark.slow),
        pytest.param((0.5, 0.55, 0.6), "dfq", marks=pytest.mark.slow),
        ((0.0, 0.0, 0.0), "structured_noise"),
        ((1.0, 1.0, 1.0), "structured_noise"),
    ],
)
def test_the_best_is_used_if_it_is_better_by_two_standard_errors(
    shares: tuple[float, ...], chosen: str, teacher_run: Path, found: Callable[..., None]
) -> None:
    values = figures(**dict(zip(ALL, shares, strict=True)))
    found(values)
    metrics = distill(teacher_run, budget=BUDGET)
    assert metrics["source"] == chosen
    assert metrics["tried_methods"] == values


@pytest.mark.usefixtures("six_steps")
@pytest.mark.slow
def test_the_student_is_that_of_the_chosen_method(teacher_run: Path, found: Callable[..., None]) -> None:
    found(figures(structured_noise=0.2, natural_noise=0.6, dfq=0.1))
    distill(teacher_run, budget=BUDGET)
    distill(teacher_run, "named", method="natural_noise", steps=6)
    made, named = (sha256s(teacher_run / "students" / name)[MODEL_FILE] for name in ("made", "named"))
    assert made == named


@pytest.mark.usefixtures("six_steps")
def test_what_was_tried_is_printed(teacher_run: Path, found: Callable[..., None], here: Here) -> None:
    found(figures(structured_noise=0.2, natural_noise=0.625, dfq=0.1))
    done = here("distill", "--budget", BUDGET, "--run", teacher_run, *ARGUMENTS)
    assert (
        "--method auto: natural_noise, because its student was better than that of the usual method in a trial; "
        "agreement on held-out images of all methods: structured_noise 20.0 % (9 steps), natural_noise 62.5 % "
        "(9 steps), dfq 10.0 % (9 steps)"
    ) in done.stderr


@pytest.mark.usefixtures("six_steps")
def test_without_time_for_a_trial_the_usual_method_is_used(
    teacher_run: Path, found: Callable[..., None], here: Here
) -> None:
    found({})
    done = here("distill", "--budget", BUDGET, "--run", teacher_run, *ARGUMENTS)
    metrics = read_manifest(teacher_run / "students" / "lenet_half").metrics
    assert metrics["source"] == "structured_noise"
    assert "tried_methods" not in metrics
    assert "11 s, 5 % of the budget, are too few for a trial of methods" in done.stderr


@pytest.mark.usefixtures("six_steps")
@pytest.mark.parametrize(
    "options", [{"budget": "190s"}, {"steps": 2}, {"budget": BUDGET, "method": "structured_noise"}]
)
def test_small_budgets_steps_and_named_methods_are_not_tried(
    options: dict[str, Any], teacher_run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*inputs: Any) -> Any:
        raise AssertionError("there was a trial")

    monkeypatch.setattr(trial, "_found", refused)
    assert "tried_methods" not in distill(teacher_run, **options)


def clock_of(seconds: float) -> Callable[[], float]:
    """Return a clock that goes on by so many seconds each time that it is read."""
    now = 0.0

    def read() -> float:
        nonlocal now
        now += seconds
        return now

    return read


@pytest.mark.usefixtures("six_steps")
@pytest.mark.parametrize("tick", [0.1, 0.25])
@pytest.mark.slow
def test_each_method_is_tried(tick: float, teacher_run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a clock that measures every step as half a tick."""
    monkeypatch.setattr(trial, "time", SimpleNamespace(monotonic=clock_of(tick)))
    metrics = distill(teacher_run, budget=BUDGET)
    assert tuple(metrics["tried_methods"]) == ALL
    for one in metrics["tried_methods"].values():
        assert 0 < one["agreement"] <= 1
        assert 2 < one["steps"] * tick / 2 <= 11  # two steps take a tick, and the steps of other methods no time
    manifest = read_manifest(teacher_run / "students" / "made")
    assert manifest.needs == "teacher"
    assert manifest.budget["teacher_queries_by_purpose"]["trial"] > 0
    distill(teacher_run, "named", method=metrics["source"], steps=6)
    made, named = (sha256s(teacher_run / "students" / name)[MODEL_FILE] for name in ("made", "named"))
    assert made == named, "the trial changed what is drawn at random"


@pytest.mark.usefixtures("six_steps")
@pytest.mark.slow
def test_a_clock_that_is_too_fast_ends_the_trial(teacher_run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for tick in (8.0, 1.5):  # while sources are opened, and before the steps
        monkeypatch.setattr(trial, "time", SimpleNamespace(monotonic=clock_of(tick)))
        assert "tried_methods" not in distill(teacher_run, f"tick-{tick:g}", budget=BUDGET)


@pytest.mark.usefixtures("six_steps")
@pytest.mark.slow
def test_a_resumed_stage_keeps_what_was_found(
    teacher_run: Path, monkeypatch: pytest.MonkeyPatch, saves_until_crash: Callable[[], list[int]]
) -> None:
    monkeypatch.setattr(trial, "_found", lambda *inputs: figures(structured_noise=0.2, natural_noise=0.6, dfq=0.1))
    left = saves_until_crash()
    left[0] = 2
    with pytest.raises(Crash):
        distill(teacher_run, budget=BUDGET)
    monkeypatch.setattr(trial, "_found", lambda *inputs: figures(structured_noise=0.9, natural_noise=0.1, dfq=0.1))
    left[0] = 10_000
    assert distill(teacher_run, budget=BUDGET)["source"] == "natural_noise"
