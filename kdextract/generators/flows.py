"""Conditional normalizing flows: noise and pixels are one-to-one, given the label, and densities are exact.

Four of them: NICE with additive couplings (Dinh et al. 2014) and with affine ones, RealNVP (Dinh et al. 2017), and Glow
(Kingma and Dhariwal 2018). None has batch normalization, whose batch statistics would make the two directions differ.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import cast

import torch
import torch.nn.functional as F
from torch import nn

from ..errors import ConfigError
from ..models import InputShape
from .couplings import (
    ChannelCoupling,
    CheckerboardCoupling,
    InterleavedCoupling,
    PlainNetwork,
    ResidualNetwork,
    Step,
)

EDGE = 1e-6
"""How near to 0 and 1 pixels may be; those nearer are taken for this near when they are turned into noise."""
MARGIN = 0.01
"""How near to 0 and 1 pixels of real images come, once dequantized."""


class Flow(nn.Module):
    """Noise [batch, size] <-> pixels [batch, channels, height, width] in (0, 1), for labels int64 [batch].

    Generation takes noise through the steps to values v of any sign, and pixels = sigmoid(v + `centre`), which is one
    number per channel, 0 unless it is set. In float32, noise is
    found again within 1e-4 where |v| < 6; pixels of larger v are so near to 1 that rounding loses digits, and from v =
    17 on they are 1.

    Args:
        shape: of one image.
        num_classes: number of labels.
        steps: the map from noise to v.
        flat: whether the steps take [batch, size] instead of [batch, *shape].
    """

    conditional = True
    standardized = False
    centre: torch.Tensor

    def __init__(self, shape: InputShape, num_classes: int, steps: Step, flat: bool) -> None:
        super().__init__()
        self.noise_shape = (math.prod(shape),)
        self.steps = steps
        self.register_buffer("centre", torch.zeros(shape[0], 1, 1), persistent=False)
        self._shape, self._num_classes = shape, num_classes
        self._inner_shape = self.noise_shape if flat else shape

    def transform(self, noise: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return pixels in (0, 1), and log |det d pixels / d noise| of each image, [batch].

        Raises:
            ConfigError: the noise is not [batch, size].
        """
        _require_shape("noise", noise, self.noise_shape)
        values, logdet = self.steps(noise.reshape(-1, *self._inner_shape), self._condition(labels, noise))
        values = values.reshape(-1, *self._shape) + self.centre
        return torch.sigmoid(values), logdet + _sigmoid_logdet(values)

    def inverse(self, pixels: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the noise that gives these pixels, and log |det d noise / d pixels| of each image, [batch].

        Pixels outside [EDGE, 1 - EDGE] are moved to its ends first.

        Raises:
            ConfigError: the pixels are not [batch, channels, height, width] of the flow's shape.
        """
        _require_shape("pixels", pixels, self._shape)
        values = torch.logit(pixels, eps=EDGE)
        inner = (values - self.centre).reshape(-1, *self._inner_shape)
        noise, logdet = self.steps.inverse(inner, self._condition(labels, pixels))
        return noise.flatten(1), logdet - _sigmoid_logdet(values)

    def forward(self, noise: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Return pixels in (0, 1); errors as of `transform`."""
        return self.transform(noise, labels)[0]

    def log_prob(self, pixels: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Return the natural logarithm of each image's density given its label, [batch], for standard normal noise.

        It is a density over the open unit cube of pixels; errors as of `inverse`.
        """
        noise, logdet = self.inverse(pixels, labels)
        return logdet - 0.5 * (noise.square().sum(dim=1) + noise.shape[1] * math.log(2 * math.pi))

    def _condition(self, labels: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
        return F.one_hot(labels.to(like.device), self._num_classes).to(like)


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


class HalfOf(Step):
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
    """Glow's invertible 1x1 convolution (section 3.2): one matrix mixes the channels, at first a random rotation.

    It multiplies where images are generated, which is where most time goes, and inverts for densities.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.matrix = nn.Parameter(torch.linalg.qr(torch.randn(channels, channels)).Q.contiguous())

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


def nice(shape: InputShape, num_classes: int, couplings: int, width: int) -> Flow:
    """Return NICE (Dinh et al. 2014): additive couplings of all pixels in a row, with a diagonal scale at the noise.

    Args:
        shape: any of at least 2 values.
        couplings: how many; even and odd values move in turn, so that all move from 2 on.
        width: of the two hidden layers of each.

    Raises:
        ConfigError: images of one value, which has no other half.
    """
    size = _size_to_halve("nice", shape)
    moves = [InterleavedCoupling(size, num_classes, width, turn=i % 2, affine=False) for i in range(couplings)]
    return Flow(shape, num_classes, Chain([Scaling((size,), shifts=False), *moves]), flat=True)


def nice_affine(shape: InputShape, num_classes: int, couplings: int, width: int) -> Flow:
    """Return affine couplings of all pixels in a row, the flow that KeFlow's published numbers come from.

    Arguments and errors are those of `nice`; KeFlow has 8 couplings of width 1500.
    """
    size = _size_to_halve("nice_affine", shape)
    moves = [InterleavedCoupling(size, num_classes, width, turn=i % 2, affine=True) for i in range(couplings)]
    return Flow(shape, num_classes, Chain(moves), flat=True)


def realnvp(shape: InputShape, num_classes: int, width: int, blocks: int) -> Flow:
    """Return RealNVP of two scales (Dinh et al. 2017, section 3.6).

    From pixels on: 3 checkerboard couplings; squeeze; 3 couplings of channels; half of the channels leaves as noise; 4
    checkerboard couplings of the rest.

    Args:
        shape: images with even sides of at least 4 pixels.
        width: channels of the hidden layers.
        blocks: residual blocks of each coupling's network.

    Raises:
        ConfigError: other sides.
    """
    channels, height, columns = shape
    if min(height, columns) < 4 or height % 2 or columns % 2:
        raise ConfigError(
            f"realnvp needs images whose sides are even and at least 4, not {height}x{columns}; nice and nice_affine "
            "take any sides"
        )

    def board(of: tuple[int, int, int], turn: int) -> Step:
        return CheckerboardCoupling(ResidualNetwork(of[0], 2 * of[0], num_classes, width, blocks), of, turn % 2)

    def halves(turn: int) -> Step:
        network = ResidualNetwork(2 * channels, 4 * channels, num_classes, width, blocks)
        return ChannelCoupling(network, 4 * channels, turn % 2)

    last = (2 * channels, height // 2, columns // 2)
    coarse = Chain([HalfOf(Chain(board(last, turn) for turn in range(4))), *(halves(turn) for turn in range(3))])
    return Flow(shape, num_classes, Chain([Squeezed(coarse), *(board(shape, turn) for turn in range(3))]), flat=False)


def glow(shape: InputShape, num_classes: int, width: int, levels: int, steps: int) -> Flow:
    """Return Glow (Kingma and Dhariwal 2018, section 3 and figure 2).

    From pixels on, at each level: squeeze; `steps` times ActNorm, invertible 1x1 convolution and affine coupling; half
    of the channels leaves as noise, but at the last level.

    Args:
        shape: images whose sides can be halved `levels` times.
        width: channels of the hidden layers.
        levels: at least 1.
        steps: per level.

    Raises:
        ConfigError: other sides.
    """
    channels, height, columns = shape
    unit = 2**levels
    if height % unit or columns % unit:
        raise ConfigError(
            f"glow with {levels} levels needs images whose sides are multiples of {unit}, not {height}x{columns}; nice "
            "and nice_affine take any sides"
        )

    def one_step(of: int) -> list[Step]:
        coupling = ChannelCoupling(PlainNetwork(of // 2, of, num_classes, width), of, turn=0)
        return [coupling, ChannelRotation(of), Scaling((of, 1, 1), shifts=True)]

    def level(before: int, left: int) -> Step:
        squeezed = 4 * before
        coarser: list[Step] = [HalfOf(level(squeezed // 2, left - 1))] if left > 1 else []
        return Squeezed(Chain(coarser + [part for _ in range(steps) for part in one_step(squeezed)]))

    return Flow(shape, num_classes, level(channels, levels), flat=False)


def dequantized(images: torch.Tensor, random: torch.Generator) -> torch.Tensor:
    """Return real images as a density on the open interval can have made them: pixels in [MARGIN, 1 - MARGIN].

    Pixels x of 256 grey levels become (255 x + u) / 256 with u uniform in [0, 1), so that each level is an interval
    (Theis et al. 2016), and those are squeezed away from 0 and 1, where densities of a sigmoid end.

    Args:
        images: [...] in [0, 1], float.
        random: on the CPU.
    """
    noise = torch.rand(images.shape, generator=random, dtype=images.dtype).to(images.device)
    return MARGIN + (1 - 2 * MARGIN) * (255 * images + noise) / 256


def _size_to_halve(name: str, shape: InputShape) -> int:
    size = math.prod(shape)
    if size < 2:
        raise ConfigError(f"{name} needs images of at least 2 values, not {size}")
    return size


def _require_shape(what: str, tensor: torch.Tensor, shape: tuple[int, ...]) -> None:
    if tuple(tensor.shape[1:]) != tuple(shape):
        raise ConfigError(f"the flow takes {what} of shape {tuple(shape)} per image, not {tuple(tensor.shape[1:])}")


def _sigmoid_logdet(values: torch.Tensor) -> torch.Tensor:
    """Return log |det| of the sigmoid at these values, [batch]."""
    return (F.logsigmoid(values) + F.logsigmoid(-values)).flatten(1).sum(dim=1)


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
