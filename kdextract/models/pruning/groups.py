"""Groups of channels that depend on each other: they stay or go together."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn

from .slices import OUT, Axis, blocks_of
from .tracing import OUTPUT, Connections, Run, Tracer


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


def find_groups(network: nn.Module, run: Run) -> list[Group]:
    """Return the groups of channels of a network, in the order of its layers; the outputs' channels are in none.

    Args:
        network: in float32 on the CPU; its weights need gradients.
        run: runs it.

    Raises:
        Exception: whatever the network or torch-pruning raises.
    """
    tracer = Tracer(network, run)
    channels = _Channels(tracer)
    for root in tracer.roots():
        if channels.is_new(root):
            channels.connect(root, *tracer.connections(root))
    return channels.groups()


class _Channels:
    """Sets of channels of layers that stay or go together: a union-find structure."""

    def __init__(self, tracer: Tracer) -> None:
        self._tracer = tracer
        self._parent: dict[tuple[Axis, int], tuple[Axis, int]] = {}

    def is_new(self, axis: Axis) -> bool:
        """Whether channels of the axis are in no set yet."""
        return any((axis, index) not in self._parent for index in range(self._tracer.length(axis)))

    def connect(self, root: Axis, connections: Connections, is_all: bool) -> None:
        """Put channels into the sets of those of the first layer; unless these are all, they cannot be cut."""
        for axis, pairs in connections.items():
            for index, first in pairs:
                self._join((root, first), (axis, index))
                if not is_all:
                    self._join((OUTPUT, 0), (axis, index))

    def groups(self) -> list[Group]:
        """Return the groups whose layers can be cut. Channels on which outputs depend are in none."""
        sets: dict[tuple[Axis, int], dict[Axis, list[int]]] = defaultdict(lambda: defaultdict(list))
        for atom in sorted(self._parent, key=lambda atom: (atom[0], atom[1])):
            axis, index = atom
            sets[self._find(atom)][axis].append(index)
        kinds: dict[tuple[tuple[Axis, int], ...], list[tuple[tuple[int, ...], ...]]] = defaultdict(list)
        for members in sets.values():
            if OUTPUT not in members and all(self._tracer.can_be_cut(axis) for axis in members):
                kind = tuple((axis, len(indices)) for axis, indices in members.items())
                kinds[kind].append(tuple(tuple(indices) for indices in members.values()))
        order = {name: position for position, name in enumerate(self._tracer.layers)}
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
            blocks, length = blocks_of(self._tracer.layers[axis.layer], axis.side), self._tracer.length(axis)
            if blocks > 1:
                if sum(len(channel[position]) for channel in channels) != length:
                    return None
                divided.append((position, length // blocks))
        keys = [tuple(channel[position][0] // size for position, size in divided) for channel in channels]
        numbers = {key: number for number, key in enumerate(dict.fromkeys(keys))}
        if len({keys.count(key) for key in numbers}) > 1:
            return None
        return Group(axes, channels, tuple(numbers[key] for key in keys))

    def _find(self, atom: tuple[Axis, int]) -> tuple[Axis, int]:
        parent = self._parent.setdefault(atom, atom)
        while parent != self._parent[parent]:
            self._parent[atom] = parent = self._parent[parent]
        return parent

    def _join(self, first: tuple[Axis, int], second: tuple[Axis, int]) -> None:
        self._parent[self._find(second)] = self._find(first)
