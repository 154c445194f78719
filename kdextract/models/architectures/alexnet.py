"""AlexNet (Krizhevsky et al. 2012) and its half, as Lopes et al. 2017 use them on faces.

A width scales every convolution and both hidden linear layers.
"""

from __future__ import annotations

from collections import OrderedDict
from math import ceil

from torch import nn

from ...errors import ConfigError
from .initialization import he_initialize
from .registry import InputShape, register_model, scaled

_SOURCE = "Krizhevsky et al. 2012, in the form of Lopes et al. 2017"


def _alex(name: str, input_shape: InputShape, num_classes: int, units: tuple[int, ...], width: float) -> nn.Module:
    channels, height, columns = input_shape
    if min(height, columns) < 32:
        raise ConfigError(f"{name} takes images of at least 32x32 pixels, got {height}x{columns}")
    f1, f2, f3, f4, f5, hidden = (scaled(count, width) for count in units)

    def side(pixels: int) -> int:
        after_conv1 = (pixels + 8 - 11) // 4 + 1
        return ceil(ceil(ceil(after_conv1 / 2) / 2) / 2)

    def pool() -> nn.Module:
        return nn.MaxPool2d(3, 2, padding=1)

    layers: OrderedDict[str, nn.Module] = OrderedDict(
        conv1=nn.Conv2d(channels, f1, 11, stride=4, padding=4),
        relu1=nn.ReLU(),
        pool1=pool(),
        conv2=nn.Conv2d(f1, f2, 5, padding=2),
        relu2=nn.ReLU(),
        pool2=pool(),
        conv3=nn.Conv2d(f2, f3, 3, padding=1),
        relu3=nn.ReLU(),
        conv4=nn.Conv2d(f3, f4, 3, padding=1),
        relu4=nn.ReLU(),
        conv5=nn.Conv2d(f4, f5, 3, padding=1),
        relu5=nn.ReLU(),
        pool5=pool(),
        flatten=nn.Flatten(),
        fc6=nn.Linear(f5 * side(height) * side(columns), hidden),
        relu6=nn.ReLU(),
        drop6=nn.Dropout(0.5),
        fc7=nn.Linear(hidden, hidden),
        relu7=nn.ReLU(),
        drop7=nn.Dropout(0.5),
        logits=nn.Linear(hidden, num_classes),
    )
    return he_initialize(nn.Sequential(layers))


@register_model("alex", input_shape=(3, 224, 224), source=_SOURCE)
def alex(input_shape: InputShape, num_classes: int, *, width: float = 1.0) -> nn.Module:
    """Five convolutions (64, 192, 384, 384, 256) and linear layers of 4096, 4096 and K units."""
    return _alex("alex", input_shape, num_classes, (64, 192, 384, 384, 256, 4096), width)


@register_model("alex_half", input_shape=(3, 224, 224), source=_SOURCE)
def alex_half(input_shape: InputShape, num_classes: int, *, width: float = 1.0) -> nn.Module:
    """`alex` with half of every width."""
    return _alex("alex_half", input_shape, num_classes, (32, 96, 192, 192, 128, 2048), width)
