"""Options that several methods share. No torch here: the command line reads them to build its help."""

from __future__ import annotations

from dataclasses import dataclass

from ..config import OptionSet, option

INITS = ["normal", "uniform", "smooth", "strokes", "structured"]


@dataclass(frozen=True, kw_only=True)
class PixelConfig(OptionSet):
    """How the pixels of an image are optimized: Adam, its rate falling to zero along a cosine."""

    steps: int = option(60, "Adam steps per batch of images.", minimum=1)
    lr: float = option(0.3, "First learning rate of Adam on pixels in [0, 1].", above=0)
    init: str = option("normal", "What images start from.", choices=INITS)
    blur_every: int = option(0, "Blur images (3x3, binomial) after every so many steps; 0: never.", minimum=0)
    clip: bool = option(True, "Keep pixels in [0, 1] after every step, not just at the end.")
    tv: float = option(1.0, "Weight of the total variation, per image.", minimum=0)
