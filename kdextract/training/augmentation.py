"""Augmentation of a batch of images: joined images, shifts, mirroring, linear distortions, changes of drawings."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F

from .sources import State

THRESHOLDS = (0.15, 0.7)
STEEPNESS = (4.0, 25.0)
"""Ranges of the logistic curves that change the contrast of ink: their midpoint, in [0, 1], and their steepness."""
HALF_HEIGHTS, HALF_WIDTHS = (0.5, 1.2), (0.3, 1.2)
"""Ranges of the half height and half width of the round frames; 1 is half the height or width of the image."""
SHARPNESS = 12.0
"""Steepness of the edge of a frame: the ink rises from 10 % to 90 % within 4.4 / `SHARPNESS` half sides."""


class Augmenter:
    """Joins, shifts, mirrors and distorts images at random, with its own random number generator.

    Args:
        shift: largest shift in pixels in each direction; 0: no shift.
        flip: whether a random half of the images is mirrored.
        warp: strength of the linear distortion, `amount` of the function `warp`; 0: no distortion.
        seed: of the random number generator.
        background: brightness of the background, 0 or 1, of drawings that `redrawn` changes first; None: it is not
            applied.
        splice: whether images are `spliced`.
    """

    def __init__(
        self, shift: int, flip: bool, warp: float, seed: int, background: float | None = None, splice: bool = False
    ) -> None:
        self.shift, self.flip, self.warp, self.background, self.splice = shift, flip, warp, background, splice
        self._rng = torch.Generator().manual_seed(seed)

    @property
    def active(self) -> bool:
        """Whether any change is switched on."""
        return self.shift > 0 or self.flip or self.warp > 0 or self.background is not None or self.splice

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        """Return the augmented batch, [batch, channels, height, width]."""
        if self.background is not None:
            images = redrawn(images, self.background, self._rng)
        if self.splice:
            images = spliced(images, self._rng)
        if self.shift or self.flip:
            images = augment(images, self.shift, self.flip, self._rng)
        return warp(images, self.warp, self._rng) if self.warp else images

    def state(self) -> State:
        """Return the random state."""
        return {"rng": self._rng.get_state()}, {}

    def restore(self, state: State) -> None:
        """Continue from `state`."""
        self._rng.set_state(state[0]["rng"])


def redrawn(images: torch.Tensor, background: float, rng: torch.Generator) -> torch.Tensor:
    """Change drawings at random. Their targets are no longer valid: the teacher must compute new ones.

    The images of one generator have similar stroke widths and similar greys, and ink up to the border, where real
    drawings have none. Three changes are made, in this order: in half of the images, the part beyond a random straight
    line is replaced by that part of another image; the ink of each image is mapped by a random logistic curve; the ink
    of each image is faded out at a random round frame.

    Args:
        images: pixels [batch, channels, height, width] in [0, 1].
        background: brightness of the background, 0 or 1; ink is the absolute difference from it.
        rng: on the CPU.

    Returns:
        Pixels in [0, 1], in the shape of `images`.
    """
    ink = (images - background).abs()
    ink = _framed(_recontrasted(spliced(ink, rng), rng), rng)
    return (background - ink).abs().contiguous(memory_format=torch.channels_last)


def _uniform_per_image(bounds: tuple[float, float], like: torch.Tensor, rng: torch.Generator) -> torch.Tensor:
    """Return one uniform random number within `bounds` per image of `like`, [batch, 1, 1, 1]."""
    low, high = bounds
    return (torch.rand((len(like), 1, 1, 1), generator=rng) * (high - low) + low).to(like.device)


def _sides(like: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return coordinates of rows [1, 1, height, 1] and of columns [1, 1, 1, width], both from -1 to 1."""
    _, _, height, width = like.shape
    rows, columns = (torch.linspace(-1, 1, size, device=like.device) for size in (height, width))
    return rows.view(1, 1, -1, 1), columns.view(1, 1, 1, -1)


