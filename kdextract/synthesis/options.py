"""Options that several methods share. No torch here: the command line reads them to build its help."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from ..options.declare import OptionSet, option
from .natural_noise.names import MIXTURES

STARTS = ["structured", "noise"]
INITS = ["normal", "uniform", "smooth", "strokes", "structured"]


@dataclass(frozen=True, kw_only=True)
class PixelConfig(OptionSet):
    """How the pixels of an image are optimized: with Adam, at a learning rate that falls to 0 along a cosine."""

    steps: int = option(60, "Adam steps per batch of images.", minimum=1)
    lr: float = option(0.3, "First learning rate of Adam, on pixels in [0, 1].", above=0)
    init: str = option("normal", "Images before the first step.", choices=INITS)
    blur_every: int = option(0, "Blur images (3x3, binomial) after every N steps; 0: never.", minimum=0)
    tv: float = option(1.0, "Weight of the total variation (TV), per image.", minimum=0)


def widening(usual: float) -> Any:
    """Declare `--widen` with the default `usual` for images."""
    return option(
        None,
        "Factor of the noise's standard deviation when a student is trained, relative to the generator's training; a "
        "larger one gives more varied images, for which the teacher's predictions are less confident.",
        above=0,
        otherwise=f"{usual:g}; tables: 1",
    )


def sized_width() -> Any:
    """Declare `--width` of `train-generator`."""
    return option(
        None,
        "Width of the generator.",
        minimum=4,
        otherwise="the largest whose forward pass costs at most as much as the teacher's",
    )


@dataclass(frozen=True, kw_only=True)
class GeneratorConfig(OptionSet):
    """How many generators are trained, and how: with Adam, at a learning rate that falls to 0 along a cosine."""

    generators: int = option(
        1, "Number of generators; each has its own seed.", minimum=1, maximum=100, panel="Generators"
    )
    steps: int = option(1500, "Optimizer steps per generator.", minimum=1, panel="Schedule")
    batch_size: int = option(128, "Images per step.", minimum=2, panel="Schedule")
    lr: float | None = option(None, "First learning rate.", above=0, panel="Schedule", otherwise="0.001")


@dataclass(frozen=True, kw_only=True)
class GameConfig(OptionSet):
    """The adversarial game of a generator and the student: the generator, its steps, and the replayed images."""

    start: str = option(
        "structured",
        "Input of the generator: structured, structured noise, which it changes; noise, a latent vector.",
        choices=STARTS,
    )
    generator_lr: float = option(1e-3, "Learning rate of the generator's Adam.", above=0)
    generator_batch: int = option(128, "Images per generator step; fewer need less memory.", minimum=2)
    generator_width: int | None = option(
        None,
        "Channels of the generator.",
        minimum=1,
        otherwise="as many as make a forward pass cost at most as much as the teacher's",
    )
    replay: float = option(
        0.8,
        "Share of each batch that is structured noise; it limits catastrophic forgetting.",
        minimum=0,
        maximum=1,
    )
    pool: int | None = option(
        None, "Structured images in the pool.", minimum=100, otherwise="20,000; large teachers: fewer"
    )
    fresh: int = option(64, "New structured images per step; they replace the oldest.", minimum=0)


@dataclass(frozen=True, kw_only=True)
class PoolConfig(OptionSet):
    """The pool that batches are drawn from."""

    pool: int | None = option(
        None,
        "Images in the pool; large images: at most half a gigabyte of them.",
        minimum=100,
        otherwise="20,000; large teachers: fewer",
    )
    fresh: int = option(32, "New images per step; they replace the oldest.", minimum=0)


@dataclass(frozen=True, kw_only=True)
class MixtureConfig(OptionSet):
    """Which kinds of images are drawn."""

    mixture: str = option(
        "fitted", "Kinds of images: fitted to the teacher, equal shares, or the name of one.", choices=MIXTURES
    )
    trials: int = option(64, "Settings that are compared to fit the mixture; few: equal shares.", minimum=0)


@dataclass(frozen=True)
class PixelSettings:
    """Every setting of an inversion (DeepDream, DeepInversion and its adaptive form) of images of one shape.

    Attributes:
        steps: Adam steps of a batch at full size.
        coarse_steps: steps before these at half the size; none for a teacher that accepts one image size only.
        adapt_steps: Adam steps of a batch that starts from images of the pool.
        lr, beta1, beta2: of Adam on normalized pixels.
        warmup: steps in which the learning rate rises, before it falls along a cosine; 0: a constant rate.
        jitter: largest cyclic shift in pixels in each direction.
        flip: whether the batch is mirrored at a random half of the steps.
        init: the first images, one of `INITS`.
        ce, tv, tv_l1, l2, bn, compete: weights of the terms of the loss; `first_bn` multiplies the first layer's part
            of `bn`.
        from_noise: number of first batches of a pool that start from noise; 0: all batches.
    """

    steps: int
    lr: float
    init: str
    beta1: float = 0.9
    beta2: float = 0.999
    coarse_steps: int = 0
    warmup: int = 0
    jitter: int = 2
    flip: bool = False
    ce: float = 1.0
    tv: float = 0.0
    tv_l1: float = 0.0
    l2: float = 3e-8
    bn: float = 10.0
    first_bn: float = 1.0
    compete: float = 10.0
    from_noise: int = 0
    adapt_steps: int = 500


PRESETS = {
    "cifar": PixelSettings(steps=2000, lr=0.05, init="normal", tv=2.5e-5),
    "imagenet": PixelSettings(
        steps=1000, coarse_steps=2000, lr=0.25, init="normal", beta1=0.5, beta2=0.9, warmup=100, jitter=30, flip=True,
        tv=1e-4, l2=1e-5, bn=0.01, first_bn=10.0, compete=0.2,
    ),
    "small": PixelSettings(
        steps=60, lr=0.3, init="smooth", warmup=5, tv=1e-3, from_noise=6, adapt_steps=10,
    ),
}  # fmt: skip
"""Settings of inversion: as published for two data sets (Yin et al. 2020), and ours for small grey images on a CPU."""
LIVE_PRESETS = PRESETS | {"small": replace(PRESETS["small"], compete=100.0)}
"""The same for a live pool: its targets are the teacher's logits, so images need not keep their first class."""


