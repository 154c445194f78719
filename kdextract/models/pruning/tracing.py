"""Which channels of other layers depend on those of a layer: torch-pruning's dependency graph (Fang et al. 2023, arXiv
2301.12900)."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from .sizes import is_depthwise, loose_parameters, sizes_of
from .slices import IN, OUT, Axis, axis_length

UNKNOWN = 2**31
"""Number of channels of what cannot be cut."""
OUTPUT = Axis("", OUT)
"""The axis of the network's outputs, whose classes all stay."""
MOST_VISITS = 1000
"""Number of operations that the channels of a layer may pass through, on average."""

Run = Callable[[nn.Module], tuple[list[torch.Tensor], list[torch.Tensor]]]
"""Returns the outputs of a network for a batch of images, with their gradient history: those whose channels all stay,
and others."""
Connections = dict[Axis, set[tuple[int, int]]]
"""Axis -> (index there, index of the channel of the first layer)."""


class Tracer:
    """The dependency graph of a network.

    Args:
        network: in float32 on the CPU; its weights need gradients.
        run: runs it.

    Raises:
        Exception: whatever the network or torch-pruning raises.
    """

    def __init__(self, network: nn.Module, run: Run) -> None:
        import torch_pruning

        self.layers = {**dict(network.named_modules()), **dict(network.named_parameters())}
        self._names = {id(layer): name for name, layer in self.layers.items() if name}
        self._loose = set(loose_parameters(network))
        self._lengths: dict[Axis, int] = {OUTPUT: UNKNOWN}
        self._ends: list[Any] = []

        def forward(model: nn.Module, _: torch.Tensor) -> list[torch.Tensor]:
            fixed, others = ([output * 1.0 for output in outputs if output.requires_grad] for outputs in run(model))
            self._ends += [output.grad_fn for output in fixed]
            return [*fixed, *others]

        with warnings.catch_warnings():  # of operations that are taken for operations on each channel
            warnings.simplefilter("ignore")
            graph = torch_pruning.DependencyGraph()
            self._graph = graph.build_dependency(network, torch.empty(0), forward, verbose=False)

    def roots(self) -> list[Axis]:
        """Return the outputs of the convolutions and linear layers that run."""
        weighted = (nn.modules.conv._ConvNd, nn.Linear)
        names = [self._names.get(id(module)) for module in self._graph.module2node if isinstance(module, weighted)]
        axes = [Axis(name, OUT) for name in names if name is not None]
        return [axis for axis in axes if self.can_be_cut(axis)]

    def connections(self, root: Axis) -> tuple[Connections, bool]:
        """Return what depends on the channels of a layer, and whether that is all.

        The search stops where operations that torch-pruning does not know seem to connect all channels with all others.
        """
        from torch_pruning._helpers import _HybridIndex

        layer, count = self.layers[root.layer], self.length(root)
        start = self._graph.module2node[layer]
        handler = self._graph.get_pruner_of_module(layer).prune_out_channels
        todo = [(start, handler, [_HybridIndex(idx=index, root_idx=index) for index in range(count)])]
        visited: dict[Any, set[Any]] = {(start, handler): set(todo[0][2])}
        found: Connections = {root: set(todo[0][2])}
        visits = count
        while todo:
            node, trigger, channels = todo.pop()
            for dependency in node.dependencies:
                if not dependency.is_triggered_by(trigger):
                    continue
                mapped = channels
                for mapping in dependency.index_mapping:
                    mapped = mapped if mapping is None else mapping(mapped)
                axis = self._axis(dependency)
                length = UNKNOWN if axis is None else self.length(axis)
                known = visited.setdefault((dependency.target, dependency.handler), set())
                new = {pair for pair in mapped if pair.idx < length and pair.root_idx is not None} - known
                known |= new
                visits += len(new)
                if axis is not None:
                    found.setdefault(axis, set()).update(new)
                if visits > MOST_VISITS * count:
                    return found, False
                if new:
                    todo.append((dependency.target, dependency.handler, sorted(new)))
        return found, True

    def length(self, axis: Axis) -> int:
        """Return the number of channels of an axis."""
        if axis not in self._lengths:
            can_be_cut = self.can_be_cut(axis)
            self._lengths[axis] = axis_length(self.layers[axis.layer], axis.side) if can_be_cut else UNKNOWN
        return self._lengths[axis]

    def can_be_cut(self, axis: Axis) -> bool:
        """Whether the layer or parameter is one of those whose sizes can change."""
        layer = self.layers[axis.layer]
        return axis.layer in self._loose if isinstance(layer, torch.Tensor) else sizes_of(layer) is not None

    def _axis(self, dependency: Any) -> Axis | None:
        """Return the axis that a dependency leads to; None for an operation without weights."""
        if any(dependency.target.grad_fn is end for end in self._ends):
            return OUTPUT
        target = dependency.target.module
        name = self._names.get(id(target))
        if name is None or (isinstance(target, nn.PReLU) and target.num_parameters == 1):
            return None
        convolves = isinstance(target, nn.Linear | nn.modules.conv._ConvNd) and not is_depthwise(target)
        return Axis(name, IN if convolves and "in_channels" in dependency.handler.__name__ else OUT)
