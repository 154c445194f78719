"""Mean and variance per channel: of one batch with gradients, or of any number of batches in double precision."""

from __future__ import annotations

from typing import Any

import torch
from torch.autograd.function import once_differentiable


def channel_moments(values: torch.Tensor, near: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return mean and biased variance per channel, [channels] each, of [batch, channels, ...].

    It reads memory three times, fewer than Welford's algorithm. Both results have gradients.

    Args:
        near: [channels], an estimate of the means, such as the running mean of a layer. It is subtracted before values
            are summed, which reduces cancellation. It gets no gradient.
    """
    if torch.compiler.is_compiling():  # the compiler fuses these; PyTorch 2.11's gives `_ChannelMoments` no gradient
        return _moments(values, near)
    mean, variance = _ChannelMoments.apply(values, near)
    return mean, variance


def _moments(values: torch.Tensor, near: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    near = near.to(torch.promote_types(near.dtype, torch.float32))
    rest = values.flatten(2) - near.unsqueeze(1) if values.dim() > 2 else (values - near).unsqueeze(2)
    count = rest.numel() // rest.shape[1]
    mean = rest.sum(2).sum(0) / count
    squares = rest.square() if torch.is_grad_enabled() else rest.square_()  # in place: less memory, and faster
    variance = (squares.sum(2).sum(0) / count - mean.square()).clamp_min(0)
    return mean + near, variance


class _ChannelMoments(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: torch.Tensor, near: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        mean, variance = _moments(values, near)
        ctx.save_for_backward(values, mean)
        return mean, variance

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, to_mean: torch.Tensor, to_variance: torch.Tensor) -> tuple[torch.Tensor, None]:
        values, mean = ctx.saved_tensors
        count = values.numel() // values.shape[1]
        slope = 2 * to_variance / count
        shape = (1, -1, *[1] * (values.dim() - 2))
        gradient = torch.addcmul((to_mean / count - slope * mean).view(shape), values, slope.view(shape))
        return gradient.to(values.dtype), None


class ChannelSums:
    """Sums over any number of batches, for the mean and variance per channel; in double precision.

    Args:
        channels: number of channels.
        axis: dimension of the channels in a batch.
        device: device of the batches.
    """

    VALUES_AT_A_TIME = 2**22
    """Number of values that are converted to double precision at a time, which limits the additional memory."""

    def __init__(self, channels: int, axis: int, device: torch.device) -> None:
        self._axis = axis
        self._count = 0
        self._sum = torch.zeros(channels, dtype=torch.float64, device=device)
        self._squares = torch.zeros_like(self._sum)

    def add(self, values: torch.Tensor) -> None:
        """Add a batch, [batch, ...] with channels along the axis."""
        others = [axis for axis in range(values.dim()) if axis != self._axis]
        for part in values.split(max(1, self.VALUES_AT_A_TIME * len(values) // values.numel())):
            wide = part.double()
            self._sum += wide.sum(others)
            self._squares += wide.square().sum(others)
        self._count += values.numel() // len(self._sum)

    @property
    def mean(self) -> torch.Tensor:
        """Mean per channel, float32 [channels], on the CPU."""
        return (self._sum / self._count).float().cpu()

    @property
    def variance(self) -> torch.Tensor:
        """Biased variance per channel, float32 [channels], on the CPU."""
        return (self._squares / self._count - (self._sum / self._count).square()).clamp_min(0).float().cpu()
