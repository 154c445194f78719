"""Trained generators as a `Source`: every batch is new."""

from __future__ import annotations

import torch

from ...models.classifier import Classifier
from ...models.pixels import to_uint8
from ...training.sources import HELD_OUT_SEED, Batch, FreshImages
from .mix import GeneratorMix


class GeneratorSource(FreshImages):
    """Makes every batch from new uniform labels and new noise of the standard deviation for students.

    The generators do not change. Images are pixels, clipped to [0, 1], as in a transfer set.

    Args:
        mix: the generators, on the teacher's device.
        seed: of labels and noise.
    """

    def __init__(self, mix: GeneratorMix, teacher: Classifier, seed: int) -> None:
        self._mix, self._num_classes = mix, teacher.num_classes
        super().__init__(seed)

    def sample(self, num_images: int) -> Batch:
        """Return new images."""
        self._drawn += num_images
        return Batch(self._make(num_images, self._rng), None)

    def held_out(self, num_images: int) -> torch.Tensor:
        """Return images from labels and noise of another random number generator with a fixed seed."""
        rng = torch.Generator().manual_seed(HELD_OUT_SEED)
        return torch.cat([to_uint8(self._make(count, rng)) for count in _chunks(num_images)])

    def _make(self, count: int, rng: torch.Generator) -> torch.Tensor:
        labels = torch.randint(self._num_classes, (count,), generator=rng)
        return self._mix.sample(labels, rng, widened=True)


def _chunks(total: int, size: int = 500) -> list[int]:
    """Return sizes of at most `size` that add up to `total`."""
    return [min(size, total - start) for start in range(0, total, size)]
