"""Kinds of images from formulas that share statistics with photographs, and a camera that takes them.

A *kind* is a function that paints images around 0. The *camera* gives them a mean, a contrast, the blur of a lens and
the noise of a sensor. All of it is batched tensor code on the device; random numbers are drawn on the CPU.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import torch

from ..structured_noise.patterns import structured_images
from .fields import colours, palette_colours, power_law_fields
from .leaves import Leaves, coverage, edges, half_planes, paint, power_law_radii, visible
from .names import ALL_KINDS, STRUCTURED

SETTINGS: dict[str, tuple[float, float]] = {
    "contrast": (0.1, 0.32),
    "saturation": (0.05, 0.7),
    "exponent": (0.7, 1.9),
    "law": (1.5, 3.5),
    "smallest": (0.05, 0.3),
    "texture": (0.0, 0.8),
    "blur": (0.0, 1.4),
    "noise": (0.0, 0.04),
}
"""Range of each setting of an image: standard deviation of pixels; deviation of colours relative to the luminance;
exponent of the amplitude spectrum; exponent of the density of radii, and the smallest radius, where the shorter side is
2; amplitude of textures relative to the colours of leaves; standard deviation of the blur in pixels, if the shorter
side is `BLUR_SIDE` (it grows with the square root of the side); standard deviation of the sensor's noise."""

Settings = dict[str, torch.Tensor]
"""The values of `SETTINGS` of N images, [N] each, on the device."""
Paint = Callable[[Settings, tuple[int, int, int], torch.Generator], torch.Tensor]

LEAVES, OBJECT_LEAVES, LARGE_LEAVES = 48, 20, 5
"""Leaves per image: of dead leaves, of the object in the middle, and of images of few areas."""
TEXTURES = 2
PART_PIXELS = 2**20
"""Largest number of pixels times leaves that are computed at a time on a CPU; `GPU_PARTS` times as many elsewhere."""
GPU_PARTS = 256
BRIGHTNESS, CAST = 0.12, 0.06
"""Deviation between images of the mean pixel, and of the mean colour."""
BLUR_SIDE = 32
CONTRASTS = 0.3
"""Deviation between images of the logarithm of the contrast."""


def spectrum(settings: Settings, shape: tuple[int, int, int], rng: torch.Generator) -> torch.Tensor:
    """Return power-law fields along the axes of colour."""
    channels, height, width = shape
    directions = colours(channels, settings["saturation"], channels, rng)
    exponents = settings["exponent"].unsqueeze(1).expand(-1, channels)
    fields = power_law_fields(exponents, height, width, rng)
    return (directions.mT @ fields.flatten(2)).view_as(fields)


def flat_leaves(settings: Settings, shape: tuple[int, int, int], rng: torch.Generator) -> torch.Tensor:
    """Return dead leaves of constant colours."""
    return _leaf_images(settings, shape, rng, textured=False)


def textured_leaves(settings: Settings, shape: tuple[int, int, int], rng: torch.Generator) -> torch.Tensor:
    """Return dead leaves with textures and shading."""
    return _leaf_images(settings, shape, rng, textured=True)


def objects(settings: Settings, shape: tuple[int, int, int], rng: torch.Generator) -> torch.Tensor:
    """Return leaves gathered near the middle, before a few areas."""
    _, height, width = shape
    count = len(settings["law"])
    middle = 0.25 * torch.randn((count, 1, 2), generator=rng)
    spread = 0.15 + 0.35 * torch.rand((count, 1, 1), generator=rng)
    centres = middle + spread * torch.randn((count, OBJECT_LEAVES, 2), generator=rng)
    radii = power_law_radii(OBJECT_LEAVES, settings["smallest"], settings["law"], rng).mul_(0.6)
    near = edges(centres.to(radii.device), radii, min(height, width), rng)
    functions = torch.cat([near, _areas(count, 2, shape, radii.device, rng)], 1)
    return _painted(functions, settings, shape, rng, textured=True)


def areas(settings: Settings, shape: tuple[int, int, int], rng: torch.Generator) -> torch.Tensor:
    """Return few large areas with borders across the image, textures and shading."""
    functions = _areas(len(settings["law"]), LARGE_LEAVES, shape, settings["law"].device, rng)
    return _painted(functions, settings, shape, rng, textured=True)


