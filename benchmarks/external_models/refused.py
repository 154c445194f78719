"""Networks that kdx refuses, because they are not image classifiers or cannot be teachers; and a valid one."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Segmentation(nn.Module):
    """Returns logits for every pixel: [B, 10, H, W]."""

    def __init__(self) -> None:
        super().__init__()
        self.down = nn.Conv2d(1, 16, 3, padding=1)
        self.head = nn.Conv2d(16, 10, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.relu(self.down(x)))


class Detector(nn.Module):
    """Returns boxes: a list of one dictionary per image."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 5, 3, padding=1)

    def forward(self, images: Tensor) -> list[dict[str, Tensor]]:
        found = self.conv(images).mean((2, 3))
        return [{"boxes": row[None, :4], "scores": row[4:], "labels": torch.ones(1)} for row in found]


class Features(nn.Module):
    """An autoencoder: returns images."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Conv2d(1, 8, 3, 2, 1)
        self.decoder = nn.ConvTranspose2d(8, 1, 2, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.decoder(F.relu(self.encoder(x)))


class Random(nn.Module):
    """Uses dropout in eval mode, because `training=self.training` is missing."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1 = nn.Linear(64, 64)
        self.fc2 = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.dropout(F.relu(self.fc1(x.flatten(1))), 0.5))


class Plain(nn.Module):
    """A valid classifier."""

    def __init__(self, num_classes: int = 10) -> None:
        super().__init__()
        self.fc1 = nn.Linear(64, 32)
        self.fc2 = nn.Linear(32, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.relu(self.fc1(x.flatten(1))))


def plain_net(width: int) -> nn.Module:
    """Return a network; `width` has no default."""
    return nn.Sequential(nn.Flatten(), nn.Linear(64, width), nn.ReLU(), nn.Linear(width, 10))


def scripted() -> torch.jit.ScriptModule:
    """Return a module of TorchScript."""
    return torch.jit.trace(Plain(), torch.rand(2, 1, 8, 8))


def broken() -> nn.Module:
    """Raise an error: the network cannot be built."""
    raise RuntimeError("the config file of my cluster is missing")


config = {"width": 64}
