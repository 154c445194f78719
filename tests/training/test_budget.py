"""Wall-clock budgets: durations, trials, and loops that end in time, however long their steps take."""

from __future__ import annotations

import math
from collections.abc import Callable
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from kdextract.errors import UsageError
from kdextract.stages.distill.budget import NoCheckpoints
from kdextract.training.budget import (
    AIM,
    MOST_TRIAL,
    TRIAL_SHARE,
    TRIAL_STEPS,
    Costs,
    Replan,
    StepTimes,
    Timetable,
    parse_duration,
)
from kdextract.training.loop import Row, Schedule, take_steps
from kdextract.training.observer import NUM_EVALUATIONS, Observer, Probe
from kdextract.training.progress import Reporter


@pytest.mark.parametrize(
    ("text", "seconds"), [("90", 90), ("120s", 120), ("2m", 120), ("1.5h", 5400), (" 3 MIN ", 180), ("0.5s", 0.5)]
)
def test_durations(text: str, seconds: float) -> None:
    assert parse_duration(text) == seconds


@pytest.mark.parametrize("text", ["", "s", "0", "0s", "-3s", "12 parsecs", "1e3s", "nan", "2m30s"])
def test_what_is_no_duration_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="--budget is a time such as 120s"):
        parse_duration(text)


# ---- on a simulated clock ------------------------------------------------------------------------------------------


class Weight(nn.Module):
    """A module with one weight."""

    def __init__(self) -> None:
        super().__init__()
        self.network = nn.Linear(1, 1, bias=False)
        self.device = torch.device("cpu")


class Silent(Probe):
    """A probe whose evaluations take the given time."""

    def __init__(self, look: Callable[[], None]) -> None:
        object.__setattr__(self, "wait", look)
        object.__setattr__(self, "images", torch.zeros((1000, 1, 8, 8), dtype=torch.uint8))

    def agreement(self, student: object) -> float:
        self.wait()  # type: ignore[attr-defined]
        return 0.5


class Simulation:
    """`kdx distill --budget` with simulated costs: opening, trial, loop and closing, on a simulated clock.

    Args:
        cost: seconds of step number n, from 0, at `now` seconds; the trial starts at 0 as well.
    """

    opening, look, closing = 5.0, 0.1, 3.0

    def __init__(self, monkeypatch: pytest.MonkeyPatch, budget: float, cost: Callable[[int, float], float]) -> None:
        self.now, self.budget, self.cost = 0.0, budget, cost
        monkeypatch.setattr(
            "kdextract.training.budget.time", SimpleNamespace(monotonic=lambda: self.now)
        )  # not every thread's

    def loop(self, steps: int, monitor: StepTimes | Observer) -> list[Row]:
        trainee, taken = Weight(), 0

        def loss() -> torch.Tensor:
            nonlocal taken
            self.now += self.cost(taken, self.now)
            taken += 1
            return trainee.network.weight.sum()

        schedule = Schedule(steps, 0.1, warmup=round(0.05 * steps))
        return take_steps(trainee, loss, schedule, {}, NoCheckpoints(), Reporter(quiet=True), "", monitor)  # type: ignore[arg-type, type-var]

    def wait(self) -> None:
        self.now += self.look

    def run(self, extra: float = 0.0, most: int = TRIAL_STEPS) -> tuple[float, float, int, list[Row]]:
        """Return the shares of the budget for the trial and for all, the planned steps, and the rows."""
        self.now += self.opening
        times = StepTimes(TRIAL_SHARE * self.budget, most)
        self.loop(TRIAL_STEPS, times)
        trial = self.now - self.opening
        costs = Costs(times.usual + extra, self.look, self.closing)
        steps = costs.steps_within(AIM * self.budget - self.now, NUM_EVALUATIONS)
        rows = self.loop(
            steps, Observer(Silent(self.wait), steps, None, 0, Timetable(self.budget, self.now, self.closing))
        )
        return trial / self.budget, (self.now + self.closing) / self.budget, steps, rows


