"""Match the top layer (Lopes, Fenu and Starner 2017, section 3.1)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..options.declare import option
from ..synthesis.interface import Given
from ..synthesis.options import INITS, PixelConfig
from .registry import register_objective

if TYPE_CHECKING:
    import torch

    from ..synthesis.interface import Inverted


@dataclass(frozen=True, kw_only=True)
class TopLayerConfig(PixelConfig):
    """Few small steps from random strokes, since logits alone determine little of an image."""

    steps: int = option(30, "Adam steps per batch of images.", minimum=1)
    lr: float = option(0.02, "First learning rate of Adam, on pixels in [0, 1].", above=0)
    init: str = option("strokes", "Images before the first step.", choices=INITS)
    tv: float = option(0.0, "Weight of the total variation (TV), per image.", minimum=0)


@register_objective("top_layer", config=TopLayerConfig, record="layers", source="Lopes et al. 2017, section 3.1")
def top_layer(given: Given, labels: torch.Tensor, config: TopLayerConfig, rng: torch.Generator) -> Inverted:
    """Match the logits alone, whose targets are drawn with the mean and covariance of the class."""
    from ..synthesis.inversion.activation_matching import match_record

    def values(activations: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return {given.recorded.logits: activations[given.recorded.logits]}

    return match_record(given.teacher, given.recorded, "layers", values, labels, config, rng)
