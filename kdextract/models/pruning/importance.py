"""Which channels of a group stay: those that are most important."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import torch
import torch.nn.functional as F
from torch import nn

from ..classifier import Classifier
from .groups import Group
from .sizes import find_layer
from .slices import IN, Axis, channel_energies, channel_sums

Importance = Callable[[nn.Module, Group], torch.Tensor]
"""(network, group) -> the importance of each channel of the group, [channels]; the largest ones stay."""


def magnitude(network: nn.Module, group: Group) -> torch.Tensor:
    """Return the L2 norm of all weights of each channel of a group, over all its layers (Li et al. 2017, arXiv
    1608.08710; for groups, Fang et al. 2023, arXiv 2301.12900), float64 [channels]."""
    return _over_axes(group, group.axes, lambda axis: channel_energies(network, axis)).sqrt()


def batch_norm_scales(network: nn.Module, group: Group) -> torch.Tensor:
    """Return the sum of the absolute scales of each channel of a group in batch normalization (Liu et al. 2017, arXiv
    1708.06519, section 3), float64 [channels]; several layers scale the channels that are added in a residual network.
    """
    scales = scaling_layers(network, group)
    assert scales
    return _over_axes(group, list(scales), lambda axis: scales[axis].detach().double().abs().cpu())


def scaling_layers(network: nn.Module, group: Group) -> dict[Axis, torch.Tensor]:
    """Return the axes of a group that belong to batch normalization with scales, and the scales."""
    layers = {axis: find_layer(network, axis.layer) for axis in group.axes}
    kind = nn.modules.batchnorm._BatchNorm
    return {axis: layer.weight for axis, layer in layers.items() if isinstance(layer, kind) and layer.affine}


def taylor(
    classifier: Classifier, groups: Sequence[Group], batches: Iterable[tuple[torch.Tensor, torch.Tensor]]
) -> Importance:
    """Return the first-order Taylor importance (Molchanov et al. 2019, arXiv 1906.10771, section 3.1): the squared
    derivative of the loss with respect to a gate, a factor 1 on the channel, as a mean over batches.

    The derivative for the gate of a channel is the sum of weight times gradient over all weights that read the channel:
    the channel is removed when these are set to zero. The loss is the mean cross-entropy of a batch to its labels.

    Args:
        classifier: in evaluation mode, with gradients; its network is the one that the groups are of. The gradients are
            removed afterwards, the weights are not changed.
        batches: pixels in [0, 1], [batch, channels, height, width], and classes, int64 [batch]; both on its device.
    """
    totals = {group: torch.zeros(len(group.channels), dtype=torch.float64) for group in groups}
    count = 0
    for pixels, labels in batches:
        classifier.zero_grad()
        with torch.enable_grad():
            F.cross_entropy(classifier(pixels), labels).backward()
        for group in groups:
            totals[group] += _gate_derivatives(classifier.network, group).square()
        count += 1
    classifier.zero_grad()
    return lambda network, group: totals[group] / max(1, count)


def _gate_derivatives(network: nn.Module, group: Group) -> torch.Tensor:
    """Return the derivative of the loss for a gate of each channel, float64 [channels], from the weights' gradients."""
    reading = [axis for axis in group.axes if axis.side == IN] or list(group.axes)

    def weight_times_gradient(values: torch.Tensor) -> torch.Tensor:
        return torch.zeros_like(values) if values.grad is None else values * values.grad

    return _over_axes(group, reading, lambda axis: channel_sums(network, axis, weight_times_gradient))


def _over_axes(group: Group, axes: Sequence[Axis], values: Callable[[Axis], torch.Tensor]) -> torch.Tensor:
    """Return for each channel of a group the sum of what it has at these axes, float64 [channels].

    Args:
        values: returns the values of all channels of an axis.
    """
    total = torch.zeros(len(group.channels), dtype=torch.float64)
    for position, axis in enumerate(group.axes):
        if axis in axes:
            indices = torch.tensor([channel[position] for channel in group.channels])
            total += values(axis)[indices].sum(1)
    return total


def strongest(importance: torch.Tensor, group: Group, per_block: int) -> list[int]:
    """Return the `per_block` most important channels of each block of a group, ascending."""
    chosen: list[int] = []
    for block in group.members():
        order = importance[torch.tensor(block)].argsort(descending=True, stable=True)
        chosen += [block[position] for position in order[:per_block].tolist()]
    return sorted(chosen)