def random_sides(images: torch.Tensor, rng: torch.Generator) -> torch.Tensor:
    """Return a mask per image, [batch, 1, height, width]: near 1 on one side of a random straight line, else near 0.

    Args:
        images: [batch, channels, height, width].
        rng: on the CPU.
    """
    y, x = _sides(images)
    angle, place = _uniform_per_image((0, 2 * math.pi), images, rng), _uniform_per_image((-0.5, 0.5), images, rng)
    return torch.sigmoid(8 * (x * angle.cos() + y * angle.sin() - place))


def spliced(images: torch.Tensor, rng: torch.Generator) -> torch.Tensor:
    """In half of the images, replace the part beyond a random straight line by that part of another image.

    Their targets are no longer valid: the teacher must compute new ones. After CutMix (Yun et al. 2019), which replaces
    a rectangle.

    Args:
        images: [batch, channels, height, width].
        rng: on the CPU.
    """
    own = random_sides(images, rng)
    own = torch.where(_uniform_per_image((0, 1), images, rng) < 0.5, own, 1.0)
    others = torch.randperm(len(images), generator=rng).to(images.device)
    return torch.lerp(images[others], images, own).contiguous(memory_format=torch.channels_last)


def _recontrasted(ink: torch.Tensor, rng: torch.Generator) -> torch.Tensor:
    """Map the ink of each image by a random logistic curve, scaled so that it maps 0 to 0 and 1 to 1."""
    threshold = _uniform_per_image(THRESHOLDS, ink, rng)
    steepness = _uniform_per_image((math.log(STEEPNESS[0]), math.log(STEEPNESS[1])), ink, rng).exp()
    none, all_ = torch.sigmoid(-threshold * steepness), torch.sigmoid((1 - threshold) * steepness)
    return ((torch.sigmoid((ink - threshold) * steepness) - none) / (all_ - none)).clamp(0, 1)


def _framed(ink: torch.Tensor, rng: torch.Generator) -> torch.Tensor:
    """Fade out the ink of each image at a round frame of random size and position."""
    y, x = _sides(ink)
    away = ((y - _uniform_per_image((-0.2, 0.2), ink, rng)) / _uniform_per_image(HALF_HEIGHTS, ink, rng)).pow(4)
    away = away + ((x - _uniform_per_image((-0.2, 0.2), ink, rng)) / _uniform_per_image(HALF_WIDTHS, ink, rng)).pow(4)
    return ink * torch.sigmoid((1 - away.pow(0.25)) * SHARPNESS)


def augment(images: torch.Tensor, shift: int, flip: bool, rng: torch.Generator) -> torch.Tensor:
    """Shift each image by up to `shift` pixels in each direction, and mirror half of them if `flip`.

    Args:
        images: [batch, channels, height, width]; pixels beyond a border are copies of the nearest border pixel.
        rng: on the CPU.
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
    """Distort each image by a random linear map about its centre, which rotates, scales and shears it.

    Args:
        images: [batch, channels, height, width]; pixels beyond a border are copies of the nearest border pixel.
        amount: standard deviation of each entry of the 2x2 map around the identity; 0.1 rotates by about 6 degrees.
        rng: on the CPU.
    """
    maps = torch.eye(2) + amount * torch.randn((len(images), 2, 2), generator=rng)
    affine = torch.cat([maps, torch.zeros(len(images), 2, 1)], dim=2).to(images.device)
    grid = F.affine_grid(affine, list(images.shape), align_corners=False)
    warped = F.grid_sample(images, grid, padding_mode="border", align_corners=False)
    return warped.contiguous(memory_format=torch.channels_last)


def binomial_blur(images: torch.Tensor) -> torch.Tensor:
    """Convolve each channel with the 3x3 binomial kernel [1 2 1; 2 4 2; 1 2 1] / 16; borders are reflected."""
    padded = F.pad(images, (1, 1, 1, 1), mode="reflect")
    across = (padded[..., :-2] + 2 * padded[..., 1:-1] + padded[..., 2:]) / 4
    return (across[..., :-2, :] + 2 * across[..., 1:-1, :] + across[..., 2:, :]) / 4
