"""DeepDream, DeepInversion and Adaptive DeepInversion (Yin et al. 2020).

Pixels are optimized in the teacher's normalized coordinates, so that steps have the same scale in every channel. The
loss is a sum of terms: cross-entropy to the class, smoothness, distance to the means and variances of the teacher's
layers, and disagreement of a student. Both networks are frozen and in evaluation mode; hooks are removed after each
batch.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F

from ...errors import ConfigError, DivergedError
from ...models.channel_moments import channel_moments
from ...models.classifier import Classifier
from ...models.hooks import BatchStatistics, batch_norm_layers, record_activations, record_batch_statistics
from ...models.queries import BLANK
from ...synthesis.losses import Terms
from ..interface import TWO_WAYS, Given, Inverted
from ..losses import js_similarity, mean_variation, pixel_variation, statistics_distance, sum_terms
from ..options import GrowingPoolOptions, InversionOptions, resolve
from ..statistics.recorded import Statistics
from .activation_matching import INITIALIZERS, Curve
from .pixel_optimizer import PixelAdam
from .pool import GrowingPool

COMPETITION_TEMPERATURE = 3.0
"""Temperature T of the competition term, as published."""

Watch = Callable[[], list[BatchStatistics]]


@dataclass(frozen=True)
class TermWeights:
    """Weights of the terms of `terms_of`; `first_bn` also multiplies the first layer's part of the term `bn`."""

    ce: float
    tv: float
    tv_l1: float
    l2: float
    bn: float = 0.0
    first_bn: float = 1.0
    compete: float = 0.0


@dataclass(frozen=True)
class PixelSchedule:
    """How a batch is optimized.

    Attributes:
        steps: number of steps at full size.
        lr: highest learning rate of Adam.
        betas: decays of Adam.
        coarse_steps: number of steps at half the size, before the others; left out for a teacher that accepts one image
            size only.
        warmup: steps in which the rate rises linearly; after them it falls along a cosine. 0: a constant rate.
        jitter: largest cyclic shift in pixels in each direction; half as much at half the size.
        flip: whether the batch is mirrored at a random half of the steps.
    """

    steps: int
    lr: float
    betas: tuple[float, float]
    coarse_steps: int = 0
    warmup: int = 0
    jitter: int = 0
    flip: bool = False

    def rate(self, step: int, steps: int) -> float:
        """Return the learning rate of step number `step` of `steps`, counted from 0."""
        if not self.warmup:
            return self.lr
        if step < self.warmup:
            return self.lr * (step + 1) / self.warmup
        return self.lr * 0.5 * (1 + math.cos(math.pi * (step - self.warmup) / max(1, steps - self.warmup)))


@contextmanager
def watch_statistics(teacher: Classifier, statistics: Statistics | None) -> Iterator[Watch]:
    """Yield a function that returns, after a forward pass, the statistics of each layer and those to match.

    The layers are the inputs of the teacher's batch normalization layers or, in a teacher without any, the layers of
    `statistics`, with statistics per channel over all classes. They are in the order in which they run.

    Raises:
        ConfigError: the teacher has no batch normalization, and `statistics` is None.
    """
    if batch_norm_layers(teacher.network):
        with record_batch_statistics(teacher.network) as recorded:
            yield lambda: list(recorded.values())
    elif statistics is not None:
        kept = channel_statistics(statistics)
        axes = {layer.name: layer.channel_axis + 1 for layer in statistics.layers}
        with record_activations(teacher.network, list(kept)) as activations:

            def watch() -> list[BatchStatistics]:
                found = []
                for name, (mean, variance) in kept.items():
                    values = activations[name].movedim(axes[name], 1)
                    found.append(BatchStatistics(*channel_moments(values, mean), mean, variance))
                return found

            yield watch
    else:
        raise ConfigError(TWO_WAYS)


def channel_statistics(statistics: Statistics) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """Return mean and variance, [channels] each, of every recorded layer except the logits, over all classes.

    They equal the running statistics of batch normalization after that layer, for the same images.
    """
    hidden = [layer.name for layer in statistics.layers[:-1]]
    return {name: (statistics.means[name], statistics.variances[name]) for name in hidden}


