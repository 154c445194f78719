"""Images from formulas alone: random level lines, pen strokes, shapes, blobs, gratings and smooth fields.

They need no data and no pretrained network. They contain edges, strokes and areas, on which predictions of classifiers
of drawings, digits and photographs depend, at any size, in grey and in colour. A pattern is a *mask*: the amount of ink
at each pixel, in [0, 1]. `structured_images` paints masks over each other. All of it is batched tensor code on the CPU;
images depend only on the random number generator `rng`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache

import torch
import torch.nn.functional as F

Pattern = Callable[[int, int, int, torch.Generator], torch.Tensor]

PART_PIXELS = 1 << 20
"""Largest number of pixels that are made at a time, which limits the memory."""


def _uniform(low: float, high: float, count: int, rng: torch.Generator) -> torch.Tensor:
    """Return one uniform random number in [low, high] per image, [count, 1, 1]."""
    return torch.rand((count, 1, 1), generator=rng).mul_(high - low).add_(low)


def _normal(std: float, count: int, rng: torch.Generator) -> torch.Tensor:
    return torch.randn((count, 1, 1), generator=rng).mul_(std)


@cache
def _enlarging(cells: int, size: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return two matrices [size, cells]: bicubic interpolation of `cells` values, and its derivative per pixel."""
    values = F.interpolate(torch.eye(cells).unsqueeze(1).unsqueeze(1), (1, size), mode="bicubic")[:, 0, 0].T
    return values.contiguous(), torch.gradient(values, dim=0)[0].contiguous()


