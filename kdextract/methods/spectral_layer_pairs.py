"""Match spectra of the activation graph, one per pair of adjacent layers (Lopes, Fenu and Starner 2017, section 3.3).

The paper leaves the graph operator open; `synthesis/statistics/spectra.py` defines it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..options.declare import option
from ..synthesis.interface import Given
from ..synthesis.options import PixelConfig
from .registry import register_objective

if TYPE_CHECKING:
    import torch

    from ..synthesis.interface import Inverted


@dataclass(frozen=True, kw_only=True)
class SpectralLayerPairsConfig(PixelConfig):
    """A larger weight of TV than for other objectives, since a spectrum does not determine high frequencies."""

    tv: float = option(2.0, "Weight of the total variation (TV), per image.", minimum=0)


@register_objective(
    "spectral_layer_pairs",
    config=SpectralLayerPairsConfig,
    record="spectral_layer_pairs",
    source="Lopes et al. 2017, section 3.3",
)
def spectral_layer_pairs(
    given: Given, labels: torch.Tensor, config: SpectralLayerPairsConfig, rng: torch.Generator
) -> Inverted:
    """Match the activation graph's leading spectral coefficients, one spectrum per layer pair, and the logits."""
    from ..synthesis.inversion.activation_matching import match_spectra

    return match_spectra(given.teacher, given.recorded, "spectral_layer_pairs", labels, config, rng)
