"""A growing pool whose batches come from a generator, and the loss of such a batch.

The loss is that of FastDFKD (Fang et al. 2022, equation 4) and NAYER (Tran et al. 2024, section 3): the class, the
statistics of the teacher's layers, and a student that disagrees.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F

from ...errors import DivergedError
from ...models.classifier import Classifier
from ...models.hooks import BatchStatistics
from ...models.queries import HELD_OUT
from ...training.augmentation import augment
from ...training.loop import Stateful
from ...training.sources import State, with_prefix
from ..interface import Inverted
from ..inversion.activation_matching import Curve
from ..inversion.deep_inversion import watch_statistics
from ..inversion.pool import GrowingPool
from ..losses import Terms, agreed_kl, statistics_distance, sum_terms
from ..statistics.recorded import Statistics
from ..structured_noise.by_class import maker, require_images
from ..structured_noise.pool import RefreshedPool

BETAS = (0.5, 0.999)
"""Of Adam, for generators."""
MOMENTUM = 0.9
"""Of the statistics of batches, which are matched together with those of the batches before."""


@dataclass(frozen=True)
class BatchWeights:
    """Weights of the cross-entropy to the class, of the distance to the statistics of the teacher's layers, and of the
    student's disagreement."""

    ce: float
    bn: float
    compete: float


class BatchLoss:
    """Optimizes batches of images, and tracks their statistics from one batch to the next.

    Before they are given to both networks, images are shifted by up to 4 pixels and mirrored, grey ones are shifted by
    up to 2 pixels.

    Args:
        statistics: for a teacher without batch normalization; not used otherwise.

    Raises:
        ConfigError: the teacher takes rows of a table, or there are no statistics to match.
    """

    def __init__(self, teacher: Classifier, statistics: Statistics | None, weights: BatchWeights) -> None:
        require_images(teacher)
        self._teacher, self._statistics, self._weights = teacher.frozen(), statistics, weights
        self._flip = teacher.input_shape[0] > 1
        self._shift = 4 if self._flip else 2
        self._tracked: list[tuple[torch.Tensor, torch.Tensor]] = []
        with watch_statistics(teacher, statistics):
            pass

    def minimize(
        self,
        images_now: Callable[[], torch.Tensor],
        optimizer: torch.optim.Optimizer,
        steps: int,
        labels: torch.Tensor,
        student: Classifier | None,
        rng: torch.Generator,
        after_backward: Callable[[], None] = lambda: None,
    ) -> Inverted:
        """Take steps with the optimizer; return the images of the step with the lowest loss.

        Args:
            images_now: returns the images of the present weights, pixels in [0, 1], [batch, channels, height, width].
            labels: int64 [batch].
            student: in evaluation mode, and not changed; None: no competition term.
            rng: on the CPU.
            after_backward: called when the gradients of a step are known.

        Raises:
            DivergedError: the loss or a pixel is not finite.
        """
        teacher, curve = self._teacher, Curve(steps)
        labels, parameters = labels.to(teacher.device), [p for group in optimizer.param_groups for p in group["params"]]
        best, least = torch.zeros(()), torch.full((), math.inf, device=teacher.device)
        layers: list[BatchStatistics] = []
        with torch.enable_grad(), watch_statistics(teacher, self._statistics) as watch:
            for step in range(1, steps + 1):
                images = images_now()
                shown = augment(images, self._shift, self._flip, rng)
                logits, layers = teacher(shown), watch()
                terms = self._terms(logits, labels, layers, None if student is None else student(shown))
                curve.offer(step, terms)
                loss = sum_terms(terms)
                best = images.detach() if step == 1 else torch.where(loss.detach() < least, images.detach(), best)
                least = torch.minimum(least, loss.detach())
                optimizer.zero_grad()
                loss.backward(inputs=parameters)
                after_backward()
                optimizer.step()
        self._tracked = [(mean.detach(), variance.detach()) for mean, variance in self._with_earlier(layers)]
        if not math.isfinite(float(least)) or not bool(torch.isfinite(best).all()):
            raise DivergedError("the loss of the images is not finite")
        return Inverted(best, float(least), len(labels) * steps, curve.rows())

    def _terms(
        self, logits: torch.Tensor, labels: torch.Tensor, layers: list[BatchStatistics], student: torch.Tensor | None
    ) -> Terms:
        weights = self._weights
        found = zip(self._with_earlier(layers), layers, strict=True)
        distances = [statistics_distance(*moments, kept.kept_mean, kept.kept_variance) for moments, kept in found]
        terms = {
            "ce": weights.ce * F.cross_entropy(logits, labels),
            "bn": weights.bn * torch.stack(distances).sum(),
        }
        if student is not None:
            agreed = (student.argmax(1) == logits.argmax(1)).to(logits.dtype).mean()
            terms["compete"] = -weights.compete * agreed * agreed_kl(student, logits)
        return terms

    def _with_earlier(self, layers: list[BatchStatistics]) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """Return mean and variance of each layer, averaged with those of the batches before."""
        if not self._tracked:
            return [(layer.mean, layer.variance) for layer in layers]
        earlier = zip(self._tracked, layers, strict=True)
        return [
            (MOMENTUM * mean + (1 - MOMENTUM) * now.mean, MOMENTUM * variance + (1 - MOMENTUM) * now.variance)
            for (mean, variance), now in earlier
        ]

    def state(self) -> State:
        """Return the tracked statistics."""
        pairs = enumerate(self._tracked)
        return {f"{i}.{part}": value for i, pair in pairs for part, value in enumerate(pair)}, {
            "layers": len(self._tracked)
        }

    def restore(self, state: State) -> None:
        """Continue from `state`."""
        tensors, values = state
        device = self._teacher.device
        self._tracked = [(tensors[f"{i}.0"].to(device), tensors[f"{i}.1"].to(device)) for i in range(values["layers"])]


class BatchMaker(Stateful, Protocol):
    """Makes batches, and learns from each of them; its state is part of a checkpoint."""

    def make(
        self, labels: torch.Tensor, student: Classifier | None, rng: torch.Generator, start: torch.Tensor | None
    ) -> Inverted:
        """Return one image per label. `start` is not used."""
        ...


class GeneratorBank(GrowingPool):
    """A `GrowingPool` of the batches of a `BatchMaker`.

    Held-out images are structured noise, since a batch made for them would change the generator.

    Args:
        batch: images per batch.
        period: as in `GrowingPool`.
        warmup: number of batches that are made without a student, before the first step of the student.
        seed: of noise and draws.
    """

    def __init__(self, maker: BatchMaker, teacher: Classifier, batch: int, period: int, warmup: int, seed: int) -> None:
        super().__init__(maker.make, teacher, batch, period, seed, terms=("ce", "bn", "compete"))
        self._maker, self._warmup = maker, warmup

    def held_out(self, num_images: int) -> torch.Tensor:
        """Return structured noise, all classes equally often."""
        with self._teacher.queries.purpose(HELD_OUT):
            pool = RefreshedPool(maker(self._teacher), self._teacher, num_images, num_images, 0, 0)
            return pool.held_out(num_images)

    def state(self) -> State:
        """Return the images, and the state of the maker."""
        tensors, values = super().state()
        own, values["maker"] = self._maker.state()
        return tensors | {f"maker.{name}": tensor for name, tensor in own.items()}, values

    def restore(self, state: State) -> None:
        """Continue from `state`."""
        tensors, values = state
        super().restore(state)
        self._maker.restore((with_prefix(tensors, "maker."), values["maker"]))

    def _ensure_first_batch(self) -> None:
        while self._size < self._warmup * self._batch:
            self._add_batch(None)