def terms_of(
    teacher: Classifier,
    student: Classifier | None,
    values: torch.Tensor,
    labels: torch.Tensor,
    weights: TermWeights,
    watch: Watch | None,
) -> Terms:
    """Return the weighted terms of the loss of a batch, by name (Yin et al. 2020, equations 1 to 9).

    Args:
        values: normalized pixels [batch, channels, height, width].
        labels: int64 [batch].
        watch: the function that `watch_statistics` yields; None if the weight `bn` is 0.
    """
    logits = teacher.of_normalized(values)
    terms = {"ce": weights.ce * F.cross_entropy(logits, labels)}
    if weights.tv or weights.tv_l1:
        kinds = ((weights.tv, pixel_variation), (weights.tv_l1, mean_variation))
        terms["tv"] = torch.stack([weight * variation(values) for weight, variation in kinds if weight]).sum()
    if weights.l2:
        terms["l2"] = weights.l2 * torch.linalg.vector_norm(values)
    if watch is not None:
        distances = [statistics_distance(s.mean, s.variance, s.kept_mean, s.kept_variance) for s in watch()]
        distances[0] = distances[0] * weights.first_bn
        terms["bn"] = weights.bn * torch.stack(distances).sum()
    if student is not None and weights.compete:
        pixels = teacher.mean + teacher.std * values
        terms["compete"] = weights.compete * js_similarity(student(pixels), logits, COMPETITION_TEMPERATURE)
    return terms


def invert(
    teacher: Classifier,
    student: Classifier | None,
    statistics: Statistics | None,
    labels: torch.Tensor,
    weights: TermWeights,
    schedule: PixelSchedule,
    rng: torch.Generator,
    start: torch.Tensor | None = None,
    init: str = "normal",
) -> Inverted:
    """Make one image per label, and return the batch of the lowest loss at full size.

    Pixels are clipped to [0, 1] after every step.

    Args:
        student: for the competition term; in evaluation mode, and not changed.
        statistics: for a teacher without batch normalization; not used otherwise.
        labels: int64 [batch].
        rng: on the CPU.
        start: the first images, pixels in [0, 1], [batch, channels, height, width]; None: noise.
        init: kind of this noise: `normal` is N(0, 1) in normalized coordinates, others are keys of `INITIALIZERS`.

    Raises:
        ConfigError: there are no statistics to match, or the images are smaller than 2 x 2.
        DivergedError: the loss or a pixel is not finite.
    """
    _, height, width = teacher.input_shape
    if min(height, width) < 2:
        raise ConfigError("this method makes images of at least 2 x 2 pixels, not rows of a table")
    labels = labels.to(teacher.device)
    first = _first_values(teacher, len(labels), rng, init) if start is None else _normalized(teacher, start)
    if schedule.coarse_steps and not _takes_half_size(teacher):
        schedule = replace(schedule, coarse_steps=0)
    batch = _PixelBatch(teacher, first, schedule, rng)
    with torch.enable_grad(), _watching(teacher, statistics, weights) as watch:

        def terms(shown: torch.Tensor) -> Terms:
            return terms_of(teacher, student, shown, labels, weights, watch)

        if schedule.coarse_steps:
            batch.take_steps(schedule.coarse_steps, 2, terms)
        batch.take_steps(schedule.steps, 1, terms)
    loss = float(batch.least)
    if not math.isfinite(loss) or not bool(torch.isfinite(batch.values).all()):
        raise DivergedError("the loss of the images is not finite; try a smaller --lr")
    images = (teacher.mean + teacher.std * batch.best).clamp_(0, 1)
    return Inverted(images, loss, len(labels) * batch.taken, batch.curve.rows())


