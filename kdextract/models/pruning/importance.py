"""Which channels of a group stay: those that are most important."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from .groups import Group
from .slices import channel_energies

Importance = Callable[[nn.Module, Group], torch.Tensor]
"""(network, group) -> the importance of each channel of the group, [channels]; the largest ones stay."""


def magnitude(network: nn.Module, group: Group) -> torch.Tensor:
    """Return the L2 norm of all weights of each channel of a group, over all its layers (Li et al. 2017, arXiv
    1608.08710; for groups, Fang et al. 2023, arXiv 2301.12900), float64 [channels]."""
    total = torch.zeros(len(group.channels), dtype=torch.float64)
    for position, axis in enumerate(group.axes):
        energies = channel_energies(network, axis)
        indices = torch.tensor([channel[position] for channel in group.channels])
        total += energies[indices].sum(1)
    return total.sqrt()


def strongest(importance: torch.Tensor, group: Group, per_block: int) -> list[int]:
    """Return the `per_block` most important channels of each block of a group, ascending."""
    chosen: list[int] = []
    for block in group.members():
        order = importance[torch.tensor(block)].argsort(descending=True, stable=True)
        chosen += [block[position] for position in order[:per_block].tolist()]
    return sorted(chosen)
