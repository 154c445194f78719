"""Mean and variance per channel, differentiable, in three passes over memory instead of Welford's many."""

from __future__ import annotations

from typing import Any

import torch
from torch.autograd.function import once_differentiable


def channel_moments(values: torch.Tensor, near: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return mean and biased variance per channel, [channels] each, of [batch, channels, ...].

    Args:
        near: [channels], a guess of the means, such as those that a layer keeps: sums are taken of what is left when it
            is subtracted, so that little cancels. No gradient goes to it.
    """
    mean, variance = _ChannelMoments.apply(values, near)
    return mean, variance


class _ChannelMoments(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: torch.Tensor, near: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        near = near.to(torch.promote_types(near.dtype, torch.float32))
        rest = values.flatten(2) - near.unsqueeze(1) if values.dim() > 2 else (values - near).unsqueeze(2)
        count = rest.numel() // rest.shape[1]
        mean = rest.sum(2).sum(0) / count
        variance = (rest.square_().sum(2).sum(0) / count - mean.square()).clamp_min_(0)
        mean = mean + near
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
