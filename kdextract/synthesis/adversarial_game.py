"""Adversarial training: a generator and the student are trained in turn, the student on the generator's images."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch

from ..errors import DivergedError
from ..models.classifier import Classifier
from ..models.hooks import (
    BatchStatistics,
    batch_norm_layers,
    frozen_evaluation,
    record_batch_statistics,
    record_features,
)
from ..models.queries import HELD_OUT, TARGETS
from ..synthesis.losses import Terms
from ..training.loop import optimizer_state, restore_optimizer
from ..training.sources import Batch, State, with_prefix
from .generators.game_networks import GAME_GENERATORS, ImageMaker, fitting_width, game_multiply_adds
from .losses import sum_terms
from .options import GameConfig
from .structured_noise.by_class import maker, structured_pool
from .structured_noise.pool import RefreshedPool

CURVE_POINTS = 200
"""About the number of rows of a curve."""
GRADIENT_CLIP = 5.0
"""Largest norm of a generator's gradient (ZSKT, Micaelli and Storkey 2019)."""


@dataclass(frozen=True)
class NetworkOutputs:
    """Outputs of both networks for the generator's images, from which the generator's loss is computed.

    Attributes:
        teacher: logits [batch, K].
        features: inputs of the teacher's last linear layer, [batch, units]; [batch, 0] if the loss does not use them.
        batch_norm: one entry per batch normalization layer of the teacher; empty if the loss does not use them.
        run_student: returns the student's logits; called once, at the first use of `student`.
    """

    teacher: torch.Tensor
    features: torch.Tensor
    batch_norm: list[BatchStatistics]
    run_student: Callable[[], torch.Tensor]

    @cached_property
    def student(self) -> torch.Tensor:
        """The student's logits [batch, K]."""
        return self.run_student()


GeneratorTerms = Callable[[NetworkOutputs], Terms]


@dataclass(frozen=True)
class GameSchedule:
    """The order of steps of generator and student, and the generator's loss.

    Attributes:
        terms: returns the weighted terms of the loss that the generator minimizes.
        student_steps: student steps before each generator step, at least 1.
        repeat: student steps on the same images, at least 1; the teacher's logits are computed once for them.
        uses_batch_norm: whether `terms` uses the statistics of the teacher's batch normalization layers.
        uses_features: whether `terms` uses the teacher's features.
    """

    terms: GeneratorTerms
    student_steps: int
    repeat: int = 1
    uses_batch_norm: bool = False
    uses_features: bool = False


