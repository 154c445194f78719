"""Wide residual networks for images of 32x32 pixels (Zagoruyko and Komodakis 2016, table 1).

A network of depth 6n + 4 and width k has three stages of n blocks with 16k, 32k and 64k channels, of which the second
and the third halve the sides. Normalization and ReLU come before each convolution (He et al. 2016b), and once more
before the mean over the pixels. No dropout, as in the networks that data-free distillation on CIFAR is published for.

A `width` multiplies k, which need not be whole then: it scales the channels of the stages, not the 16 of the stem, so
that `wrn40_2` at width 0.5 is `wrn40_1`.
"""

from __future__ import annotations

from collections import OrderedDict

import torch
from torch import nn

from ...errors import ConfigError
from .initialization import he_initialize
from .registry import InputShape, register_model, scaled

_SOURCE = "Zagoruyko and Komodakis 2016, table 1 (CIFAR)"
_STEM = 16
_LEAST_SIDE = 8


class WideBlock(nn.Module):
    """Two 3x3 convolutions, each after batch normalization and ReLU, added to their input.

    Where the block changes the number of channels or halves the sides, a 1x1 convolution takes the place of the input;
    it reads what the first convolution reads, the normalized input after its ReLU.
    """

    def __init__(self, channels: int, filters: int, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(channels)
        self.relu1 = nn.ReLU()
        self.conv1 = nn.Conv2d(channels, filters, 3, stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(filters)
        self.relu2 = nn.ReLU()
        self.conv2 = nn.Conv2d(filters, filters, 3, padding=1, bias=False)
        self._changes = stride != 1 or channels != filters
        self.shortcut = nn.Conv2d(channels, filters, 1, stride, bias=False) if self._changes else nn.Identity()

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """Return [batch, filters, height / stride, width / stride] for [batch, channels, height, width]."""
        active = self.relu1(self.bn1(inputs))
        branch: torch.Tensor = self.conv2(self.relu2(self.bn2(self.conv1(active))))
        return branch + self.shortcut(active if self._changes else inputs)


def _wide_resnet(name: str, input_shape: InputShape, num_classes: int, depth: int, k: int, width: float) -> nn.Module:
    channels, height, columns = input_shape
    if min(height, columns) < _LEAST_SIDE:
        raise ConfigError(f"{name} takes images of at least {_LEAST_SIDE}x{_LEAST_SIDE} pixels, got {height}x{columns}")
    layers: OrderedDict[str, nn.Module] = OrderedDict(conv1=nn.Conv2d(channels, _STEM, 3, padding=1, bias=False))
    channels = _STEM
    for stage in (1, 2, 3):
        filters = scaled(_STEM * k * 2 ** (stage - 1), width)
        for index in range(1, (depth - 4) // 6 + 1):
            stride = 2 if stage > 1 and index == 1 else 1
            layers[f"block{stage}_{index}"] = WideBlock(channels, filters, stride)
            channels = filters
    layers["bn1"] = nn.BatchNorm2d(channels)
    layers["relu1"] = nn.ReLU()
    layers["pool"] = nn.AdaptiveAvgPool2d(1)  # torch takes the mean for one pixel: same gradient in every run on a GPU
    layers["flatten"] = nn.Flatten()
    layers["logits"] = nn.Linear(channels, num_classes)
    return he_initialize(nn.Sequential(layers))


@register_model("wrn40_2", input_shape=(3, 32, 32), source=_SOURCE)
def wrn40_2(input_shape: InputShape, num_classes: int, *, width: float = 1.0) -> nn.Module:
    """Wide ResNet-40-2: six blocks in each of three stages (32, 64, 128 channels)."""
    return _wide_resnet("wrn40_2", input_shape, num_classes, depth=40, k=2, width=width)


@register_model("wrn40_1", input_shape=(3, 32, 32), source=_SOURCE)
def wrn40_1(input_shape: InputShape, num_classes: int, *, width: float = 1.0) -> nn.Module:
    """Wide ResNet-40-1: six blocks in each of three stages (16, 32, 64 channels)."""
    return _wide_resnet("wrn40_1", input_shape, num_classes, depth=40, k=1, width=width)


@register_model("wrn16_2", input_shape=(3, 32, 32), source=_SOURCE)
def wrn16_2(input_shape: InputShape, num_classes: int, *, width: float = 1.0) -> nn.Module:
    """Wide ResNet-16-2: two blocks in each of three stages (32, 64, 128 channels)."""
    return _wide_resnet("wrn16_2", input_shape, num_classes, depth=16, k=2, width=width)


@register_model("wrn16_1", input_shape=(3, 32, 32), source=_SOURCE)
def wrn16_1(input_shape: InputShape, num_classes: int, *, width: float = 1.0) -> nn.Module:
    """Wide ResNet-16-1: two blocks in each of three stages (16, 32, 64 channels)."""
    return _wide_resnet("wrn16_1", input_shape, num_classes, depth=16, k=1, width=width)
