"""The optimizer of pixels, of every method that optimizes images directly."""

from __future__ import annotations

import torch


class PixelAdam:
    """Adam on a batch of pixels [batch, channels, height, width], which are changed in place.

    PyTorch's fused step reads the pixels, their gradient and the moments by memory address, without looking at strides,
    so all of them must have one memory layout. A gradient of `torch.autograd.grad` has the layout that the backward
    pass happened to give it: a shift, a slice or a network that wants contiguous images changes it. Each gradient is
    therefore copied into a tensor with the layout of the pixels.

    Attributes:
        values: the pixels, in channels-last layout; their gradient is recorded.

    Args:
        start: the pixels to begin with, in any layout; they are copied.
        lr: learning rate, until `step` is given another one.
        betas: decay of the moving averages of the gradient and of its square.
    """

    def __init__(self, start: torch.Tensor, lr: float, betas: tuple[float, float] = (0.9, 0.999)) -> None:
        values = start.detach().contiguous(memory_format=torch.channels_last).clone()
        self.values = values.requires_grad_(True)
        self.values.grad = torch.empty_like(values)
        self.restart(lr, betas)

    def restart(self, lr: float, betas: tuple[float, float] = (0.9, 0.999)) -> None:
        """Forget the moving averages, and go on from the present pixels."""
        self._adam = torch.optim.Adam([self.values], lr=lr, betas=betas, fused=True)

    def step(self, loss: torch.Tensor, lr: float) -> None:
        """Take one step down the gradient of `loss`, a scalar that was computed from `values`, at the rate `lr`."""
        (gradient,) = torch.autograd.grad(loss, self.values)
        assert self.values.grad is not None
        self.values.grad.copy_(gradient)
        self._adam.param_groups[0]["lr"] = lr
        self._adam.step()
