"""Wall-clock budgets."""

from __future__ import annotations

import pytest

from kdextract.budget import CLOSING_SECONDS, MARGIN, TRIAL_SHARE, parse_duration, steps_within
from kdextract.errors import UsageError


@pytest.mark.parametrize(
    ("text", "seconds"), [("90", 90), ("120s", 120), ("2m", 120), ("1.5h", 5400), (" 3 MIN ", 180), ("0.5s", 0.5)]
)
def test_durations(text: str, seconds: float) -> None:
    assert parse_duration(text) == seconds


@pytest.mark.parametrize("text", ["", "s", "0", "0s", "-3s", "12 parsecs", "1e3s", "nan", "2m30s"])
def test_what_is_no_duration_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="--budget is a time such as 120s"):
        parse_duration(text)


class Clock:
    """A clock that only steps move on, so that it doesn't matter what else the machine does."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, seconds_of_step: float) -> None:
        self.now, self.taken, self.seconds_of_step = 100.0, [], seconds_of_step
        monkeypatch.setattr("kdextract.budget.time.perf_counter", lambda: self.now)

    def take(self, count: int) -> None:
        self.taken.append(count)
        self.now += self.seconds_of_step * count


@pytest.mark.parametrize("seconds_of_step", [0.0002, 0.002])
def test_steps_fill_the_time_that_is_left(monkeypatch: pytest.MonkeyPatch, seconds_of_step: float) -> None:
    clock = Clock(monkeypatch, seconds_of_step)
    steps = steps_within(1.0 + CLOSING_SECONDS, clock.take, 10)
    assert set(clock.taken) == {10}
    assert len(clock.taken) >= 2, "the first block is not measured"
    trial = sum(clock.taken) * seconds_of_step
    assert TRIAL_SHARE * (1.0 + CLOSING_SECONDS) <= trial < 2 * TRIAL_SHARE * (1.0 + CLOSING_SECONDS)
    left = (1.0 + CLOSING_SECONDS - trial) * (1 - MARGIN) - CLOSING_SECONDS
    assert steps == pytest.approx(left / seconds_of_step, abs=1)


def test_the_first_steps_may_be_slow(monkeypatch: pytest.MonkeyPatch) -> None:
    """They choose kernels and take memory; counted as the others, they would make a student of too few steps."""
    clock = Clock(monkeypatch, 0.002)

    def take(count: int) -> None:
        clock.now += 0 if clock.taken else 0.1
        clock.take(count)

    steps = steps_within(1.0 + CLOSING_SECONDS, take, 10)
    assert steps == pytest.approx(
        ((1.0 + CLOSING_SECONDS - 0.1 - 0.002 * sum(clock.taken)) * (1 - MARGIN) - CLOSING_SECONDS) / 0.002, abs=1
    )


def test_at_least_one_step_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    assert steps_within(0.1, Clock(monkeypatch, 0.01).take, 5) == 1
