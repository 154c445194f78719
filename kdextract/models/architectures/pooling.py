"""Max pooling over 2x2 windows, several times as fast as that of torch on a CPU."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.autograd.function import once_differentiable

FEW_CHANNELS = 8
"""With fewer channels, the gradient of torch's pooling is slow as well."""


class _HalfSize(torch.autograd.Function):
    """The maximum of each 2x2 window. The gradient goes to the first pixel with this value, as in torch.

    The maximum of two neighbours in a row is taken first, then that of two rows, so that the first of equal ones wins.
    """

    @staticmethod
    def forward(context: Any, images: torch.Tensor) -> torch.Tensor:
        rows = torch.maximum(*_neighbours(images, 3))
        context.save_for_backward(images, rows)
        return torch.maximum(*_neighbours(rows, 2))

    @staticmethod
    @once_differentiable
    def backward(context: Any, gradient: torch.Tensor) -> torch.Tensor:
        images, rows = context.saved_tensors
        return _gradient_of_larger(_gradient_of_larger(gradient, rows, 2), images, 3)


def _neighbours(images: torch.Tensor, axis: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the even and the odd positions along an axis, as views."""
    return (images[:, :, ::2], images[:, :, 1::2]) if axis == 2 else (images[..., ::2], images[..., 1::2])


def _gradient_of_larger(gradient: torch.Tensor, images: torch.Tensor, axis: int) -> torch.Tensor:
    """Return the gradient of the maximum of each pair: it goes to the larger value, or to the first of equal ones."""
    result = torch.empty_like(images)
    to_first, to_second = _neighbours(result, axis)
    first, second = _neighbours(images, axis)
    torch.mul(gradient, first >= second, out=to_first)
    torch.sub(gradient, to_first, out=to_second)
    return result


class HalvingMaxPool2d(nn.MaxPool2d):
    """`nn.MaxPool2d(2)` for finite numbers: same values, same gradients, same choice among equal pixels,
    less time on a CPU.

    The kernel of torch stores an index for each window, which takes most of its time, and processes channels one after
    another. Maxima of strided views do neither. The kernel of torch is used on other devices, for odd sides, for
    gradients with many channels, where it is faster, and in exported programs, whose runtimes have a pooling of their
    own, in 8 bits as well.
    """

    def __init__(self) -> None:
        super().__init__(2)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Return [batch, channels, height // 2, width // 2] for images [batch, channels, height, width]."""
        gradients = torch.is_grad_enabled() and images.requires_grad
        if torch.compiler.is_exporting() or images.device.type != "cpu" or images.shape[-1] % 2 or images.shape[-2] % 2:
            return super().forward(images)
        if not gradients:
            return torch.maximum(*_neighbours(torch.maximum(*_neighbours(images, 3)), 2))
        if images.shape[1] >= FEW_CHANNELS:
            return super().forward(images)
        pooled: torch.Tensor = _HalfSize.apply(images)
        return pooled
