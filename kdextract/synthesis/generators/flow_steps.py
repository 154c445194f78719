"""Invertible steps of flows that need no network: the smooth start, scales, mixtures of channels, and their order.

Libraries of flows have no start at smooth images (a prior over cosines), which is why the flows are written here.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import cast

import torch
from torch import nn

from ...models.architectures import InputShape
from .couplings import Step

CONTRAST = 4.0
"""Standard deviation of v in a fresh flow of images, for noise of deviation 1."""
WIDE = 0.5
"""Half cycles per pixel at which waves have a sixteenth of the full amplitude; half of it is left at 0.44 of that."""
ROUGHEST = 0.02
"""Amplitude of the finest waves of a fresh flow, as a share of the widest."""


class CosinePrior(Step):
    """Values are the amplitudes of cosines, wide ones strong and fine ones weak: white noise becomes a smooth field.

    A fixed map: a diagonal scale, (1 + (f / `WIDE`)^2)^-4 for f half cycles per pixel but at least `ROUGHEST`, then
    the inverse of the orthonormal discrete cosine transform. White noise of deviation 1 becomes a field of deviation
    `CONTRAST`. A flow that begins with white noise keeps it, for the log-determinant rewards that, and its images look
    like nothing.
    """

    scale: torch.Tensor
    down: torch.Tensor
    across: torch.Tensor

    def __init__(self, shape: InputShape) -> None:
        super().__init__()
        self._shape = shape
        _, height, width = shape
        fall = torch.arange(height, dtype=torch.float64).view(-1, 1) / height
        run = torch.arange(width, dtype=torch.float64).view(1, -1) / width
        scale = (1 + (fall.square() + run.square()) / WIDE**2).pow(-4).clamp_min(ROUGHEST)
        scale = scale * CONTRAST / scale.square().mean().sqrt()
        for name, matrix in (("scale", scale), ("down", _cosines(height)), ("across", _cosines(width))):
            self.register_buffer(name, matrix, persistent=False)

    def forward(self, values: torch.Tensor, condition: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the field of amplitudes, in the shape of `values`."""
        scaled = values.reshape(-1, *self._shape) * self.scale.to(values)
        return (self.down.T.to(values) @ scaled @ self.across.to(values)).view_as(values), self._logdet(values)

    def inverse(self, values: torch.Tensor, condition: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the amplitudes of a field, in the shape of `values`."""
        waves = self.down.to(values) @ values.reshape(-1, *self._shape) @ self.across.T.to(values)
        return (waves / self.scale.to(values)).view_as(values), -self._logdet(values)

    def _logdet(self, like: torch.Tensor) -> torch.Tensor:
        return (self._shape[0] * self.scale.log().sum()).to(like).expand(len(like))


def has_neighbours(shape: InputShape) -> bool:
    """Say whether images of a shape have neighbours in both directions: whether smoothness means anything."""
    return min(shape[1:]) > 1


def _cosines(size: int) -> torch.Tensor:
    """Return the orthonormal discrete cosine transform (type 2), [frequency, place], in float64."""
    places = (torch.arange(size, dtype=torch.float64) + 0.5) * torch.pi / size
    waves = torch.cos(torch.arange(size, dtype=torch.float64).view(-1, 1) * places) * math.sqrt(2 / size)
    waves[0] /= math.sqrt(2)
    return waves


class Chain(Step):
    """Steps one after the other, in the order of generation."""

    def __init__(self, steps: Iterable[Step]) -> None:
        super().__init__()
        self.steps = nn.ModuleList(steps)

    def forward(self, values: torch.Tensor, condition: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Take the steps from first to last."""
        total = values.new_zeros(len(values))
        for step in self.steps:
            values, logdet = step(values, condition)
            total = total + logdet
        return values, total

    def inverse(self, values: torch.Tensor, condition: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Undo the steps from last to first."""
        total = values.new_zeros(len(values))
        for step in reversed(cast(list[Step], self.steps)):
            values, logdet = step.inverse(values, condition)
            total = total + logdet
        return values, total


class Squeezed(Step):
    """Steps on images of half the sides and four times the channels, which are made of blocks of 2x2 pixels.

    The first half of those channels is the upper row of each block, in all colours (Dinh et al. 2017, section 3.6).
    """

    def __init__(self, inner: Step) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, values: torch.Tensor, condition: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Squeeze, take the inner step, and undo the squeezing."""
        values, logdet = self.inner(_squeeze(values), condition)
        return _unsqueeze(values), logdet

    def inverse(self, values: torch.Tensor, condition: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Squeeze, undo the inner step, and undo the squeezing."""
        values, logdet = self.inner.inverse(_squeeze(values), condition)
        return _unsqueeze(values), logdet


class FactorOut(Step):
    """Steps on the first half of the channels; the other half is factored out, that is, it joins as pure noise."""

    def __init__(self, inner: Step) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, values: torch.Tensor, condition: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Take the inner step on one half."""
        going_on, joining = values.chunk(2, dim=1)
        going_on, logdet = self.inner(going_on, condition)
        return torch.cat([going_on, joining], dim=1), logdet

    def inverse(self, values: torch.Tensor, condition: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Undo the inner step on one half."""
        going_on, leaving = values.chunk(2, dim=1)
        going_on, logdet = self.inner.inverse(going_on, condition)
        return torch.cat([going_on, leaving], dim=1), logdet


class Scaling(Step):
    """A learned scale and shift, the same for all images, that start as the identity.

    With shape [size], and no shift, it is the diagonal scale of NICE (section 3.3); with shape [channels, 1, 1], and a
    shift, the ActNorm of Glow (section 3.1), which starts without data here.
    """

    def __init__(self, shape: tuple[int, ...], shifts: bool) -> None:
        super().__init__()
        self.log_scale = nn.Parameter(torch.zeros(shape))
        self.shift = nn.Parameter(torch.zeros(shape)) if shifts else None

    def forward(self, values: torch.Tensor, condition: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return values * exp(log-scale) + shift."""
        scaled = values * self.log_scale.exp()
        return scaled if self.shift is None else scaled + self.shift, self._logdet(values)

    def inverse(self, values: torch.Tensor, condition: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return (values - shift) * exp(-log-scale)."""
        centred = values if self.shift is None else values - self.shift
        return centred * (-self.log_scale).exp(), -self._logdet(values)

    def _logdet(self, values: torch.Tensor) -> torch.Tensor:
        return self.log_scale.expand_as(values).flatten(1).sum(dim=1)


class ChannelRotation(Step):
    """Glow's invertible 1x1 convolution (section 3.2): one matrix mixes the channels.

    At first it reverses their order, so that the halves of a coupling take turns; a random rotation, as published,
    would break up the smooth field that a flow begins with. It multiplies where images are generated, which is where
    most time goes, and inverts for densities.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.matrix = nn.Parameter(torch.eye(channels).flip(0).contiguous())

    def forward(self, values: torch.Tensor, condition: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the mixed channels."""
        return self._mixed(values, self.matrix), self._logdet(values)

    def inverse(self, values: torch.Tensor, condition: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the channels before they were mixed."""
        return self._mixed(values, torch.linalg.inv(self.matrix)), -self._logdet(values)

    def _mixed(self, values: torch.Tensor, matrix: torch.Tensor) -> torch.Tensor:
        return (matrix @ values.flatten(2)).reshape(
            values.shape
        )  # no conv2d: on a GPU that rounds to 10 bits by default

    def _logdet(self, values: torch.Tensor) -> torch.Tensor:
        per_pixel = torch.linalg.slogdet(self.matrix).logabsdet
        return (per_pixel * math.prod(values.shape[2:])).expand(len(values))


def _squeeze(values: torch.Tensor) -> torch.Tensor:
    """Return [batch, channels, height, width] as [batch, 4 channels, height / 2, width / 2]."""
    _, channels, height, width = values.shape
    blocks = values.reshape(-1, channels, height // 2, 2, width // 2, 2).permute(0, 3, 5, 1, 2, 4)
    return blocks.reshape(-1, 4 * channels, height // 2, width // 2)


def _unsqueeze(values: torch.Tensor) -> torch.Tensor:
    """Undo `_squeeze`."""
    _, channels, height, width = values.shape
    blocks = values.reshape(-1, 2, 2, channels // 4, height, width).permute(0, 3, 4, 1, 5, 2)
    return blocks.reshape(-1, channels // 4, 2 * height, 2 * width)
