"""The real images nearest to synthetic ones, which show whether a teacher reveals its training images."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ..models.classifier import Classifier
from ..models.hooks import record_features
from ..models.pixels import to_pixels

CHUNK = 1000


@dataclass(frozen=True)
class Neighbours:
    """The k nearest real images of each synthetic image, nearest first: `indices` int64 [N, k], `distances` [N, k]."""

    indices: torch.Tensor
    distances: torch.Tensor


def in_pixels(images: torch.Tensor) -> torch.Tensor:
    """Return images, uint8 [N, channels, height, width], as points [N, D]: their pixels in [0, 1]."""
    return to_pixels(images).flatten(1)


def in_features(teacher: Classifier, images: torch.Tensor) -> torch.Tensor:
    """Return images, uint8 [N, channels, height, width], as points [N, D]: the inputs of the teacher's last layer."""
    with torch.inference_mode(), record_features(teacher.network, teacher.feature_layer) as features:
        for chunk in images.split(CHUNK):
            teacher(to_pixels(chunk.to(teacher.device)))
            features[-1] = features[-1].cpu()
        return torch.cat(features)


def nearest(points: torch.Tensor, others: torch.Tensor, count: int) -> Neighbours:
    """Return the `count` nearest of `others` [M, D] to each of `points` [N, D], by Euclidean distance."""
    found = [torch.cdist(chunk, others).topk(count, largest=False) for chunk in points.split(CHUNK)]
    return Neighbours(torch.cat([f.indices for f in found]), torch.cat([f.values for f in found]))
