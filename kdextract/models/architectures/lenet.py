"""LeNet-5 and its halves, as three papers of the field define them (they are different networks).

A width scales what the paper halves: the convolutions of `lenet`, every hidden layer of `lenet5`.
"""

from __future__ import annotations

from collections import OrderedDict

from torch import nn

from .initialization import he_initialize
from .pooling import HalvingMaxPool2d
from .registry import InputShape, register_model, require_size, scaled


def _lenet(name: str, input_shape: InputShape, num_classes: int, filters: tuple[int, int], width: float) -> nn.Module:
    require_size(name, input_shape, 32, 32)
    first, second = (scaled(units, width) for units in filters)
    layers: OrderedDict[str, nn.Module] = OrderedDict(
        conv1=nn.Conv2d(input_shape[0], first, 5),
        relu1=nn.ReLU(),
        pool1=HalvingMaxPool2d(),
        conv2=nn.Conv2d(first, second, 5),
        relu2=nn.ReLU(),
        pool2=HalvingMaxPool2d(),
        flatten=nn.Flatten(),
        fc1=nn.Linear(second * 25, 120),
        relu3=nn.ReLU(),
        fc2=nn.Linear(120, 84),
        relu4=nn.ReLU(),
        logits=nn.Linear(84, num_classes),
    )
    return he_initialize(nn.Sequential(layers))


def _lenet5(
    name: str,
    input_shape: InputShape,
    num_classes: int,
    units: tuple[int, int, int, int],
    width: float,
    batch_norm: bool = False,
) -> nn.Module:
    require_size(name, input_shape, 32, 32)
    first, second, third, hidden = (scaled(count, width) for count in units)
    layers: OrderedDict[str, nn.Module] = OrderedDict(
        conv1=nn.Conv2d(input_shape[0], first, 5),
        relu1=nn.ReLU(),
        pool1=HalvingMaxPool2d(),
        conv2=nn.Conv2d(first, second, 5),
        relu2=nn.ReLU(),
        pool2=HalvingMaxPool2d(),
        conv3=nn.Conv2d(second, third, 5),
        relu3=nn.ReLU(),
        flatten=nn.Flatten(),
        fc1=nn.Linear(third, hidden),
        relu4=nn.ReLU(),
        logits=nn.Linear(hidden, num_classes),
    )
    if not batch_norm:
        return he_initialize(nn.Sequential(layers))
    normalized: OrderedDict[str, nn.Module] = OrderedDict()
    for layer, module in layers.items():
        if isinstance(module, nn.Conv2d) and layer != "conv3":  # its output is one pixel, which has no variance
            normalized[layer] = nn.Conv2d(module.in_channels, module.out_channels, 5, bias=False)
            normalized[layer.replace("conv", "bn")] = nn.BatchNorm2d(module.out_channels)
        else:
            normalized[layer] = module
    return he_initialize(nn.Sequential(normalized))


@register_model("lenet", input_shape=(1, 32, 32), source="LeCun et al. 1998, in the form of Lopes et al. 2017")
def lenet(input_shape: InputShape, num_classes: int, *, width: float = 1.0) -> nn.Module:
    """Two 5x5 convolutions (6, 16 filters) and linear layers of 120, 84 and K units: the teacher of Lopes et al."""
    return _lenet("lenet", input_shape, num_classes, (6, 16), width)


@register_model("lenet_half", input_shape=(1, 32, 32), source="Lopes et al. 2017, section 4")
def lenet_half(input_shape: InputShape, num_classes: int, *, width: float = 1.0) -> nn.Module:
    """`lenet` with half the filters (3, 8) and the same linear widths: the student of Lopes et al."""
    return _lenet("lenet_half", input_shape, num_classes, (3, 8), width)


@register_model("lenet5", input_shape=(1, 32, 32), source="LeCun et al. 1998, as in DAFL (Chen et al. 2019)")
def lenet5(input_shape: InputShape, num_classes: int, *, width: float = 1.0) -> nn.Module:
    """Three 5x5 convolutions (6, 16, 120) and linear layers of 84 and K units: DAFL's and KegNet's teacher."""
    return _lenet5("lenet5", input_shape, num_classes, (6, 16, 120, 84), width)


@register_model("lenet5_half", input_shape=(1, 32, 32), source="DAFL (Chen et al. 2019), section 4.1")
def lenet5_half(input_shape: InputShape, num_classes: int, *, width: float = 1.0) -> nn.Module:
    """`lenet5` with every width halved (3, 8, 60, 42): DAFL's student."""
    return _lenet5("lenet5_half", input_shape, num_classes, (3, 8, 60, 42), width)


@register_model("lenet5_bn", input_shape=(1, 32, 32), source="lenet5, with Ioffe and Szegedy 2015")
def lenet5_bn(input_shape: InputShape, num_classes: int, *, width: float = 1.0) -> nn.Module:
    """`lenet5` with batch normalization after the first two convolutions: a teacher for methods that need it."""
    return _lenet5("lenet5_bn", input_shape, num_classes, (6, 16, 120, 84), width, batch_norm=True)
