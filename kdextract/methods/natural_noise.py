"""Natural noise: images from formulas with statistics of photographs, in a mixture that is fitted to the teacher.

Our own method. Networks learn useful features of photographs from such images (Baradad et al. 2021, "Learning to See by
Looking at Noise"): best from images that are varied and have the spectrum of photographs. There is no teacher there.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..options.declare import option
from ..synthesis.interface import Given
from ..synthesis.options import MixtureConfig, PoolConfig
from .registry import register_live, register_objective

if TYPE_CHECKING:
    import torch

    from ..synthesis.interface import Inverted
    from ..synthesis.natural_noise.pool import NaturalPool

SOURCE = "kdx; after Baradad et al. 2021"


@dataclass(frozen=True, kw_only=True)
class NaturalNoiseConfig(MixtureConfig):
    """How many images are drawn."""

    candidates: int = option(8, "Images drawn per image kept.", minimum=1)


@register_objective("natural_noise", config=NaturalNoiseConfig, record=None, source=SOURCE, gradient_free=True)
def natural_noise(given: Given, labels: torch.Tensor, config: NaturalNoiseConfig, rng: torch.Generator) -> Inverted:
    """Random leaves, fields and textures like photographs; for each class, images that the teacher assigns to it."""
    from ..synthesis.natural_noise.pool import natural_images_of_classes

    return natural_images_of_classes(given.teacher, config.mixture, config.trials, labels, config.candidates, rng)


@dataclass(frozen=True, kw_only=True)
class LiveNaturalNoiseConfig(PoolConfig, MixtureConfig):
    """The mixture, and the pool that batches are drawn from."""


@register_live(
    "natural_noise",
    config=LiveNaturalNoiseConfig,
    source=SOURCE,
    settings={"temperature": 8.0, "shift": 0, "warp": 0.0, "flip": True, "splice": True},
    structured=True,
    gradient_free=True,
)
def natural_noise_pool(given: Given, config: LiveNaturalNoiseConfig, seed: int) -> NaturalPool:
    """Random leaves, fields and textures like photographs, in shares that fit the teacher's batch normalization."""
    from ..synthesis.natural_noise.pool import natural_pool

    return natural_pool(given.teacher, config.mixture, config.trials, config.pool, config.fresh, seed)
