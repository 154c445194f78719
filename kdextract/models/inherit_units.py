"""A student that starts with units of its teacher instead of random ones, where it is a narrower copy of the teacher.

Units are ranked by the size of their weights, as in pruning by magnitude (Li et al. 2017, arXiv 1608.08710); the
weights that the following layer gives to a unit count as well. Dropping units changes the outputs of the network, which
distillation repairs.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import nn

from .classifier import Classifier

Weighted = nn.Conv2d | nn.Linear | nn.BatchNorm2d
PASSING = (nn.Dropout, nn.Dropout2d, nn.Identity)
"""Layers that change nothing in evaluation mode: only one of the two networks may have them."""


@dataclass(frozen=True)
class LayerPair:
    """A layer with weights of the teacher, and the layer at the same position of the student."""

    teacher: Weighted
    student: Weighted

    @property
    def is_norm(self) -> bool:
        """Whether it is batch normalization, which has the channels of the layer before it."""
        return isinstance(self.teacher, nn.BatchNorm2d)


def inherit(teacher: Classifier, student: Classifier) -> bool:
    """Overwrite the student's weights by those of the teacher's strongest units, if it is a narrower copy.

    It is one if both networks are sequences of the same layers with equal kernels and no layer of it is wider.

    Returns:
        Whether it is a narrower copy. If not, the student is unchanged.
    """
    pairs = layer_pairs(teacher.network, student.network)
    if pairs is None:
        return False
    kept: torch.Tensor | None = None  # channels of the previous layer that the student has; None for all
    total = 0
    with torch.no_grad():
        for index, pair in enumerate(pairs):
            ours, theirs = pair.teacher, pair.student
            if isinstance(ours, nn.BatchNorm2d):
                for name, value in ours.state_dict().items():
                    theirs.state_dict()[name].copy_(value[kept] if value.dim() and kept is not None else value)
                continue
            assert ours.weight is not None
            weight = ours.weight.flatten(1)
            if kept is not None:  # a linear layer after a convolution has several columns for each channel
                weight = weight.view(len(weight), total, -1)[:, kept].flatten(1)
            following = next((later.teacher for later in pairs[index + 1 :] if not later.is_norm), None)
            kept, total = _strongest(weight, following, len(theirs.weight)), len(ours.weight)
            theirs.weight.copy_(weight[kept].view(theirs.weight.shape))
            if theirs.bias is not None and ours.bias is not None:
                theirs.bias.copy_(ours.bias[kept])
    return True


def _strongest(weight: torch.Tensor, following: nn.Module | None, count: int) -> torch.Tensor:
    """Return the indices, ascending, of the `count` units with the largest product of two norms: of the weights of the
    unit, and of those that the following layer gives to it.

    Args:
        weight: [units, inputs].
        following: the next layer with weights; None after the last one, of which all units stay.
    """
    if following is None:
        return torch.arange(count, device=weight.device)
    assert isinstance(following.weight, torch.Tensor)
    onwards = following.weight.reshape(len(following.weight), len(weight), -1)
    return (weight.norm(dim=1) * onwards.norm(dim=(0, 2))).topk(count).indices.sort().values


def layer_pairs(teacher: nn.Module, student: nn.Module) -> list[LayerPair] | None:
    """Return the layers with weights of both networks in order; None if the student is no narrower copy."""
    if not (isinstance(teacher, nn.Sequential) and isinstance(student, nn.Sequential)):
        return None
    ours, theirs = ([layer for layer in network if not isinstance(layer, PASSING)] for network in (teacher, student))
    if not _same_types(ours, theirs) or not _only_weighted_have_parameters(ours):
        return None
    both = zip(ours, theirs, strict=True)
    pairs = [LayerPair(a, b) for a, b in both if isinstance(a, Weighted) and isinstance(b, Weighted)]
    chain = [pair for pair in pairs if not pair.is_norm]
    narrower = all(_equal_kernels(pair) and _not_wider(pair) for pair in pairs)
    if narrower and _equal_ends(chain) and all(_inputs_follow(*neighbours) for neighbours in pairwise(chain)):
        return pairs
    return None


def _same_types(ours: list[nn.Module], theirs: list[nn.Module]) -> bool:
    return [type(layer) for layer in ours] == [type(layer) for layer in theirs]


def _only_weighted_have_parameters(layers: list[nn.Module]) -> bool:
    """Return whether all parameters are in layers that `inherit` copies."""
    return not any(list(layer.parameters()) for layer in layers if not isinstance(layer, Weighted))


def _equal_kernels(pair: LayerPair) -> bool:
    """Return whether the layers differ in their channels only. Grouped convolutions are not supported."""
    if pair.is_norm:
        return pair.teacher.state_dict().keys() == pair.student.state_dict().keys()
    if not isinstance(pair.teacher, nn.Conv2d):
        return True
    names = ("kernel_size", "stride", "padding", "dilation", "groups")
    return pair.teacher.groups == 1 and all(getattr(pair.teacher, n) == getattr(pair.student, n) for n in names)


def _not_wider(pair: LayerPair) -> bool:
    return _outputs(pair.student) <= _outputs(pair.teacher)


def _equal_ends(chain: list[LayerPair]) -> bool:
    """Return whether both networks have equal numbers of inputs of the first layer and outputs of the last."""
    if not chain:
        return False
    first, last = chain[0], chain[-1]
    same_inputs = _inputs(first.teacher) == _inputs(first.student)
    return same_inputs and _outputs(last.teacher) == _outputs(last.student)


def _inputs_follow(before: LayerPair, after: LayerPair) -> bool:
    """Return whether a layer has equally many inputs for each unit of the layer before, in both networks."""
    per_unit, rest = divmod(_inputs(after.teacher), _outputs(before.teacher))
    return rest == 0 and _inputs(after.student) == per_unit * _outputs(before.student)


def _outputs(layer: nn.Module) -> int:
    if isinstance(layer, nn.BatchNorm2d):
        return layer.num_features
    assert isinstance(layer, nn.Conv2d | nn.Linear)
    return len(layer.weight)


def _inputs(layer: nn.Module) -> int:
    assert isinstance(layer, nn.Conv2d | nn.Linear)
    return layer.weight.shape[1]
