"""DeepDream as a baseline of DeepInversion (Yin et al. 2020, section 3.2): cross-entropy to the class, and TV."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..synthesis.interface import Given
from ..synthesis.options import BatchSteps, DreamTerms, GrowingPoolOptions
from .registry import register_live, register_objective

if TYPE_CHECKING:
    import torch

    from ..synthesis.interface import Inverted
    from ..synthesis.inversion.pool import GrowingPool

SOURCE = "Mordvintsev et al. 2015; Yin et al. 2020, eq. 2 and 3"


@dataclass(frozen=True, kw_only=True)
class DreamConfig(DreamTerms, BatchSteps):
    """The terms of the loss, and the steps of a batch."""


@register_objective("deep_dream", config=DreamConfig, record=None, source=SOURCE)
def deep_dream(given: Given, labels: torch.Tensor, config: DreamConfig, rng: torch.Generator) -> Inverted:
    """Smooth images of small norm that the teacher assigns to the class."""
    from ..synthesis.inversion.deep_inversion import invert_as

    return invert_as(config, given, labels, rng)


@dataclass(frozen=True, kw_only=True)
class LiveDreamConfig(GrowingPoolOptions, DreamTerms):
    """The terms of the loss, and the pool."""


@register_live("deep_dream", config=LiveDreamConfig, source=SOURCE, settings={}, structured=False)
def deep_dream_pool(given: Given, config: LiveDreamConfig, seed: int) -> GrowingPool:
    """A growing pool of smooth images of small norm that the teacher assigns to their class."""
    from ..synthesis.inversion.deep_inversion import growing_pool

    return growing_pool(config, given, seed)
