"""Trials of cuts: the network must run with fewer channels, and give the outputs that it has with these set to zero."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import deepcopy
from typing import Any

import torch
from torch import nn
from torch.nn.utils.parametrizations import _WeightNorm
from torch.nn.utils.parametrize import is_parametrized

from ...errors import KdxError
from ..external.head import Head
from ..hooks import evaluation_mode
from .groups import Group, find_groups
from .sizes import TokenNorm, find_layer
from .slices import Axis, axis_length, set_to_zero, take

NUM_IMAGES = 2
TOLERANCE = 1e-3
"""The largest difference between outputs that may be of rounding, as a share of the largest output."""
Kept = Mapping[Group, Sequence[int]]
"""The channels that stay, ascending, of each group that is cut."""


def plain_copy(network: nn.Module) -> nn.Module:
    """Return a copy of a network on the CPU, in evaluation mode, with gradients, with layers whose weight is a tensor
    instead of `weight_norm` of two."""
    twin = deepcopy(network).cpu().eval().requires_grad_(True)
    for name, module in list(twin.named_modules()):
        held: Any = module.parametrizations if is_parametrized(module, "weight") else None
        if held is not None and name and type(held["weight"][0]) is _WeightNorm:
            parent, _, child = name.rpartition(".")
            setattr(twin.get_submodule(parent), child, _plain_layer(module))
    return twin


def _plain_layer(layer: nn.Module) -> nn.Module:
    """Return the layer with a plain weight. PyTorch's removal of a parametrization would change a class, and with it
    the layer that this one was copied from."""
    plain_class: Any = type(layer).__mro__[1]
    plain: nn.Module = plain_class.__new__(plain_class)
    plain.__dict__.update(layer.__dict__)
    plain._modules = {name: module for name, module in layer._modules.items() if name != "parametrizations"}
    assert isinstance(layer.weight, torch.Tensor)
    plain._parameters = {"weight": nn.Parameter(layer.weight.detach().clone()), **layer._parameters}
    return plain


def kept_axes(network: nn.Module, kept: Kept) -> dict[Axis, list[int]]:
    """Return the indices that stay at each axis that loses some."""
    stay: dict[Axis, list[int]] = {}
    for axis, removed in removed_axes(kept).items():
        gone = set(removed)
        stay[axis] = [i for i in range(axis_length(find_layer(network, axis.layer), axis.side)) if i not in gone]
    return stay


def removed_axes(kept: Kept) -> dict[Axis, list[int]]:
    """Return the indices that each axis loses."""
    removed: dict[Axis, list[int]] = {}
    for group, channels in kept.items():
        stay = set(channels)
        for axis, indices in group.indices([i for i in range(len(group.channels)) if i not in stay]).items():
            if indices:
                removed.setdefault(axis, []).extend(indices)
    return removed


class Trial:
    """Runs a network with its channels cut.

    Args:
        network: from `plain_copy`; it is run in float32.
        head: which part of its output has the classes.
        input_shape: (channels, height, width) of its images.
    """

    def __init__(self, network: nn.Module, head: Head, input_shape: tuple[int, int, int]) -> None:
        self._random = torch.Generator().manual_seed(0)
        self._network, self._head = deepcopy(network).float(), head
        self._images = torch.randn(NUM_IMAGES, *input_shape, generator=self._random)
        self._varied = self._with_varied_weights()

    def find_groups(self) -> list[Group]:
        """Return the groups of channels of the network. Raises whatever the network or torch-pruning raises."""
        with torch.no_grad(), evaluation_mode(self._network):
            usual = len(_tensors_in(self._network(self._images)))
            more = len(_tensors_in(self._output(self._network, training=True))) != usual  # such as auxiliary outputs

        def run(network: nn.Module) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
            output = self._output(network, training=more)
            return (_tensors_in(output), []) if more else ([self._head.values(output)], _tensors_in(output))

        with torch.enable_grad():
            return find_groups(self._network, run)

    def halves(self, group: Group) -> list[int]:
        """Return half of the channels of each block of a group, at random, at least one."""
        chosen = []
        for block in group.members():
            order = torch.randperm(len(block), generator=self._random).tolist()
            chosen += [block[position] for position in order[: max(1, len(block) // 2)]]
        return sorted(chosen)

    def failure(self, kept: Kept, compare: bool = True) -> str | None:
        """Return why these cuts are not possible; None if the cut network runs, with outputs of the same shape, and,
        with `compare`, if they are those of the whole network with the other channels set to zero."""
        try:
            ours = self._answers(take(deepcopy(self._varied), kept_axes(self._varied, kept)))
        except KdxError:
            raise
        except Exception as error:
            return (str(error) or type(error).__name__).splitlines()[0]
        theirs = self._answers(set_to_zero(deepcopy(self._varied), removed_axes(kept)))
        if ours.shape != theirs.shape:
            return f"its outputs have another shape, {tuple(ours.shape)}"
        if compare and all(self._is_exact(group) for group in kept):
            difference = float((ours - theirs).abs().max())
            if not difference <= TOLERANCE * float(theirs.abs().max()):
                return "its channels are moved or mixed between layers"
        return None

    def possible(self, kept: Kept, compare: bool = True) -> tuple[list[Group], dict[Group, str]]:
        """Return the groups whose cuts are possible together, and for the others, why not.

        All are tried at once first; if that fails, each by itself, and at last one after the other.
        """
        exact = {group: channels for group, channels in kept.items() if self._is_exact(group)}
        if self.failure(kept, compare) is None and (not compare or len(exact) == len(kept) or not self.failure(exact)):
            return list(kept), {}
        reasons = {group: self.failure({group: channels}, compare) for group, channels in kept.items()}
        failures = {group: reason for group, reason in reasons.items() if reason is not None}
        good = {group: channels for group, channels in kept.items() if group not in failures}
        if self.failure(good, compare) is None:
            return list(good), failures
        chosen: dict[Group, Sequence[int]] = {}
        for group, channels in good.items():
            reason = self.failure({**chosen, group: channels}, compare)
            if reason is None:
                chosen[group] = channels
            else:
                failures[group] = reason
        return list(chosen), failures

    def _is_exact(self, group: Group) -> bool:
        """Whether channels of zeros do not change the others: they do in normalization over channels."""
        layers = [find_layer(self._network, axis.layer) for axis in group.axes]
        return not any(isinstance(layer, TokenNorm | nn.GroupNorm | nn.MultiheadAttention) for layer in layers)

    @torch.no_grad()
    def _answers(self, network: nn.Module) -> torch.Tensor:
        """Return the outputs of the classes in evaluation mode. A pass in training mode, which may use more layers and
        changes running statistics, follows."""
        answers = self._head.values(self._output(network, training=False))
        self._output(network, training=True)
        return answers

    def _output(self, network: nn.Module, training: bool) -> Any:
        """Return the output for noise. Torch's random state is restored, so that dropout is the same each time."""
        state = torch.get_rng_state()
        try:
            with evaluation_mode(network):
                return network.train(training)(self._images)
        finally:
            torch.set_rng_state(state)

    def _with_varied_weights(self) -> nn.Module:
        """Return a copy in which no weight is zero, so that every channel has an effect."""
        twin = deepcopy(self._network).requires_grad_(False)
        for parameter in twin.parameters():
            size = float(parameter.square().mean().sqrt()) or 0.3
            parameter.data += 0.3 * size * torch.randn(parameter.shape, generator=self._random)
        return twin


def _tensors_in(output: Any) -> list[torch.Tensor]:
    """Return the tensors of a network's output: a tensor, a list, a dict, or an object with them as attributes."""
    if isinstance(output, torch.Tensor):
        return [output]
    if isinstance(output, Mapping):
        output = list(output.values())
    elif not isinstance(output, list | tuple):
        output = list(vars(output).values()) if hasattr(output, "__dict__") else []
    return [tensor for part in output for tensor in _tensors_in(part)]
