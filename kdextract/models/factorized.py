"""Factorized layers: one layer becomes three, as in Tucker-2 compression (Kim et al. 2016, arXiv 1511.06530)."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable

from torch import nn

from ..errors import ConfigError, did_you_mean

LayerRanks = tuple[str, int, int]
"""Name of a convolution or linear layer, and its (in rank, out rank)."""


def factorizable_layers(network: nn.Module) -> dict[str, nn.Conv2d | nn.Linear]:
    """Return the layers that can be factorized, by name, in order: linear layers and ungrouped convolutions."""
    return {
        name: module
        for name, module in network.named_modules()
        if isinstance(module, nn.Linear) or (isinstance(module, nn.Conv2d) and module.groups == 1)
    }


def factorize(network: nn.Module, layers: Iterable[LayerRanks]) -> nn.Module:
    """Replace each named layer by `inwards`, `core` and `outwards`, freshly initialized, and return the network.

    A convolution becomes a 1x1 convolution to the in rank, the convolution itself from in rank to out rank, and a 1x1
    convolution to its outputs; a linear layer becomes three. The last of the three has the bias.

    Raises:
        ConfigError: there is no such layer, or a rank is not between 1 and the layer's inputs or outputs.
    """
    for name, in_rank, out_rank in layers:
        present = factorizable_layers(network)
        if name not in present:
            near = did_you_mean(name, list(present))
            raise ConfigError(f"there is no convolution or linear layer {name!r} to factorize.{near}")
        parent, _, child = name.rpartition(".")
        setattr(network.get_submodule(parent), child, _factorized(name, present[name], in_rank, out_rank))
    return network


def _factorized(name: str, layer: nn.Conv2d | nn.Linear, in_rank: int, out_rank: int) -> nn.Sequential:
    outputs, inputs = layer.weight.shape[:2]
    if not (1 <= in_rank <= inputs and 1 <= out_rank <= outputs):
        raise ConfigError(
            f"layer {name} has {inputs} inputs and {outputs} outputs; the ranks {in_rank} and {out_rank} do not fit"
        )
    has_bias = layer.bias is not None
    parts: OrderedDict[str, nn.Module] = OrderedDict()
    if isinstance(layer, nn.Linear):
        parts["inwards"] = nn.Linear(inputs, in_rank, bias=False)
        parts["core"] = nn.Linear(in_rank, out_rank, bias=False)
        parts["outwards"] = nn.Linear(out_rank, outputs, bias=has_bias)
        return nn.Sequential(parts)
    assert not isinstance(layer.padding, str)
    parts["inwards"] = nn.Conv2d(inputs, in_rank, 1, bias=False)
    parts["core"] = nn.Conv2d(
        in_rank,
        out_rank,
        (layer.kernel_size[0], layer.kernel_size[1]),
        (layer.stride[0], layer.stride[1]),
        (layer.padding[0], layer.padding[1]),
        (layer.dilation[0], layer.dilation[1]),
        bias=False,
    )
    parts["outwards"] = nn.Conv2d(out_rank, outputs, 1, bias=has_bias)
    return nn.Sequential(parts)
