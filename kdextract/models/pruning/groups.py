"""Groups of channels that depend on each other, found with torch-pruning's dependency graph (Fang et al. 2023, arXiv
2301.12900)."""

from __future__ import annotations

import warnings
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import nn

from .sizes import is_depthwise, loose_parameters, sizes_of
from .slices import IN, OUT, Axis, axis_length, blocks_of

UNKNOWN = 2**31
"""Number of channels of what cannot be cut."""
OUTPUT = Axis("", OUT)
"""The axis of the network's outputs, whose classes all stay."""


@dataclass(frozen=True, eq=False)
class Group:
    """Channels of layers that are connected with each other in the same way.

    A channel of the group is a set of channels of layers that stay or go together, such as those that are added in a
    residual network, or the inputs of a linear layer that are the pixels of one channel.

    Attributes:
        axes: the sides of layers that have channels of the group. Other groups may have others of a side.
        channels: for each channel of the group and each axis, the indices there.
        blocks: for each channel, the number of the block that it belongs to. Equally many channels stay of each block.
    """

    axes: tuple[Axis, ...]
    channels: tuple[tuple[tuple[int, ...], ...], ...]
    blocks: tuple[int, ...]

    @property
    def name(self) -> str:
        """The first layer whose outputs are channels of the group."""
        return next((axis.layer for axis in self.axes if axis.side == OUT), self.axes[0].layer)

    @property
    def unit(self) -> int:
        """The number of channels that stay is a multiple of this number."""
        return len(set(self.blocks))

    def members(self) -> list[list[int]]:
        """Return the indices of the channels of each block."""
        blocks: dict[int, list[int]] = defaultdict(list)
        for index, block in enumerate(self.blocks):
            blocks[block].append(index)
        return list(blocks.values())

    def indices(self, channels: Sequence[int]) -> dict[Axis, list[int]]:
        """Return the indices that these channels of the group have at each axis."""
        return {
            axis: [index for channel in channels for index in self.channels[channel][position]]
            for position, axis in enumerate(self.axes)
        }


Run = Callable[[nn.Module], tuple[list[torch.Tensor], list[torch.Tensor]]]
"""Returns the outputs of a network for a batch of images, with their gradient history: those whose channels all stay,
and others."""


def find_groups(network: nn.Module, run: Run) -> list[Group]:
    """Return the groups of channels of a network, in the order of its layers; the outputs' channels are in none.

    Args:
        network: in float32 on the CPU; its weights need gradients.
        run: runs it.

    Raises:
        Exception: whatever the network or torch-pruning raises.
    """
    channels = _Channels(network)
    with warnings.catch_warnings():  # torch-pruning warns of operations that it takes for operations on each channel
        warnings.simplefilter("ignore")
        for root, pairs in _connections(network, run):
            if channels.is_new(root):
                for axis, indices, roots in pairs():
                    channels.connect(root, roots, axis, indices)
    return channels.groups()


Connections = Callable[[], list[tuple[Axis, Sequence[int], Sequence[int]]]]
"""Returns axes, indices there, and the indices of the first layer's outputs that these depend on."""


def _connections(network: nn.Module, run: Run) -> Iterator[tuple[Axis, Connections]]:
    """Yield the outputs of each convolution and linear layer, and what depends on them."""
    import torch_pruning
    from torch_pruning import ops

    names: dict[int, str] = {id(module): name for name, module in network.named_modules()}
    names |= {id(parameter): name for name, parameter in network.named_parameters()}
    ends: list[Any] = []

    def forward(model: nn.Module, _: torch.Tensor) -> list[torch.Tensor]:
        fixed, others = ([output * 1.0 for output in outputs] for outputs in run(model))
        ends.extend(output.grad_fn for output in fixed)
        return [*fixed, *others]

    graph = torch_pruning.DependencyGraph().build_dependency(network, torch.empty(0), forward, verbose=False)

    def connected(module: nn.Module) -> list[tuple[Axis, Sequence[int], Sequence[int]]]:
        found = []
        handler = graph.get_pruner_of_module(module).prune_out_channels
        for item in graph.get_pruning_group(module, handler, range(axis_length(module, OUT))):
            target, roots = item.dep.target.module, item.root_idxs
            ends_here = any(item.dep.target.grad_fn is end for end in ends)
            axis = OUTPUT if ends_here else _axis(target, names.get(id(target)), item.dep)
            if axis is not None and not any(root is None for root in roots):
                found.append((axis, item.idxs, roots))
        return found

    for module in list(graph.module2node):
        name = names.get(id(module))
        if name is not None and isinstance(module, ops.TORCH_CONV | nn.Linear) and sizes_of(module) is not None:
            yield Axis(name, OUT), partial(connected, module)


