"""Options that several methods share. No torch here: the command line reads them to build its help."""

from __future__ import annotations

from dataclasses import dataclass

from ..config import OptionSet, option

STARTS = ["structured", "noise"]
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


def widening(usual: float) -> str:
    """Return the help of `--widen` where images have this default."""
    return (
        "Draw images afterwards from noise so many times as wide as in training: the teacher is less sure of them, and "
        f"they vary more; the default is {usual:g}, or 1 for tables."
    )


@dataclass(frozen=True, kw_only=True)
class GeneratorConfig(OptionSet):
    """How many generators are trained, and how: Adam, its rate falling to zero along a cosine."""

    generators: int = option(1, "Generators, each trained by itself with a seed of its own.", minimum=1, maximum=100)
    steps: int = option(1500, "Optimizer steps of each generator.", minimum=1)
    batch_size: int = option(128, "Images per step.", minimum=2)
    lr: float | None = option(None, "First learning rate; the default is the method's own.", above=0)


@dataclass(frozen=True, kw_only=True)
class GameConfig(OptionSet):
    """A generator and the student play against each other: where it starts, how it steps, what is mixed in."""

    start: str = option(
        "structured",
        "What images are made from: structured noise, which the generator changes, or a latent vector.",
        choices=STARTS,
    )
    generator_lr: float = option(1e-3, "Learning rate of the generator's Adam.", above=0)
    generator_batch: int = option(128, "Images per step of the generator.", minimum=2)
    generator_width: int | None = option(
        None, "Channels of the generator; by default, as many as make it cost about what the teacher costs.", minimum=1
    )
    replay: float = option(
        0.8, "Share of each batch that is structured noise as it is, against forgetting.", minimum=0, maximum=1
    )
    pool: int = option(20_000, "Images in the pool.", minimum=100)
    fresh: int = option(64, "New images per step; the oldest leave.", minimum=0)
