"""Wall-clock budgets: how they are written, and how they become a number of steps."""

from __future__ import annotations

import re
import time
from collections.abc import Callable

from .errors import UsageError

UNITS = {"": 1.0, "s": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0}

TRIAL_SHARE = 0.03
"""Share of the budget that goes into finding out how long a step takes."""
MARGIN = 0.1
"""Share that is kept back for looks and snapshots; a student that is late all the same lands early (`observer.py`)."""
CLOSING_SECONDS = 3.0
"""For the estimate, the pictures and the files at the end."""


def parse_duration(text: str) -> float:
    """Return the seconds of `90`, `120s`, `2m` or `1.5h`. Raises `UsageError`."""
    match = re.fullmatch(r"(\d+(?:\.\d*)?)\s*([a-z]*)", text.strip().lower())
    if match is None or match[2] not in UNITS or float(match[1]) <= 0:
        raise UsageError(f"--budget is a time such as 120s, 2m or 1.5h, got {text!r}")
    return float(match[1]) * UNITS[match[2]]


def steps_within(seconds_left: float, take: Callable[[int], None], block: int) -> int:
    """Return how many steps fit into `seconds_left` seconds, by taking some on trial.

    Args:
        seconds_left: what is left of the budget when this is called; the trial is part of it.
        take: takes so many steps whose outcome is thrown away.
        block: number of steps after which costs repeat; trials are whole blocks.
    """
    began = time.perf_counter()
    take(block)  # the first steps also choose kernels and take memory
    taken, started = 0, time.perf_counter()
    while not taken or time.perf_counter() - began < TRIAL_SHARE * seconds_left:
        take(block)
        taken += block
    now = time.perf_counter()
    per_step = (now - started) / taken
    usable = (seconds_left - (now - began)) * (1 - MARGIN) - CLOSING_SECONDS
    return max(1, int(usable / per_step))
