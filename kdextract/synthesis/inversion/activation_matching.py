"""Images whose activations match recorded statistics (Lopes, Fenu and Starner 2017), and their first pixels."""

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
    """Return independent pixels from N(0.15, 0.1^2), clipped to [0, 1], as in Lopes et al. 2017 for MNIST."""
    return torch.randn(shape, generator=rng).mul_(0.1).add_(0.15).clamp_(0, 1)


def uniform_noise(shape: tuple[int, ...], brightness: float, rng: torch.Generator) -> torch.Tensor:
    """Return independent pixels from U(0, 1)."""
    return torch.rand(shape, generator=rng)


def smooth_noise(shape: tuple[int, ...], brightness: float, rng: torch.Generator) -> torch.Tensor:
    """Return smooth random fields with a random brightness per image, mapped to [0, 1] by a sigmoid."""
    batch, channels, height, width = shape
    level = torch.randn((batch, 1, 1, 1), generator=rng)
    fields = smooth_fields(batch * channels, height, width, rng).view(shape)
    return torch.sigmoid(6 * (fields - 0.5 + 0.5 * level))


def stroke_noise(shape: tuple[int, ...], brightness: float, rng: torch.Generator) -> torch.Tensor:
    """Return level lines of smooth random fields, different ones in each channel."""
    batch, channels, height, width = shape
    return level_lines(batch * channels, height, width, rng).view(shape)


def structured_patterns(shape: tuple[int, ...], brightness: float, rng: torch.Generator) -> torch.Tensor:
    """Return lines, shapes and textures of every kind; see `patterns.structured_images`."""
    batch, channels, height, width = shape
    return structured_images(batch, (channels, height, width), brightness, rng)


OF_IMAGES = ("smooth", "strokes", "structured")
"""First images that need more than one row of pixels."""

INITIALIZERS: dict[str, Initializer] = {
    "normal": normal_noise,
    "uniform": uniform_noise,
    "smooth": smooth_noise,
    "strokes": stroke_noise,
    "structured": structured_patterns,
}
"""Name -> (shape, brightness, rng) -> pixels in [0, 1]; `brightness` is the mean with which the teacher normalizes."""


CURVE_POINTS = 40
"""About the number of rows of a curve."""


class Curve:
    """Keeps the terms of a loss at about `CURVE_POINTS` of `steps` steps, on their device."""

    def __init__(self, steps: int) -> None:
        self._every, self._steps = max(1, steps // CURVE_POINTS), steps
        self._points: list[tuple[int, Terms]] = []

    def offer(self, step: int, terms: Terms) -> None:
        """Keep the terms of step number `step`, counted from 1, if it is among these steps."""
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
    """Make images whose activations match targets drawn from a record.

    One target per image and block is drawn from the record of the image's class, and is fixed; the loss is the squared
    error to it, divided by the block's recorded variance, so that it depends neither on the size nor on the scale of
    the block.

    Args:
        record_name: the record of `statistics` from which targets are drawn.
        values: activations of one forward pass, by layer name -> values to compare, by block name of the record.
        labels: class of each image, int64 [batch].
        rng: on the CPU.

    Raises:
        ConfigError: the options are for images but the teacher takes rows of a table, or the record does not exist.
        DivergedError: the loss is not finite.
    """
    if teacher.is_table and (config.init in OF_IMAGES or config.blur_every):
        raise ConfigError("rows of a table cannot be blurred or start from lines; use --init normal or uniform")
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

    The paper compares activations after ReLU. Pre-activations give better students: an accuracy of 97.8 % instead of
    86.3 % for `lenet_half` on MNIST in one run of 10,000 images, with otherwise equal options.

    Arguments and errors are those of `match_record`.
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
    """Make images that match the spectra of the graphs called `name`, and the logits, which determine the class.

    Arguments and errors are those of `match_record`.
    """

    def values(activations: Activations) -> Activations:
        spectra = {graph.name: graph.spectrum(activations, labels) for graph in statistics.graphs[name]}
        return {**spectra, statistics.logits: activations[statistics.logits]}

    return match_record(teacher, statistics, name, values, labels, config, rng)


class DropoutMasks:
    """One Bernoulli mask per image and layer, drawn at first use and then fixed; kept inputs are scaled by 1 / keep.

    The mean over masks is therefore the unmasked input. (The 2017 code scales networks without masks instead, although
    TensorFlow's dropout already scales during training.)

    Args:
        keep: layer name -> share of its inputs that are kept, in (0, 1].
        rng: on the CPU.
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
    """Minimize `loss(pixels)` over a batch of images, and return them with the mean loss per image of the last step.

    Pixels are clipped to [0, 1] after every step.

    Args:
        loss: pixels [batch, channels, height, width] -> sum of the losses of the images, a scalar; as a sum, it makes
            the images independent of each other.
        start: the first pixels, on the teacher's device.

    Raises:
        DivergedError: the loss or a pixel is not finite.
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
            images.clamp_(0, 1)
    value = float(last.detach())
    if not torch.isfinite(images).all() or value != value:
        raise DivergedError("the loss of the images is not finite; try a smaller --lr")
    return Inverted(images.detach(), value / len(images), len(images) * config.steps, curve.rows(1 / len(images)))