class _PixelBatch:
    """Normalized pixels during optimization: `values`, and `best`, those of the lowest loss so far, `least`."""

    def __init__(
        self, teacher: Classifier, values: torch.Tensor, schedule: PixelSchedule, rng: torch.Generator
    ) -> None:
        self._optimizer = PixelAdam(values, schedule.lr, schedule.betas)
        self.values = self._optimizer.values
        self.best = self.values.detach().clone()
        self.least = torch.full((), math.inf, device=teacher.device)
        self.curve = Curve(schedule.coarse_steps + schedule.steps)
        self.taken = 0
        self._bounds = -teacher.mean / teacher.std, (1 - teacher.mean) / teacher.std
        self._schedule, self._random = schedule, rng

    def take_steps(self, steps: int, shrink: int, terms_of_shown: Callable[[torch.Tensor], Terms]) -> None:
        """Take Adam steps with images of 1 / `shrink` of the size, without waiting for the device."""
        schedule, values = self._schedule, self.values
        self._optimizer.restart(schedule.lr, schedule.betas)
        for step in range(steps):
            terms = terms_of_shown(_network_input(values, shrink, schedule, self._random))
            self.taken += 1
            self.curve.offer(self.taken, terms)
            loss = sum_terms(terms)
            with torch.no_grad():
                if shrink == 1:
                    torch.where(loss < self.least, values, self.best, out=self.best)
                    torch.minimum(loss, self.least, out=self.least)
            self._optimizer.step(loss, schedule.rate(step, steps))
            with torch.no_grad():
                values.clamp_(*self._bounds)


def _first_values(teacher: Classifier, count: int, rng: torch.Generator, init: str) -> torch.Tensor:
    """Return the first normalized pixels, [count, channels, height, width]."""
    shape = (count, *teacher.input_shape)
    if init == "normal":
        return torch.randn(shape, generator=rng).to(teacher.device)
    pixels = INITIALIZERS[init](shape, float(teacher.mean.mean()), rng).to(teacher.device)
    return _normalized(teacher, pixels)


def _normalized(teacher: Classifier, pixels: torch.Tensor) -> torch.Tensor:
    return (pixels - teacher.mean) / teacher.std


@contextmanager
def _watching(teacher: Classifier, statistics: Statistics | None, weights: TermWeights) -> Iterator[Watch | None]:
    if not weights.bn:
        yield None
        return
    with watch_statistics(teacher, statistics) as watch:
        yield watch


def _takes_half_size(teacher: Classifier) -> bool:
    """Return whether the teacher accepts images of half its size, as networks with global average pooling do."""
    channels, height, width = teacher.input_shape
    try:
        with torch.no_grad(), teacher.queries.purpose(BLANK):
            teacher(torch.zeros((2, channels, height // 2, width // 2), device=teacher.device))
    except RuntimeError:
        return False
    return True


def _network_input(values: torch.Tensor, shrink: int, schedule: PixelSchedule, rng: torch.Generator) -> torch.Tensor:
    """Return the batch as the networks get it: shrunk, shifted cyclically, and mirrored at random."""
    shown = F.avg_pool2d(values, shrink) if shrink > 1 else values
    limit = schedule.jitter // shrink
    if limit:
        down, right = torch.randint(-limit, limit + 1, (2,), generator=rng).tolist()
        shown = torch.roll(shown, (down, right), dims=(2, 3))
    if schedule.flip and float(torch.rand((), generator=rng)) < 0.5:
        shown = shown.flip(3)
    return shown


def invert_as(
    config: InversionOptions,
    given: Given,
    labels: torch.Tensor,
    rng: torch.Generator,
    start: torch.Tensor | None = None,
) -> Inverted:
    """Make one image per label with the options of an objective. Arguments and errors are those of `invert`."""
    settings = resolve(config, given.teacher.input_shape)
    weights = TermWeights(
        ce=settings.ce,
        tv=settings.tv,
        tv_l1=settings.tv_l1,
        l2=settings.l2,
        bn=settings.bn,
        first_bn=settings.first_bn,
        compete=settings.compete,
    )
    schedule = PixelSchedule(
        steps=settings.steps if start is None else settings.adapt_steps,
        lr=settings.lr,
        betas=(settings.beta1, settings.beta2),
        coarse_steps=settings.coarse_steps,
        warmup=settings.warmup,
        jitter=settings.jitter,
        flip=settings.flip,
    )
    return invert(given.teacher, given.student, given.statistics, labels, weights, schedule, rng, start, settings.init)


def growing_pool(config: GrowingPoolOptions, given: Given, seed: int) -> GrowingPool:
    """Return a pool of images that are made with the options of a live method. Batches raise what `invert` raises."""

    def make(
        labels: torch.Tensor, student: Classifier | None, rng: torch.Generator, start: torch.Tensor | None
    ) -> Inverted:
        return invert_as(config, replace(given, student=student), labels, rng, start)

    from_noise = resolve(config, given.teacher.input_shape).from_noise
    return GrowingPool(make, given.teacher, config.pool_batch, config.period, seed, from_noise)
