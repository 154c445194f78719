"""Conditional normalizing flows: invertible maps from noise to pixels, given the label, with exact densities.

Four of them: NICE with additive couplings (Dinh et al. 2014) and with affine ones, RealNVP (Dinh et al. 2017), and Glow
(Kingma and Dhariwal 2018). None has batch normalization, whose batch statistics would make the two directions differ.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import nn

from ...errors import ConfigError
from ...models.architectures import InputShape
from .couplings import ChannelCoupling, CheckerboardCoupling, InterleavedCoupling, PlainNetwork, ResidualNetwork, Step
from .flow_steps import CONTRAST, Chain, ChannelRotation, CosinePrior, FactorOut, Scaling, Squeezed, has_neighbours

DARKEST = 0.02
"""Least mean pixel of an untrained flow; the largest is 1 minus this."""
PROBIT = 1.702
"""Standard deviation of the normal distribution that is closest to the logistic distribution."""
MARGIN = 0.01
"""Least distance of dequantized pixels from 0 and 1."""


class Flow(nn.Module):
    """Noise [batch, size] <-> pixels [batch, channels, height, width] in (0, 1), for labels int64 [batch].

    The steps map noise to values v, and pixels = sigmoid(v + `centre`), where `centre` is one number per channel, 0 by
    default. In float32, pixels that are mapped to noise and back are equal within 1e-4. The noise is less precise where
    |v| > 6, since pixels are then close to 0 or 1; from v = 17 on they are 1.

    Args:
        shape: of one image, (channels, height, width).
        num_classes: number of labels.
        steps: the map from noise to v.
        flat: whether the values of the steps have the shape [batch, size] instead of [batch, *shape].
    """

    conditional = True
    standardized = False
    centre: torch.Tensor

    def __init__(self, shape: InputShape, num_classes: int, steps: Step, flat: bool) -> None:
        super().__init__()
        self.noise_shape = (math.prod(shape),)
        self.steps = steps
        self.prior = CosinePrior(shape) if has_neighbours(shape) else None
        self.register_buffer("centre", torch.zeros(shape[0], 1, 1), persistent=False)
        self._shape, self._num_classes = shape, num_classes
        self._inner_shape = self.noise_shape if flat else shape

    def set_brightness(self, mean: torch.Tensor) -> None:
        """Set `centre` so that images of an untrained flow have these mean pixels, [channels, 1, 1] in (0, 1).

        For normal v of mean c and standard deviation s, the mean of sigmoid(v) is about Phi(c / sqrt(s^2 + 1.7^2))
        (MacKay 1992).
        """
        spread = CONTRAST if self.prior is not None else 1.0
        self.centre.copy_(torch.special.ndtri(mean.clamp(DARKEST, 1 - DARKEST)) * math.hypot(spread, PROBIT))

    def transform(self, noise: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return pixels in (0, 1), and log |det d pixels / d noise| of each image, [batch].

        Raises:
            ConfigError: the noise is not [batch, size].
        """
        values, logdet = self._values(noise, labels)
        return torch.sigmoid(values), logdet + _sigmoid_logdet(values)

    def transform_with_divergence(self, noise: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return pixels in (0, 1), and log q - log p of each image, [batch], whose mean is KL(q || p).

        q is the density of the flow's images given the label. p is the density of an untrained flow, that is, of smooth
        fields around `centre`; for images of one row or column it is uniform in (0, 1). Errors are those of
        `transform`.
        """
        values, logdet = self._values(noise, labels)
        log_noise = -0.5 * (noise.square().sum(dim=1) + noise.shape[1] * math.log(2 * math.pi))
        if self.prior is None:
            return torch.sigmoid(values), log_noise - logdet - _sigmoid_logdet(values)
        amplitudes, back = self.prior.inverse(values - self.centre, values)
        squares = amplitudes.square().flatten(1).sum(dim=1)
        log_prior = back - 0.5 * (squares + noise.shape[1] * math.log(2 * math.pi))
        return torch.sigmoid(values), log_noise - logdet - log_prior

    def _values(self, noise: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return v, before the sigmoid, [batch, channels, height, width], and log |det d v / d noise|, [batch]."""
        _require_shape("noise", noise, self.noise_shape)
        values, logdet = self.steps(noise.reshape(-1, *self._inner_shape), self._condition(labels, noise))
        return values.reshape(-1, *self._shape) + self.centre, logdet

    def inverse(self, pixels: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the noise that gives these pixels, and log |det d noise / d pixels| of each image, [batch].

        Pixels closer to 0 or 1 than `edge` are first moved to this distance.

        Raises:
            ConfigError: the pixels are not [batch, channels, height, width] of the flow's shape.
        """
        _require_shape("pixels", pixels, self._shape)
        values = torch.logit(pixels, eps=edge(pixels.dtype))
        inner = (values - self.centre).reshape(-1, *self._inner_shape)
        noise, logdet = self.steps.inverse(inner, self._condition(labels, pixels))
        return noise.flatten(1), logdet - _sigmoid_logdet(values)

    def forward(self, noise: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Return pixels in (0, 1). Errors are those of `transform`."""
        return self.transform(noise, labels)[0]

    def log_prob(self, pixels: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Return the natural logarithm of each image's density given its label, [batch], for standard normal noise.

        It is a density over the open unit cube of pixels. Errors are those of `inverse`.
        """
        noise, logdet = self.inverse(pixels, labels)
        return logdet - 0.5 * (noise.square().sum(dim=1) + noise.shape[1] * math.log(2 * math.pi))

    def _condition(self, labels: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
        return F.one_hot(labels.to(like.device), self._num_classes).to(like)


def nice(shape: InputShape, num_classes: int, couplings: int, width: int) -> Flow:
    """Return NICE (Dinh et al. 2014): additive couplings of the flattened values, with a diagonal scale at the noise.

    For images, these values are amplitudes of `CosinePrior`, which is the last step; for tables, they are the features.

    Args:
        shape: of images of at least 2 values.
        couplings: their number; they change even and odd values in turn, so that 2 of them change all values.
        width: units of the two hidden layers of each coupling.

    Raises:
        ConfigError: the images have only one value.
    """
    size = _size_to_halve("nice", shape)
    moves = [InterleavedCoupling(size, num_classes, width, turn=i % 2, affine=False) for i in range(couplings)]
    return Flow(shape, num_classes, Chain([Scaling((size,), shifts=False), *moves, *_cosine_prior(shape)]), flat=True)


def nice_affine(shape: InputShape, num_classes: int, couplings: int, width: int) -> Flow:
    """Return affine couplings of the flattened values, the flow of KeFlow's published results.

    Arguments and errors are those of `nice`; KeFlow uses 8 couplings of width 1500.
    """
    size = _size_to_halve("nice_affine", shape)
    moves = [InterleavedCoupling(size, num_classes, width, turn=i % 2, affine=True) for i in range(couplings)]
    return Flow(shape, num_classes, Chain([*moves, *_cosine_prior(shape)]), flat=True)


def realnvp(shape: InputShape, num_classes: int, width: int, blocks: int) -> Flow:
    """Return RealNVP of two scales (Dinh et al. 2017, section 3.6).

    In the direction from pixels to noise: 3 checkerboard couplings; squeeze; 3 couplings of channels; half of the
    channels is factored out; 4 checkerboard couplings of the rest.

    Args:
        shape: of images whose height and width are even and at least 4.
        width: channels of the hidden layers.
        blocks: residual blocks of each coupling's network.

    Raises:
        ConfigError: the images have another height or width.
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
    coarse = Chain([FactorOut(Chain(board(last, turn) for turn in range(4))), *(halves(turn) for turn in range(3))])
    boards = (board(shape, turn) for turn in range(3))
    return Flow(shape, num_classes, Chain([*_cosine_prior(shape), Squeezed(coarse), *boards]), flat=False)


def glow(shape: InputShape, num_classes: int, width: int, levels: int, steps: int) -> Flow:
    """Return Glow (Kingma and Dhariwal 2018, section 3 and figure 2).

    In the direction from pixels to noise, at each level: squeeze; `steps` times ActNorm, invertible 1x1 convolution,
    affine coupling; half of the channels is factored out, except at the last level.

    Args:
        shape: of images whose height and width are multiples of 2^`levels`.
        width: channels of the hidden layers.
        levels: number of levels, at least 1.
        steps: number of steps per level.

    Raises:
        ConfigError: the images have another height or width.
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
        coarser: list[Step] = [FactorOut(level(squeezed // 2, left - 1))] if left > 1 else []
        return Squeezed(Chain(coarser + [part for _ in range(steps) for part in one_step(squeezed)]))

    return Flow(shape, num_classes, Chain([*_cosine_prior(shape), level(channels, levels)]), flat=False)


def dequantized(images: torch.Tensor, rng: torch.Generator) -> torch.Tensor:
    """Return real images as samples of a continuous distribution, with pixels in [MARGIN, 1 - MARGIN].

    Pixels x of 256 grey levels become (255 x + u) / 256 with u uniform in [0, 1), so that each level is an interval
    (Theis et al. 2016); the result is scaled to this range, since the density of a sigmoid's output ends at 0 and 1.

    Args:
        images: [...] in [0, 1], float.
        rng: on the CPU.
    """
    noise = torch.rand(images.shape, generator=rng, dtype=images.dtype).to(images.device)
    return MARGIN + (1 - 2 * MARGIN) * (255 * images + noise) / 256


def edge(dtype: torch.dtype) -> float:
    """Return the least distance from 0 and 1 of pixels that are mapped to noise: 1e-6 in float32."""
    return 8 * torch.finfo(dtype).eps


def _cosine_prior(shape: InputShape) -> list[Step]:
    """Return the step to smooth fields, for images of more than one row and column; else no step."""
    return [CosinePrior(shape)] if has_neighbours(shape) else []


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
