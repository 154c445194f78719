"""Time budgets: how they are written, how a number of steps is computed from them, and how a loop ends in time."""

from __future__ import annotations

import re
import time
from bisect import bisect_left
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..errors import UsageError

if TYPE_CHECKING:
    from .sources import State

UNITS = {"": 1.0, "s": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0}

AIM = 0.965
"""Share of the budget that the whole stage is planned to take."""
SLACK = 0.025
"""The plan is kept if the expected end differs from the planned end by less than this share of the budget."""
UNSURE = 0.1
"""Seconds added to that tolerance for each second that is left, since early measurements are less certain."""
EARLY = 0.1
"""The plan is not changed during this first share of the loop's time."""
WINDOW = 0.5
"""The speed of the steps to come is taken from the finished steps without this first share of them."""

TRIAL_SHARE, MOST_TRIAL = 0.03, 0.05
"""Shares of the budget: trial steps are taken during the first; the whole trial may take at most the second."""
TRIAL_STEPS = 200
"""Largest number of trial steps."""
CLOSING_SECONDS = 1.0
"""Seconds for pictures and files at the end, in addition to what is measured."""


def parse_duration(text: str) -> float:
    """Return the seconds of a time such as `90`, `120s`, `2m` or `1.5h`. Raises `UsageError` for any other text."""
    match = re.fullmatch(r"(\d+(?:\.\d*)?)\s*([a-z]*)", text.strip().lower())
    if match is None or match[2] not in UNITS or float(match[1]) <= 0:
        raise UsageError(f"--budget is a time such as 120s, 2m or 1.5h, got {text!r}")
    return float(match[1]) * UNITS[match[2]]


@dataclass(frozen=True)
class Replan:
    """A change of a schedule: from `step` on, its part in [progress, 1] is spread over the steps up to `last`."""

    step: int
    progress: float
    last: int

    def progress_at(self, step: int) -> float:
        """Return the position in the schedule, in [0, 1], of a step from `self.step` to `last`."""
        if self.last == self.step:
            return 1.0
        return self.progress + (1 - self.progress) * (step - self.step) / (self.last - self.step)


class StepTimes:
    """A `loop.Monitor` that measures the time of each step and ends the loop in time.

    Args:
        seconds: the loop ends when one more step, as long as the last one, would exceed them; at least one step is
            taken.
        most: largest number of steps.
    """

    cooldown_start = None

    def __init__(self, seconds: float, most: int) -> None:
        self._seconds, self._most = seconds, most
        self._began = self._last = time.monotonic()
        self.times: list[float] = []

    @property
    def replan(self) -> Replan | None:
        """A plan that ends the loop now, once its end is reached; None before."""
        done = len(self.times)
        if not done:
            return None
        over = self._last - self._began + self.times[-1] > self._seconds
        return Replan(done, 1.0, done) if over or done >= self._most else None

    def on_step(self, trainee: object, step: int, /) -> dict[str, float]:
        """Measure the time of the step that was just taken."""
        now = time.monotonic()
        self.times.append(now - self._last)
        self._last = now
        return {}

    def state(self) -> State:
        """Return an empty state: a trial is not resumed."""
        return {}, {}

    def restore(self, state: State) -> None:
        """Do nothing: a trial is not resumed."""

    @property
    def usual(self) -> float:
        """Mean seconds of a step, without the first fifth, which also choose kernels and allocate memory."""
        later = self.times[max(1, len(self.times) // 5) :] or self.times
        return sum(later) / len(later)


@dataclass(frozen=True)
class Costs:
    """Seconds of one step, of one evaluation on held-out images, and of everything after the loop (`closing`)."""

    step: float
    evaluation: float
    closing: float

    def steps_within(self, seconds: float, evaluations: int) -> int:
        """Return how many steps, at least 1, fit into `seconds` together with the evaluations.

        There is at most one evaluation per step: with fewer steps than `evaluations`, one after each step.
        """
        usable = seconds - self.closing
        steps = int((usable - evaluations * self.evaluation) / self.step)
        return steps if steps >= evaluations else max(1, int(usable / (self.step + self.evaluation)))


class Timetable:
    """Computes the last step of a loop, so that the stage takes the share `AIM` of its budget.

    Args:
        budget: seconds of the whole stage.
        spent: seconds that have passed when this object is made, right before the loop.
        closing: seconds that the stage takes after the loop.
    """

    def __init__(self, budget: float, spent: float, closing: float) -> None:
        self._until, self._slack = AIM * budget - spent - closing, SLACK * budget
        self._began = time.monotonic()
        self._passed: list[tuple[int, float]] = []

    def last_step(self, step: int, planned: int) -> int:
        """Return the new last step: `planned`, or another one if the loop would end too late or too early.

        Args:
            step: number of finished steps; larger at each call.
            planned: the last step of the present plan.
        """
        now = time.monotonic() - self._began
        self._passed.append((step, now))
        left = self._until - now
        first, then = self._passed[bisect_left(self._passed, (WINDOW * step,))]
        if first == step or now < EARLY * self._until:
            return planned
        pace = (now - then) / (step - first)
        late = (planned - step) * pace - left
        if abs(late) <= self._slack + UNSURE * max(0.0, left):
            return planned
        last = step + max(1, int(left / pace))
        return min(last, planned) if late > 0 else last  # a late loop gets no more steps than planned
