"""Structured noise: images from formulas alone, sorted by the class that the teacher predicts.

Our own method; the closest published relative trains on noise of natural-image statistics (Baradad et al. 2021,
"Learning to See by Looking at Noise"), which has no teacher and no classes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..options.declare import OptionSet, option
from ..synthesis.interface import Given
from ..synthesis.options import PoolConfig
from .registry import register_live, register_objective

if TYPE_CHECKING:
    import torch

    from ..synthesis.interface import Inverted
    from ..synthesis.structured_noise.pool import RefreshedPool

SOURCE = "kdx; after Baradad et al. 2021"


@dataclass(frozen=True, kw_only=True)
class StructuredNoiseConfig(OptionSet):
    """How many images are drawn."""

    candidates: int = option(8, "Images drawn per image kept.", minimum=1)


@register_objective("structured_noise", config=StructuredNoiseConfig, record=None, source=SOURCE, gradient_free=True)
def structured_noise(
    given: Given, labels: torch.Tensor, config: StructuredNoiseConfig, rng: torch.Generator
) -> Inverted:
    """Random lines, shapes and textures; for each class, images that the teacher assigns to it."""
    from ..synthesis.structured_noise.by_class import images_of_classes, maker

    return images_of_classes(maker(given.teacher), given.teacher, labels, config.candidates, rng)


@register_live(
    "structured_noise",
    config=PoolConfig,
    source=SOURCE,
    settings={"temperature": 8.0, "shift": 0, "warp": 0.0},
    structured=True,
    gradient_free=True,
)
def structured_noise_pool(given: Given, config: PoolConfig, seed: int) -> RefreshedPool:
    """Random lines, shapes and textures, continually replaced by new ones, all predicted classes equally often."""
    from ..synthesis.structured_noise.by_class import structured_pool

    return structured_pool(given.teacher, config.pool, config.fresh, seed)