def usual_preset(shape: tuple[int, int, int]) -> str:
    """Return the name of the preset for images of this shape (channels, height, width), where none is given."""
    channels, height, width = shape
    if max(height, width) >= 96:
        return "imagenet"
    return "cifar" if channels > 1 else "small"


def by_preset(presets: Mapping[str, Any], name: str) -> str:
    """Return what each preset sets an option to, for help: `cifar 2000, imagenet 1000, small 60`."""
    said = {preset: _option_text(getattr(settings, name)) for preset, settings in presets.items()}
    return ", ".join(f"{preset} {value}" for preset, value in said.items())


def _option_text(value: Any) -> str:
    if isinstance(value, bool):
        return "on" if value else "off"
    return value if isinstance(value, str) else f"{value:g}"


def _preset_default(name: str) -> str:
    return f"by --preset: {by_preset(PRESETS, name)}"


@dataclass(frozen=True, kw_only=True)
class InversionOptions(OptionSet):
    """Base of the options of an inversion; options that are not given have the values of the preset."""

    presets: ClassVar[Mapping[str, PixelSettings]] = PRESETS

    preset: str | None = option(
        None,
        "Source of the settings that are not given: cifar or imagenet, as published, or small, ours for small grey "
        "images; imagenet starts with steps at half the size if the teacher accepts it.",
        choices=sorted(PRESETS),
        otherwise="imagenet from 96 pixels per side on, else cifar for colour and small for grey images",
    )

    def given(self) -> dict[str, Any]:
        """Return the settings that the options determine, by name in `PixelSettings`; None: the preset's value."""
        return {}


def resolve(config: InversionOptions, shape: tuple[int, int, int]) -> PixelSettings:
    """Return every setting of an inversion: the given ones, and the preset's for images of this shape.

    Args:
        shape: (channels, height, width).
    """
    usual = config.presets[config.preset or usual_preset(shape)]
    return replace(usual, **{name: value for name, value in config.given().items() if value is not None})


