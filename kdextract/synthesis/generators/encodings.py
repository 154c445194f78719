"""Noise from which a flow makes given images, kept so that it can make others like them."""

from __future__ import annotations

import torch
from torch import nn

SHARE = 0.5
"""Of the noise that is drawn near encodings, where the class has any."""
FARTHEST = 0.4
"""Largest part, as a deviation, that new noise has in what is drawn near encodings."""


class Encodings(nn.Module):
    """Noise of `count` images with their labels; the images can be made from it, so it is to be kept like them.

    Buffers are `noise`, [count, *noise_shape], and `labels`, int64 [count], in ascending order.
    """

    noise: torch.Tensor
    labels: torch.Tensor

    def __init__(self, count: int, noise_shape: tuple[int, ...]) -> None:
        super().__init__()
        self.register_buffer("noise", torch.zeros((count, *noise_shape)))
        self.register_buffer("labels", torch.zeros(count, dtype=torch.int64))

    @classmethod
    def of(cls, noise: torch.Tensor, labels: torch.Tensor) -> Encodings:
        """Return the encodings of these labels, in any order."""
        made = cls(len(noise), tuple(noise.shape[1:])).to(noise.device)
        order = labels.argsort(stable=True)
        made.noise.copy_(noise[order])
        made.labels.copy_(labels[order])
        return made

    def check(self, num_classes: int) -> None:
        """Raise `ValueError` unless labels are those of classes, in ascending order."""
        if bool((self.labels.diff() < 0).any()) or self.labels.min() < 0 or self.labels.max() >= num_classes:
            raise ValueError("labels of encodings are not those of classes, in ascending order")

    def mixed_in(
        self, fresh: torch.Tensor, labels: torch.Tensor, rng: torch.Generator, share: float = SHARE
    ) -> torch.Tensor:
        """Replace a share of the fresh noise by noise near encodings of the class wanted, where there are any.

        Such noise is a point between two encodings of the class and, as much as keeps the variance, the fresh noise.

        Args:
            fresh: [batch, *noise_shape].
            labels: classes wanted, int64 [batch].
            rng: on the CPU.
            share: in [0, 1].
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
