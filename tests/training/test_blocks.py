"""Block matching: which blocks correspond, its loss, and what it leaves unchanged."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from helpers import StopAt, equal, weights
from torch import nn

from kdextract.errors import Interrupted
from kdextract.models.blocks import MOST_BLOCKS, BlockPair, find_pairs, trace
from kdextract.models.classifier import Classifier, ClassifierSpec
from kdextract.models.external.names import Share
from kdextract.models.pruning.cut import cut_to, kept_outputs
from kdextract.stages.distill.budget import NoCheckpoints
from kdextract.training.augmentation import Augmenter
from kdextract.training.blocks import FLOOR, BlockLoss, BlockOptions, channel_scale
from kdextract.training.distill import DistillationLossOptions, DistillationOptions, distill
from kdextract.training.loop import Schedule
from kdextract.training.progress import Reporter
from kdextract.training.sources import ImagePool

CPU = torch.device("cpu")
QUIET = Reporter(quiet=True)


class Residual(nn.Module):
    """A residual block; `passes` times over its own weights."""

    def __init__(self, channels: int, norm: Callable[[int], nn.Module], passes: int = 1) -> None:
        super().__init__()
        self.conv1, self.norm1 = nn.Conv2d(channels, channels, 3, padding=1), norm(channels)
        self.conv2, self.norm2 = nn.Conv2d(channels, channels, 3, padding=1), norm(channels)
        self.passes = passes

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for _ in range(self.passes):
            x = x + self.norm2(self.conv2(torch.relu(self.norm1(self.conv1(x)))))
        return x


class Blocky(nn.Module):
    """A stem, residual blocks in a stage, each followed by ReLU in place, and a linear layer."""

    def __init__(self, channels: int, classes: int, norm: Callable[[int], nn.Module] = nn.BatchNorm2d) -> None:
        super().__init__()
        self.stem = nn.Conv2d(channels, 8, 3, padding=1)
        self.stage = nn.ModuleList([Residual(8, norm) for _ in range(2)])
        self.fc = nn.Linear(8, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        for block in self.stage:
            x = F.relu(block(x), inplace=True)
        return self.fc(x.mean((2, 3)))


class Twice(nn.Module):
    """A block that runs twice, and one whose output is a tuple."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.fc = nn.Conv2d(1, 4, 3, padding=1), nn.Linear(4, 3)
        self.shared, self.pair = Residual(4, nn.BatchNorm2d), Tupled()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x, _ = self.pair(self.shared(self.shared(self.stem(x))))
        return self.fc(x.mean((2, 3)))


class Tupled(Residual):
    """A block with two outputs."""

    def __init__(self) -> None:
        super().__init__(4, nn.BatchNorm2d)

    def forward(self, x: torch.Tensor) -> Any:
        return super().forward(x), x


def of(network: nn.Module, shape: tuple[int, int, int] = (3, 8, 8), classes: int = 3) -> Classifier:
    """Return a classifier with this network, which no file can hold."""
    names = tuple(f"class {index}" for index in range(classes))
    spec = ClassifierSpec("hinton800", shape, names, (0.4,) * shape[0], (0.3,) * shape[0])
    return Classifier(spec, network).eval()


def made(name: str, shape: tuple[int, int, int] = (1, 32, 32), classes: int = 10) -> Classifier:
    torch.manual_seed(0)
    names = tuple(f"class {index}" for index in range(classes))
    return Classifier(ClassifierSpec(name, shape, names, (0.3,) * shape[0], (0.35,) * shape[0])).eval()


def names(pairs: list[BlockPair]) -> list[str]:
    return [pair.teacher for pair in pairs]


def norm_of(kind: str) -> Callable[[int], nn.Module]:
    kinds: dict[str, Callable[[int], nn.Module]] = {
        "batch": nn.BatchNorm2d,
        "none": lambda channels: nn.Identity(),
        "group": lambda channels: nn.GroupNorm(2, channels),
    }
    return kinds[kind]


# ---- which blocks ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "shape", "expected"),
    [
        ("resnet14", (3, 32, 32), [f"block{stage}_{index}" for stage in (1, 2, 3) for index in (1, 2)]),
        ("wrn16_1", (1, 32, 32), None),
        ("lenet5_bn", (1, 32, 32), None),
        ("lenet5", (1, 32, 32), None),
        ("hinton800", (1, 28, 28), None),
    ],
)
def test_blocks_of_our_networks(name: str, shape: tuple[int, int, int], expected: list[str] | None) -> None:
    found = trace(made(name, shape)).blocks()
    print(name, found)
    assert expected is None or found == expected


@pytest.mark.parametrize(
    ("name", "count", "first"),
    [
        ("resnet18", 8, "layer1.0"),
        ("vgg11", 10, "features.0"),
        ("vgg11_bn", 10, "features.1"),
        ("mobilenet_v2", MOST_BLOCKS, "features.1"),
        ("squeezenet1_1", 8, "features.3"),
        ("efficientnet_b0", MOST_BLOCKS, "features.1.0"),
        ("shufflenet_v2_x0_5", MOST_BLOCKS, "stage2.0"),
        ("vit_b_16", 12, "encoder.layers.encoder_layer_0"),
        ("convnext_tiny", MOST_BLOCKS, "features.1.0"),
        ("swin_t", 12, "features.1.0"),
    ],
)
@pytest.mark.slow
def test_blocks_of_torchvision_networks(name: str, count: int, first: str) -> None:
    torchvision = pytest.importorskip("torchvision")
    network = torchvision.models.get_model(name, weights=None, num_classes=5)
    size = 224 if name == "vit_b_16" else 64
    found = trace(of(network, (3, size, size), 5)).blocks()
    assert len(found) == count, found
    assert found[0] == first