@cache
def _pixel_axes(height: int, width: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return coordinates of rows [height, 1] and of columns [1, width]; the shorter side spans [-1, 1]."""
    short = min(height, width)
    rows = (torch.arange(height) * 2 + 1 - height) / short
    columns = (torch.arange(width) * 2 + 1 - width) / short
    return rows.view(height, 1), columns.view(1, width)


def smooth_fields(
    count: int, height: int, width: int, rng: torch.Generator, least: int = 3, most: int = 8
) -> torch.Tensor:
    """Return smooth random fields of mean 0, [count, height, width]: normal noise on a coarse grid, enlarged.

    The grid of each image has a random number of cells per side, from `least` to `most`.
    """
    fields = torch.empty((count, height, width))
    for cells, rows in _grains(count, least, most, rng):
        coarse = torch.randn((len(rows), cells, cells), generator=rng)
        fields[rows] = _enlarging(cells, height)[0] @ coarse @ _enlarging(cells, width)[0].T
    return fields


def _grains(count: int, least: int, most: int, rng: torch.Generator) -> list[tuple[int, torch.Tensor]]:
    """Assign images to grid sizes at random; return (cells per side, indices of the images)."""
    grains = torch.randint(least, most + 1, (count,), generator=rng)
    return [(cells, (grains == cells).nonzero().squeeze(1)) for cells in range(least, most + 1)]


def level_lines(count: int, height: int, width: int, rng: torch.Generator) -> torch.Tensor:
    """Return level lines of smooth random fields, of one width per image, faded out by a second field."""
    lines = torch.empty((count, height, width))
    scale = min(height, width) / 32
    for cells, rows in _grains(count, 3, 5, rng):
        coarse = torch.randn((len(rows), cells, cells), generator=rng)
        (up, up_slope), (across, across_slope) = _enlarging(cells, height), _enlarging(cells, width)
        partly = up @ coarse
        slope = (partly @ across_slope.T).square_() + ((up_slope @ coarse) @ across.T).square_()
        distance = (partly @ across.T).sub_(_normal(0.6, len(rows), rng)).abs_()
        distance /= slope.sqrt_().clamp_min_(0.02 / scale)
        pen = _uniform(0.6, 2.2, len(rows), rng) * scale
        lines[rows] = torch.sigmoid((pen - distance).mul_(3))
    fade = smooth_fields(count, height, width, rng, 2, 3)
    y, x = _pixel_axes(height, width)
    inside = _uniform(0.5, 1.0, count, rng) - torch.maximum(y.abs(), x.abs())
    return lines.mul_(torch.sigmoid(fade.add_(0.5).mul_(8))).mul_(torch.sigmoid(inside.mul_(12)))


def pen_strokes(count: int, height: int, width: int, rng: torch.Generator) -> torch.Tensor:
    """Return one to three strokes of a round pen per image, most of them connected, at a random size and position.

    The points of a stroke have equal distances. Its direction changes evenly, plus a sine wave, and in some strokes at
    one sharp corner.
    """
    path, drawn = _walks(count, rng)
    low, high = path.amin(1, keepdim=True), path.amax(1, keepdim=True)
    size = _uniform(0.35, 0.9, count, rng) * torch.exp(0.15 * torch.randn((count, 1, 2), generator=rng))
    scale = 2 * size / (high - low).amax(2, keepdim=True).clamp_min(0.05)
    path = (path - (low + high) / 2) * scale + 0.08 * torch.randn((count, 1, 2), generator=rng)
    pen = _uniform(0.05, 0.17, count, rng)
    return torch.sigmoid((pen - _distance(path, drawn, height, width)).mul_(1.25 * min(height, width)))


STROKES, STROKE_POINTS = 3, 24
HAZE = 0.05
"""Standard deviation of the bell around each point of a stroke; see `_distance`."""


def _distance(path: torch.Tensor, drawn: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """Return each pixel's distance to the strokes through the points [count, points, 2], [count, height, width].

    Points are so close that Gaussian bells of standard deviation `HAZE` around them add up to a ridge, whose height
    gives the distance. A bell is the product of a function of the row and one of the column, so that the sum of bells
    is a product of matrices. `drawn` [count, points] is 0 for points that are left out.
    """
    gaps = torch.linalg.vector_norm(path.diff(dim=1, append=path[:, -1:]), dim=2)
    weights = drawn * (gaps / (HAZE * math.sqrt(2 * math.pi))).clamp_(0.1, 1)
    y, x = _pixel_axes(height, width)
    across, down = (_bell(path[..., axis, None], pixels.flatten()) for axis, pixels in ((0, x), (1, y)))
    ridge = (down * weights.unsqueeze(2)).mT @ across
    return ridge.log_().clamp_max_(0).mul_(-2 * HAZE**2).sqrt_()


def _bell(centre: torch.Tensor, pixels: torch.Tensor) -> torch.Tensor:
    """Return exp(-d^2 / 2 HAZE^2) for the distances d of pixels to the centres, at least exp(-40)."""
    unit = 1 / (HAZE * math.sqrt(2))
    away = centre * unit - pixels * unit
    return torch.addcmul(away.new_zeros(()), away, away, value=-1).clamp_min_(-40).exp_()


def _walks(count: int, rng: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the points of the strokes of each image, [count, points, 2], and 1 for points that are drawn, else 0.

    Points that are not drawn are copies of those of the first stroke.
    """

    def uniform(*shape: int) -> torch.Tensor:
        return torch.rand(shape, generator=rng)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=rng)

    per_stroke = (count, STROKES, 1)
    t = torch.linspace(0, 1, STROKE_POINTS).view(1, 1, -1)
    wave = torch.sin(2 * math.pi * ((0.5 + uniform(*per_stroke)) * t + uniform(*per_stroke)))
    heading = 2 * math.pi * (uniform(*per_stroke) + 0.45 * normal(*per_stroke) * t) + 1.2 * normal(*per_stroke) * wave
    corner = math.pi * (0.4 + 0.5 * uniform(*per_stroke)) * normal(*per_stroke).sign()
    heading += corner * (t > uniform(*per_stroke)) * (uniform(*per_stroke) < 0.35)
    length = 0.2 + 0.8 * uniform(count, STROKES)
    length[:, 0] = 1
    step = torch.stack([heading.cos(), heading.sin()], dim=-1) * (length / STROKE_POINTS).view(*per_stroke, 1)
    path = step.cumsum(2)
    number = torch.multinomial(torch.tensor([0.45, 0.4, 0.15]), count, replacement=True, generator=rng)
    every = torch.arange(count)
    for stroke in range(1, STROKES):
        joint = path[every, stroke - 1, torch.randint(STROKE_POINTS, (count,), generator=rng)]
        joint = joint + 0.25 * normal(count, 2) * (uniform(count, 1) < 0.2)
        crossing = path[every, stroke, torch.randint(STROKE_POINTS, (count,), generator=rng)]
        crossing = crossing * (uniform(count, 1) < 0.5)
        path[:, stroke] += (joint - crossing).unsqueeze(1)
    drawn = number.unsqueeze(1) >= torch.arange(STROKES)
    path = torch.where(drawn[..., None, None], path, path[:, :1])
    return path.flatten(1, 2), drawn.float().repeat_interleave(STROKE_POINTS, dim=1)


