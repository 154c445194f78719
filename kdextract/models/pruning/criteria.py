"""The criteria by which channels stay: which groups each can be used for, and which channels it selects."""

from __future__ import annotations

from collections.abc import Iterable
from copy import deepcopy

import torch

from ..classifier import Classifier
from .cut import Channels, Select, most_important
from .fold import folding, unfoldable
from .groups import Group
from .importance import Importance, batch_norm_scales, magnitude, scaling_layers, taylor
from .names import BATCH_NORM, FOLD, TAYLOR


def unfit(criterion: str, channels: Channels) -> dict[Group, str]:
    """Return the groups of channels that the criterion cannot be used for, with the reason."""
    if criterion == FOLD:
        return unfoldable(channels)
    if criterion == BATCH_NORM:
        plain = [group for group in channels.groups if not scaling_layers(channels.network, group)]
        return dict.fromkeys(plain, "no batch normalization scales its channels")
    return {}


def selection(
    criterion: str,
    classifier: Classifier,
    channels: Channels,
    seed: int,
    labelled: Iterable[tuple[torch.Tensor, torch.Tensor]],
) -> tuple[Importance, Select]:
    """Return the importance of channels, for their number in each group, and the selection of a criterion.

    Folding has no importance: it is that of the weights.

    Args:
        classifier: with the network that the channels are of; it is not changed.
        seed: of folding.
        labelled: batches of pixels and classes, as for `importance.taylor`, which alone takes them.
    """
    if criterion == FOLD:
        return magnitude, folding(classifier, seed)
    importance: Importance = batch_norm_scales if criterion == BATCH_NORM else magnitude
    if criterion == TAYLOR:
        trained = Classifier(classifier.spec, deepcopy(channels.network)).eval().to(classifier.device)
        importance = taylor(trained, channels.groups, labelled)
    return importance, most_important(importance)
