"""Convolutional networks and perceptrons in different styles of code, and the student of all external models."""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm


def small_cnn(in_channels: int = 1, num_classes: int = 10, img_size: int | tuple[int, int] = 28) -> nn.Module:
    """The student: three convolutions and one linear layer; the first stride increases with the size of the image."""
    stride = max(1, (img_size if isinstance(img_size, int) else min(img_size)) // 28)

    def block(inputs: int, outputs: int, step: int) -> list[nn.Module]:
        conv = nn.Conv2d(inputs, outputs, 3, step, 1, bias=False)
        return [conv, nn.BatchNorm2d(outputs), nn.ReLU(inplace=True)]

    layers = [*block(in_channels, 24, stride), *block(24, 48, 2), *block(48, 64, 2)]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(256, num_classes))


class LeNet(nn.Module):
    """LeNet as in lectures: no batch normalization, all sizes are constants."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 6, 5, padding=2)
        self.conv2 = nn.Conv2d(6, 16, 5)
        self.fc1 = nn.Linear(16 * 5 * 5, 120)
        self.fc2 = nn.Linear(120, 84)
        self.fc3 = nn.Linear(84, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(F.relu(self.conv1(x)), 2)
        x = F.max_pool2d(F.relu(self.conv2(x)), 2)
        x = x.view(x.size(0), -1)
        x = F.relu(self.fc1(x))
        x = F.relu(self.fc2(x))
        return self.fc3(x)


class MLP(nn.Module):
    """A perceptron whose constructor takes the parsed command line."""

    def __init__(self, args: argparse.Namespace) -> None:
        super().__init__()
        self.input_dim = args.img_dim * args.img_dim
        widths = [self.input_dim] + [args.hidden] * args.depth
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in itertools.pairwise(widths))
        self.drop = nn.Dropout(args.dropout)
        self.out = nn.Linear(args.hidden, args.nclass)

    def forward(self, x: Tensor) -> Tensor:
        x = x.reshape(-1, self.input_dim)
        for layer in self.layers:
            x = self.drop(F.relu(layer(x)))
        return self.out(x)


def mlp(hidden: int = 256, depth: int = 2, dropout: float = 0.2) -> nn.Module:
    """Return a perceptron for 8x8 images."""
    return MLP(argparse.Namespace(img_dim=8, hidden=hidden, depth=depth, dropout=dropout, nclass=10))


VGG = [32, "M", 64, "M", 128, 128, "M"]


class VGGNet(nn.Module):
    """VGG built from a list of widths; the constructor initializes the weights."""

    def __init__(self, cfg: list[int | str] = VGG, num_classes: int = 10, init_weights: bool = True) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        channels = 3
        for v in cfg:
            if v == "M":
                layers += [nn.MaxPool2d(kernel_size=2, stride=2)]
            else:
                layers += [nn.Conv2d(channels, int(v), kernel_size=3, padding=1), nn.BatchNorm2d(int(v))]
                layers += [nn.ReLU(inplace=True)]
                channels = int(v)
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Sequential(
            nn.Linear(128 * 4 * 4, 128), nn.ReLU(True), nn.Dropout(), nn.Linear(128, num_classes)
        )
        if init_weights:
            for m in self.modules():
                if isinstance(m, nn.Conv2d):
                    nn.init.kaiming_normal_(m.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(torch.flatten(self.features(x), 1))


def vgg_bn(**kwargs: Any) -> nn.DataParallel[nn.Module]:
    """Return VGG wrapped in DataParallel, as training scripts often save it."""
    return nn.DataParallel(VGGNet(**kwargs))


class BasicBlock(nn.Module):
    """Two convolutions and a shortcut; the caller chooses the normalization."""

    def __init__(self, inplanes: int, planes: int, stride: int, norm: Callable[[int], nn.Module]) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inplanes, planes, 3, stride, 1, bias=False)
        self.bn1 = norm(planes)
        self.conv2 = nn.Conv2d(planes, planes, 3, 1, 1, bias=False)
        self.bn2 = norm(planes)
        self.relu = nn.ReLU(inplace=True)
        self.downsample: nn.Module | None = None
        if stride != 1 or inplanes != planes:
            self.downsample = nn.Sequential(nn.Conv2d(inplanes, planes, 1, stride, bias=False), norm(planes))

    def forward(self, x: Tensor) -> Tensor:
        identity = x if self.downsample is None else self.downsample(x)
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        out += identity
        return self.relu(out)


class ResNet(nn.Module):
    """A residual network for 32x32 images."""

    def __init__(
        self, depth: int = 8, num_classes: int = 10, norm: Callable[[int], nn.Module] = nn.BatchNorm2d
    ) -> None:
        super().__init__()
        n = (depth - 2) // 6
        self.inplanes = 16
        self.norm = norm
        self.conv1 = nn.Conv2d(3, 16, 3, 1, 1, bias=False)
        self.bn1 = norm(16)
        self.layer1 = self._make_layer(16, n, 1)
        self.layer2 = self._make_layer(32, n, 2)
        self.layer3 = self._make_layer(64, n, 2)
        self.avgpool = nn.AvgPool2d(8)
        self.fc = nn.Linear(64, num_classes)

    def _make_layer(self, planes: int, blocks: int, stride: int) -> nn.Sequential:
        layers = []
        for i in range(blocks):
            layers.append(BasicBlock(self.inplanes, planes, stride if i == 0 else 1, self.norm))
            self.inplanes = planes
        return nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        x = self.avgpool(x)
        x = x.view(x.size(0), -1)
        return self.fc(x)


def resnet8(num_classes: int = 10) -> nn.Module:
    """Return a ResNet of 8 layers."""
    return ResNet(8, num_classes)


def resnet8_gn(num_classes: int = 10, groups: int = 8) -> nn.Module:
    """Return a ResNet of 8 layers with group normalization."""
    return ResNet(8, num_classes, lambda planes: nn.GroupNorm(groups, planes))


class Fire(nn.Module):
    """A 1x1 convolution to few channels, then 1x1 and 3x3 convolutions whose outputs are concatenated."""

    def __init__(self, inplanes: int, squeeze: int, expand: int) -> None:
        super().__init__()
        self.squeeze = nn.Conv2d(inplanes, squeeze, kernel_size=1)
        self.expand1x1 = nn.Conv2d(squeeze, expand, kernel_size=1)
        self.expand3x3 = nn.Conv2d(squeeze, expand, kernel_size=3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.squeeze(x))
        return torch.cat([F.relu(self.expand1x1(x)), F.relu(self.expand3x3(x))], 1)


class SqueezeNet(nn.Module):
    """SqueezeNet, whose head is a convolution followed by pooling."""

    def __init__(self, num_classes: int = 10) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(3, 32, kernel_size=3, stride=2), nn.ReLU(inplace=True),
            Fire(32, 16, 32), nn.MaxPool2d(3, 2, ceil_mode=True), Fire(64, 16, 48), Fire(96, 24, 64),
        )  # fmt: skip
        final_conv = nn.Conv2d(128, num_classes, kernel_size=1)
        self.classifier = nn.Sequential(nn.Dropout(p=0.3), final_conv, nn.ReLU(inplace=True), nn.AdaptiveAvgPool2d(1))
        for m in self.modules():
            if isinstance(m, nn.Conv2d):
                nn.init.kaiming_uniform_(m.weight, nonlinearity="relu")
                nn.init.zeros_(m.bias)

    def forward(self, x: Tensor) -> Tensor:
        return torch.flatten(self.classifier(self.features(x)), 1)


class AllConv(nn.Module):
    """Strided convolutions only; the output is not flattened: [B, 10, 1, 1]."""

    def __init__(self, num_classes: int = 10) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.Conv2d(1, 32, 3, 2, 1), nn.ELU(), nn.Conv2d(32, 64, 3, 2, 1), nn.ELU(),
            nn.Conv2d(64, 64, 3, 2, 1), nn.ELU(), nn.Conv2d(64, num_classes, 2),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)


class WeightNormed(nn.Module):
    """Weight normalization by parametrization, InstanceNorm and PReLU."""

    def __init__(self, channels: int = 1, classes: int = 10) -> None:
        super().__init__()
        self.body = nn.Sequential(
            weight_norm(nn.Conv2d(channels, 32, 5, 2, 2)), nn.InstanceNorm2d(32, affine=True), nn.PReLU(32),
            weight_norm(nn.Conv2d(32, 64, 3, 2, 1)), nn.PReLU(64),
        )  # fmt: skip
        self.head = weight_norm(nn.Linear(64 * 7 * 7, classes))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x).flatten(1))


class Compiled(nn.Module):
    """Two convolutions with tanh and average pooling, and a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.c1 = nn.Conv2d(1, 8, 3, padding=1)
        self.c2 = nn.Conv2d(8, 24, 3, padding=1)
        self.bn = nn.BatchNorm2d(24, eps=1e-3)
        self.f = nn.Linear(24 * 16, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = F.avg_pool2d(torch.tanh(self.c1(x)), 2)
        x = F.avg_pool2d(torch.tanh(self.bn(self.c2(x))), 2)
        return self.f(x.flatten(start_dim=1))


def compiled() -> Callable[..., Any]:
    """Return the network compiled by torch.compile, before training."""
    return torch.compile(Compiled())


class Lazy(nn.Module):
    """Lazy layers, whose input sizes PyTorch infers; the network normalizes its input."""

    def __init__(self, num_classes: int = 10) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor([0.3]).view(1, 1, 1, 1))
        self.register_buffer("std", torch.tensor([0.35]).view(1, 1, 1, 1))
        self.stem = nn.LazyConv2d(32, 3, padding=1)
        self.fc1 = nn.LazyLinear(96)
        self.fc2 = nn.LazyLinear(num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = (x - self.mean) / self.std
        x = F.max_pool2d(F.leaky_relu(self.stem(x), 0.1), 2)
        return self.fc2(F.leaky_relu(self.fc1(x.flatten(1)), 0.1))


class Bytes(nn.Module):
    """Takes pixels from 0 to 255."""

    def __init__(self, n_classes: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3, 1, 1)
        self.bn1 = nn.BatchNorm2d(16)
        self.conv2 = nn.Conv2d(16, 32, 3, 2, 1)
        self.bn2 = nn.BatchNorm2d(32)
        self.linear = nn.Linear(32 * 8 * 8, n_classes)

    def forward(self, img: Tensor) -> Tensor:
        out = F.max_pool2d(F.relu6(self.bn1(self.conv1(img))), 2)
        out = F.relu6(self.bn2(self.conv2(out)))
        return self.linear(out.view(-1, 32 * 8 * 8))


class ThreeDigits(nn.Module):
    """Classifies images of three digits side by side into 1000 classes."""

    def __init__(self, num_classes: int = 1000) -> None:
        super().__init__()
        self.cnn = nn.Sequential(
            nn.Conv2d(1, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU(), nn.MaxPool2d(2),
            nn.Conv2d(32, 64, 3, padding=1), nn.BatchNorm2d(64), nn.ReLU(), nn.MaxPool2d(2),
        )  # fmt: skip
        self.fc1 = nn.Linear(64 * 4 * 12, 256)
        self.bn = nn.BatchNorm1d(256)
        self.fc2 = nn.Linear(256, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.relu(self.bn(self.fc1(self.cnn(x).flatten(1)))))


model = nn.Sequential(
    nn.Conv2d(1, 32, 3), nn.ReLU(), nn.BatchNorm2d(32),
    nn.Conv2d(32, 32, 3), nn.ReLU(), nn.BatchNorm2d(32),
    nn.MaxPool2d(2), nn.Dropout(0.25),
    nn.Flatten(), nn.Linear(32 * 12 * 12, 64), nn.ReLU(), nn.BatchNorm1d(64), nn.Linear(64, 10),
)  # fmt: skip
"""A network that is built when the file is imported, as in a notebook."""