class AdversarialSource:
    """A `Source` whose generator is trained against the student; targets are the teacher's logits.

    `update` is called before each student step. After every `student_steps` student steps it takes one Adam step of the
    generator. Its gradient is computed through both classifiers, which do not change.

    Args:
        generator: an `ImageMaker` on the teacher's device.
        pool: structured noise, for the generator's inputs and for replay; None if neither uses it.
        schedule: the order of steps, and the generator's loss.
        config: learning rate, sizes, and share of replayed images.
        facts: see `sources.Described`.
        seed: of the noise.
    """

    def __init__(
        self,
        teacher: Classifier,
        generator: ImageMaker,
        pool: RefreshedPool | None,
        schedule: GameSchedule,
        config: GameConfig,
        facts: dict[str, int],
        seed: int,
    ) -> None:
        self.facts = facts
        self._teacher, self._generator, self._pool = teacher.frozen(), generator, pool
        self._schedule, self._config = schedule, config
        self._optimizer = torch.optim.Adam(generator.parameters(), lr=config.generator_lr, fused=True)
        self._rng = torch.Generator().manual_seed(seed)
        self._updates, self._made = 0, 0
        self._kept: Batch | None = None
        self._uses_left = 0
        self._losses: dict[str, list[float]] = {}

    @property
    def num_images(self) -> int:
        """Number of images that the generator made for the student, and of images made for the pool."""
        return self._made + (self._pool.num_images if self._pool else 0)

    @property
    def curve(self) -> list[dict[str, float]]:
        """Rows {generator step, loss, term ...} at about `CURVE_POINTS` of the generator's steps."""
        steps = len(self._losses.get("loss", []))
        every = max(1, steps // CURVE_POINTS)
        return [
            {"generator step": step, **{name: values[step - 1] for name, values in self._losses.items()}}
            for step in range(every, steps + 1, every)
        ]

    def update(self, student: Classifier) -> dict[str, float]:
        """Take a generator step if it is due, and return its loss; {} otherwise.

        Raises:
            DivergedError: the generator's loss is not finite.
        """
        if self._pool is not None:
            self._pool.update(student)
        is_due = self._updates > 0 and self._updates % self._schedule.student_steps == 0
        self._updates += 1
        return {"generator_loss": self._step(student)} if is_due else {}

    def _step(self, student: Classifier) -> float:
        weights = list(self._generator.parameters())
        with frozen_evaluation(student), torch.enable_grad():
            terms = self._schedule.terms(self._forward(student))
            loss = sum_terms(terms)
            self._optimizer.zero_grad()
            loss.backward(inputs=weights)
        names, values = ["loss", *terms], torch.stack([loss, *terms.values()]).tolist()
        if not math.isfinite(values[0]):
            raise DivergedError("the generator's loss is not finite; try a smaller --generator-lr")
        torch.nn.utils.clip_grad_norm_(weights, GRADIENT_CLIP)
        self._optimizer.step()
        for name, value in zip(names, values, strict=True):
            self._losses.setdefault(name, []).append(value)
        return float(values[0])

    def _forward(self, student: Classifier) -> NetworkOutputs:
        images = self._generator(self._inputs(self._config.generator_batch))
        with ExitStack() as stack:
            features = [images.new_empty((len(images), 0))]
            if self._schedule.uses_features:
                features = stack.enter_context(record_features(self._teacher.network, self._teacher.feature_layer))
            recorded = {}
            if self._schedule.uses_batch_norm:
                recorded = stack.enter_context(record_batch_statistics(self._teacher))
            logits = self._teacher(images)
        return NetworkOutputs(logits, features[-1], list(recorded.values()), lambda: student(images))

    def sample(self, num_images: int) -> Batch:
        """Return images of the generator, followed by replayed structured noise."""
        replayed = min(round(self._config.replay * num_images), num_images - 1)
        batch = self._newest(num_images - replayed)
        if not replayed:
            return batch
        assert self._pool is not None
        old = self._pool.sample(replayed)
        assert batch.targets is not None
        assert old.targets is not None
        images = torch.cat([batch.images, old.images]).contiguous(memory_format=torch.channels_last)
        return Batch(images, torch.cat([batch.targets, old.targets]))

    def held_out(self, num_images: int) -> torch.Tensor:
        """Return structured noise that is not in the pool, all classes equally often.

        It does not depend on the generator, whose images change during training.
        """
        with self._teacher.queries.purpose(HELD_OUT):
            pool = self._pool or RefreshedPool(maker(self._teacher), self._teacher, num_images, num_images, 0, 0)
            return pool.held_out(num_images)

    def _newest(self, num_images: int) -> Batch:
        """Return the images of the last call until they were used `repeat` times, then new ones."""
        if self._kept is None or self._uses_left == 0 or len(self._kept.images) != num_images:
            with torch.no_grad(), self._teacher.queries.purpose(TARGETS):
                images = self._generator(self._inputs(num_images))
                self._kept = Batch(images, self._teacher(images))
            self._made += num_images
            self._uses_left = self._schedule.repeat
        self._uses_left -= 1
        return self._kept

    def _inputs(self, count: int) -> torch.Tensor:
        """Draw inputs of the generator for `count` images."""
        noise = torch.randn((count, *self._generator.noise_shape), generator=self._rng).to(self._teacher.device)
        if not self._generator.edits:
            return noise
        assert self._pool is not None
        return torch.cat([self._pool.sample(count).images, noise], 1).contiguous(memory_format=torch.channels_last)

    def state(self) -> State:
        """Return copies of the generator's weights and moments, the losses, the counters, the pool and the batch."""
        tensors = {f"generator.{name}": value.clone() for name, value in self._generator.state_dict().items()}
        tensors |= {f"adam.{name}": value.clone() for name, value in optimizer_state(self._optimizer).items()}
        tensors |= {f"loss.{name}": torch.tensor(values) for name, values in self._losses.items()}
        tensors["rng"] = self._rng.get_state()
        values: dict[str, Any] = {"updates": self._updates, "made": self._made, "uses_left": self._uses_left}
        if self._pool is not None:
            pooled, values["pool"] = self._pool.state()
            tensors |= {f"pool.{name}": value for name, value in pooled.items()}
        if self._uses_left and self._kept is not None and self._kept.targets is not None:
            tensors |= {"kept.images": self._kept.images, "kept.targets": self._kept.targets}
        return tensors, values

    def restore(self, state: State) -> None:
        """Continue from `state`."""
        tensors, values = state
        self._generator.load_state_dict(with_prefix(tensors, "generator."))
        moments = with_prefix(tensors, "adam.")
        restore_optimizer(self._optimizer, {name: value.clone() for name, value in moments.items()})
        self._rng.set_state(tensors["rng"])
        self._updates, self._made, self._uses_left = values["updates"], values["made"], values["uses_left"]
        if self._pool is not None:
            self._pool.restore((with_prefix(tensors, "pool."), values["pool"]))
        self._losses = {name: losses.tolist() for name, losses in with_prefix(tensors, "loss.").items()}
        self._kept = None
        if "kept.images" in tensors:
            images = tensors["kept.images"].to(self._teacher.device).contiguous(memory_format=torch.channels_last)
            self._kept = Batch(images, tensors["kept.targets"].to(self._teacher.device))


def open_game(teacher: Classifier, schedule: GameSchedule, config: GameConfig, seed: int) -> AdversarialSource:
    """Return a source with an untrained generator and, if it is used, a pool of structured noise.

    Without `generator_width`, the generator is the widest one that costs no more multiply-adds than the teacher.

    Raises:
        ConfigError: the teacher takes rows of a table, and structured noise is used.
    """
    shape = teacher.input_shape
    cost = teacher.frozen().multiply_adds()
    width = config.generator_width or fitting_width(config.start, shape, cost)
    facts = {
        "generator_width": width,
        "generator_multiply_adds": game_multiply_adds(config.start, shape, width),
        "teacher_multiply_adds": cost,
    }
    if schedule.uses_batch_norm:
        facts["batch_norm_layers"] = len(batch_norm_layers(teacher))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        generator = GAME_GENERATORS[config.start](shape, width)
    generator.to(teacher.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    needs_pool = generator.edits or config.replay > 0
    pool = structured_pool(teacher, config.pool, config.fresh, seed) if needs_pool else None
    return AdversarialSource(teacher, generator, pool, schedule, config, facts, seed)
