"""The number of images that are given to a network, by purpose."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

SYNTHESIS, TARGETS = "synthesis", "targets"
"""Making images or training a generator; outputs as targets of a student or of a transfer set."""
HELD_OUT, PROBE = "held_out", "probe"
"""Choosing images that the student does not learn from; outputs for them and for distorted copies of them."""
TRIAL, ESTIMATE, PICTURES = "trial", "estimate", "pictures"
"""Measuring the time of a step; estimating the student's accuracy; confidences in pictures and summaries."""
STATISTICS, EVALUATION, NEIGHBOURS = "statistics", "evaluation", "neighbours"
"""Real images: for recorded statistics, for scores, and (with synthetic images) for distances to them."""
CALIBRATION = "calibration"
"""The ranges of activations, for quantization."""
BLANK = "blank"
"""Images of zeros, to find the output shapes of layers."""


class Queries:
    """Counts the images that are given to a network, by purpose. A batch of N images counts as N, whatever their size.

    Args:
        usual: the purpose outside of blocks of `purpose`.
    """

    def __init__(self, usual: str = SYNTHESIS) -> None:
        self.usual = usual
        self.counts: dict[str, int] = {}
        self._named: str | None = None

    @property
    def total(self) -> int:
        """Number of images for all purposes together."""
        return sum(self.counts.values())

    def add(self, images: int, purpose: str | None = None) -> None:
        """Count images for the purpose of the enclosing block, otherwise for `purpose`, otherwise for the usual one."""
        name = self._named or purpose or self.usual
        self.counts[name] = self.counts.get(name, 0) + images

    def add_blank(self, images: int) -> None:
        """Count images of zeros, in any block: shapes are found once, in the first block that needs them."""
        self.counts[BLANK] = self.counts.get(BLANK, 0) + images

    @contextmanager
    def purpose(self, name: str) -> Iterator[None]:
        """Count all images in the block for this purpose. In nested blocks, the outermost one counts.

        For example, all images of a trial are counted for the trial, whatever each of its steps does.
        """
        if self._named is not None:
            yield
            return
        self._named = name
        try:
            yield
        finally:
            self._named = None
