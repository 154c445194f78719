"""Augmentation of a batch before a network sees it: shifts, distortions, and changes of drawings."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F

from .sources import State

THRESHOLDS = (0.15, 0.7)
STEEPNESS = (4.0, 25.0)
"""Of the logistic curves that ink goes through: where they rise, in [0, 1], and how fast."""
HALF_HEIGHTS, HALF_WIDTHS = (0.5, 1.2), (0.3, 1.2)
"""Of the round frames that images fade out at, as shares of the images' own."""
SHARPNESS = 12.0
"""Of the frames' edges: from a tenth of the ink to nine tenths within 4.4 / `SHARPNESS` half sides."""


class Augmenter:
    """Random shifts, mirrorings and linear distortions, with a generator of their own.

    Args:
        shift: at most so many pixels in each direction.
        flip: whether to mirror half of the images.
        warp: strength of the distortion; see `images.warp`.
        background: not None for drawings on a background of this brightness, 0 or 1, that are first `redrawn`.
    """

    def __init__(self, shift: int, flip: bool, warp: float, seed: int, background: float | None = None) -> None:
        self.shift, self.flip, self.warp, self.background = shift, flip, warp, background
        self._rng = torch.Generator().manual_seed(seed)

    @property
    def active(self) -> bool:
        """Whether images are changed at all."""
        return self.shift > 0 or self.flip or self.warp > 0 or self.background is not None

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        """Return the batch [batch, channels, height, width], augmented."""
        if self.background is not None:
            images = redrawn(images, self.background, self._rng)
        if self.shift or self.flip:
            images = augment(images, self.shift, self.flip, self._rng)
        return warp(images, self.warp, self._rng) if self.warp else images

    def state(self) -> State:
        """The generator."""
        return {"rng": self._rng.get_state()}

    def restore(self, state: State) -> None:
        """Continue from `state`."""
        self._rng.set_state(state["rng"])


def redrawn(images: torch.Tensor, background: float, rng: torch.Generator) -> torch.Tensor:
    """Make other drawings of a batch of drawings, for a teacher that is asked what they show now.

    Generators repeat themselves: in the width of strokes, in greys, and in filling the image up to its border, where
    drawings of one thing have nothing. In this order, half of the images go on as another one beyond a straight line,
    the greys of each go through a steeper or flatter curve, and its ink fades out at a round frame.

    Args:
        images: pixels [batch, channels, height, width] in [0, 1].
        background: brightness of the background, 0 or 1; the rest is ink.
        rng: on the CPU.

    Returns:
        Pixels in [0, 1], in the shape of `images`.
    """
    ink = (images - background).abs()
    ink = _framed(_recontrasted(_spliced(ink, rng), rng), rng)
    return (background - ink).abs().contiguous(memory_format=torch.channels_last)


def _uniform_per_image(bounds: tuple[float, float], like: torch.Tensor, rng: torch.Generator) -> torch.Tensor:
    """One number per image of `like`, [batch, 1, 1, 1]."""
    low, high = bounds
    return (torch.rand((len(like), 1, 1, 1), generator=rng) * (high - low) + low).to(like.device)


