"""Natural inversion: natural noise, moved a few steps towards the means and variances that the teacher keeps.

Our own method. The steps are those of DeepInversion (Yin et al. 2020, equation 4) with the statistics term alone. They
start from images that have edges, shapes and colours already, so that few steps are enough; DeepInversion starts from
normal noise and takes 2000.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..options.declare import option
from ..synthesis.interface import Given
from ..synthesis.options import MixtureConfig, PoolConfig
from .registry import register_live

if TYPE_CHECKING:
    from ..synthesis.natural_noise.inverted import InvertedPool


@dataclass(frozen=True, kw_only=True)
class NaturalInversionConfig(PoolConfig, MixtureConfig):
    """The mixture, the pool that batches are drawn from, and the steps of each image."""

    fresh: int = option(0, "New images per step; they replace the oldest.", minimum=0)
    pixel_steps: int = option(5, "Adam steps of each image.", minimum=1)


@register_live(
    "natural_inversion",
    config=NaturalInversionConfig,
    source="kdx; after Yin et al. 2020, eq. 4",
    settings={"temperature": 8.0, "shift": 2, "warp": 0.0, "flip": True, "splice": True},
    structured=True,
    matches_batch_norm=True,
)
def natural_inversion(given: Given, config: NaturalInversionConfig, seed: int) -> InvertedPool:
    """Natural noise that is moved a few steps towards the means and variances of the data in the teacher's layers."""
    from ..synthesis.natural_noise.inverted import inverted_pool

    return inverted_pool(given, config.mixture, config.trials, config.pool, config.fresh, config.pixel_steps, seed)
