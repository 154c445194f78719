"""Layers of the DenseNet of this package."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class DenseLayer(nn.Sequential):
    """Batch normalization, ReLU, convolution; the output is concatenated to the input."""

    def __init__(self, channels: int, growth: int) -> None:
        super().__init__()
        self.add_module("norm", nn.BatchNorm2d(channels))
        self.add_module("relu", nn.ReLU(inplace=True))
        self.add_module("conv", nn.Conv2d(channels, growth, kernel_size=3, padding=1, bias=False))

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x, super().forward(x)], 1)


class Transition(nn.Sequential):
    """Halves the number of channels, the height and the width."""

    def __init__(self, channels: int) -> None:
        conv = nn.Conv2d(channels, channels // 2, 1, bias=False)
        super().__init__(nn.BatchNorm2d(channels), nn.ReLU(inplace=True), conv, nn.AvgPool2d(2))
