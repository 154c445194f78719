"""DeepInversion (Yin et al. 2020, section 3.2): images that match the batch normalization statistics of the teacher."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..synthesis.interface import Given
from ..synthesis.options import BatchSteps, DeepInversionTerms, GrowingPoolOptions
from .registry import register_live, register_objective

if TYPE_CHECKING:
    import torch

    from ..synthesis.interface import Inverted
    from ..synthesis.inversion.pool import GrowingPool

SOURCE = "Yin et al. 2020, eq. 2 to 5"


@dataclass(frozen=True, kw_only=True)
class DeepInversionConfig(DeepInversionTerms, BatchSteps):
    """The terms of the loss, and the steps of a batch."""


@register_objective("deep_inversion", config=DeepInversionConfig, record=None, source=SOURCE, matches_batch_norm=True)
def deep_inversion(given: Given, labels: torch.Tensor, config: DeepInversionConfig, rng: torch.Generator) -> Inverted:
    """Images of the class that match the means and variances of the data in the teacher's layers."""
    from ..synthesis.inversion.deep_inversion import invert_as

    return invert_as(config, given, labels, rng)


@dataclass(frozen=True, kw_only=True)
class LiveDeepInversionConfig(GrowingPoolOptions, DeepInversionTerms):
    """The terms of the loss, and the pool."""


@register_live(
    "deep_inversion",
    config=LiveDeepInversionConfig,
    source=SOURCE,
    settings={},
    structured=False,
    matches_batch_norm=True,
)
def deep_inversion_pool(given: Given, config: LiveDeepInversionConfig, seed: int) -> GrowingPool:
    """A growing pool of images that match the means and variances of the data in the teacher's layers."""
    from ..synthesis.inversion.deep_inversion import growing_pool

    return growing_pool(config, given, seed)
