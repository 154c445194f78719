"""The networks of Simonyan and Zisserman 2015, table 1: VGG-16 and VGG-19 (columns D and E), and VGG-11 for CIFAR (A).

The two large ones are as published: no batch normalization, and three linear layers. A width scales every convolution
and both hidden linear layers.
"""

from __future__ import annotations

from collections import OrderedDict

from torch import nn

from ...errors import ConfigError
from .initialization import he_initialize
from .pooling import HalvingMaxPool2d
from .registry import InputShape, register_model, scaled

_SOURCE = "Simonyan and Zisserman 2015, table 1"
_FILTERS = (64, 128, 256, 512, 512)
_HIDDEN = 4096
_LEAST_SIDE = 32


def _vgg(name: str, input_shape: InputShape, num_classes: int, depths: tuple[int, ...], width: float) -> nn.Module:
    channels, height, columns = input_shape
    if height % 32 or columns % 32:
        raise ConfigError(f"{name} takes images whose sides are multiples of 32 pixels, got {height}x{columns}")
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    for block, (depth, designed) in enumerate(zip(depths, _FILTERS, strict=True), start=1):
        filters = scaled(designed, width)
        for index in range(1, depth + 1):
            layers[f"conv{block}_{index}"] = nn.Conv2d(channels, filters, 3, padding=1)
            layers[f"relu{block}_{index}"] = nn.ReLU()
            channels = filters
        layers[f"pool{block}"] = HalvingMaxPool2d()
    layers["flatten"] = nn.Flatten()
    features, hidden = channels * (height // 32) * (columns // 32), scaled(_HIDDEN, width)
    for name_in_paper, inputs in (("fc6", features), ("fc7", hidden)):
        layers[name_in_paper] = nn.Linear(inputs, hidden)
        layers[f"relu_{name_in_paper}"] = nn.ReLU()
        layers[f"drop_{name_in_paper}"] = nn.Dropout(0.5)
    layers["logits"] = nn.Linear(hidden, num_classes)
    return he_initialize(nn.Sequential(layers))


@register_model("vgg16", input_shape=(3, 224, 224), source=_SOURCE)
def vgg16(input_shape: InputShape, num_classes: int, *, width: float = 1.0) -> nn.Module:
    """Thirteen 3x3 convolutions (2-2-3-3-3 per block) and three linear layers."""
    return _vgg("vgg16", input_shape, num_classes, (2, 2, 3, 3, 3), width)


@register_model("vgg19", input_shape=(3, 224, 224), source=_SOURCE)
def vgg19(input_shape: InputShape, num_classes: int, *, width: float = 1.0) -> nn.Module:
    """Sixteen 3x3 convolutions (2-2-4-4-4 per block) and three linear layers."""
    return _vgg("vgg19", input_shape, num_classes, (2, 2, 4, 4, 4), width)


@register_model("vgg11_bn", input_shape=(3, 32, 32), source=f"{_SOURCE}, column A, in the form for CIFAR")
def vgg11_bn(input_shape: InputShape, num_classes: int, *, width: float = 1.0) -> nn.Module:
    """Eight 3x3 convolutions (1-1-2-2-2 per block), each with batch normalization, and one linear layer.

    This is the usual form for CIFAR: five poolings leave one of 32x32 pixels, and its 512 channels are the features; of
    larger images the mean over the pixels is taken. It has no `fc6`, no `fc7` and no dropout. Convolutions keep the
    biases of the paper. CMI's code (Fang et al. 2021) pools 32x32 pixels three times only and takes the mean of 4x4;
    its weights have the same shapes.
    """
    channels, height, columns = input_shape
    if min(height, columns) < _LEAST_SIDE:
        least = f"{_LEAST_SIDE}x{_LEAST_SIDE}"
        raise ConfigError(f"vgg11_bn takes images of at least {least} pixels, got {height}x{columns}")
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    for block, (depth, designed) in enumerate(zip((1, 1, 2, 2, 2), _FILTERS, strict=True), start=1):
        filters = scaled(designed, width)
        for index in range(1, depth + 1):
            layers[f"conv{block}_{index}"] = nn.Conv2d(channels, filters, 3, padding=1)
            layers[f"bn{block}_{index}"] = nn.BatchNorm2d(filters)
            layers[f"relu{block}_{index}"] = nn.ReLU()
            channels = filters
        layers[f"pool{block}"] = HalvingMaxPool2d()
    layers["pool"] = nn.AdaptiveAvgPool2d(1)  # torch takes the mean for one pixel: same gradient in every run on a GPU
    layers["flatten"] = nn.Flatten()
    layers["logits"] = nn.Linear(channels, num_classes)
    return he_initialize(nn.Sequential(layers))
