"""Fully connected networks: of Hinton, Vinyals and Dean 2015, section 3 (the MNIST experiment), KegNet and BDNF.

A width scales every hidden layer.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable

from torch import nn

from .initialization import he_initialize
from .registry import InputShape, register_model, scaled

_SOURCE = "Hinton et al. 2015, section 3"


def _mlp(input_shape: InputShape, num_classes: int, units: int, dropout: tuple[float, float]) -> nn.Module:
    """Two hidden ReLU layers of `units` each; `dropout` is the rate at the input and in the hidden layers."""
    channels, height, columns = input_shape
    at_input, at_hidden = dropout

    def drop(rate: float) -> nn.Module:
        return nn.Dropout(rate) if rate else nn.Identity()

    layers: OrderedDict[str, nn.Module] = OrderedDict(
        flatten=nn.Flatten(),
        drop_input=drop(at_input),
        fc1=nn.Linear(channels * height * columns, units),
        relu1=nn.ReLU(),
        drop1=drop(at_hidden),
        fc2=nn.Linear(units, units),
        relu2=nn.ReLU(),
        drop2=drop(at_hidden),
        logits=nn.Linear(units, num_classes),
    )
    return he_initialize(nn.Sequential(layers))


@register_model("hinton1200", input_shape=(1, 28, 28), source=_SOURCE)
def hinton1200(input_shape: InputShape, num_classes: int, *, width: float = 1.0) -> nn.Module:
    """784-1200-1200-10 with dropout 0.2 at the input and 0.5 in the hidden layers: the teacher."""
    return _mlp(input_shape, num_classes, scaled(1200, width), (0.2, 0.5))


@register_model("hinton800", input_shape=(1, 28, 28), source=_SOURCE)
def hinton800(input_shape: InputShape, num_classes: int, *, width: float = 1.0) -> nn.Module:
    """784-800-800-10 without regularization: the student."""
    return _mlp(input_shape, num_classes, scaled(800, width), (0.0, 0.0))


def _deep_mlp(
    input_shape: InputShape, num_classes: int, hidden: int, units: int, activation: Callable[[], nn.Module], rate: float
) -> nn.Module:
    """Return `hidden` layers of `units` with `activation` and dropout of this rate, and the logits."""
    channels, height, columns = input_shape
    layers: OrderedDict[str, nn.Module] = OrderedDict(flatten=nn.Flatten())
    inputs = channels * height * columns
    for index in range(1, hidden + 1):
        layers[f"fc{index}"] = nn.Linear(inputs, units)
        layers[f"act{index}"] = activation()
        if rate:
            layers[f"drop{index}"] = nn.Dropout(rate)
        inputs = units
    layers["logits"] = nn.Linear(units, num_classes)
    return he_initialize(nn.Sequential(layers))


@register_model("kegnet_mlp", input_shape=(1, 1, 16), source="KegNet (Yoo et al. 2019), section 4.3 (tables)")
def kegnet_mlp(input_shape: InputShape, num_classes: int, *, width: float = 1.0) -> nn.Module:
    """Ten hidden ELU layers of 100 units with dropout 0.15: KegNet's teacher of tables, of any number of columns."""
    return _deep_mlp(input_shape, num_classes, 10, scaled(100, width), nn.ELU, 0.15)


@register_model("bdnf_mlp", input_shape=(1, 1, 2), source="BDNF / KeFlow, the two-dimensional simulation")
def bdnf_mlp(input_shape: InputShape, num_classes: int, *, width: float = 1.0) -> nn.Module:
    """Three hidden ReLU layers of 32 units: BDNF's classifier of points of the plane."""
    return _deep_mlp(input_shape, num_classes, 3, scaled(32, width), nn.ReLU, 0.0)
