"""How many images a network is shown, and what for."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

SYNTHESIS, TARGETS = "synthesis", "targets"
"""To make images, or a generator of images; for the answers that a student or a transfer set learns or keeps."""
HELD_OUT, PROBE = "held_out", "probe"
"""To choose images that no student learns from; for the answers to them, distorted ones included."""
TRIAL, ESTIMATE, PICTURES = "trial", "estimate", "pictures"
"""To find out how long a step takes; to estimate the student's accuracy; for what pictures and summaries say."""
STATISTICS, EVALUATION, NEIGHBOURS = "statistics", "evaluation", "neighbours"
"""Real images, for the record of statistics, for scores, and, with synthetic ones, for their distances."""
BLANK = "blank"
"""Images of zeros, for the shapes of a network's layers."""


class Queries:
    """Images that a network was shown, by purpose. A batch of N images counts N, whatever their size.

    Args:
        usual: the purpose where no block names another one.
    """

    def __init__(self, usual: str = SYNTHESIS) -> None:
        self.usual = usual
        self.counts: dict[str, int] = {}
        self._named: str | None = None

    @property
    def total(self) -> int:
        """Images for every purpose."""
        return sum(self.counts.values())

    def add(self, images: int, purpose: str | None = None) -> None:
        """Count images; for `purpose` unless a block around names another one."""
        name = self._named or purpose or self.usual
        self.counts[name] = self.counts.get(name, 0) + images

    def add_blank(self, images: int) -> None:
        """Count images of zeros, whatever block is around: they are shown once, by whoever is first to need a shape."""
        self.counts[BLANK] = self.counts.get(BLANK, 0) + images

    @contextmanager
    def purpose(self, name: str) -> Iterator[None]:
        """Count what the network is shown in the block for this purpose; of blocks within blocks the outermost counts.

        So the images of a trial are all counted for the trial, whatever each of its steps does.
        """
        if self._named is not None:
            yield
            return
        self._named = name
        try:
            yield
        finally:
            self._named = None
