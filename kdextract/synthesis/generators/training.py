"""The training of a generator: its network, auxiliary networks, and the loss of the next batch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import nn

from ...models.classifier import Classifier
from ...models.hooks import count_multiply_adds
from ...synthesis.losses import Terms
from ...training.augmentation import augment, warp
from ...training.loop import Schedule
from ...training.sources import State
from ..losses import sum_terms
from ..options import GeneratorConfig
from .generator import Generator, GeneratorSpec, new_generator
from .width import largest_width

NARROWEST, WIDEST = 4, 256
COPY_SHIFT, COPY_WARP = 2, 0.3
"""Random changes of copies of samples: largest shift in pixels, and `amount` of `augmentation.warp`."""


@dataclass(frozen=True)
class Samples:
    """A few real images: pixels [N, channels, height, width] in [0, 1] on 256 levels, labels int64 [N]."""

    images: torch.Tensor
    labels: torch.Tensor


class Draws:
    """Draws noise and labels of the batches on which a generator is trained, with its own random number generator."""

    def __init__(self, generator: Generator, batch_size: int, seed: int) -> None:
        self._generator, self._batch_size = generator, batch_size
        self.rng = torch.Generator().manual_seed(seed)

    def next(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Return noise [batch, *noise_shape] and labels [batch], each class equally likely, on the device."""
        labels = torch.randint(self._generator.spec.num_classes, (self._batch_size,), generator=self.rng)
        return self._generator.draw(self._batch_size, self.rng), labels.to(self._generator.device)

    def state(self) -> State:
        """Return the random state."""
        return {"rng": self.rng.get_state()}, {}

    def restore(self, state: State) -> None:
        """Continue from `state`."""
        self.rng.set_state(state[0]["rng"])


class TermLog:
    """A `loop.Monitor` that returns the mean of each term of the loss since its last call."""

    cooldown_start = replan = None

    def __init__(self) -> None:
        self._sums: Terms = {}
        self._count = 0

    def add(self, terms: Terms) -> None:
        """Add the terms of a step to the sums, on their device."""
        for name, term in terms.items():
            self._sums[name] = self._sums[name] + term.detach() if name in self._sums else term.detach()
        self._count += 1

    def on_step(self, training: object, step: int, /) -> dict[str, float]:
        """Return the means, and reset the sums."""
        means = {name: round(float(value) / self._count, 6) for name, value in self._sums.items()}
        self._sums, self._count = {}, 0
        return means

    def state(self) -> State:
        """Return an empty state: checkpoints are saved right after `on_step`, which leaves nothing."""
        return {}, {}

    def restore(self, state: State) -> None:
        """Do nothing: the state is empty."""


@dataclass(frozen=True)
class GeneratorTraining:
    """A generator in training; `loop.take_steps` changes its weights and those of its `helpers`.

    Attributes:
        generator: on the teacher's device.
        draws: noise and labels of the batches.
        terms: draws the next batch from `draws` and returns the weighted terms of its loss.
        lr: first learning rate.
        clip: largest norm of the gradient; None: no limit.
        helpers: auxiliary networks that are trained with the generator and not kept, by name.
        finish: called once after the last step.
        log: means of the terms.
    """

    generator: Generator
    draws: Draws
    terms: Callable[[], Terms]
    lr: float
    clip: float | None = None
    helpers: dict[str, nn.Module] = field(default_factory=dict)
    finish: Callable[[], None] = lambda: None
    log: TermLog = field(default_factory=lambda: TermLog())

    @property
    def network(self) -> nn.Module:
        """The generator's network and the auxiliary networks."""
        return nn.ModuleDict({"generator": self.generator.network, **self.helpers})

    @property
    def device(self) -> torch.device:
        """Device of the generator."""
        return self.generator.device

    def loss(self) -> torch.Tensor:
        """Return the loss of the next batch, and log its terms."""
        terms = self.terms()
        self.log.add(terms)
        return sum_terms(terms)

    def schedule(self, steps: int) -> Schedule:
        """Return a schedule of Adam whose learning rate falls to zero along a cosine."""
        return Schedule(steps, self.lr, clip=self.clip)


def copies_of(samples: Samples, total: int, rng: torch.Generator, flat: bool) -> Samples:
    """Return copies of the samples, randomly shifted and warped.

    Args:
        total: number of copies; it is rounded down to a multiple of the number of samples, but each is copied at least
            once.
        rng: on the CPU.
        flat: whether the samples are rows of a table, which are copied without changes.
    """
    times = max(1, total // len(samples.images))
    labels = samples.labels.repeat(times)
    images = samples.images.repeat(times, 1, 1, 1)
    if not flat:
        images = warp(augment(images, COPY_SHIFT, False, rng), COPY_WARP, rng)
    return Samples(images, labels)


def multiply_adds(spec: GeneratorSpec) -> int:
    """Return the multiply-adds per image of a generator, without computing an image."""
    with torch.device("meta"):
        generator = Generator(spec).eval()
        noise, labels = torch.empty((2, *generator.noise_shape)), torch.zeros(2, dtype=torch.int64)
        return count_multiply_adds(generator.network, noise, labels)


def sized_generator(
    teacher: Classifier,
    network: str,
    options: dict[str, int],
    width: int | None,
    seed: int,
    noise_scale: float = 1.0,
    widen: float = 1.0,
) -> Generator:
    """Return an untrained generator for a teacher's images and classes, on its device.

    Args:
        network: a key of `generators.networks.NETWORKS`.
        options: arguments of the network, except `width`.
        noise_scale: standard deviation of the noise in training.
        widen: see `GeneratorSpec`.
        width: of the network; None: the largest one that needs no more multiply-adds per image than the teacher.
        seed: of the first weights.
    """

    def spec(width: int) -> GeneratorSpec:
        shape, classes = teacher.input_shape, teacher.num_classes
        pixels = teacher.spec.mean, teacher.spec.std
        return GeneratorSpec(network, shape, classes, {**options, "width": width}, *pixels, noise_scale, widen)

    if width is None:
        affordable = teacher.multiply_adds()
        width = largest_width(lambda width: multiply_adds(spec(width)), affordable, NARROWEST, WIDEST)
    generator = new_generator(spec(width), seed)
    generator.to(teacher.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    return generator


def draws_for(generator: Generator, config: GeneratorConfig, seed: int) -> Draws:
    """Return the draws of batches of the size in the options."""
    return Draws(generator, config.batch_size, seed)
