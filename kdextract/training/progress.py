"""Progress on stderr: bars on a terminal, one line every `LINE_SECONDS` seconds elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

LINE_SECONDS = 10.0


class Task:
    """Work of a known number of units, whose progress is shown."""

    def __init__(self, title: str, total: int, reporter: Reporter) -> None:
        self._title, self._total, self._reporter = title, total, reporter
        self._done, self._note, self._last_line = 0, "", time.monotonic()
        self._bar = reporter.bars.add_task(title, total=total, note="") if reporter.bars else None

    def expect(self, total: int) -> None:
        """Change the total number of units."""
        if total != self._total:
            self._total = total
            if self._bar is not None and self._reporter.bars is not None:
                self._reporter.bars.update(self._bar, total=total)

    def advance(self, amount: int = 1, note: str = "") -> None:
        """Count `amount` more units as done; `note` is a short text beside the progress, such as `loss 0.123`."""
        self._done += amount
        self._note = note or self._note
        if self._bar is not None and self._reporter.bars is not None:
            self._reporter.bars.update(self._bar, completed=self._done, note=self._note)
        elif time.monotonic() - self._last_line >= LINE_SECONDS:
            self._last_line = time.monotonic()
            self._reporter.line(f"{self._title}: {self._done}/{self._total} {self._note}".rstrip())


class Reporter:
    """Reports on one command: `line` prints a sentence, `task` shows progress.

    Args:
        quiet: print nothing.
        terminal: whether bars are drawn; by default, if stderr is a terminal.
    """

    def __init__(self, quiet: bool = False, terminal: bool | None = None) -> None:
        self._console = Console(stderr=True, quiet=quiet, highlight=False, soft_wrap=True)
        self._quiet = quiet
        self._use_bars = (sys.stderr.isatty() if terminal is None else terminal) and not quiet
        self.bars: Progress | None = None

    def line(self, text: str) -> None:
        """Print one line."""
        self._console.print(text, markup=False)

    @contextmanager
    def task(self, title: str, total: int) -> Iterator[Task]:
        """Show the progress of `total` units of work while the block runs."""
        if not self._use_bars:
            yield Task(title, total, self)
            return
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}"),
        )
        with Progress(*columns, console=self._console) as bars:
            self.bars = bars
            try:
                yield Task(title, total, self)
            finally:
                self.bars = None