EVEN = {
    "even": lambda step, now: 0.5,
    "quick": lambda step, now: 0.2,
    "slow": lambda step, now: 5.0,
    "slow at first": lambda step, now: 4.0 if step == 0 else 0.5,
    "slow five times": lambda step, now: 2.0 if step < 5 else 0.5,
    "a generator's step now and then": lambda step, now: 2.5 if step % 10 == 9 else 0.5,
    "new images now and then": lambda step, now: 6.0 if step % 20 == 19 else 0.5,
    "uneven": lambda step, now: 0.5 * (1 + 0.5 * math.sin(7.3 * step)),
    "drifting": lambda step, now: 0.3 * (1 + now / 300),
    "slower from the middle on": lambda step, now: 0.5 if now < 300 else 1.0,
    "faster from the middle on": lambda step, now: 0.5 if now < 300 else 0.25,
    "busy while it is tried": lambda step, now: 1.5 if now < 30 else 0.5,
    "idle while it is tried": lambda step, now: 0.2 if now < 30 else 0.6,
}


@pytest.mark.parametrize("budget", [200.0, 600.0, pytest.param(1200.0, marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", EVEN)
def test_a_budget_is_used_and_not_exceeded(name: str, budget: float, monkeypatch: pytest.MonkeyPatch) -> None:
    trial, whole, _, rows = Simulation(monkeypatch, budget, EVEN[name]).run()
    assert trial <= MOST_TRIAL
    assert 0.9 <= whole <= 1.0
    assert rows[-1]["lr"] <= 0.1 * max(row["lr"] for row in rows), "the rate has fallen by then"


@pytest.mark.parametrize("told", [0.5, 1.0, 2.0])
@pytest.mark.parametrize("budget", [300.0, 600.0])
def test_costly_batches_are_not_tried(told: float, budget: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """A batch takes 30 s at every 50th step; the source announces half of it, all of it or twice as long."""
    cost = lambda step, now: 30.0 if step % 50 == 49 else 0.5  # noqa: E731
    trial, whole, _, _ = Simulation(monkeypatch, budget, cost).run(told * 30.0 / 50, 49)
    assert trial <= MOST_TRIAL
    assert 0.9 <= whole <= 1.0


@pytest.mark.parametrize("name", ["even", "slow at first"])
def test_steps_as_long_as_in_the_trial_keep_their_number(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """So equal steps give equal students."""
    _, _, steps, rows = Simulation(monkeypatch, 600.0, EVEN[name]).run()
    assert rows[-1]["step"] == steps


def test_a_step_that_is_longer_than_the_trial_is_run_once(monkeypatch: pytest.MonkeyPatch) -> None:
    simulation = Simulation(monkeypatch, 100.0, lambda step, now: 20.0)
    times = StepTimes(TRIAL_SHARE * 100, TRIAL_STEPS)
    simulation.loop(TRIAL_STEPS, times)
    assert times.times == [20.0]


def test_a_loop_that_is_late_runs_no_more_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr("kdextract.training.budget.time", SimpleNamespace(monotonic=lambda: now))
    timetable = Timetable(100.0, 0.0, 1.0)
    planned = 10
    for step in range(1, 10):
        now += 50.0
        planned = timetable.last_step(step, planned)
        if step >= planned:
            break
    assert step == planned <= 4


def test_few_steps_count_one_evaluation_each() -> None:
    assert Costs(step=1.0, evaluation=1.0, closing=10.0).steps_within(30.0, 40) == 10
    assert Costs(step=1.0, evaluation=0.1, closing=10.0).steps_within(114.0, 40) == 100
    assert Costs(step=1.0, evaluation=0.1, closing=10.0).steps_within(3.0, 40) == 1


@pytest.mark.parametrize("last", [700, 1300])
def test_the_rest_of_a_schedule_is_spread_over_the_steps_left(last: int) -> None:
    planned, other = Schedule(1000, 0.1), Schedule(1000, 0.1, replan=Replan(500, 0.5, last))
    assert other.last == last
    assert other.rate(500) == pytest.approx(planned.rate(500))
    halfway = (500 + last) // 2
    assert other.rate(halfway) == pytest.approx(planned.rate(750))
    assert other.rate(last) == pytest.approx(0.0, abs=1e-12)