def landscapes(settings: Settings, shape: tuple[int, int, int], rng: torch.Generator) -> torch.Tensor:
    """Return areas whose borders are level lines of power-law fields, with textures and shading."""
    _, height, width = shape
    count, num_layers = len(settings["law"]), 4
    exponents = (settings["exponent"] + 0.5).unsqueeze(1).expand(-1, num_layers)
    fields = power_law_fields(exponents, height, width, rng).flatten(2)
    sharpness = (1.0 + 6 * torch.rand((count, num_layers, 1), generator=rng)).to(fields.device)
    threshold = torch.randn((count, num_layers, 1), generator=rng).mul_(0.5).to(fields.device)
    covered = fields.sub_(threshold).mul_(sharpness).add_(0.5).clamp_(0, 1)
    covered = torch.cat([covered, torch.ones_like(covered[:, :1])], 1)
    return _filled(visible(covered), settings, shape, rng, textured=True)


def _leaf_images(settings: Settings, shape: tuple[int, int, int], rng: torch.Generator, textured: bool) -> torch.Tensor:
    _, height, width = shape
    short = min(height, width)
    radii = power_law_radii(LEAVES, settings["smallest"], settings["law"], rng)
    reach = torch.tensor([width / short, height / short]) * 1.1
    centres = (torch.rand((*radii.shape, 2), generator=rng) * 2 - 1) * reach
    return _painted(edges(centres.to(radii.device), radii, short, rng), settings, shape, rng, textured)


def _areas(
    count: int, num_areas: int, shape: tuple[int, int, int], device: torch.device, rng: torch.Generator
) -> torch.Tensor:
    centres = torch.rand((count, num_areas, 2), generator=rng).mul_(1.6).sub_(0.8).to(device)
    return half_planes(centres, min(shape[1:]), rng)


def _painted(
    functions: torch.Tensor, settings: Settings, shape: tuple[int, int, int], rng: torch.Generator, textured: bool
) -> torch.Tensor:
    """Return the images of leaves with these edges, before a background."""
    background = torch.zeros_like(functions[:, :1])
    background[..., 0] = 1
    covered = coverage(torch.cat([functions, background], 1), *shape[1:])
    return _filled(visible(covered), settings, shape, rng, textured)


def _filled(
    seen: torch.Tensor, settings: Settings, shape: tuple[int, int, int], rng: torch.Generator, textured: bool
) -> torch.Tensor:
    """Return images of leaves in random colours; `textured`: with textures and shading."""
    channels, height, width = shape
    count, num_leaves = seen.shape[:2]
    saturation, device = settings["saturation"], seen.device
    base = palette_colours(num_leaves, saturation, channels, rng)
    if not textured:
        return (base.mT @ seen).view(count, channels, height, width)
    shading = torch.randn((count, num_leaves, 2), generator=rng).mul_(0.5).to(device)
    exponents = settings["exponent"].unsqueeze(1) + torch.tensor([-0.25, 0.25], device=device)
    fields = power_law_fields(exponents, height, width, rng)
    tints = colours(num_leaves * TEXTURES, saturation, channels, rng).view(count, num_leaves, TEXTURES, channels)
    textures = tints * settings["texture"].view(-1, 1, 1, 1)
    return paint(Leaves(base, shading, textures), seen, fields)


KINDS: dict[str, Paint] = {
    "spectrum": spectrum,
    "flat_leaves": flat_leaves,
    "textured_leaves": textured_leaves,
    "objects": objects,
    "areas": areas,
    "landscapes": landscapes,
}
"""All of `ALL_KINDS` but those of `structured_noise`, which are not taken by the camera."""


@dataclass(frozen=True)
class Component:
    """One part of a mixture: a kind of images, and the range from which each setting of an image is drawn."""

    kind: str
    low: tuple[float, ...]
    high: tuple[float, ...]

    @classmethod
    def whole(cls, kind: str) -> Component:
        """Return the kind with settings from their whole ranges."""
        return cls(kind, *(tuple(bound[side] for bound in SETTINGS.values()) for side in (0, 1)))


