"""Wall-clock budgets."""

from __future__ import annotations

import time

import pytest

from kdextract.budget import CLOSING_SECONDS, parse_duration, steps_within
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


def test_steps_fill_the_time_that_is_left() -> None:
    taken: list[int] = []

    def take(count: int) -> None:
        taken.append(count)
        time.sleep(0.002 * count)

    steps = steps_within(1.0 + CLOSING_SECONDS, take, 10)
    assert set(taken) == {10}
    assert len(taken) >= 2, "the first block is not measured"
    assert 0.3 / 0.002 < steps < 1.0 / 0.002


def test_at_least_one_step_is_taken() -> None:
    assert steps_within(0.1, lambda count: time.sleep(0.01), 5) == 1
