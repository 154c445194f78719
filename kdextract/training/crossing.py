"""Real images of old classes are missing: images of new classes, joined in pairs along a line, stand in for some.

A classifier that learns new classes from real images and old ones from synthetic images tells both apart by what only
synthetic images have. Crossed images have strokes, textures and noise of real images and are of no new class.
"""

from __future__ import annotations

import torch

from .augmentation import random_sides
from .sources import State


class Crossings:
    """Joins images of different classes in pairs, with its own random number generator.

    Args:
        seed: of the random number generator.
    """

    def __init__(self, seed: int) -> None:
        self._rng = torch.Generator().manual_seed(seed)

    def __call__(self, images: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Replace the part of each image beyond a random straight line by that part of another image of the batch.

        Args:
            images: pixels [batch, channels, height, width].
            labels: int64 [batch].

        Returns:
            The images, and a mask [batch], true where the two labels differ.
        """
        own = random_sides(images, self._rng)
        others = torch.randperm(len(images), generator=self._rng).to(images.device)
        return torch.lerp(images[others], images, own), labels != labels[others]

    def state(self) -> State:
        """Return the random state."""
        return {"rng": self._rng.get_state()}, {}

    def restore(self, state: State) -> None:
        """Continue from `state`."""
        self._rng.set_state(state[0]["rng"])
