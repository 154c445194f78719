"""Adaptive DeepInversion (Yin et al. 2020, section 3.3): DeepInversion with a term for the student's disagreement."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..options.declare import option
from ..synthesis.interface import Given
from ..synthesis.options import LIVE_PRESETS, AdaptiveTerms, BatchSteps, GrowingPoolOptions, by_preset
from .registry import register_live, register_objective

if TYPE_CHECKING:
    import torch

    from ..synthesis.interface import Inverted
    from ..synthesis.inversion.pool import GrowingPool

SOURCE = "Yin et al. 2020, eq. 2 to 9"


@dataclass(frozen=True, kw_only=True)
class AdaptiveConfig(AdaptiveTerms, BatchSteps):
    """The terms of the loss, and the steps of a batch."""


@register_objective(
    "adaptive_deep_inversion",
    config=AdaptiveConfig,
    record=None,
    source=SOURCE,
    matches_batch_norm=True,
    needs_student=True,
)
def adaptive_deep_inversion(
    given: Given, labels: torch.Tensor, config: AdaptiveConfig, rng: torch.Generator
) -> Inverted:
    """Images that match the statistics of the teacher's layers, on which the student of --student disagrees."""
    from ..synthesis.inversion.deep_inversion import invert_as

    return invert_as(config, given, labels, rng)


@dataclass(frozen=True, kw_only=True)
class LiveAdaptiveConfig(GrowingPoolOptions, AdaptiveTerms):
    """The terms of the loss, and the pool."""

    compete: float | None = option(
        None,
        "Weight of the teacher-student competition term (ADI, eq. 8).",
        minimum=0,
        otherwise=f"by --preset: {by_preset(LIVE_PRESETS, 'compete')}",
    )
    from_noise: int | None = option(
        None,
        "First N batches start from noise; later ones start from images of the pool. 0: all start from noise.",
        minimum=0,
        otherwise=f"by --preset: {by_preset(LIVE_PRESETS, 'from_noise')}",
    )
    adapt_steps: int | None = option(
        None,
        "Adam steps of a batch that starts from images of the pool.",
        minimum=1,
        otherwise=f"by --preset: {by_preset(LIVE_PRESETS, 'adapt_steps')}",
    )

    def given(self) -> dict[str, Any]:
        """As the base classes, and how later batches start."""
        return super().given() | {"from_noise": self.from_noise, "adapt_steps": self.adapt_steps}


@register_live(
    "adaptive_deep_inversion",
    config=LiveAdaptiveConfig,
    source=SOURCE,
    settings={},
    structured=False,
    matches_batch_norm=True,
)
def adaptive_deep_inversion_pool(given: Given, config: LiveAdaptiveConfig, seed: int) -> GrowingPool:
    """A growing pool of images that match the statistics of the teacher's layers, on which the student disagrees."""
    from ..synthesis.inversion.deep_inversion import growing_pool

    return growing_pool(config, given, seed)
