"""Batched operations on images as tensors: resizing, channels, augmentation, blur."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from .architectures import InputShape


def to_uint8(pixels: torch.Tensor) -> torch.Tensor:
    """Round pixels in [0, 1] to the 256 levels in which images are kept."""
    return (pixels * 255).round_().clamp_(0, 255).to(torch.uint8)


def to_pixels(stored: torch.Tensor) -> torch.Tensor:
    """Return stored uint8 images as float pixels in [0, 1], laid out channels-last."""
    return stored.to(torch.float32).div_(255).contiguous(memory_format=torch.channels_last)


def fit_images(stored: torch.Tensor, shape: InputShape, chunk: int = 4096) -> torch.Tensor:
    """Return uint8 images [N, c, h, w] in another shape: bilinear (antialiased) size, grey or colour channels.

    Grey becomes colour by repetition, colour becomes grey by the luma weights of ITU-R BT.601.
    """
    channels, height, width = shape
    if tuple(stored.shape[1:]) == shape:
        return stored
    fitted = torch.empty((len(stored), *shape), dtype=torch.uint8)
    for start in range(0, len(stored), chunk):
        pixels = stored[start : start + chunk].to(torch.float32).div_(255)
        if pixels.shape[1] == 3 and channels == 1:
            pixels = (pixels * torch.tensor([0.299, 0.587, 0.114]).view(1, 3, 1, 1)).sum(dim=1, keepdim=True)
        if tuple(pixels.shape[2:]) != (height, width):
            pixels = F.interpolate(pixels, (height, width), mode="bilinear", antialias=True)
        fitted[start : start + chunk] = to_uint8(pixels.expand(-1, channels, -1, -1))
    return fitted


def augment(images: torch.Tensor, shift: int, flip: bool, generator: torch.Generator) -> torch.Tensor:
    """Shift each image by up to `shift` pixels in each direction, and mirror half of them if `flip`.

    Args:
        images: [batch, channels, height, width]; what enters at a border is that border's pixel, repeated.
        generator: source of randomness, on the CPU.
    """
    batch, channels, height, width = images.shape
    if flip:
        mirrored = torch.rand(batch, generator=generator) < 0.5
        images = torch.where(mirrored.to(images.device).view(-1, 1, 1, 1), images.flip(3), images)
    if shift:
        offsets = torch.randint(-shift, shift + 1, (2, batch, 1), generator=generator)
        rows = (torch.arange(height) + offsets[0]).clamp_(0, height - 1).to(images.device)
        columns = (torch.arange(width) + offsets[1]).clamp_(0, width - 1).to(images.device)
        flat = (rows.unsqueeze(2) * width + columns.unsqueeze(1)).view(batch, 1, height * width)
        pixels = images.contiguous().flatten(2).gather(2, flat.expand(-1, channels, -1))
        images = pixels.view(batch, channels, height, width)
    return images.contiguous(memory_format=torch.channels_last)


def warp(images: torch.Tensor, amount: float, generator: torch.Generator) -> torch.Tensor:
    """Distort each image by a random linear map about its centre: rotation, scale and shear at once.

    Args:
        images: [batch, channels, height, width]; outside, border pixels are repeated.
        amount: standard deviation of each entry of the 2x2 map around the identity; 0.1 turns by about 6 degrees.
        generator: source of randomness, on the CPU.
    """
    maps = torch.eye(2) + amount * torch.randn((len(images), 2, 2), generator=generator)
    affine = torch.cat([maps, torch.zeros(len(images), 2, 1)], dim=2).to(images.device)
    grid = F.affine_grid(affine, list(images.shape), align_corners=False)
    warped = F.grid_sample(images, grid, padding_mode="border", align_corners=False)
    return warped.contiguous(memory_format=torch.channels_last)


def binomial_blur(images: torch.Tensor) -> torch.Tensor:
    """Convolve each channel with the 3x3 binomial kernel [1 2 1; 2 4 2; 1 2 1] / 16, borders reflected."""
    padded = F.pad(images, (1, 1, 1, 1), mode="reflect")
    across = (padded[..., :-2] + 2 * padded[..., 1:-1] + padded[..., 2:]) / 4
    return (across[..., :-2, :] + 2 * across[..., 1:-1, :] + across[..., 2:, :]) / 4
