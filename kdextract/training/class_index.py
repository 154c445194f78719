"""Images by class: which classes come next so that all come equally often, and random images of given classes."""

from __future__ import annotations

import torch


def labels_in_turn(first: int, count: int, num_classes: int) -> torch.Tensor:
    """Return the classes of `count` images, the first of which is image number `first` of all: int64 [count].

    Classes take turns over all images, wherever batches begin: no class has two images more than another one.
    """
    return torch.arange(first, first + count) % num_classes


class ClassIndex:
    """Looks up images by their class.

    Args:
        classes: class of each image, int64 [N], on the CPU.
        num_classes: K; a class may have no image.
    """

    def __init__(self, classes: torch.Tensor, num_classes: int) -> None:
        self._by_class = classes.argsort(stable=True)
        self.counts = torch.bincount(classes, minlength=num_classes)
        self._starts = self.counts.cumsum(0) - self.counts

    def draw(self, classes: torch.Tensor, rng: torch.Generator) -> torch.Tensor:
        """Return, for each of the classes, the number of a random image of it: int64, shaped as `classes`.

        Args:
            classes: int64 [batch], each of a class that has images.
            rng: on the CPU.
        """
        within = (torch.rand(len(classes), generator=rng) * self.counts[classes]).long()
        return self._by_class[self._starts[classes] + within]
