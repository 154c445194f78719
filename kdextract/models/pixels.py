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
