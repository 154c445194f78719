"""Residual networks for images of 32x32 pixels: the basic blocks of He et al. 2016, with a stem for small images.

The stem is one 3x3 convolution with neither stride nor pooling, so that the four stages of ResNet-18 and ResNet-34
leave 4x4 of 32x32 pixels; the published teachers and students of data-free distillation on CIFAR have this form.
ResNet-14 is KegNet's: three narrow stages, as in section 4.2 of He et al. A width scales the channels of every stage;
the stem has those of the first.
"""

from __future__ import annotations

from collections import OrderedDict

import torch
import torch.nn.functional as F
from torch import nn

from ...errors import ConfigError
from .initialization import he_initialize
from .registry import InputShape, register_model, scaled

_SOURCE = "He et al. 2016, table 1, in the form for CIFAR"
_CHANNELS = (64, 128, 256, 512)
_LEAST_SIDE = 16


class BasicBlock(nn.Module):
    """Two 3x3 convolutions with batch normalization, added to their input (He et al. 2016, fig. 2).

    Where the block changes the number of channels or halves the sides, the input goes through a 1x1 convolution first
    (their option B), or, `plain`, every second pixel is taken and channels of zeros are added (option A); convolutions
    of plain blocks have biases, as KegNet's. The last scale is initialized to zero, so that a new block returns its
    input (Goyal et al. 2017, section 5.1).
    """

    def __init__(self, channels: int, filters: int, stride: int, plain: bool = False) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, filters, 3, stride, padding=1, bias=plain)
        self.bn1 = nn.BatchNorm2d(filters)
        self.conv2 = nn.Conv2d(filters, filters, 3, padding=1, bias=plain)
        self.bn2 = nn.BatchNorm2d(filters)
        nn.init.zeros_(self.bn2.weight)
        self.shortcut = nn.Sequential()
        if plain and (stride != 1 or channels != filters):
            self.shortcut.append(Thinned(stride, filters - channels))
        elif stride != 1 or channels != filters:
            self.shortcut.append(nn.Conv2d(channels, filters, 1, stride, bias=False))
            self.shortcut.append(nn.BatchNorm2d(filters))

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """Return [batch, filters, height / stride, width / stride] for [batch, channels, height, width]."""
        hidden = torch.relu(self.bn1(self.conv1(inputs)))
        return torch.relu(self.bn2(self.conv2(hidden)) + self.shortcut(inputs))


class Thinned(nn.Module):
    """Every `stride`-th pixel of each row and column, and `more` additional channels of zeros; no parameters."""

    def __init__(self, stride: int, more: int) -> None:
        super().__init__()
        self._stride, self._more = stride, more

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """Return [batch, channels + more, height / stride, width / stride]."""
        return F.pad(inputs[:, :, :: self._stride, :: self._stride], (0, 0, 0, 0, 0, self._more))


class GlobalAverage(nn.Module):
    """The mean over height and width: [batch, channels, height, width] -> [batch, channels]."""

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """Return the mean; unlike adaptive pooling, its gradient is the same in every run on a GPU."""
        return inputs.mean((2, 3))


def _resnet(
    name: str,
    input_shape: InputShape,
    num_classes: int,
    depths: tuple[int, ...],
    width: float,
    designed: tuple[int, ...] = _CHANNELS,
    plain: bool = False,
) -> nn.Module:
    channels, height, columns = input_shape
    if min(height, columns) < _LEAST_SIDE:
        raise ConfigError(f"{name} takes images of at least {_LEAST_SIDE}x{_LEAST_SIDE} pixels, got {height}x{columns}")
    stages = [scaled(filters, width) for filters in designed]
    layers: OrderedDict[str, nn.Module] = OrderedDict(
        conv1=nn.Conv2d(channels, stages[0], 3, padding=1, bias=plain),
        bn1=nn.BatchNorm2d(stages[0]),
        relu1=nn.ReLU(),
    )
    channels = stages[0]
    for stage, (depth, filters) in enumerate(zip(depths, stages, strict=True), start=1):
        for index in range(depth):
            stride = 2 if stage > 1 and index == 0 else 1
            layers[f"block{stage}_{index + 1}"] = BasicBlock(channels, filters, stride, plain)
            channels = filters
    layers["pool"] = GlobalAverage()
    layers["logits"] = nn.Linear(channels, num_classes)
    return he_initialize(nn.Sequential(layers))


@register_model("resnet18", input_shape=(3, 32, 32), source=_SOURCE)
def resnet18(input_shape: InputShape, num_classes: int, *, width: float = 1.0) -> nn.Module:
    """Two basic blocks in each of four stages (64, 128, 256, 512 channels)."""
    return _resnet("resnet18", input_shape, num_classes, (2, 2, 2, 2), width)


@register_model("resnet34", input_shape=(3, 32, 32), source=_SOURCE)
def resnet34(input_shape: InputShape, num_classes: int, *, width: float = 1.0) -> nn.Module:
    """Basic blocks 3-4-6-3 in four stages (64, 128, 256, 512 channels)."""
    return _resnet("resnet34", input_shape, num_classes, (3, 4, 6, 3), width)


@register_model("resnet14", input_shape=(3, 32, 32), source="KegNet (Yoo et al. 2019); He et al. 2016, section 4.2")
def resnet14(input_shape: InputShape, num_classes: int, *, width: float = 1.0) -> nn.Module:
    """Two plain blocks in each of three stages (16, 32, 64 channels): the teacher of KegNet and BDNF."""
    return _resnet("resnet14", input_shape, num_classes, (2, 2, 2), width, (16, 32, 64), plain=True)


@register_model("resnet14_half", input_shape=(3, 32, 32), source="kdx; half the channels of resnet14")
def resnet14_half(input_shape: InputShape, num_classes: int, *, width: float = 1.0) -> nn.Module:
    """Two plain blocks in each of three stages (8, 16, 32 channels): a student of `resnet14`."""
    return _resnet("resnet14_half", input_shape, num_classes, (2, 2, 2), width, (8, 16, 32), plain=True)
