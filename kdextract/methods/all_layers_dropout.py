"""Match all layers of a teacher thinned by dropout (Lopes, Fenu and Starner 2017, section 3.2, dropout filters)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..config import option
from .options import PixelConfig
from .registry import register_method

if TYPE_CHECKING:
    import torch

    from ..classifier import Classifier
    from ..inversion import Inverted
    from ..statistics import Statistics


@dataclass(frozen=True, kw_only=True)
class AllLayersDropoutConfig(PixelConfig):
    """Adds how much each layer's input keeps."""

    keep_input: float = option(0.8, "Share of pixels that the first layer sees.", above=0, maximum=1)
    keep_hidden: float = option(0.5, "Share of units that later layers see.", above=0, maximum=1)


@register_method(
    "all_layers_dropout",
    config=AllLayersDropoutConfig,
    record="layers",
    source="Lopes et al. 2017, section 3.2",
)
def all_layers_dropout(
    teacher: Classifier,
    statistics: Statistics,
    labels: torch.Tensor,
    config: AllLayersDropoutConfig,
    generator: torch.Generator,
) -> Inverted:
    """Match all layers under a dropout mask per image, fixed while its pixels are optimized."""
    from ..hooks import transform_inputs
    from ..inversion import DropoutMasks, match_layers

    names = [layer.name for layer in statistics.layers]
    keep = {name: config.keep_hidden for name in names} | {names[0]: config.keep_input}
    with transform_inputs(teacher.network, names, DropoutMasks(keep, generator)):
        return match_layers(teacher, statistics, labels, config, generator)
