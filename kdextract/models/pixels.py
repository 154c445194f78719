"""Batched operations on images as tensors: conversion to and from 8 bits, resizing, number of channels."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from .architectures import InputShape


def to_uint8(pixels: torch.Tensor) -> torch.Tensor:
    """Return pixels in [0, 1] as uint8, rounded to the 256 levels in which images are stored."""
    return (pixels * 255).round_().clamp_(0, 255).to(torch.uint8)


def to_pixels(stored: torch.Tensor) -> torch.Tensor:
    """Return uint8 images [N, C, H, W] as float32 pixels in [0, 1], in the channels-last memory layout."""
    return stored.to(torch.float32).div_(255).contiguous(memory_format=torch.channels_last)


def fit_images(stored: torch.Tensor, shape: InputShape, chunk: int = 4096) -> torch.Tensor:
    """Return uint8 images [N, c, h, w] as uint8 [N, *shape]: resized (bilinear, antialiased), in grey or colour.

    Grey images become colour by repeating the channel, colour images become grey by the luma weights of ITU-R BT.601.

    Args:
        shape: (channels, height, width).
        chunk: number of images that are converted at a time, which limits the memory.
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
