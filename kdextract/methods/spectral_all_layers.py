"""Match spectra of the activation graph, one spectrum over all layers (Lopes, Fenu and Starner 2017, section 3.3).

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
class SpectralAllLayersConfig(PixelConfig):
    """A larger weight of TV than for other objectives, since a spectrum does not determine high frequencies."""

    tv: float = option(2.0, "Weight of the total variation (TV), per image.", minimum=0)


@register_objective(
    "spectral_all_layers",
    config=SpectralAllLayersConfig,
    record="spectral_all_layers",
    source="Lopes et al. 2017, section 3.3",
)
def spectral_all_layers(
    given: Given, labels: torch.Tensor, config: SpectralAllLayersConfig, rng: torch.Generator
) -> Inverted:
    """Match the activation graph's leading spectral coefficients, one spectrum over all layers, and the logits."""
    from ..synthesis.inversion.activation_matching import match_spectra

    return match_spectra(given.teacher, given.recorded, "spectral_all_layers", labels, config, rng)
