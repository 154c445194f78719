"""Noise from which a flow makes given images, stored so that it can also make similar images."""

from __future__ import annotations

import torch
from torch import nn

SHARE = 0.5
"""Share of the noise that is drawn near encodings, for a class that has any."""
FARTHEST = 0.4
"""Largest standard deviation of the new noise in noise that is drawn near encodings."""


class Encodings(nn.Module):
    """Noise of `count` real images, with their labels. The flow restores the images from it: it is real data.

    The buffers are `noise`, [count, *noise_shape], and `labels`, int64 [count], in ascending order.
    """

    noise: torch.Tensor
    labels: torch.Tensor

    def __init__(self, count: int, noise_shape: tuple[int, ...]) -> None:
        super().__init__()
        self.register_buffer("noise", torch.zeros((count, *noise_shape)))
        self.register_buffer("labels", torch.zeros(count, dtype=torch.int64))

    @classmethod
    def of(cls, noise: torch.Tensor, labels: torch.Tensor) -> Encodings:
        """Return encodings of noise [count, *noise_shape] and labels, int64 [count], which may be in any order."""
        made = cls(len(noise), tuple(noise.shape[1:])).to(noise.device)
        order = labels.argsort(stable=True)
        made.noise.copy_(noise[order])
        made.labels.copy_(labels[order])
        return made

    def check(self, num_classes: int) -> None:
        """Raise `ValueError` unless the labels are in ascending order and in [0, `num_classes`)."""
        if bool((self.labels.diff() < 0).any()) or self.labels.min() < 0 or self.labels.max() >= num_classes:
            raise ValueError("the labels of encodings are not classes in ascending order")

    def mixed_in(
        self, fresh: torch.Tensor, labels: torch.Tensor, rng: torch.Generator, share: float = SHARE
    ) -> torch.Tensor:
        """Replace a share of the new noise by noise near encodings of the wanted class, if it has any.

        Such noise is the weighted sum of a point between two encodings of the class and of the new noise; the squares
        of the two weights add up to 1, which keeps the variance.

        Args:
            fresh: new noise, [batch, *noise_shape].
            labels: wanted classes, int64 [batch].
            rng: on the CPU.
            share: probability of the replacement, in [0, 1].
        """
        own, wanted = self.labels.cpu(), labels.cpu()
        counts = torch.bincount(own, minlength=int(wanted.max()) + 1)
        starts = counts.cumsum(0) - counts

        def per_image() -> torch.Tensor:
            return torch.rand((len(wanted), *[1] * (fresh.dim() - 1)), generator=rng)

        def some() -> torch.Tensor:
            chosen = starts[wanted] + (torch.rand(len(wanted), generator=rng) * counts[wanted]).long()
            return self.noise[chosen.clamp_max(len(own) - 1).to(self.noise.device)]

        between, part = per_image().to(fresh.device), (FARTHEST * per_image()).to(fresh.device)
        near = torch.lerp(some(), some(), between) * (1 - part.square()).sqrt() + part * fresh
        replaced = (per_image() < share) & (counts[wanted] > 0).view(-1, *[1] * (fresh.dim() - 1))
        return torch.where(replaced.to(fresh.device), near, fresh)