@dataclass(frozen=True)
class Mixture:
    """Kinds of images with their settings, and the share of each, in [0, 1]; shares add up to 1."""

    components: tuple[Component, ...]
    shares: tuple[float, ...]


def natural_images(
    count: int, mixture: Mixture, shape: tuple[int, int, int], mean: torch.Tensor, rng: torch.Generator
) -> torch.Tensor:
    """Return `count` random images of a mixture in random order, pixels in [0, 1], [count, channels, height, width].

    Args:
        shape: (channels, height, width).
        mean: mean pixel of the images per channel, in [0, 1], [channels]; the images are on its device.
        rng: on the CPU.
    """
    drawn = torch.multinomial(torch.tensor(mixture.shares), count, True, generator=rng)
    bounds = torch.tensor([[part.low, part.high] for part in mixture.components])[drawn]
    values = torch.lerp(bounds[:, 0], bounds[:, 1], torch.rand((count, len(SETTINGS)), generator=rng))
    names = [part.kind for part in mixture.components]
    kinds = torch.tensor([ALL_KINDS.index(name) for name in names])[drawn]
    images = torch.empty((count, *shape), device=mean.device).contiguous(memory_format=torch.channels_last)
    part = PART_PIXELS // LEAVES * (GPU_PARTS if mean.device.type != "cpu" else 1)
    size = max(1, part // (shape[1] * shape[2]))
    for index, kind in enumerate(ALL_KINDS):
        for rows in (kinds == index).nonzero().squeeze(1).split(size):
            if len(rows):
                images[rows.to(mean.device)] = _images_of(kind, values[rows], shape, mean, rng)
    return images


def _images_of(
    kind: str, values: torch.Tensor, shape: tuple[int, int, int], mean: torch.Tensor, rng: torch.Generator
) -> torch.Tensor:
    if kind == STRUCTURED:
        return structured_images(len(values), shape, float(mean.mean()), rng).to(mean.device)
    settings = dict(zip(SETTINGS, values.to(mean.device).unbind(1), strict=True))
    return photographed(KINDS[kind](settings, shape, rng), settings, mean, rng)


def photographed(scenes: torch.Tensor, settings: Settings, mean: torch.Tensor, rng: torch.Generator) -> torch.Tensor:
    """Return scenes as a camera takes them, pixels in [0, 1].

    They are blurred, brought to the contrast of `settings` with a random mean near `mean` [channels], get noise that is
    independent in each pixel, and are clipped to valid pixels.
    """
    count, channels, height, width = scenes.shape
    device = scenes.device
    deviations = settings["blur"] * math.sqrt(min(height, width) / BLUR_SIDE)
    down, across = (_blurring(side, deviations) for side in (height, width))
    blurred = down.unsqueeze(1) @ scenes @ across.unsqueeze(1).mT
    variance, middle = torch.var_mean(blurred, (1, 2, 3), correction=0, keepdim=True)
    change = (CONTRASTS * torch.randn((count, 1, 1, 1), generator=rng)).exp_().to(device)
    gain = settings["contrast"].view(-1, 1, 1, 1) * change * variance.clamp_min_(1e-12).rsqrt_()
    brightness = BRIGHTNESS * torch.randn((count, 1), generator=rng)
    cast = CAST * torch.randn((count, channels), generator=rng) if channels > 1 else 0
    offset = mean + (brightness + cast).to(device)
    noise = torch.randn(scenes.shape, generator=rng).to(device).mul_(settings["noise"].view(-1, 1, 1, 1))
    return noise.addcmul_(blurred.sub_(middle), gain).add_(offset.view(count, channels, 1, 1)).clamp_(0, 1)


@cache
def _squared_distances(size: int, device: torch.device) -> torch.Tensor:
    pixels = torch.arange(size, device=device, dtype=torch.float32)
    return (pixels.view(-1, 1) - pixels).square()


def _blurring(size: int, deviations: torch.Tensor) -> torch.Tensor:
    """Return matrices [N, size, size] that blur a row of pixels with normal weights of these deviations in pixels."""
    weights = _squared_distances(size, deviations.device) / (-2 * deviations.clamp_min(0.1).square().view(-1, 1, 1))
    return torch.softmax(weights, 2)
