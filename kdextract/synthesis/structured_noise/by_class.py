"""Patterns sorted by what a teacher sees in them: as a transfer set, and as a pool."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from ...errors import ConfigError
from ...models.classifier import Classifier
from ..interface import Inverted
from .patterns import structured_images
from .pool import MAX_POOL_BYTES, MakeImages, RefreshedPool, at_most

PERIOD = 20
"""Steps between two arrivals in the pool."""


def maker(teacher: Classifier) -> MakeImages:
    """Return a function (count, rng) -> structured images of the teacher's shape and usual brightness.

    Raises:
        ConfigError: the teacher takes rows of a table.
    """
    require_images(teacher)
    brightness = float(teacher.mean.mean())
    return lambda count, rng: structured_images(count, teacher.input_shape, brightness, rng)


def structured_pool(teacher: Classifier, size: int, fresh: int, seed: int) -> RefreshedPool:
    """Return a pool of `size` structured images, of which `fresh` are replaced per step (0: none ever).

    Of large images it holds as many as fit into half a gigabyte.
    """
    size = at_most(size, MAX_POOL_BYTES, teacher)
    chunk = fresh * PERIOD if fresh else 1000
    return RefreshedPool(maker(teacher), teacher, size, chunk, PERIOD if fresh else 0, seed)


def images_of_classes(teacher: Classifier, labels: torch.Tensor, candidates: int, rng: torch.Generator) -> Inverted:
    """Draw structured images and keep, for each label, one that the teacher gives to this class.

    Args:
        labels: the classes that are wanted, int64 [N].
        candidates: images drawn for each one that is kept.

    Returns:
        Images in the order of `labels`; a class of which too few were found is filled with what comes nearest to it.
        The loss is the mean cross-entropy of the teacher to the labels.
    """
    make = maker(teacher)
    num_drawn = candidates * len(labels)
    drawn = torch.cat([make(len(labels), rng) for _ in range(candidates)])
    with torch.inference_mode():
        log_probabilities = torch.cat(
            [F.log_softmax(teacher(chunk.to(teacher.device)), dim=1).cpu() for chunk in drawn.split(500)]
        )
    chosen = torch.empty_like(labels)
    for label in labels.unique().tolist():
        rows = (labels == label).nonzero().squeeze(1)
        own = (log_probabilities.argmax(1) == label).nonzero().squeeze(1)
        if len(own) >= len(rows):
            chosen[rows] = own[torch.randperm(len(own), generator=rng)[: len(rows)]]
        else:
            chosen[rows] = log_probabilities[:, label].topk(len(rows)).indices
    loss = -float(log_probabilities[chosen, labels].mean())
    return Inverted(drawn[chosen], loss, num_drawn)


def require_images(teacher: Classifier) -> None:
    """Raise `ConfigError` if the teacher takes rows of a table."""
    if teacher.is_table:
        raise ConfigError(
            "the teacher takes rows of a table, for which there is no structured noise; make a generator: "
            "kdx train-generator kegnet --preset tabular, or name --data noise:uniform"
        )
