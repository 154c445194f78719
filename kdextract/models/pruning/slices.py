"""Take some channels of the layers of a network, or set the others to zero."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import nn

from .sizes import Convolution, find_layer, is_depthwise, replace_tensor, set_sizes, sizes_of

OUT, IN = "out", "in"


class Axis(NamedTuple):
    """The channels of one side of a layer or, if `layer` names a parameter, of its last dimension with several entries.

    `side` is `out` or `in`. Layers with as many outputs as inputs, which belong together (normalization, depthwise
    convolutions), have the side `out` alone.
    """

    layer: str
    side: str


Slicer = Callable[[torch.Tensor, int, torch.Tensor], torch.Tensor]
"""(tensor, dimension, indices) -> a new tensor."""


def axis_length(layer: nn.Module | torch.Tensor, side: str) -> int:
    """Return the number of channels of a side of a layer."""
    if isinstance(layer, torch.Tensor):
        return layer.shape[parameter_dimension(layer)]
    sizes = sizes_of(layer)
    assert sizes is not None
    return sizes[1] if side == IN else sizes[0]


def blocks_of(layer: nn.Module | torch.Tensor, side: str) -> int:
    """Return the number of equal parts of a side, in each of which equally many channels stay."""
    if isinstance(layer, nn.GroupNorm):
        return layer.num_groups
    if isinstance(layer, nn.MultiheadAttention):
        return layer.num_heads
    return layer.groups if isinstance(layer, Convolution) and not is_depthwise(layer) else 1


def parameter_dimension(parameter: torch.Tensor) -> int:
    """Return the last dimension with several entries, in which torch-pruning cuts parameters outside of layers."""
    return max(index for index, size in enumerate(parameter.shape) if size > 1)


def take(network: nn.Module, kept: Mapping[Axis, Sequence[int]]) -> nn.Module:
    """Keep only these channels of the named layers, in place, in this order, and return the network."""
    _change(network, kept, lambda tensor, dimension, rows: tensor.index_select(dimension, rows))
    for name in dict.fromkeys(axis.layer for axis in kept):
        layer = find_layer(network, name)
        if isinstance(layer, nn.Module):
            set_sizes(layer, _sizes_after(layer, {side: len(i) for (own, side), i in kept.items() if own == name}))
    return network


def set_to_zero(network: nn.Module, removed: Mapping[Axis, Sequence[int]]) -> nn.Module:
    """Set all weights, biases and means of these channels to zero, in place, and return the network."""

    def zeroed(tensor: torch.Tensor, dimension: int, rows: torch.Tensor) -> torch.Tensor:
        return tensor.index_fill(dimension, rows, 0)

    _change(network, removed, zeroed, skipped=("running_var",))
    return network


def channel_energies(network: nn.Module, axis: Axis) -> torch.Tensor:
    """Return the sum of squares of the weights and biases of each channel of an axis, float64 [channels]."""
    return channel_sums(network, axis, torch.square)


def channel_sums(network: nn.Module, axis: Axis, measure: Callable[[torch.Tensor], torch.Tensor]) -> torch.Tensor:
    """Return for each channel of an axis the sum of `measure` over its weights and biases, float64 [channels].

    Args:
        measure: (float64 values of a parameter of the network) -> a tensor of the same shape. The gradients of the
            parameter, if it has any, are the gradients of what it gets.
    """
    total = torch.zeros(axis_length(find_layer(network, axis.layer), axis.side), dtype=torch.float64)
    for held in _tensors(network, axis):
        values = getattr(held.owner, held.name, None)
        if isinstance(values, torch.Tensor) and not held.name.startswith("running_"):
            measured = measure(_in_double(values))
            for part in measured.chunk(held.copies, held.dimension):
                total += torch.stack(_channels_of(part, held)).reshape(len(total), -1).sum(1)
    return total


def _in_double(values: torch.Tensor) -> torch.Tensor:
    plain = values.detach().cpu().double()
    plain.grad = None if values.grad is None else values.grad.detach().cpu().double()
    return plain


def merge(network: nn.Module, axis: Axis, clusters: Sequence[Sequence[int]]) -> None:
    """Give the first channel of each cluster the cluster's mean (side `out`: weights, biases and statistics) or its sum
    (side `in`: weights), in place. Other channels are not changed.

    Args:
        axis: of any layer but attention.
        clusters: indices at the axis.
    """
    for held in _tensors(network, axis):
        assert held.copies == 1, "the channels of attention are several times in one tensor"
        values = getattr(held.owner, held.name, None)
        if isinstance(values, torch.Tensor):
            merged = values.detach().clone()
            channels = _channels_of(merged, held)
            for members in clusters:
                together = torch.stack([channels[member] for member in members]).double()
                channels[members[0]].copy_(together.sum(0) if axis.side == IN else together.mean(0))
            replace_tensor(held.owner, held.name, merged)


def _channels_of(values: torch.Tensor, held: _Held) -> list[torch.Tensor]:
    """Return the parts of a tensor that belong to one channel each, which share its memory."""
    if held.groups > 1:  # each part of the outputs reads a part of the inputs
        return [channel for part in values.chunk(held.groups) for channel in part.unbind(1)]
    return list(values.unbind(held.dimension))


def _sizes_after(layer: nn.Module, lengths: dict[str, int]) -> tuple[int, ...]:
    sizes = sizes_of(layer)
    assert sizes is not None
    outputs = lengths.get(OUT, sizes[0])
    if isinstance(layer, Convolution):
        if is_depthwise(layer):
            return outputs, outputs, outputs
        return outputs, lengths.get(IN, sizes[1]), sizes[2]
    return (outputs, lengths.get(IN, sizes[1])) if isinstance(layer, nn.Linear) else (outputs,)


class _Held(NamedTuple):
    """A tensor with channels of an axis in its dimension `dimension`: the module that holds it, and its name.

    The dimension has them `copies` times (3 in attention: query, key and value). With `groups` above 1 the tensor is
    the weight of a convolution, each part of whose outputs reads a part of the inputs of its own.
    """

    owner: nn.Module
    name: str
    dimension: int
    copies: int = 1
    groups: int = 1


def _change(
    network: nn.Module, indices: Mapping[Axis, Sequence[int]], slicer: Slicer, skipped: tuple[str, ...] = ()
) -> None:
    """Replace every tensor of the axes by what the slicer makes of it, the inputs of a layer before its outputs."""
    for axis in sorted(indices):
        rows = torch.tensor(list(indices[axis]), dtype=torch.int64)
        for held in _tensors(network, axis):
            values = getattr(held.owner, held.name, None)
            if isinstance(values, torch.Tensor) and held.name not in skipped:
                replace_tensor(held.owner, held.name, _sliced(values.detach(), held, rows, slicer))


def _tensors(network: nn.Module, axis: Axis) -> list[_Held]:
    """Return the tensors that may have channels of this axis; a layer need not have all of them."""
    layer = find_layer(network, axis.layer)
    if isinstance(layer, torch.Tensor):
        owner, _, last = axis.layer.rpartition(".")
        return [_Held(network.get_submodule(owner), last, parameter_dimension(layer))]
    if isinstance(layer, nn.MultiheadAttention):
        into = [_Held(layer, "in_proj_weight", 0, 3), _Held(layer, "in_proj_weight", 1)]
        out = [_Held(layer.out_proj, name, d) for name, d in (("weight", 0), ("weight", 1), ("bias", 0))]
        return [*into, _Held(layer, "in_proj_bias", 0, 3), *out]
    if axis.side == IN:
        return [_Held(layer, "weight", 1, groups=layer.groups if isinstance(layer, Convolution) else 1)]
    if isinstance(layer, nn.Embedding):
        return [_Held(layer, "weight", 1)]
    return [_Held(layer, name, 0) for name in ("weight", "bias", "running_mean", "running_var")]


def _sliced(values: torch.Tensor, held: _Held, rows: torch.Tensor, slicer: Slicer) -> torch.Tensor:
    if held.copies > 1:
        return torch.cat([slicer(part, held.dimension, rows) for part in values.chunk(held.copies, held.dimension)])
    if held.groups > 1:
        inputs = values.shape[1]
        blocks = enumerate(values.chunk(held.groups))
        return torch.cat([slicer(block, 1, rows[rows // inputs == i] - i * inputs) for i, block in blocks])
    return slicer(values, held.dimension, rows)