@dataclass(frozen=True, kw_only=True)
class DreamTerms(InversionOptions):
    """The terms for class and smoothness, and the random changes before each forward pass; no other terms."""

    init: str | None = option(
        None,
        "Images before the first step; normal is N(0, 1) in the teacher's normalized coordinates.",
        choices=INITS,
        otherwise=_preset_default("init"),
    )
    warmup: int | None = option(
        None,
        "Steps of linear warm-up before the learning rate falls along a cosine; 0: constant rate.",
        minimum=0,
        otherwise=_preset_default("warmup"),
    )
    jitter: int | None = option(
        None,
        "Shift the batch at random and cyclically by up to N pixels at every step.",
        minimum=0,
        otherwise=_preset_default("jitter"),
    )
    ce: float = option(1.0, "Weight of the teacher's cross-entropy with the wanted class.", minimum=0)
    tv: float | None = option(
        None,
        "Weight of the total variation (TV): the Euclidean norms of differences in four directions over the batch.",
        minimum=0,
        otherwise=_preset_default("tv"),
    )

    def given(self) -> dict[str, Any]:
        """Return the options of this class; terms of subclasses have the weight 0."""
        own = {name: getattr(self, name) for name in ("init", "warmup", "jitter", "ce", "tv")}
        return super().given() | own | {"bn": 0.0, "compete": 0.0, "from_noise": 0}


@dataclass(frozen=True, kw_only=True)
class DeepInversionTerms(DreamTerms):
    """As `DreamTerms`, with the term for the batch normalization (BN) statistics of the teacher's layers."""

    bn: float | None = option(
        None,
        "Weight of the distance to the teacher's batch normalization (BN) statistics.",
        minimum=0,
        otherwise=_preset_default("bn"),
    )

    def given(self) -> dict[str, Any]:
        """As the base class, with the weight of the statistics."""
        return super().given() | {"bn": self.bn}


@dataclass(frozen=True, kw_only=True)
class AdaptiveTerms(DeepInversionTerms):
    """As `DeepInversionTerms`, with the competition term of teacher and student."""

    compete: float | None = option(
        None,
        "Weight of the teacher-student competition term (ADI, eq. 8).",
        minimum=0,
        otherwise=_preset_default("compete"),
    )

    def given(self) -> dict[str, Any]:
        """As the base class, with the weight of the competition."""
        return super().given() | {"compete": self.compete}


def _steps() -> Any:
    return option(None, "Adam steps per batch of images, at full size.", minimum=1, otherwise=_preset_default("steps"))


def _lr() -> Any:
    return option(None, "Learning rate of Adam on normalized pixels.", above=0, otherwise=_preset_default("lr"))


def _flip() -> Any:
    return option(None, "Mirror the batch at half of the steps, at random.", otherwise=_preset_default("flip"))


@dataclass(frozen=True, kw_only=True)
class BatchSteps(InversionOptions):
    """The optimizer steps of an objective."""

    steps: int | None = _steps()
    lr: float | None = _lr()
    flip: bool | None = _flip()

    def given(self) -> dict[str, Any]:
        """Return the steps, too."""
        return super().given() | {"steps": self.steps, "lr": self.lr, "flip": self.flip}


@dataclass(frozen=True, kw_only=True)
class GrowingPoolOptions(InversionOptions):
    """The optimizer steps of a live method, named apart from those of the student, and the growth of the pool."""

    presets: ClassVar[Mapping[str, PixelSettings]] = LIVE_PRESETS

    pixel_steps: int | None = _steps()
    pixel_lr: float | None = _lr()
    pixel_flip: bool | None = _flip()
    pool_batch: int = option(256, "Images per batch that is added to the pool.", minimum=2)
    period: int = option(50, "Student steps between two batches.", minimum=1)

    def given(self) -> dict[str, Any]:
        """Return the steps, too."""
        return super().given() | {"steps": self.pixel_steps, "lr": self.pixel_lr, "flip": self.pixel_flip}
