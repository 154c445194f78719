"""MobileNetV2 for images of 32x32 pixels (Sandler et al. 2018, table 2).

Of the five halvings for ImageNet, the first two, in the stem and in the second stage, are left out, so that 4x4 of
32x32 pixels remain. All else is the table's: there is no dropout, the first stage does not expand its channels, and a
block adds its input only where neither sides nor channels change, with no convolution around it elsewhere.

A width is the paper's multiplier: it scales the channels of every layer, but the 1280 of the last convolution only
where it is above 1 (section 6.1). Channels are rounded to whole numbers, not to multiples of 8.
"""

from __future__ import annotations

from collections import OrderedDict

import torch
from torch import nn

from ...errors import ConfigError
from .initialization import he_initialize
from .registry import InputShape, register_model, scaled

_STEM, _LAST = 32, 1280
_STAGES = (
    (1, 16, 1, 1),
    (6, 24, 2, 1),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)
"""Expansion, channels, blocks, and the stride of the first block: t, c, n, s of the table."""
_LEAST_SIDE = 16


class InvertedResidual(nn.Sequential):
    """A 1x1 convolution to `expansion` times the channels, a 3x3 convolution of each channel, and a 1x1 one to few.

    Batch normalization follows each, and ReLU6 the first two (Sandler et al. 2018, table 1). Without expansion there
    is no first convolution. Where input and output have one shape they are added; the last scale is then initialized
    to zero, so that a new block returns its input (Goyal et al. 2017, section 5.1).
    """

    def __init__(self, channels: int, filters: int, stride: int, expansion: int) -> None:
        hidden = channels * expansion
        layers: OrderedDict[str, nn.Module] = OrderedDict()
        if expansion != 1:
            layers["expand"] = nn.Conv2d(channels, hidden, 1, bias=False)
            layers["bn1"] = nn.BatchNorm2d(hidden)
            layers["relu1"] = nn.ReLU6()
        layers["depthwise"] = nn.Conv2d(hidden, hidden, 3, stride, padding=1, groups=hidden, bias=False)
        layers["bn2"] = nn.BatchNorm2d(hidden)
        layers["relu2"] = nn.ReLU6()
        layers["project"] = nn.Conv2d(hidden, filters, 1, bias=False)
        last = nn.BatchNorm2d(filters)
        layers["bn3"] = last
        super().__init__(layers)
        self._adds = stride == 1 and channels == filters
        if self._adds:
            nn.init.zeros_(last.weight)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """Return [batch, filters, height / stride, width / stride] for [batch, channels, height, width]."""
        outputs: torch.Tensor = super().forward(inputs)
        return outputs + inputs if self._adds else outputs


@register_model("mobilenet_v2", input_shape=(3, 32, 32), source="Sandler et al. 2018, table 2, in the form for CIFAR")
def mobilenet_v2(input_shape: InputShape, num_classes: int, *, width: float = 1.0) -> nn.Module:
    """Seventeen inverted residual blocks between convolutions of 32 and 1280 channels; three halvings, not five."""
    channels, height, columns = input_shape
    if min(height, columns) < _LEAST_SIDE:
        least = f"{_LEAST_SIDE}x{_LEAST_SIDE}"
        raise ConfigError(f"mobilenet_v2 takes images of at least {least} pixels, got {height}x{columns}")
    stem, last = scaled(_STEM, width), scaled(_LAST, max(1.0, width))
    layers: OrderedDict[str, nn.Module] = OrderedDict(
        conv1=nn.Conv2d(channels, stem, 3, padding=1, bias=False),
        bn1=nn.BatchNorm2d(stem),
        relu1=nn.ReLU6(),
    )
    channels = stem
    for stage, (expansion, designed, blocks, first_stride) in enumerate(_STAGES, start=1):
        filters = scaled(designed, width)
        for index in range(1, blocks + 1):
            stride = first_stride if index == 1 else 1
            layers[f"block{stage}_{index}"] = InvertedResidual(channels, filters, stride, expansion)
            channels = filters
    layers["conv2"] = nn.Conv2d(channels, last, 1, bias=False)
    layers["bn2"] = nn.BatchNorm2d(last)
    layers["relu2"] = nn.ReLU6()
    layers["pool"] = nn.AdaptiveAvgPool2d(1)  # torch takes the mean for one pixel: same gradient in every run on a GPU
    layers["flatten"] = nn.Flatten()
    layers["logits"] = nn.Linear(last, num_classes)
    return he_initialize(nn.Sequential(layers))
