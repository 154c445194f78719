"""The optimizer of pixels, for every method that optimizes images directly."""

from __future__ import annotations

import torch


class PixelAdam:
    """Adam on a batch of pixels [batch, channels, height, width], which are changed in place.

    PyTorch's fused step reads the pixels, their gradient and the moments in the order of addresses, without regard to
    strides, so all of them must have the same memory layout. The layout of a gradient of `torch.autograd.grad`
    depends on the backward pass: a shift, a slice or a network that makes images contiguous changes it. Each gradient
    is therefore copied into a tensor with the layout of the pixels.

    Attributes:
        values: the pixels, in channels-last layout; they require a gradient.

    Args:
        start: the first pixels, in any layout; they are copied.
        lr: learning rate; each `step` sets its own.
        betas: decay of the moving averages of the gradient and of its square.
    """

    def __init__(self, start: torch.Tensor, lr: float, betas: tuple[float, float] = (0.9, 0.999)) -> None:
        values = start.detach().contiguous(memory_format=torch.channels_last).clone()
        self.values = values.requires_grad_(True)
        self.values.grad = torch.empty_like(values)
        self.restart(lr, betas)

    def restart(self, lr: float, betas: tuple[float, float] = (0.9, 0.999)) -> None:
        """Reset the moving averages, and continue with the present pixels."""
        self._adam = torch.optim.Adam([self.values], lr=lr, betas=betas, fused=True)

    def step(self, loss: torch.Tensor, lr: float) -> None:
        """Take one step with the gradient of `loss`, a scalar computed from `values`, at the learning rate `lr`."""
        (gradient,) = torch.autograd.grad(loss, self.values)
        assert self.values.grad is not None
        self.values.grad.copy_(gradient)
        self._adam.param_groups[0]["lr"] = lr
        self._adam.step()
