"""A student that starts with units of its teacher instead of random ones, where the two are built alike.

Units are chosen by the size of their weights, as in pruning by magnitude (Li et al. 2017, arXiv 1608.08710), weights
that lead onwards counted as well. What is left out is missed by what is kept; distillation repairs that.
"""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import nn

from .classifier import Classifier

Weighted = nn.Conv2d | nn.Linear | nn.BatchNorm2d
PASSING = (nn.Dropout, nn.Dropout2d, nn.Identity)
"""Layers that change nothing in evaluation mode: one network may have them and the other not."""


def inherit(teacher: Classifier, student: Classifier) -> bool:
    """Overwrite the student's weights with those of the teacher's strongest units, if it is a narrower copy.

    That is: both networks are sequences of the same layers, with equal kernels, and no layer of the student is wider.

    Returns:
        Whether it is, and was done; otherwise the student is left as it was.
    """
    pairs = _pairs(teacher.network, student.network)
    if pairs is None:
        return False
    kept: torch.Tensor | None = None  # channels of the previous layer that the student has
    total = 0
    with torch.no_grad():
        for index, (ours, theirs) in enumerate(pairs):
            if isinstance(ours, nn.BatchNorm2d):
                assert kept is not None
                for name, value in theirs.state_dict().items():
                    value.copy_(ours.state_dict()[name][kept] if value.dim() else ours.state_dict()[name])
                continue
            assert ours.weight is not None
            weight = ours.weight.flatten(1)
            if kept is not None:  # a linear layer after a convolution takes several columns of each channel
                weight = weight.view(len(weight), total, -1)[:, kept].flatten(1)
            following = next((layer for layer, _ in pairs[index + 1 :] if not isinstance(layer, nn.BatchNorm2d)), None)
            kept, total = _strongest(weight, following, len(theirs.weight)), len(ours.weight)
            theirs.weight.copy_(weight[kept].view(theirs.weight.shape))
            if theirs.bias is not None and ours.bias is not None:
                theirs.bias.copy_(ours.bias[kept])
    return True


def _strongest(weight: torch.Tensor, following: nn.Module | None, count: int) -> torch.Tensor:
    """Return the rows, in order, of the `count` units of a layer with the largest weights in and out, multiplied.

    `weight` is [units, inputs]; without a following layer all units stay.
    """
    if following is None:
        return torch.arange(count, device=weight.device)
    assert isinstance(following.weight, torch.Tensor)
    onwards = following.weight.reshape(len(following.weight), len(weight), -1)
    return (weight.norm(dim=1) * onwards.norm(dim=(0, 2))).topk(count).indices.sort().values


def _pairs(teacher: nn.Module, student: nn.Module) -> list[tuple[Weighted, Weighted]] | None:
    """Return the layers with weights, teacher's and student's, or None where the student is no narrower copy."""
    if not (isinstance(teacher, nn.Sequential) and isinstance(student, nn.Sequential)):
        return None
    ours, theirs = ([layer for layer in network if not isinstance(layer, PASSING)] for network in (teacher, student))
    if [type(layer) for layer in ours] != [type(layer) for layer in theirs]:
        return None
    both = zip(ours, theirs, strict=True)
    pairs = [(a, b) for a, b in both if isinstance(a, Weighted) and isinstance(b, Weighted)]
    others = [layer for layer in teacher if not isinstance(layer, Weighted)]
    if any(True for layer in others for _ in layer.parameters()) or not all(_fits(a, b) for a, b in pairs):
        return None
    chain = [(a, b) for a, b in pairs if not isinstance(a, nn.BatchNorm2d)]
    for (a, b), (c, d) in pairwise(chain):
        if _inputs(c) * _outputs(b) != _inputs(d) * _outputs(a) or _inputs(c) % _outputs(a):
            return None
    ends_alike = bool(chain) and _inputs(chain[0][0]) == _inputs(chain[0][1])
    return pairs if ends_alike and _outputs(chain[-1][0]) == _outputs(chain[-1][1]) else None


def _fits(ours: nn.Module, theirs: nn.Module) -> bool:
    """Say whether a layer of the student could be made of units of the teacher's."""
    if isinstance(ours, nn.Conv2d) and isinstance(theirs, nn.Conv2d):
        alike = ("kernel_size", "stride", "padding", "dilation", "groups")
        if ours.groups != 1 or any(getattr(ours, name) != getattr(theirs, name) for name in alike):
            return False
    return _outputs(theirs) <= _outputs(ours)


def _outputs(layer: nn.Module) -> int:
    if isinstance(layer, nn.BatchNorm2d):
        return layer.num_features
    assert isinstance(layer, nn.Conv2d | nn.Linear)
    return len(layer.weight)


def _inputs(layer: nn.Module) -> int:
    assert isinstance(layer, nn.Conv2d | nn.Linear)
    return layer.weight.shape[1]