def shapes(count: int, height: int, width: int, rng: torch.Generator) -> torch.Tensor:
    """Return one to three ellipses or rectangles per image: outlined or filled, some cut by a straight line."""
    ink = _shape(count, height, width, rng)
    for _ in range(2):
        rows = torch.randperm(count, generator=rng)[: count // 2]
        ink[rows] = torch.maximum(ink[rows], _shape(len(rows), height, width, rng))
    return ink


def _shape(count: int, height: int, width: int, rng: torch.Generator) -> torch.Tensor:
    """Return one ellipse or rectangle per image; the first 60 % are ellipses."""
    y, x = _pixel_axes(height, width)
    x, y = x - _normal(0.35, count, rng), y - _normal(0.35, count, rng)
    radius, squeeze = _uniform(0.15, 0.75, count, rng), _uniform(0.15, 1.0, count, rng)
    angle = _uniform(0, math.pi, count, rng)
    u = x * angle.cos() + y * angle.sin()
    v = y * (angle.cos() / squeeze) - x * (angle.sin() / squeeze)
    split = round(0.6 * count)
    inwards = torch.empty_like(u)
    torch.hypot(u[:split], v[:split], out=inwards[:split])
    torch.maximum(u[split:].abs_(), v[split:].abs_(), out=inwards[split:])
    torch.sub(radius, inwards, out=inwards)
    outlined = torch.rand((count, 1, 1), generator=rng) < 0.75
    pen = _uniform(0.04, 0.16, count, rng)
    drawn = torch.where(outlined, (inwards.abs() * squeeze.sqrt()).neg_().add_(pen), inwards)
    side = _uniform(0, 2 * math.pi, count, rng)
    opening = torch.where(torch.rand((count, 1, 1), generator=rng) < 0.5, math.inf, _uniform(0, 0.6, count, rng))
    torch.minimum(drawn, x * side.cos() + (y * side.sin() + opening), out=drawn)
    return drawn.mul_(min(height, width)).sigmoid_()


def blobs(count: int, height: int, width: int, rng: torch.Generator) -> torch.Tensor:
    """Return the areas in which a smooth random field exceeds a random threshold."""
    fields = smooth_fields(count, height, width, rng, 3, 7)
    return torch.sigmoid((fields - 0.8 - _normal(0.4, count, rng)).mul_(15))


def gratings(count: int, height: int, width: int, rng: torch.Generator) -> torch.Tensor:
    """Return parallel stripes of random direction and width, inside a round window."""
    y, x = _pixel_axes(height, width)
    angle, waves = _uniform(0, math.pi, count, rng), _uniform(1, 6, count, rng) * math.pi
    wave = torch.sin(waves * (x * angle.cos() + y * angle.sin()) + _uniform(0, 2 * math.pi, count, rng))
    stripes = torch.sigmoid((wave - _uniform(-0.7, 1.3, count, rng)).mul_(8))
    away = (x - _normal(0.5, count, rng)).square() + (y - _normal(0.5, count, rng)).square()
    return stripes * torch.exp(-away / (2 * _uniform(0.3, 0.8, count, rng).square()))


def clouds(count: int, height: int, width: int, rng: torch.Generator) -> torch.Tensor:
    """Return smooth random fields with a random brightness and contrast per image."""
    fields = smooth_fields(count, height, width, rng)
    contrast = _uniform(1, 8, count, rng)
    return torch.sigmoid((fields - 0.5 + _normal(0.5, count, rng)).mul_(contrast))


PATTERNS: dict[str, Pattern] = {
    "level_lines": level_lines,
    "pen_strokes": pen_strokes,
    "shapes": shapes,
    "blobs": blobs,
    "gratings": gratings,
    "clouds": clouds,
}

SHARES: dict[str, float] = {
    "level_lines": 0.27,
    "pen_strokes": 0.4,
    "shapes": 0.27,
    "blobs": 0.02,
    "gratings": 0.02,
    "clouds": 0.02,
}
"""Probability of each pattern; chosen by the accuracy of students on MNIST (docs/notes.md)."""


def masks(count: int, height: int, width: int, rng: torch.Generator) -> torch.Tensor:
    """Return patterns of all kinds in random order, [count, height, width], with the probabilities in `SHARES`."""
    drawn = torch.multinomial(torch.tensor([SHARES[name] for name in PATTERNS]), count, True, generator=rng)
    ink = torch.empty((count, height, width))
    for kind, pattern in enumerate(PATTERNS.values()):
        rows = (drawn == kind).nonzero().squeeze(1)
        if len(rows):
            ink[rows] = pattern(len(rows), height, width, rng)
    return ink


def structured_images(count: int, shape: tuple[int, int, int], brightness: float, rng: torch.Generator) -> torch.Tensor:
    """Return `count` random images, pixels in [0, 1], [count, channels, height, width].

    Some are *drawings*: bright ink on black, or dark ink on white. Some are *scenes*: several patterns over each other
    in constant or slowly varying tones (for filled shapes, this is known as the dead leaves model).

    Args:
        shape: (channels, height, width).
        brightness: mean pixel with which the classifier normalizes, in [0, 1]. Near 0 or 1 all images are drawings, on
            black or on white; at 0.5 all are scenes.
        rng: on the CPU.
    """
    num_parts = -(-count * shape[1] * shape[2] // PART_PIXELS)
    sizes = [(count + index) // num_parts for index in range(num_parts)]
    made = [_some_images(size, shape, brightness, rng) for size in sizes]
    return torch.cat(made).contiguous(memory_format=torch.channels_last)


def drawings_alone(brightness: float) -> bool:
    """Return whether `structured_images` of this brightness, in [0, 1], are all drawings on black or white."""
    return abs(brightness - 0.5) >= SCENES_END


def _some_images(count: int, shape: tuple[int, int, int], brightness: float, rng: torch.Generator) -> torch.Tensor:
    scene = torch.rand(count, generator=rng) < 1 - abs(brightness - 0.5) / SCENES_END
    images = torch.empty((count, *shape))
    for kind, make in ((~scene, _drawings), (scene, _scenes)):
        rows = kind.nonzero().squeeze(1)
        if len(rows):
            images[rows] = make(len(rows), shape, brightness, rng)
    return images


def _drawings(count: int, shape: tuple[int, int, int], brightness: float, rng: torch.Generator) -> torch.Tensor:
    channels, height, width = shape
    ink = masks(count, height, width, rng).unsqueeze(1)
    if channels > 1:
        ink = ink * _tones(count, channels, rng)
    return ink if brightness < 0.5 else 1 - ink


def _scenes(count: int, shape: tuple[int, int, int], brightness: float, rng: torch.Generator) -> torch.Tensor:
    _, height, width = shape
    painted = _material(count, shape, rng)
    for _ in range(SCENE_LAYERS):
        mask = masks(count, height, width, rng).unsqueeze(1)
        painted = painted.lerp_(_material(count, shape, rng), mask)
    return painted


SCENE_LAYERS = 3
SCENES_END = 0.35
"""Distance of the brightness from 0.5 from which on all images are drawings; at distance 0 all are scenes."""


def _tones(count: int, channels: int, rng: torch.Generator) -> torch.Tensor:
    """Return bright ink of a random tint per image, [count, channels, 1, 1]."""
    tones = _uniform(0.6, 1.0, count, rng).unsqueeze(1)
    return tones * (1 - 0.8 * torch.rand((count, channels, 1, 1), generator=rng).square())


def _material(count: int, shape: tuple[int, int, int], rng: torch.Generator) -> torch.Tensor:
    """Return constant tones, half of them varied by a smooth field, [count, channels, height, width]."""
    channels, height, width = shape
    grey = torch.rand((count, 1, 1, 1), generator=rng)
    tint = torch.randn((count, channels, 1, 1), generator=rng).mul_(0.2 if channels > 1 else 0.0)
    varied = torch.rand((count, 1, 1), generator=rng).sub_(0.5).clamp_min_(0).mul_(0.6)
    fields = smooth_fields(count, height, width, rng) * varied
    return (grey + tint + fields.unsqueeze(1)).clamp_(0, 1)