def _sides(like: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Coordinates of rows [1, 1, height, 1] and columns [1, 1, 1, width]; both sides span [-1, 1]."""
    _, _, height, width = like.shape
    rows, columns = (torch.linspace(-1, 1, size, device=like.device) for size in (height, width))
    return rows.view(1, 1, -1, 1), columns.view(1, 1, 1, -1)


def _spliced(ink: torch.Tensor, rng: torch.Generator) -> torch.Tensor:
    """Let half of the images go on as another one of the batch beyond a random straight line."""
    y, x = _sides(ink)
    angle, place = _uniform_per_image((0, 2 * math.pi), ink, rng), _uniform_per_image((-0.5, 0.5), ink, rng)
    own = torch.sigmoid(8 * (x * angle.cos() + y * angle.sin() - place))
    own = torch.where(_uniform_per_image((0, 1), ink, rng) < 0.5, own, 1.0)
    others = torch.randperm(len(ink), generator=rng).to(ink.device)
    return torch.lerp(ink[others], ink, own)


def _recontrasted(ink: torch.Tensor, rng: torch.Generator) -> torch.Tensor:
    """Put the ink of each image through a logistic curve of its own that leaves 0 and 1 where they are."""
    threshold = _uniform_per_image(THRESHOLDS, ink, rng)
    steepness = _uniform_per_image((math.log(STEEPNESS[0]), math.log(STEEPNESS[1])), ink, rng).exp()
    none, all_ = torch.sigmoid(-threshold * steepness), torch.sigmoid((1 - threshold) * steepness)
    return ((torch.sigmoid((ink - threshold) * steepness) - none) / (all_ - none)).clamp(0, 1)


def _framed(ink: torch.Tensor, rng: torch.Generator) -> torch.Tensor:
    """Let the ink of each image fade out at a round frame of its own size and place."""
    y, x = _sides(ink)
    away = ((y - _uniform_per_image((-0.2, 0.2), ink, rng)) / _uniform_per_image(HALF_HEIGHTS, ink, rng)).pow(4)
    away = away + ((x - _uniform_per_image((-0.2, 0.2), ink, rng)) / _uniform_per_image(HALF_WIDTHS, ink, rng)).pow(4)
    return ink * torch.sigmoid((1 - away.pow(0.25)) * SHARPNESS)


def augment(images: torch.Tensor, shift: int, flip: bool, rng: torch.Generator) -> torch.Tensor:
    """Shift each image by up to `shift` pixels in each direction, and mirror half of them if `flip`.

    Args:
        images: [batch, channels, height, width]; what enters at a border is that border's pixel, repeated.
        rng: source of randomness, on the CPU.
    """
    batch, channels, height, width = images.shape
    if flip:
        mirrored = torch.rand(batch, generator=rng) < 0.5
        images = torch.where(mirrored.to(images.device).view(-1, 1, 1, 1), images.flip(3), images)
    if shift:
        offsets = torch.randint(-shift, shift + 1, (2, batch, 1), generator=rng)
        rows = (torch.arange(height) + offsets[0]).clamp_(0, height - 1).to(images.device)
        columns = (torch.arange(width) + offsets[1]).clamp_(0, width - 1).to(images.device)
        flat = (rows.unsqueeze(2) * width + columns.unsqueeze(1)).view(batch, 1, height * width)
        pixels = images.contiguous().flatten(2).gather(2, flat.expand(-1, channels, -1))
        images = pixels.view(batch, channels, height, width)
    return images.contiguous(memory_format=torch.channels_last)


def warp(images: torch.Tensor, amount: float, rng: torch.Generator) -> torch.Tensor:
    """Distort each image by a random linear map about its centre: rotation, scale and shear at once.

    Args:
        images: [batch, channels, height, width]; outside, border pixels are repeated.
        amount: standard deviation of each entry of the 2x2 map around the identity; 0.1 turns by about 6 degrees.
        rng: source of randomness, on the CPU.
    """
    maps = torch.eye(2) + amount * torch.randn((len(images), 2, 2), generator=rng)
    affine = torch.cat([maps, torch.zeros(len(images), 2, 1)], dim=2).to(images.device)
    grid = F.affine_grid(affine, list(images.shape), align_corners=False)
    warped = F.grid_sample(images, grid, padding_mode="border", align_corners=False)
    return warped.contiguous(memory_format=torch.channels_last)


def binomial_blur(images: torch.Tensor) -> torch.Tensor:
    """Convolve each channel with the 3x3 binomial kernel [1 2 1; 2 4 2; 1 2 1] / 16, borders reflected."""
    padded = F.pad(images, (1, 1, 1, 1), mode="reflect")
    across = (padded[..., :-2] + 2 * padded[..., 1:-1] + padded[..., 2:]) / 4
    return (across[..., :-2, :] + 2 * across[..., 1:-1, :] + across[..., 2:, :]) / 4
