"""Images by class: labels that contain all classes equally often, and random images of given classes."""

from __future__ import annotations

import torch


def labels_in_turn(first: int, count: int, num_classes: int) -> torch.Tensor:
    """Return the labels of images `first` to `first + count - 1`: the number modulo `num_classes`, int64 [count].

    Over any sequence of batches, the numbers of images of two classes differ by at most 1.
    """
    return torch.arange(first, first + count) % num_classes


class ClassIndex:
    """Finds images of a class.

    Args:
        classes: class of each image, int64 [N], on the CPU.
        num_classes: K; a class may have no images.
    """

    def __init__(self, classes: torch.Tensor, num_classes: int) -> None:
        self._by_class = classes.argsort(stable=True)
        self.counts = torch.bincount(classes, minlength=num_classes)
        self._starts = self.counts.cumsum(0) - self.counts

    def draw(self, classes: torch.Tensor, rng: torch.Generator) -> torch.Tensor:
        """Return the index of a random image of each of the classes: int64, in the shape of `classes`.

        Args:
            classes: int64 [batch]; each of these classes must have images.
            rng: on the CPU.
        """
        within = (torch.rand(len(classes), generator=rng) * self.counts[classes]).long()
        return self._by_class[self._starts[classes] + within]
