"""Wall-clock budgets: how they are written, how they become a number of steps, and how a loop ends in time."""

from __future__ import annotations

import re
import time
from bisect import bisect_left
from dataclasses import dataclass
from typing import Any

from ..errors import UsageError

UNITS = {"": 1.0, "s": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0}

AIM = 0.965
"""Share of a budget that the whole stage should take."""
SLACK = 0.025
"""A loop whose end is off by less than this share of the budget goes on as planned."""
UNSURE = 0.1
"""So much more may the end be off for each second that is left: what is measured early says less."""
EARLY = 0.1
"""In this first share of its time, a loop goes on as planned."""
WINDOW = 0.5
"""What is left is taken to be as fast as the steps after this share of those that are done."""

TRIAL_SHARE, MOST_TRIAL = 0.03, 0.05
"""Shares of the budget: steps are tried for the first; the whole trial must not take more than the second."""
TRIAL_STEPS = 200
"""At most so many steps are tried."""
CLOSING_SECONDS = 1.0
"""For the pictures and the files at the end, besides what is measured."""


def parse_duration(text: str) -> float:
    """Return the seconds of `90`, `120s`, `2m` or `1.5h`. Raises `UsageError`."""
    match = re.fullmatch(r"(\d+(?:\.\d*)?)\s*([a-z]*)", text.strip().lower())
    if match is None or match[2] not in UNITS or float(match[1]) <= 0:
        raise UsageError(f"--budget is a time such as 120s, 2m or 1.5h, got {text!r}")
    return float(match[1]) * UNITS[match[2]]


@dataclass(frozen=True)
class Replan:
    """From `step` on, what is left of a schedule, its part in [progress, 1], is spread over the steps up to `last`."""

    step: int
    progress: float
    last: int

    def progress_at(self, step: int) -> float:
        """Return where in the schedule, in [0, 1], a step is; `step` is from `self.step` to `last`."""
        if self.last == self.step:
            return 1.0
        return self.progress + (1 - self.progress) * (step - self.step) / (self.last - self.step)


class StepTimes:
    """A `training.Monitor` that measures how long each step takes, and ends the loop in time.

    Args:
        seconds: the loop ends before a step that, as long as the last one, would go beyond them; one step is taken.
        most: no more steps than these.
    """

    cooldown_start = None

    def __init__(self, seconds: float, most: int) -> None:
        self._seconds, self._most = seconds, most
        self._began = self._last = time.monotonic()
        self.times: list[float] = []

    @property
    def replan(self) -> Replan | None:
        """The end of the loop, once it is reached."""
        done = len(self.times)
        if not done:
            return None
        over = self._last - self._began + self.times[-1] > self._seconds
        return Replan(done, 1.0, done) if over or done >= self._most else None

    def on_step(self, trainee: object, step: int, /) -> dict[str, float]:
        """Note the time of a step that is done."""
        now = time.monotonic()
        self.times.append(now - self._last)
        self._last = now
        return {}

    def state(self) -> dict[str, Any]:
        """Nothing is kept of a trial."""
        return {}

    def restore(self, state: object) -> None:
        """There is nothing to restore."""

    @property
    def usual(self) -> float:
        """Seconds of a step: the mean without the first fifth, whose steps also choose kernels and take memory."""
        later = self.times[max(1, len(self.times) // 5) :] or self.times
        return sum(later) / len(later)


@dataclass(frozen=True)
class Costs:
    """Seconds of what a budget is spent on: each step, each look at held-out images, and all that follows the loop."""

    step: float
    evaluation: float
    closing: float

    def steps_within(self, seconds: float, evaluations: int) -> int:
        """Return how many steps, at least 1, fit into `seconds` with `evaluations` evaluations."""
        usable = seconds - self.closing
        steps = int((usable - evaluations * self.evaluation) / self.step)
        return steps if steps >= evaluations else max(1, int(usable / (self.step + self.evaluation)))


class Timetable:
    """Says at which step a loop has to end, so that the stage takes `AIM` of its budget.

    Args:
        budget: seconds of the whole stage.
        spent: seconds of it that are spent when this is made, right before the loop.
        closing: seconds that the stage takes after the loop.
    """

    def __init__(self, budget: float, spent: float, closing: float) -> None:
        self._until, self._slack = AIM * budget - spent - closing, SLACK * budget
        self._began = time.monotonic()
        self._passed: list[tuple[int, float]] = []

    def last_step(self, step: int, planned: int) -> int:
        """Return the last step, after `step` steps: `planned`, or another if the loop would end too late or too early.

        It is to be asked now and then, with ever more steps.
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
        return min(last, planned) if late > 0 else last  # a loop that is late ends: it gets no step more
