"""Observation of a student without real data: agreement on held-out images, patience, snapshots."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from kdextract.models.classifier import Classifier, ClassifierSpec, load_classifier
from kdextract.training.budget import Timetable
from kdextract.training.loop import Schedule
from kdextract.training.observer import NUM_EVALUATIONS, Observer, Probe, evaluations_within


def make_classifier(seed: int) -> Classifier:
    torch.manual_seed(seed)
    return Classifier(ClassifierSpec("lenet_half", (1, 32, 32), tuple("abc"), (0.2,), (0.3,))).eval()


@pytest.fixture(scope="module")
def images() -> torch.Tensor:
    return torch.randint(0, 256, (120, 1, 32, 32), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)


class Scripted(Probe):
    """A probe that returns given agreements."""

    def __init__(self, values: list[float], num_images: int = 1000) -> None:
        object.__setattr__(self, "values", iter(values))
        object.__setattr__(self, "images", torch.zeros((num_images, 1, 8, 8), dtype=torch.uint8))

    def agreement(self, student: Classifier) -> float:
        return next(self.values)  # type: ignore[attr-defined, no-any-return]


def test_a_classifier_agrees_with_itself_and_less_with_another(images: torch.Tensor) -> None:
    teacher = make_classifier(0).frozen()
    probe = Probe.of(teacher, images)
    assert probe.agreement(teacher) == 1
    assert 0 < probe.stability <= 1
    student = make_classifier(1).train()
    expected = float((student.eval()(images.float() / 255).argmax(1) == probe.answers).float().mean())
    student.train()
    assert probe.agreement(student) == pytest.approx(expected, abs=0.01)
    assert student.training, "the mode is left as it was"


def test_the_cooldown_starts_when_agreement_stops_growing() -> None:
    student = make_classifier(0)
    observer = Observer(
        Scripted([0.1, 0.5, 0.5, 0.4, 0.5003, 0.6]), steps=10 * NUM_EVALUATIONS, patience=3, num_snapshots=0
    )
    cooldown_starts = []
    for evaluation in range(1, 7):
        assert "agreement" in observer.on_step(student, 10 * evaluation)
        cooldown_starts.append(observer.cooldown_start)
    assert cooldown_starts == [None, None, None, None, 50, 50], "a gain of 0.0003 is none"


@pytest.mark.parametrize(("num_images", "cooldown_start"), [(1000, None), (64, 30)])
def test_a_gain_of_less_than_half_an_image_does_not_count(num_images: int, cooldown_start: int | None) -> None:
    observer = Observer(
        Scripted([0.5, 0.502, 0.504], num_images), steps=10 * NUM_EVALUATIONS, patience=2, num_snapshots=0
    )
    for evaluation in range(1, 4):
        observer.on_step(make_classifier(0), 10 * evaluation)
    assert observer.cooldown_start == cooldown_start


def test_without_patience_no_cooldown_starts() -> None:
    observer = Observer(Scripted([0.5] * 30), steps=10 * NUM_EVALUATIONS, patience=None, num_snapshots=0)
    for evaluation in range(1, 31):
        observer.on_step(make_classifier(0), 10 * evaluation)
    assert observer.cooldown_start is None


@pytest.mark.parametrize(("evaluations", "every"), [(NUM_EVALUATIONS, 10), (8, 50)])
def test_agreement_is_measured_every_few_steps_only(evaluations: int, every: int) -> None:
    observer = Observer(Scripted([0.5] * evaluations), 10 * NUM_EVALUATIONS, None, 0, num_evaluations=evaluations)
    looked = [step for step in range(1, 10 * NUM_EVALUATIONS + 1) if observer.on_step(make_classifier(0), step)]
    assert looked == [every * (evaluation + 1) for evaluation in range(evaluations)]


def test_few_steps_have_few_evaluations() -> None:
    counts = [evaluations_within(steps, 128, 1000) for steps in (10, 77, 400, 1040, 1050, 4000)]
    assert counts == [8, 8, 15, 39, 40, 40]
    assert evaluations_within(400, 16, 50) == 38


def test_snapshots_have_the_weights_of_their_step(tmp_path: Path, images: torch.Tensor) -> None:
    observer = Observer(Scripted([0.5] * 100), steps=100, patience=None, num_snapshots=3)
    students = {step: make_classifier(step) for step in range(5, 101, 5)}
    for step, student in students.items():
        observer.on_step(student, step)
    assert [snapshot.step for snapshot in observer.snapshots] == [25, 50, 75]
    assert [s.seconds for s in observer.snapshots] == sorted(s.seconds for s in observer.snapshots)
    for snapshot in observer.snapshots:
        file = tmp_path / snapshot.file_name
        file.write_bytes(snapshot.content)
        restored = load_classifier(file)
        expected = students[snapshot.step].network.state_dict()
        assert all(torch.equal(value, expected[name]) for name, value in restored.network.state_dict().items())


def test_a_restored_observer_continues_as_an_uninterrupted_one() -> None:
    values = [0.1, 0.5, 0.5, 0.5, 0.5, 0.5]

    def walk(stop: int | None) -> tuple[list[int | None], list[int]]:
        observer, cooldown_starts = Observer(Scripted(values), 10 * NUM_EVALUATIONS, 3, 30), []
        for evaluation in range(1, 7):
            if evaluation == stop:
                state = observer.state()
                observer = Observer(Scripted(values[evaluation - 1 :]), 10 * NUM_EVALUATIONS, 3, 30)
                observer.restore(state)
            observer.on_step(make_classifier(0), 10 * evaluation)
            cooldown_starts.append(observer.cooldown_start)
        return cooldown_starts, [snapshot.step for snapshot in observer.snapshots]

    for stop in (2, 4, 6):
        assert walk(stop) == walk(None)


def test_another_plan_is_kept_with_the_state(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr("kdextract.training.budget.time.monotonic", lambda: now)
    timetable = Timetable(budget=100.0, spent=0.0, closing=0.0)
    observer = Observer(Scripted([0.5] * 20), 10 * NUM_EVALUATIONS, None, 0, timetable)
    for step in range(10, 110, 10):
        now += 5.0
        observer.on_step(make_classifier(0), step)
    assert observer.replan is not None
    assert 180 <= observer.replan.last <= 200, "half a second each, and 46.5 are left"
    restored = Observer(Scripted([0.5]), 10 * NUM_EVALUATIONS, None, 0, timetable)
    restored.restore(observer.state())
    assert restored.replan == observer.replan


def test_in_a_cooldown_the_rate_falls_from_where_it_was_to_zero() -> None:
    for warmup in (0, 600):
        planned, cooled = Schedule(1000, 0.1, warmup), Schedule(1000, 0.1, warmup, cooldown_start=500)
        assert cooled.last == 600
        assert [cooled.rate(step) for step in (0, 250, 499)] == [planned.rate(step) for step in (0, 250, 499)]
        rates = [cooled.rate(step) for step in range(500, 601)]
        assert rates[0] == planned.rate(500)
        assert rates == sorted(rates, reverse=True)
        assert rates[-1] == pytest.approx(0, abs=1e-12)
    assert Schedule(1000, 0.1, cooldown_start=950).last == 1000, "a cooldown never takes longer than was planned"
