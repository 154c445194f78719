"""Invertible steps of flows without networks: a prior of smooth images, scales, mixtures of channels, compositions.

Libraries of flows have no prior over cosine amplitudes; therefore the flows are written here.
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
"""Standard deviation of v (see `flows.Flow`) in an untrained flow of images, for noise of standard deviation 1."""
WIDE = 0.5
"""Frequency, in half cycles per pixel, at which the amplitude has fallen to 1/16; at 0.44 of it, it is 1/2."""
ROUGHEST = 0.02
"""Smallest amplitude, at high frequencies, as a share of the amplitude at frequency 0."""


class CosinePrior(Step):
    """A fixed map from white noise to smooth random fields: values are the amplitudes of cosines.

    A diagonal scale, (1 + (f / `WIDE`)^2)^-4 for f half cycles per pixel but at least `ROUGHEST`, is followed by the
    inverse of the orthonormal discrete cosine transform. White noise of standard deviation 1 becomes a field of
    standard deviation `CONTRAST`. Without this map, a flow starts with images of white noise, and the log-determinant
    in the loss keeps it there.
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
        """Return the field with these amplitudes, in the shape of `values`."""
        scaled = values.reshape(-1, *self._shape) * self.scale.to(values)
        return (self.down.T.to(values) @ scaled @ self.across.to(values)).view_as(values), self._logdet(values)

    def inverse(self, values: torch.Tensor, condition: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the amplitudes of a field, in the shape of `values`."""
        waves = self.down.to(values) @ values.reshape(-1, *self._shape) @ self.across.T.to(values)
        return (waves / self.scale.to(values)).view_as(values), -self._logdet(values)

    def _logdet(self, like: torch.Tensor) -> torch.Tensor:
        return (self._shape[0] * self.scale.log().sum()).to(like).expand(len(like))


def has_neighbours(shape: InputShape) -> bool:
    """Return whether images of a shape have more than one row and more than one column."""
    return min(shape[1:]) > 1


def _cosines(size: int) -> torch.Tensor:
    """Return the matrix of the orthonormal discrete cosine transform (type 2), [frequency, position], in float64."""
    places = (torch.arange(size, dtype=torch.float64) + 0.5) * torch.pi / size
    waves = torch.cos(torch.arange(size, dtype=torch.float64).view(-1, 1) * places) * math.sqrt(2 / size)
    waves[0] /= math.sqrt(2)
    return waves


class Chain(Step):
    """A composition of steps, in the order from noise to pixels."""

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
    """A step on images of half the height and width and four times the channels: blocks of 2x2 pixels become channels.

    The first half of the new channels are the upper rows of all blocks, in all colours (Dinh et al. 2017, section 3.6).
    """

    def __init__(self, inner: Step) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, values: torch.Tensor, condition: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Squeeze, apply the inner step, and undo the squeezing."""
        values, logdet = self.inner(_squeeze(values), condition)
        return _unsqueeze(values), logdet

    def inverse(self, values: torch.Tensor, condition: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Squeeze, apply the inverse of the inner step, and undo the squeezing."""
        values, logdet = self.inner.inverse(_squeeze(values), condition)
        return _unsqueeze(values), logdet


class FactorOut(Step):
    """A step on the first half of the channels; the other half is factored out, that is, it stays noise."""

    def __init__(self, inner: Step) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, values: torch.Tensor, condition: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Apply the inner step to the first half of the channels."""
        going_on, joining = values.chunk(2, dim=1)
        going_on, logdet = self.inner(going_on, condition)
        return torch.cat([going_on, joining], dim=1), logdet

    def inverse(self, values: torch.Tensor, condition: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Apply the inverse of the inner step to the first half of the channels."""
        going_on, leaving = values.chunk(2, dim=1)
        going_on, logdet = self.inner.inverse(going_on, condition)
        return torch.cat([going_on, leaving], dim=1), logdet


class Scaling(Step):
    """A trained scale and shift, equal for all images, which start as the identity.

    With shape [size] and without shift, it is the diagonal scale of NICE (section 3.3); with shape [channels, 1, 1] and
    a shift, it is the ActNorm of Glow (section 3.1), here without data-dependent initialization.
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

    At initialization it reverses the order of channels, so that couplings change each half in turn; a random rotation,
    as published, would destroy the smooth fields of an untrained flow. From noise to pixels, which is needed most
    often, it multiplies by the matrix; in the other direction it inverts the matrix.
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
