"""Match all layers (Lopes, Fenu and Starner 2017, section 3.2)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from .options import PixelConfig
from .registry import register_objective

if TYPE_CHECKING:
    import torch

    from ..classifier import Classifier
    from ..inversion import Inverted
    from ..statistics import Statistics


@dataclass(frozen=True, kw_only=True)
class AllLayersConfig(PixelConfig):
    """The shared options, as they are."""


@register_objective("all_layers", config=AllLayersConfig, record="layers", source="Lopes et al. 2017, section 3.2")
def all_layers(
    teacher: Classifier,
    statistics: Statistics,
    labels: torch.Tensor,
    config: AllLayersConfig,
    generator: torch.Generator,
) -> Inverted:
    """Match the pre-activations of every recorded layer, drawn jointly, so that layers agree."""
    from ..inversion import match_layers

    return match_layers(teacher, statistics, labels, config, generator)
