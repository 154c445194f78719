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
        "Let students learn from noise so many times as wide as in training: the teacher is less sure of such images, "
        f"and they vary more; the default is {usual:g}, or 1 for tables."
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


COURSES: dict[str, dict[str, float]] = {
    "small": {
        "steps": 60, "coarse_steps": 0, "lr": 0.3, "beta1": 0.9, "beta2": 0.999, "warmup": 5, "jitter": 2, "flip": 0,
        "tv": 1e-3, "tv_l1": 0, "l2": 3e-8, "bn": 10, "first_bn": 1, "compete": 10, "live_compete": 100,
        "from_noise": 6, "adapt_steps": 10,
    },
    "cifar": {
        "steps": 2000, "coarse_steps": 0, "lr": 0.05, "beta1": 0.9, "beta2": 0.999, "warmup": 0, "jitter": 2, "flip": 0,
        "tv": 2.5e-5, "tv_l1": 0, "l2": 3e-8, "bn": 10, "first_bn": 1, "compete": 10, "live_compete": 10,
        "from_noise": 0, "adapt_steps": 500,
    },
    "imagenet": {
        "steps": 1000, "coarse_steps": 2000, "lr": 0.25, "beta1": 0.5, "beta2": 0.9, "warmup": 100, "jitter": 30,
        "flip": 1, "tv": 1e-4, "tv_l1": 0, "l2": 1e-5, "bn": 0.01, "first_bn": 10, "compete": 0.2, "live_compete": 0.2,
        "from_noise": 0, "adapt_steps": 500,
    },
}  # fmt: skip
"""Settings of inversion: as published for two data sets, and ours for small grey images on a CPU.

Images of a live pool may lose the class that they were begun for: it is the teacher's answer that counts.
"""
COURSE_INITS = {"small": "smooth", "cifar": "normal", "imagenet": "normal"}
AS_COURSE = "as --course says"


@dataclass(frozen=True, kw_only=True)
class DreamTerms(OptionSet):
    """Class and smoothness; how a batch is optimized. Where nothing is said, `--course` says it."""

    course: str | None = option(
        None,
        "Where the settings that are not given come from: cifar or imagenet, as published, or small, ours; the default "
        "is imagenet from 96 pixels a side on, cifar for other images in colour, and small for grey ones.",
        choices=sorted(COURSES),
    )
    init: str | None = option(
        None,
        "What images start from: normal noise in the teacher's coordinates, or what other methods start from; the "
        "default is smooth with --course small, else normal.",
        choices=INITS,
        otherwise=AS_COURSE,
    )
    coarse_steps: int | None = option(
        None, "Adam steps before these, at half the size.", minimum=0, otherwise=AS_COURSE
    )
    beta1: float | None = option(
        None, "Adam's decay of the mean gradient.", minimum=0, maximum=0.9999, otherwise=AS_COURSE
    )
    beta2: float | None = option(
        None, "Adam's decay of the mean square.", minimum=0, maximum=0.99999, otherwise=AS_COURSE
    )
    warmup: int | None = option(
        None,
        "Steps in which the rate rises; it then falls along a cosine. 0: it is constant.",
        minimum=0,
        otherwise=AS_COURSE,
    )
    jitter: int | None = option(
        None, "Shift the batch at random by up to so many pixels, round the edges.", minimum=0, otherwise=AS_COURSE
    )
    clip: bool = option(True, "Keep pixels in [0, 1] after every step, not just at the end.")
    ce: float = option(1.0, "Weight of the teacher's cross-entropy to the class.", minimum=0)
    tv: float | None = option(
        None, "Weight of the total variation, four norms over the batch.", minimum=0, otherwise=AS_COURSE
    )
    tv_l1: float | None = option(
        None, "Weight of the total variation as mean absolute differences.", minimum=0, otherwise=AS_COURSE
    )
    l2: float | None = option(None, "Weight of the norm of the batch.", minimum=0, otherwise=AS_COURSE)

    def setting(self, name: str, shape: tuple[int, int, int]) -> float:
        """Return an option as given, or as the course for images of this shape says."""
        given: float | None = getattr(self, name, None)
        if name in IN_DISTILL and not hasattr(self, name):
            given = getattr(self, IN_DISTILL[name])
        if given is not None:
            return given
        live = isinstance(self, GrowingPool) and name == "compete"
        return COURSES[self.course_for(shape)]["live_compete" if live else name]

    def course_for(self, shape: tuple[int, int, int]) -> str:
        """Return the course, as given or as images of this shape have it."""
        channels, height, width = shape
        usual = "imagenet" if max(height, width) >= 96 else "cifar" if channels > 1 else "small"
        return self.course or usual

    def init_for(self, shape: tuple[int, int, int]) -> str:
        """Return what images of this shape start from."""
        return self.init or COURSE_INITS[self.course_for(shape)]


@dataclass(frozen=True, kw_only=True)
class DeepInversionTerms(DreamTerms):
    """With the statistics of the teacher's layers."""

    bn: float | None = option(
        None, "Weight of the distance to the statistics of the teacher's layers.", minimum=0, otherwise=AS_COURSE
    )
    first_bn: float | None = option(
        None, "How much more the first of these layers counts.", minimum=0, otherwise=AS_COURSE
    )


@dataclass(frozen=True, kw_only=True)
class AdaptiveTerms(DeepInversionTerms):
    """With a student's disagreement."""

    compete: float | None = option(
        None, "Weight of the likeness of the student's answers.", minimum=0, otherwise=AS_COURSE
    )


@dataclass(frozen=True, kw_only=True)
class BatchCourse(OptionSet):
    """What an objective calls its steps."""

    steps: int | None = option(None, "Adam steps per batch, at full size.", minimum=1, otherwise=AS_COURSE)
    lr: float | None = option(None, "Learning rate of Adam on normalized pixels.", above=0, otherwise=AS_COURSE)
    flip: bool | None = option(None, "Show the batch mirrored at every other step, at random.", otherwise=AS_COURSE)


IN_DISTILL = {"steps": "pixel_steps", "lr": "pixel_lr", "flip": "pixel_flip"}
"""What they are called in `distill`, where the student has steps, a rate and mirrorings of its own."""


@dataclass(frozen=True, kw_only=True)
class GrowingPool(OptionSet):
    """How the pool grows while the student learns."""

    pixel_steps: int | None = option(
        None, "Adam steps per batch of images, at full size.", minimum=1, otherwise=AS_COURSE
    )
    pixel_lr: float | None = option(None, "Learning rate of Adam on normalized pixels.", above=0, otherwise=AS_COURSE)
    pixel_flip: bool | None = option(
        None, "Show the batch mirrored at every other such step, at random.", otherwise=AS_COURSE
    )
    pool_batch: int = option(256, "Images made at a time.", minimum=2)
    period: int = option(50, "Student steps from one batch to the next.", minimum=1)