def _axis(target: Any, name: str | None, dependency: Any) -> Axis | None:
    """Return the axis of a layer or parameter of the network; None for an operation without weights."""
    if name is None:
        return None
    convolves = isinstance(target, nn.Linear | nn.modules.conv._ConvNd) and not is_depthwise(target)
    return Axis(name, IN if convolves and "in_channels" in dependency.handler.__name__ else OUT)


class _Channels:
    """Sets of channels of layers that stay or go together: a union-find structure."""

    def __init__(self, network: nn.Module) -> None:
        self._layers = {**dict(network.named_modules()), **dict(network.named_parameters())}
        self._loose = set(loose_parameters(network))
        self._lengths: dict[Axis, int] = {OUTPUT: UNKNOWN}
        self._parent: dict[tuple[Axis, int], tuple[Axis, int]] = {}
        self._roots: set[Axis] = set()

    def is_new(self, axis: Axis) -> bool:
        """Whether channels of the axis are in no set yet."""
        return any((axis, index) not in self._parent for index in range(self._length(axis)))

    def connect(self, root: Axis, roots: Sequence[int], axis: Axis, indices: Sequence[int]) -> None:
        """Put channels of an axis into the sets of those of another. Indices that the axis does not have are ignored:
        some operations, such as padding with channels of zeros, add channels."""
        length = self._length(axis)
        for first, index in zip(roots, indices, strict=True):
            if index < length:
                self._join((root, first), (axis, index))

    def groups(self) -> list[Group]:
        """Return the groups whose layers can be cut. Channels on which outputs depend are in none."""
        sets: dict[tuple[Axis, int], dict[Axis, list[int]]] = defaultdict(lambda: defaultdict(list))
        for atom in sorted(self._parent, key=lambda atom: (atom[0], atom[1])):
            axis, index = atom
            sets[self._find(atom)][axis].append(index)
        kinds: dict[tuple[tuple[Axis, int], ...], list[tuple[tuple[int, ...], ...]]] = defaultdict(list)
        for members in sets.values():
            if OUTPUT not in members and all(self._can_be_cut(axis) for axis in members):
                kind = tuple((axis, len(indices)) for axis, indices in members.items())
                kinds[kind].append(tuple(tuple(indices) for indices in members.values()))
        order = {name: position for position, name in enumerate(self._layers)}
        found = []
        for kind, channels in kinds.items():
            axes = tuple(axis for axis, _ in kind)
            sequence = sorted(range(len(axes)), key=lambda position: order[axes[position].layer])
            ordered = tuple(tuple(channel[position] for position in sequence) for channel in sorted(channels))
            found.append(self._group(tuple(axes[position] for position in sequence), ordered))
        return sorted((group for group in found if group is not None), key=lambda group: order[group.name])

    def _group(self, axes: tuple[Axis, ...], channels: tuple[tuple[tuple[int, ...], ...], ...]) -> Group | None:
        """Return the group with its blocks; None if a layer with blocks has channels of other groups as well, or the
        blocks differ in size."""
        divided = []
        for position, axis in enumerate(axes):
            blocks, length = blocks_of(self._layers[axis.layer], axis.side), self._length(axis)
            if blocks > 1:
                if sum(len(channel[position]) for channel in channels) != length:
                    return None
                divided.append((position, length // blocks))
        keys = [tuple(channel[position][0] // size for position, size in divided) for channel in channels]
        numbers = {key: number for number, key in enumerate(dict.fromkeys(keys))}
        if len({keys.count(key) for key in numbers}) > 1:
            return None
        return Group(axes, channels, tuple(numbers[key] for key in keys))

    def _length(self, axis: Axis) -> int:
        if axis not in self._lengths:
            can_be_cut = self._can_be_cut(axis)
            self._lengths[axis] = axis_length(self._layers[axis.layer], axis.side) if can_be_cut else UNKNOWN
        return self._lengths[axis]

    def _can_be_cut(self, axis: Axis) -> bool:
        layer = self._layers[axis.layer]
        if isinstance(layer, torch.Tensor):
            return axis.layer in self._loose
        return sizes_of(layer) is not None

    def _find(self, atom: tuple[Axis, int]) -> tuple[Axis, int]:
        parent = self._parent.setdefault(atom, atom)
        while parent != self._parent[parent]:
            self._parent[atom] = parent = self._parent[parent]
        return parent

    def _join(self, first: tuple[Axis, int], second: tuple[Axis, int]) -> None:
        self._parent[self._find(second)] = self._find(first)
