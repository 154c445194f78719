"""Blocks of a network, such as the residual blocks of a ResNet, and which of them correspond in teacher and student."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from .classifier import Classifier
from .hooks import CallCounter, evaluation_mode, is_weighted, module_of
from .onnx_network import OnnxNetwork
from .pruning.sizes import ChannelNorm, TokenNorm

MOST_BLOCKS = 16
"""Largest number of blocks that are compared; of more, evenly spaced ones."""
LEAST_SHARE = 0.5
"""Blocks of one level are used if they contain at least this share of the layers with weights, without the last one."""
CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)
NORMS = (ChannelNorm, nn.GroupNorm, TokenNorm)

_OPERATION = re.compile(r"(\w+?)(Backward\w*)")
_CHANNEL_WISE = re.compile(
    "Relu|Threshold|Hardtanh|Hardswish|Hardsigmoid|Silu|Gelu|LeakyRelu|Elu|Sigmoid|Tanh|Softplus|Mish|Clamp|ClampMin|"
    "Add|Sub|Mul|Clone|ToCopy|NativeDropout|MaxPool2DWithIndices|AvgPool2D|AdaptiveAvgPool2D|UpsampleNearest2D"
)
"""Operations of autograd graphs in which channel c of the result depends on channel c of the operands alone."""


@dataclass(frozen=True)
class Output:
    """The output of a module for two images.

    Attributes:
        shape: of the whole tensor; the first dimension is 2.
        axis: the dimension of the channels.
        layer: the layer whose outputs these channels are, after channel-wise operations; None if it is not known.
    """

    shape: tuple[int, ...]
    axis: int
    layer: str | None


@dataclass(frozen=True)
class BlockPair:
    """A block of the teacher and one of the student whose outputs are compared.

    Attributes:
        teacher, student: their names; the second call of a block within one forward pass is `name#2`.
        axis: the dimension of the channels in the outputs.
        channels: the teacher's channels that the student has, ascending; None if it has all.
    """

    teacher: str
    student: str
    axis: int
    channels: tuple[int, ...] | None = None


@dataclass(frozen=True)
class Trace:
    """What one forward pass showed: outputs by call, the layers with weights, and the normalization after a layer.

    Calls are in the order in which they ended. Outputs other than tensors [batch, ...] of floating point are left out.
    """

    network: nn.Module
    outputs: dict[str, Output]
    layers: list[str]
    norms: dict[str, str]

    def blocks(self) -> list[str]:
        """Return the calls of the network's blocks, at most `MOST_BLOCKS`, in the order in which they run.

        Blocks are members of `nn.Sequential` and similar containers, or children of the network, that contain several
        layers with weights: those on the deepest level of nested containers that hold half of all such layers. In a
        network without such blocks, every layer with weights is one, with the normalization that follows it. Modules
        that contain the last layer are none: their outputs are compared by the loss of the logits.
        """
        if not self.layers:
            return []
        hidden, core = self.layers[:-1], self._core()
        levels: dict[int, list[str]] = defaultdict(list)
        for call in self.outputs:
            name = module_of(call)
            inside = self._inside(name)
            if len(inside) > 1 and self.layers[-1] not in inside and self._is_member(name, core):
                levels[self._level(name)].append(call)
        for level in sorted(levels, reverse=True):
            held = {layer for call in levels[level] for layer in self._inside(module_of(call))}
            if len(levels[level]) > 1 and len(held) >= LEAST_SHARE * len(hidden):
                return _evenly(levels[level])
        flat = [self.norms.get(layer, layer) for layer in hidden]
        return _evenly([call for call in self.outputs if module_of(call) in flat])

    def _inside(self, name: str) -> list[str]:
        return [layer for layer in self.layers if layer == name or layer.startswith(f"{name}.")]

    def _is_member(self, name: str, core: str) -> bool:
        """Whether a module is in a container, or a child of the core that is no container itself."""
        parent = name.rpartition(".")[0]
        if isinstance(self.network.get_submodule(parent), CONTAINERS):
            return True
        return parent == core and not isinstance(self.network.get_submodule(name), CONTAINERS)

    def _core(self) -> str:
        """Return the name of the network inside of wrappers, modules of which one child contains all layers."""
        name = ""
        while True:
            prefix = f"{name}." if name else ""
            children = {layer.removeprefix(prefix).partition(".")[0] for layer in self.layers}
            child = prefix + next(iter(children))
            if len(children) > 1 or child in self.layers:
                return name
            name = child

    def _level(self, name: str) -> int:
        """Return in how many containers a module is, directly or indirectly."""
        parts = name.split(".")
        owners = [".".join(parts[:count]) for count in range(len(parts))]
        return sum(isinstance(self.network.get_submodule(owner), CONTAINERS) for owner in owners)


def _evenly(calls: list[str]) -> list[str]:
    """Return `MOST_BLOCKS` evenly spaced calls, the first and the last one included; all if they are fewer."""
    if len(calls) <= MOST_BLOCKS:
        return calls
    return [calls[round(index * (len(calls) - 1) / (MOST_BLOCKS - 1))] for index in range(MOST_BLOCKS)]


def trace(classifier: Classifier) -> Trace:
    """Run the network once on two images of zeros, in evaluation mode, and return what was found."""
    compiled = classifier._compiled
    network = deepcopy(classifier.network) if compiled else classifier.network  # a copy is not compiled
    tracing = _Tracing(network)
    if not isinstance(network, OnnxNetwork):
        classifier.queries.add_blank(2)
        # The layers of autograd graphs are found by the input's gradient: a frozen network has no other.
        blank = classifier.blank(2).requires_grad_()
        with evaluation_mode(network), torch.enable_grad(), tracing.hooks:
            network(blank * 1)
    return Trace(network, tracing.outputs, tracing.layers, tracing.norms)


class _Tracing:
    """Hooks that fill the parts of a `Trace`. They are removed when `hooks` is closed."""

    def __init__(self, network: nn.Module) -> None:
        self.outputs: dict[str, Output] = {}
        self.layers: list[str] = []
        self.norms: dict[str, str] = {}
        self._sources: dict[Any, tuple[str, int, int]] = {}  # autograd node -> layer, axis and number of its channels
        self.hooks = ExitStack()
        self._calls = CallCounter(network, self.hooks)
        for name, module in network.named_modules():
            if name:
                hook = self._hook(name)
                self.hooks.callback(module.register_forward_hook(hook).remove)

    def _hook(self, name: str) -> Any:
        def note(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
            call = self._calls.next(name)
            if not isinstance(output, torch.Tensor) or not output.is_floating_point() or output.dim() < 2:
                return
            if is_weighted(module) or isinstance(module, NORMS):
                self._note_layer(name, module, inputs, output)
            if output.shape[0] == 2:
                layer, axis = self._source(output)
                self.outputs[call] = Output(tuple(output.shape), axis, layer)

        return note

    def _note_layer(self, name: str, module: nn.Module, inputs: tuple[Any, ...], output: torch.Tensor) -> None:
        if is_weighted(module):
            if name not in self.layers:
                self.layers.append(name)
            last = isinstance(module, nn.Linear)
        else:
            last = isinstance(module, TokenNorm)
            before = self._sources.get(getattr(inputs[0], "grad_fn", None)) if inputs else None
            if before is not None:
                self.norms[before[0]] = name
        axis = output.dim() - 1 if last else 1
        if output.grad_fn is not None:
            self._sources[output.grad_fn] = name, axis, output.shape[axis]

    def _source(self, output: torch.Tensor) -> tuple[str | None, int]:
        """Return the layer whose outputs the channels of a tensor are, None if it is unknown, and their axis."""
        waiting, seen = [output.grad_fn], set()
        while waiting:
            node = waiting.pop()
            if node is None or node in seen:
                continue
            seen.add(node)
            if node in self._sources:
                layer, axis, channels = self._sources[node]
                if axis < output.dim() and output.shape[axis] == channels:
                    return layer, axis
                continue
            operation = _OPERATION.match(type(node).__name__)
            if operation is not None and _CHANNEL_WISE.fullmatch(operation[1]):
                waiting += [following for following, _ in node.next_functions]
        return None, output.dim() - 1 if output.dim() == 3 else 1


def find_pairs(teacher: Classifier, student: Classifier, kept: Mapping[str, Sequence[int]]) -> list[BlockPair]:
    """Return the blocks of teacher and student whose outputs can be compared, in the order in which they run.

    In networks with the same modules, or modules of which layers were factorized, blocks of one name correspond if
    their outputs have equal shapes, or if `kept` says which of the teacher's channels the student has. In others, the
    last blocks of each shape that both have correspond; there is none if these shapes are in another order.

    Args:
        kept: for each layer of the teacher that was cut, the outputs that the student has.
    """
    ours, theirs = trace(teacher), trace(student)
    if _same_modules(teacher, student):
        found = (_pair(call, ours.outputs[call], theirs.outputs.get(call), kept) for call in ours.blocks())
        return [pair for pair in found if pair is not None]
    last_of, last_there = ({one.outputs[call].shape: call for call in one.blocks()} for one in (ours, theirs))
    shared = [shape for shape in last_of if shape in last_there]
    if shared != [shape for shape in last_there if shape in last_of]:
        return []
    return [BlockPair(last_of[shape], last_there[shape], ours.outputs[last_of[shape]].axis) for shape in shared]


def _same_modules(teacher: Classifier, student: Classifier) -> bool:
    """Whether both have modules of the same names; a factorized layer of the student has further ones inside."""
    ours, theirs = ({name for name, _ in one.network.named_modules()} for one in (teacher, student))
    inside = tuple(f"{name}." for name, *_ in student.spec.factors)
    return ours <= theirs and all(name.startswith(inside) for name in theirs - ours)


def _pair(call: str, ours: Output, theirs: Output | None, kept: Mapping[str, Sequence[int]]) -> BlockPair | None:
    if theirs is None:
        return None
    if ours.shape == theirs.shape:
        return BlockPair(call, call, ours.axis)
    channels = kept.get(ours.layer) if ours.layer is not None else None
    if channels is None:
        return None
    expected = (*ours.shape[: ours.axis], len(channels), *ours.shape[ours.axis + 1 :])
    return BlockPair(call, call, ours.axis, tuple(channels)) if theirs.shape == expected else None
