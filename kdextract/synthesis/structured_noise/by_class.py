"""Structured images sorted by the class that a teacher predicts: for a transfer set, and for a pool."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from ...errors import ConfigError
from ...models.classifier import Classifier
from ..interface import Inverted
from .patterns import structured_images
from .pool import MAX_POOL_BYTES, MakeImages, RefreshedPool, at_most

PERIOD = 20
"""Steps between two additions to the pool."""
USUAL_POOL, SMALLEST_POOL, POOL_COST = 20_000, 2_000, 2 * 10**11
"""Usual and smallest number of images of a pool, and the multiply-adds that a teacher may take to predict their classes
(about 15 seconds of one core): 20,000 images for LeNet-5, 4,900 for a ResNet-20 of CIFAR, 2,000 for a ResNet-18."""


def maker(teacher: Classifier) -> MakeImages:
    """Return a function (count, rng) -> structured images of the teacher's image shape and mean brightness.

    Raises:
        ConfigError: the teacher takes rows of a table.
    """
    require_images(teacher)
    brightness = float(teacher.mean.mean())
    return lambda count, rng: structured_images(count, teacher.input_shape, brightness, rng)


def structured_pool(teacher: Classifier, size: int | None, fresh: int, seed: int) -> RefreshedPool:
    """Return a pool of `size` structured images, of which `fresh` per step are replaced; 0: none.

    Of large images, it holds at most half a gigabyte.

    Raises:
        ConfigError: the teacher takes rows of a table.
    """
    return RefreshedPool(maker(teacher), teacher, *pool_sizes(teacher, size, fresh), seed)


def pool_sizes(teacher: Classifier, size: int | None, fresh: int, passes: float = 1.0) -> tuple[int, int, int]:
    """Return size, chunk and period of a `RefreshedPool` of at most half a gigabyte.

    Args:
        size: wanted number of images; None: `USUAL_POOL`, or as many as cost the teacher `POOL_COST` multiply-adds if
            that is less, but at least `SMALLEST_POOL`.
        fresh: number of images that are replaced per step; 0: none.
        passes: cost of an image, in forward passes of the teacher.
    """
    if size is None:
        size = min(USUAL_POOL, max(SMALLEST_POOL, int(POOL_COST / (passes * teacher.multiply_adds()))))
    size = at_most(size, MAX_POOL_BYTES, teacher)
    return (size, fresh * PERIOD, PERIOD) if fresh else (size, 1000, 0)


def images_of_classes(
    make: MakeImages, teacher: Classifier, labels: torch.Tensor, candidates: int, rng: torch.Generator
) -> Inverted:
    """Draw images and keep, for each label, one for which the teacher predicts this class.

    Args:
        make: makes the images, such as `maker` returns it.
        labels: the wanted classes, int64 [N].
        candidates: number of images that are drawn per image that is kept.
        rng: on the CPU.

    Returns:
        Images in the order of `labels`. For a class with too few images, those with the highest probability of the
        class are used, whatever class is predicted. The loss is the mean cross-entropy of the teacher to the labels.
    """
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
            "the teacher takes rows of a table, for which there is no structured or natural noise; train a generator "
            "with: kdx train-generator kegnet --preset tabular, or use --data noise:uniform"
        )
