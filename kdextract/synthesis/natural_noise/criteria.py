"""How far images are from the data that a teacher was trained on, judged by the teacher alone.

Both criteria are convex functions of means over images, so that the best shares of several kinds of images are found
from one measurement of each kind.
"""

from __future__ import annotations

from typing import Protocol

import torch

from ...models.classifier import Classifier
from ...models.hooks import BatchStatistics, batch_norm_layers, record_batch_statistics

FLOOR = 0.01
"""This share of the mean variance of a layer is added to the variance of each of its channels."""


class Criterion(Protocol):
    """A convex function of mean features of images."""

    def measure(self, images: torch.Tensor) -> torch.Tensor:
        """Return mean features of images [N, channels, height, width] with pixels in [0, 1], float64 [features]."""
        ...

    def loss(self, features: torch.Tensor) -> torch.Tensor:
        """Return the number, of mean features, that should be small. It is convex, and has a gradient."""
        ...


def criterion(teacher: Classifier) -> Criterion:
    """Return the distance from the statistics of the teacher's batch normalization; without it, the spread of classes.

    Args:
        teacher: in evaluation mode.
    """
    return BatchNormDistance(teacher) if batch_norm_layers(teacher.network) else ClassSpread(teacher)


class BatchNormDistance:
    """The divergence of the inputs of batch normalization layers from the statistics that these layers keep.

    For each channel, the Kullback-Leibler divergence of the normal distribution with mean and variance over the images
    from that with the kept ones; the mean over channels and then over layers. A mixture of images has the mean first
    and second moments of its parts, and the divergence is convex in these.
    """

    def __init__(self, teacher: Classifier) -> None:
        self._teacher = teacher
        self._weights = torch.empty(0)

    def measure(self, images: torch.Tensor) -> torch.Tensor:
        """Return means, then second moments, of all channels; kept mean and variance are subtracted and divided by."""
        sums: list[torch.Tensor] = []
        for part in images.split(self._teacher.images_per_pass):
            with torch.inference_mode(), record_batch_statistics(self._teacher.network) as recorded:
                self._teacher(part)
            layers = list(recorded.values())
            moments = [_normalized_moments(layer) * len(part) for layer in layers]
            sums.append(torch.cat(moments, 1))
        weights = [torch.full((len(layer.mean),), 1 / (len(layer.mean) * len(layers))) for layer in layers]
        self._weights = torch.cat(weights).double()
        return torch.stack(sums).sum(0).div_(len(images)).flatten().cpu()

    def loss(self, features: torch.Tensor) -> torch.Tensor:
        """Return the weighted mean divergence over channels, at least 0."""
        mean, second = features.view(2, -1)
        variance = (second - mean.square()).clamp_min(1e-6)
        return 0.5 * self._weights @ (second - 1 - variance.log())


def _normalized_moments(layer: BatchStatistics) -> torch.Tensor:
    """Return mean and second moment per channel in units of the kept statistics, float64 [2, channels]."""
    kept, variance = layer.kept_variance.double(), layer.variance.double()
    floor = FLOOR * kept.mean() + 1e-12
    mean = (layer.mean.double() - layer.kept_mean) / (kept + floor).sqrt()
    return torch.stack([mean, (variance + floor) / (kept + floor) + mean.square()])


class ClassSpread:
    """Minus the information that an image gives about the class that the teacher predicts, in nats.

    It is the entropy of the mean probabilities minus the mean entropy of the probabilities of an image.
    """

    def __init__(self, teacher: Classifier) -> None:
        self._teacher = teacher

    def measure(self, images: torch.Tensor) -> torch.Tensor:
        """Return the mean probabilities of all classes, then the mean entropy."""
        with torch.inference_mode():
            parts = [self._teacher(part).double() for part in images.split(self._teacher.images_per_pass)]
        probabilities = torch.cat(parts).softmax(1)
        entropy = torch.special.entr(probabilities).sum(1, keepdim=True)
        return torch.cat([probabilities, entropy], 1).mean(0).cpu()

    def loss(self, features: torch.Tensor) -> torch.Tensor:
        """Return mean entropy minus entropy of the mean, at most 0."""
        return features[-1] - torch.special.entr(features[:-1].clamp_min(1e-12)).sum()
