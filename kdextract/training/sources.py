"""What the distillation loop draws from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch

from ..models.architectures import InputShape
from ..models.classifier import Classifier
from ..models.pixels import to_pixels, to_uint8

HELD_OUT = 20
"""One image in so many of a pool is held out, at least one."""
HELD_OUT_SEED = 2**31 + 11
"""Beyond all seeds that a user can give."""

State = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Batch:
    """Images [batch, channels, height, width], pixels in [0, 1]; the teacher's logits [batch, K] where known."""

    images: torch.Tensor
    targets: torch.Tensor | None


class Source(Protocol):
    """A supply of images. `distill` never knows which kind it got."""

    @property
    def num_images(self) -> int:
        """Different images that it holds, or has made so far."""
        ...

    def update(self, student: Classifier) -> dict[str, float]:
        """Improve what is sampled, using the student as it is; return what was measured, {} when frozen."""
        ...

    def sample(self, num_images: int) -> Batch:
        """Return the next `num_images` images."""
        ...

    def held_out(self, num_images: int) -> torch.Tensor:
        """Return up to `num_images` images of the same kind that `sample` never gives, uint8; always the same ones."""
        ...

    def state(self) -> State:
        """Return all that `restore` needs to continue with the same samples."""
        ...

    def restore(self, state: State) -> None:
        """Continue from `state`."""
        ...


@runtime_checkable
class Described(Protocol):
    """A source that decided something by itself when it was opened."""

    @property
    def facts(self) -> dict[str, int]:
        """What it decided, by name."""
        ...


@runtime_checkable
class Optimized(Protocol):
    """A source whose images are optimized, or whose generator is."""

    @property
    def curve(self) -> list[dict[str, float]]:
        """A loss and its terms over time: {batch or step, loss, term ...}; the first column is the time."""
        ...


@runtime_checkable
class Batched(Protocol):
    """A source in which every `period`-th update makes a costly batch; the newest one took `batch_seconds`."""

    @property
    def period(self) -> int:
        """Updates from one batch to the next."""
        ...

    @property
    def batch_seconds(self) -> float:
        """What the newest batch took."""
        ...


class ImagePool:
    """Images kept in memory as uint8, drawn in epochs: each image once, in a new random order every time.

    Args:
        images: uint8 [N, channels, height, width].
        targets: the teacher's logits [N, K], or None where they are not known yet.
        seed: fixes the order.
        device: where batches are needed.
        holds_out: whether one image in `HELD_OUT` is never drawn.
    """

    def __init__(
        self,
        images: torch.Tensor,
        targets: torch.Tensor | None,
        seed: int,
        device: torch.device,
        holds_out: bool = False,
    ) -> None:
        self._images = images.to(device)
        self._targets = None if targets is None else targets.to(device)
        self._rng = torch.Generator().manual_seed(seed)
        shuffled = torch.randperm(len(images), generator=torch.Generator().manual_seed(seed + 1))
        count = max(1, len(images) // HELD_OUT) if holds_out else 0
        self._held_out, self._drawn = shuffled[:count], shuffled[count:]
        self._order = torch.empty(0, dtype=torch.int64)

    @property
    def num_images(self) -> int:
        """Images in the pool."""
        return len(self._images)

    def update(self, student: Classifier) -> dict[str, float]:
        """A pool does not change."""
        return {}

    def sample(self, num_images: int) -> Batch:
        """Return the next images of the epoch; a batch may span several epochs."""
        while len(self._order) < num_images:
            epoch = torch.randperm(len(self._drawn), generator=self._rng)
            self._order = torch.cat([self._order, self._drawn[epoch] if len(self._held_out) else epoch])
        rows, self._order = self._order[:num_images], self._order[num_images:]
        rows = rows.to(self._images.device)
        return Batch(to_pixels(self._images[rows]), None if self._targets is None else self._targets[rows])

    def held_out(self, num_images: int) -> torch.Tensor:
        """Return images that are never drawn."""
        return self._images[self._held_out[:num_images].to(self._images.device)]

    def state(self) -> State:
        """The order of what is left of the epoch, and the generator of the next one."""
        return {"order": self._order, "rng": self._rng.get_state()}

    def restore(self, state: State) -> None:
        """Continue from `state`."""
        self._order = state["order"]
        self._rng.set_state(state["rng"])


class Mixture:
    """Draws a share of each batch from one pool and what is left from another; both have targets of one kind.

    Args:
        share: of the second pool, in [0, 1].
    """

    def __init__(self, first: ImagePool, second: ImagePool, share: float) -> None:
        self._pools, self._share = {"first": first, "second": second}, share

    def sample(self, num_images: int) -> Batch:
        """Return images of the first pool, then images of the second."""
        from_second = round(self._share * num_images)
        counts = {"first": num_images - from_second, "second": from_second}
        batches = [self._pools[name].sample(count) for name, count in counts.items() if count]
        images = torch.cat([batch.images for batch in batches]).contiguous(memory_format=torch.channels_last)
        targets = [batch.targets for batch in batches if batch.targets is not None]
        return Batch(images, torch.cat(targets) if targets else None)

    def state(self) -> State:
        """Those of both pools."""
        return {f"{name}.{key}": value for name, pool in self._pools.items() for key, value in pool.state().items()}

    def restore(self, state: State) -> None:
        """Continue from `state`."""
        for name, pool in self._pools.items():
            own = {key.removeprefix(f"{name}."): value for key, value in state.items() if key.startswith(f"{name}.")}
            pool.restore(own)


class NoiseSource:
    """Independent random pixels, fresh in every batch: the floor that any method has to beat.

    Args:
        kind: `normal` (standard normal in the teacher's normalized coordinates, clipped to valid pixels) or
            `uniform` on [0, 1].
    """

    def __init__(self, kind: str, teacher: Classifier, seed: int) -> None:
        self._kind = kind
        self._shape: InputShape = teacher.input_shape
        self._mean, self._std = teacher.mean, teacher.std
        self._rng = torch.Generator().manual_seed(seed)
        self._drawn = 0

    @property
    def num_images(self) -> int:
        """Images drawn so far."""
        return self._drawn

    def update(self, student: Classifier) -> dict[str, float]:
        """Noise does not change."""
        return {}

    def sample(self, num_images: int) -> Batch:
        """Return fresh noise."""
        self._drawn += num_images
        pixels = self._noise(num_images, self._rng)
        return Batch(pixels.contiguous(memory_format=torch.channels_last), None)

    def held_out(self, num_images: int) -> torch.Tensor:
        """Return noise from a generator of its own."""
        return to_uint8(self._noise(num_images, torch.Generator().manual_seed(HELD_OUT_SEED)))

    def _noise(self, num_images: int, rng: torch.Generator) -> torch.Tensor:
        shape = (num_images, *self._shape)
        if self._kind == "uniform":
            return torch.rand(shape, generator=rng).to(self._mean.device)
        noise = torch.randn(shape, generator=rng).to(self._mean.device)
        return (noise * self._std + self._mean).clamp_(0, 1)

    def state(self) -> State:
        """The generator, and how much was drawn from it."""
        return {"rng": self._rng.get_state(), "drawn": torch.tensor(self._drawn)}

    def restore(self, state: State) -> None:
        """Continue from `state`."""
        self._rng.set_state(state["rng"])
        self._drawn = int(state["drawn"])
