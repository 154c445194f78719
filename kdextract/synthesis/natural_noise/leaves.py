"""Dead leaves: shapes that cover each other, with colours, shading and textures of their own.

The model is from mathematical morphology; with a power law of sizes its images have the spectra and the derivatives of
photographs (Lee, Mumford and Huang 2001). The edge of a leaf is where one of two quadratic functions of the pixel's
position is 0, so that all leaves of all images are one product of matrices.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache

import torch

SHAPES = 6
"""Ellipse, parallelogram, triangle, ellipse cut by a line, lens, sickle."""
LARGEST = 1.5
"""Largest radius of a leaf; the shorter side of the image is 2."""


@dataclass(frozen=True)
class Leaves:
    """What is on the leaves of N images, L of each.

    Attributes:
        colours: [N, L, channels].
        shading: gradient of the luminance per unit of length, [N, L, 2].
        textures: amplitude of each of T textures in each channel, [N, L, T, channels].
    """

    colours: torch.Tensor
    shading: torch.Tensor
    textures: torch.Tensor


@cache
def positions(height: int, width: int, device: torch.device) -> torch.Tensor:
    """Return 1, x, y, x^2, x y, y^2 of every pixel, [6, height * width]; the shorter side spans [-1, 1]."""
    short = min(height, width)
    y = ((torch.arange(height, device=device) * 2 + 1 - height) / short).view(-1, 1).expand(height, width)
    x = ((torch.arange(width, device=device) * 2 + 1 - width) / short).expand(height, width)
    return torch.stack([torch.ones_like(x), x, y, x * x, x * y, y * y]).flatten(1)


def power_law_radii(count: int, smallest: torch.Tensor, law: torch.Tensor, rng: torch.Generator) -> torch.Tensor:
    """Return radii r with a probability density of r^-law between `smallest` [N] and `LARGEST`, [N, count].

    Args:
        law: above 1, [N].
    """
    drawn = torch.rand((len(law), count), generator=rng).to(law.device)
    power = (1 - law).unsqueeze(1)
    most, least = smallest.unsqueeze(1) ** power, LARGEST**power
    return (most + drawn * (least - most)) ** (1 / power)


def edges(centres: torch.Tensor, radii: torch.Tensor, short: int, rng: torch.Generator) -> torch.Tensor:
    """Return the edges of leaves of random shapes and directions, [N, L, 2, 6].

    They are two quadratic functions of the position per leaf, whose smaller value is about the distance from the edge
    in pixels, positive inside: the coefficients of 1, x, y, x^2, x y, y^2.

    Args:
        centres: x and y, [N, L, 2].
        radii: [N, L].
        short: the image's shorter side in pixels.
    """
    device = radii.device
    uniform = torch.rand((4, *radii.shape), generator=rng).to(device)
    angle, flatness, offset = 2 * math.pi * uniform[0], 0.35 + 0.65 * uniform[1], uniform[2]
    local = _shapes(flatness, offset)
    shape = (uniform[3] * SHAPES).long().clamp_max_(SHAPES - 1)
    chosen = local.gather(0, shape[None, ..., None, None].expand(1, -1, -1, 2, 5))[0]
    return _placed(chosen, centres, radii, angle).mul_((radii * (short / 2))[..., None, None])


def _shapes(flatness: torch.Tensor, offset: torch.Tensor) -> torch.Tensor:
    """Return the functions of every shape of radius 1 at 0, [SHAPES, N, L, 2, 5]: factors of u^2, v^2, u, v and 1.

    Their slope at the edge is about 1.
    """
    zero, one = torch.zeros_like(flatness), torch.ones_like(flatness)
    half, e = one / 2, flatness
    ellipse = (-e / 2, -half / e, zero, zero, e / 2)
    disc = (-half, -half, zero, zero, half)
    bow = 0.3 + 0.4 * offset
    shapes = [
        (ellipse, ellipse),
        ((-half, zero, zero, zero, half), (zero, -half / e, zero, zero, e / 2)),
        ((-half, zero, zero, zero, half), (e / 4, -1 / e, e / 2, zero, e / 4)),
        (ellipse, (zero, zero, zero, one, (offset - 0.5) * e)),
        ((-half, -half, zero, bow, (1 - bow.square()) / 2), (-half, -half, zero, -bow, (1 - bow.square()) / 2)),
        (disc, (bow, bow, zero, -one, zero)),
    ]
    return torch.stack([torch.stack([torch.stack(function, -1) for function in pair], -2) for pair in shapes])


def _placed(local: torch.Tensor, centres: torch.Tensor, radii: torch.Tensor, angle: torch.Tensor) -> torch.Tensor:
    """Return functions of x and y, [N, L, 2, 6], of those of u and v, [N, L, 2, 5]."""
    ux, uy = (angle.cos() / radii).unsqueeze(2), (angle.sin() / radii).unsqueeze(2)
    vx, vy = -uy, ux
    u0 = -(ux * centres[..., :1] + uy * centres[..., 1:])
    v0 = -(vx * centres[..., :1] + vy * centres[..., 1:])
    uu, vv, u, v, c = local.unbind(-1)
    terms = [
        uu * u0 * u0 + vv * v0 * v0 + u * u0 + v * v0 + c,
        2 * (uu * u0 * ux + vv * v0 * vx) + u * ux + v * vx,
        2 * (uu * u0 * uy + vv * v0 * vy) + u * uy + v * vy,
        uu * ux * ux + vv * vx * vx,
        2 * (uu * ux * uy + vv * vx * vy),
        uu * uy * uy + vv * vy * vy,
    ]
    return torch.stack(terms, -1)


def half_planes(centres: torch.Tensor, short: int, rng: torch.Generator) -> torch.Tensor:
    """Return the edges, as `edges` does, of areas on one side of a slightly curved line through `centres` [N, L, 2]."""
    uniform = torch.rand((2, *centres.shape[:2]), generator=rng).to(centres.device)
    zero, one = torch.zeros_like(uniform[0]), torch.ones_like(uniform[0])
    function = torch.stack([uniform[1] - 0.5, zero, zero, one, zero], -1)
    local = torch.stack([function, function], -2)
    return _placed(local, centres, one, 2 * math.pi * uniform[0]).mul_(short / 2)


def coverage(functions: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """Return the share of each pixel inside of each leaf, in [0, 1], [N, L, height * width]."""
    count, num_leaves = functions.shape[:2]
    inside = functions.flatten(0, 2) @ positions(height, width, functions.device)
    inside = inside.view(count, num_leaves, 2, -1)
    return torch.minimum(inside[:, :, 0], inside[:, :, 1]).add_(0.5).clamp_(0, 1)


def visible(covered: torch.Tensor) -> torch.Tensor:
    """Return the share of each pixel in which each leaf is seen, in place of its coverage [N, L, pixels]."""
    left = torch.ones_like(covered[:, 0])
    for leaf in covered.unbind(1):
        leaf.mul_(left)
        left.sub_(leaf)
    return covered


def paint(leaves: Leaves, seen: torch.Tensor, fields: torch.Tensor) -> torch.Tensor:
    """Return images [N, channels, height, width] around 0.

    Args:
        seen: as `visible` returns it, [N, L, height * width].
        fields: textures, [N, T, height, width].
    """
    count, _, channels = leaves.colours.shape
    num_textures, height, width = fields.shape[1:]
    features = torch.cat([leaves.colours, leaves.shading, leaves.textures.flatten(2)], 2)
    painted = features.mT @ seen
    image = painted[:, :channels]
    x, y = positions(height, width, seen.device)[1:3]
    image += painted[:, channels : channels + 1] * x
    image += painted[:, channels + 1 : channels + 2] * y
    amplitudes = painted[:, channels + 2 :].view(count, num_textures, channels, -1)
    for texture, field in zip(amplitudes.unbind(1), fields.unbind(1), strict=True):
        image = image.addcmul_(texture, field.reshape(count, 1, -1))
    return image.view(count, channels, height, width)
