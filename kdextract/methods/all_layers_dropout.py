"""Match all layers of a teacher with dropout masks (Lopes, Fenu and Starner 2017, section 3.2, dropout filters)."""

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
class AllLayersDropoutConfig(PixelConfig):
    """Adds the shares of inputs that dropout keeps. The paper's shares suit a teacher that was trained with dropout.

    For another teacher, with half of the inputs set to zero, no image has activations near the recorded ones.
    """

    keep_input: float | None = option(
        None,
        "Share of pixels that dropout keeps in the input of the first layer.",
        above=0,
        maximum=1,
        otherwise="0.8 for a teacher with dropout layers, else 0.95",
    )
    keep_hidden: float | None = option(
        None,
        "Share of units that dropout keeps in the inputs of later layers.",
        above=0,
        maximum=1,
        otherwise="0.5 for a teacher with dropout layers, else 0.9",
    )


@register_objective(
    "all_layers_dropout",
    config=AllLayersDropoutConfig,
    record="layers",
    source="Lopes et al. 2017, section 3.2",
)
def all_layers_dropout(
    given: Given, labels: torch.Tensor, config: AllLayersDropoutConfig, rng: torch.Generator
) -> Inverted:
    """Match all layers under one dropout mask per image, which is fixed while its pixels are optimized."""
    from torch import nn

    from ..models.hooks import transform_inputs
    from ..synthesis.inversion.activation_matching import DropoutMasks, match_layers

    thinned = any(isinstance(module, nn.Dropout) for module in given.teacher.modules())
    usual_input, usual_hidden = (0.8, 0.5) if thinned else (0.95, 0.9)
    keep_input = usual_input if config.keep_input is None else config.keep_input
    keep_hidden = usual_hidden if config.keep_hidden is None else config.keep_hidden
    names = [layer.name for layer in given.recorded.layers]
    keep = {name: keep_hidden for name in names} | {names[0]: keep_input}
    with transform_inputs(given.teacher.network, names, DropoutMasks(keep, rng)):
        return match_layers(given.teacher, given.recorded, labels, config, rng)
