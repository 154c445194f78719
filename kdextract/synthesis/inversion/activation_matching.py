"""Optimizing the pixels of a batch of images against a frozen classifier: what all inversion objectives share."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch

from ...errors import ConfigError, DivergedError
from ...models.classifier import Classifier
from ...models.hooks import record_activations
from ...synthesis.losses import Terms
from ...training.augmentation import binomial_blur
from ..interface import Inverted
from ..losses import standardized_error, sum_terms, total_variation
from ..options import PixelConfig
from ..statistics.recorded import LAYERS, Statistics
from ..structured_noise.patterns import level_lines, smooth_fields, structured_images
from .pixel_optimizer import PixelAdam

Activations = dict[str, torch.Tensor]
Initializer = Callable[[tuple[int, ...], float, torch.Generator], torch.Tensor]


def normal_noise(shape: tuple[int, ...], brightness: float, rng: torch.Generator) -> torch.Tensor:
    """Independent pixels from N(0.15, 0.1^2), as Lopes et al. 2017 start on MNIST."""
    return torch.randn(shape, generator=rng).mul_(0.1).add_(0.15).clamp_(0, 1)


def uniform_noise(shape: tuple[int, ...], brightness: float, rng: torch.Generator) -> torch.Tensor:
    """Independent pixels from U(0, 1)."""
    return torch.rand(shape, generator=rng)


def smooth_noise(shape: tuple[int, ...], brightness: float, rng: torch.Generator) -> torch.Tensor:
    """Smooth random fields, each image with a brightness of its own, squashed to [0, 1]."""
    batch, channels, height, width = shape
    level = torch.randn((batch, 1, 1, 1), generator=rng)
    fields = smooth_fields(batch * channels, height, width, rng).view(shape)
    return torch.sigmoid(6 * (fields - 0.5 + 0.5 * level))


def stroke_noise(shape: tuple[int, ...], brightness: float, rng: torch.Generator) -> torch.Tensor:
    """Level lines of smooth random fields, another set of lines in each channel."""
    batch, channels, height, width = shape
    return level_lines(batch * channels, height, width, rng).view(shape)


def structured_patterns(shape: tuple[int, ...], brightness: float, rng: torch.Generator) -> torch.Tensor:
    """Lines, shapes and textures of every kind; see `patterns.structured_images`."""
    batch, channels, height, width = shape
    return structured_images(batch, (channels, height, width), brightness, rng)


OF_IMAGES = ("smooth", "strokes", "structured")
"""Those that need more than one row of pixels."""

# Each returns pixels in [0, 1] of the given shape; `brightness` is the mean pixel that the teacher expects.
INITIALIZERS: dict[str, Initializer] = {
    "normal": normal_noise,
    "uniform": uniform_noise,
    "smooth": smooth_noise,
    "strokes": stroke_noise,
    "structured": structured_patterns,
}


CURVE_POINTS = 40


class Curve:
    """Keeps the terms of a loss at some of its steps, on their device."""

    def __init__(self, steps: int) -> None:
        self._every, self._steps = max(1, steps // CURVE_POINTS), steps
        self._points: list[tuple[int, Terms]] = []

    def offer(self, step: int, terms: Terms) -> None:
        """Keep the terms of step number `step`, counted from 1, if it is one to keep."""
        if step % self._every == 0 or step in (1, self._steps):
            self._points.append((step, {name: term.detach() for name, term in terms.items()}))

    def rows(self, share: float = 1.0) -> list[dict[str, float]]:
        """Return rows {step, loss, term ...}, all terms times `share`."""
        rows = []
        for step, terms in self._points:
            floats = {name: share * float(term) for name, term in terms.items()}
            rows.append({"step": step, "loss": sum(floats.values()), **floats})
        return rows


def match_record(
    teacher: Classifier,
    statistics: Statistics,
    record_name: str,
    values: Callable[[Activations], Activations],
    labels: torch.Tensor,
    config: PixelConfig,
    rng: torch.Generator,
) -> Inverted:
    """Make images whose activations are those that a record of their class would give.

    One target per image and block is drawn from the record, and stays fixed; the loss is the squared error to it, in
    units of the block's recorded variance, so that each block counts the same whatever its size and scale.

    Args:
        record_name: the record of `statistics` that targets are drawn from.
        values: activations of one forward pass, by layer name -> what to compare, by block name of the record.
        labels: class of each image, int64 [batch].

    Raises:
        ConfigError: the options are for images, and the teacher takes rows of a table.
    """
    if teacher.is_table and (config.init in OF_IMAGES or config.blur_every):
        raise ConfigError("rows of a table cannot be blurred, nor start from lines; use --init normal or uniform")
    record = statistics.record(record_name)
    targets, variance = record.sample(labels, rng), record.variance()
    layers = [layer.name for layer in statistics.layers]
    with record_activations(teacher.network, layers) as activations:

        def loss(images: torch.Tensor) -> torch.Tensor:
            teacher(images)
            errors = [
                standardized_error(value, targets[name], variance[name]) for name, value in values(activations).items()
            ]
            return torch.stack(errors).sum()

        shape = (len(labels), *teacher.input_shape)
        start = INITIALIZERS[config.init](shape, float(teacher.mean.mean()), rng).to(teacher.device)
        return optimize_pixels(loss, start, config)


def match_layers(
    teacher: Classifier,
    statistics: Statistics,
    labels: torch.Tensor,
    config: PixelConfig,
    rng: torch.Generator,
) -> Inverted:
    """Make images that match the pre-activations of every layer of the joint record (Lopes et al. 2017, section 3.2).

    The paper compares what remains after ReLU; pre-activations determine the image far better: 97.8 % against 86.3 %
    for `lenet_half` on MNIST in one run of 10,000 images, all else equal.
    """
    names = [name for name, _ in statistics.record(LAYERS).blocks]

    def values(activations: Activations) -> Activations:
        return {name: activations[name].flatten(1) for name in names}

    return match_record(teacher, statistics, LAYERS, values, labels, config, rng)


def match_spectra(
    teacher: Classifier,
    statistics: Statistics,
    name: str,
    labels: torch.Tensor,
    config: PixelConfig,
    rng: torch.Generator,
) -> Inverted:
    """Make images that match the spectra of the graphs called `name`, and the logits, which pin the class."""

    def values(activations: Activations) -> Activations:
        spectra = {graph.name: graph.spectrum(activations, labels) for graph in statistics.graphs[name]}
        return {**spectra, statistics.logits: activations[statistics.logits]}

    return match_record(teacher, statistics, name, values, labels, config, rng)


class DropoutMasks:
    """One Bernoulli mask per image and layer, drawn at first use and then fixed; survivors are scaled by 1 / keep.

    A mean over masks is therefore the unmasked input. (The 2017 code scales unmasked networks instead, although
    TensorFlow's dropout already is scaled while training.)
    """

    def __init__(self, keep: dict[str, float], rng: torch.Generator) -> None:
        self._keep, self._rng = keep, rng
        self._masks: dict[str, torch.Tensor] = {}

    def __call__(self, layer: str, inputs: torch.Tensor) -> torch.Tensor:
        """Return the masked input of `layer`, [batch, ...]."""
        if layer not in self._masks:
            kept = torch.rand(inputs.shape, generator=self._rng) < self._keep[layer]
            self._masks[layer] = kept.to(inputs).div_(self._keep[layer])
        return inputs * self._masks[layer]


def optimize_pixels(
    loss: Callable[[torch.Tensor], torch.Tensor],
    start: torch.Tensor,
    config: PixelConfig,
) -> Inverted:
    """Minimize `loss(pixels)` over a batch of images and return them with the last loss.

    Args:
        loss: pixels [batch, channels, height, width] -> sum over the batch of each image's loss, so that the images
            do not depend on each other.
        start: pixels of the batch to begin with, on the teacher's device.

    Raises:
        DivergedError: the loss stopped being finite.
    """
    optimizer = PixelAdam(start, config.lr)
    images = optimizer.values
    last = torch.zeros(())
    curve = Curve(config.steps)
    for step in range(1, config.steps + 1):
        terms = {"match": loss(images)}
        if config.tv:
            terms["tv"] = config.tv * total_variation(images)
        curve.offer(step, terms)
        last = sum_terms(terms)
        optimizer.step(last, config.lr * 0.5 * (1 + math.cos(math.pi * (step - 1) / config.steps)))
        with torch.no_grad():
            if config.blur_every and step % config.blur_every == 0:
                images.copy_(binomial_blur(images))
            if config.clip:
                images.clamp_(0, 1)
    value = float(last.detach())
    if not torch.isfinite(images).all() or value != value:
        raise DivergedError("the loss on the images is not finite any more; try a smaller --lr")
    return Inverted(
        images.detach().clamp_(0, 1), value / len(images), len(images) * config.steps, curve.rows(1 / len(images))
    )
