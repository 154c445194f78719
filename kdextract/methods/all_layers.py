"""Match all layers (Lopes, Fenu and Starner 2017, section 3.2)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..synthesis.interface import Given
from ..synthesis.options import PixelConfig
from .registry import register_objective

if TYPE_CHECKING:
    import torch

    from ..synthesis.interface import Inverted


@dataclass(frozen=True, kw_only=True)
class AllLayersConfig(PixelConfig):
    """The options that all methods of this kind share."""


@register_objective("all_layers", config=AllLayersConfig, record="layers", source="Lopes et al. 2017, section 3.2")
def all_layers(given: Given, labels: torch.Tensor, config: AllLayersConfig, rng: torch.Generator) -> Inverted:
    """Match the pre-activations of every recorded layer, whose targets are drawn jointly for all layers."""
    from ..synthesis.inversion.activation_matching import match_layers

    return match_layers(given.teacher, given.recorded, labels, config, rng)
