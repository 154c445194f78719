"""Sources of images for the distillation loop."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch

from ..models.architectures import InputShape
from ..models.classifier import Classifier
from ..models.pixels import to_pixels, to_uint8

HELD_OUT = 20
"""One image in this number of images of a pool is held out, and at least one."""
HELD_OUT_SEED = 2**31 + 11
"""Larger than every seed that a user can give."""

Tensors = dict[str, torch.Tensor]
State = tuple[Tensors, dict[str, Any]]
"""The state of an object for a checkpoint: its tensors by name, and its other values, which JSON can hold."""


def with_prefix(tensors: Tensors, prefix: str) -> Tensors:
    """Return the tensors whose names begin with `prefix`, by the rest of their names."""
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


@dataclass(frozen=True)
class Batch:
    """Images [batch, channels, height, width], pixels in [0, 1], and the teacher's logits [batch, K] where known."""

    images: torch.Tensor
    targets: torch.Tensor | None


class Source(Protocol):
    """Supplies batches of images to `distill`, which does not depend on how they are made."""

    @property
    def num_images(self) -> int:
        """Number of different images that it holds, or has made so far."""
        ...

    def update(self, student: Classifier) -> dict[str, float]:
        """Make new images or train a generator, where due; return measurements. Called before each student step."""
        ...

    def sample(self, num_images: int) -> Batch:
        """Return the next `num_images` images."""
        ...

    def held_out(self, num_images: int) -> torch.Tensor:
        """Return up to `num_images` images that `sample` never returns, uint8; every call returns the same images."""
        ...

    def state(self) -> State:
        """Return the state from which `restore` continues with the same samples."""
        ...

    def restore(self, state: State) -> None:
        """Continue from `state`."""
        ...


@runtime_checkable
class Described(Protocol):
    """A source that chose some of its settings itself when it was opened."""

    @property
    def facts(self) -> Mapping[str, float]:
        """These settings, by name."""
        ...


@runtime_checkable
class Optimized(Protocol):
    """A source whose images are optimized, or whose generator is."""

    @property
    def curve(self) -> list[dict[str, float]]:
        """Rows {batch or step, loss, term ...} of the loss and its weighted terms; the first column is the time."""
        ...


@runtime_checkable
class Batched(Protocol):
    """A source in which every `period`-th update makes a batch, which takes long."""

    @property
    def period(self) -> int:
        """Number of updates per batch."""
        ...

    @property
    def batch_seconds(self) -> float:
        """Seconds that the newest batch took."""
        ...


class ImagePool:
    """Images in memory as uint8, drawn in epochs: each image once per epoch, in a new random order.

    Args:
        images: uint8 [N, channels, height, width].
        targets: the teacher's logits [N, K], or labels, int64 [N]; None if they are not known.
        seed: fixes the order.
        device: of the batches; the images are kept there.
        holds_out: whether one image in `HELD_OUT` is held out, that is, never drawn.
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
        """Number of images in the pool, held-out ones included."""
        return len(self._images)

    def update(self, student: Classifier) -> dict[str, float]:
        """Do nothing: the images do not change."""
        return {}

    def sample(self, num_images: int) -> Batch:
        """Return the next images of the epoch; a batch may span several epochs."""
        while len(self._order) < num_images:
            epoch = torch.randperm(len(self._drawn), generator=self._rng)
            self._order = torch.cat([self._order, self._drawn[epoch] if len(self._held_out) else epoch])
        rows, self._order = self._order[:num_images], self._order[num_images:]
        rows = rows.to(self._images.device)
        return Batch(self._images_of(rows), None if self._targets is None else self._targets[rows])

    def _images_of(self, rows: torch.Tensor) -> torch.Tensor:
        """Return the pixels of the images that are drawn."""
        return to_pixels(self._images[rows])

    def held_out(self, num_images: int) -> torch.Tensor:
        """Return up to `num_images` of the held-out images."""
        return self._images[self._held_out[:num_images].to(self._images.device)]

    def held_out_targets(self, num_images: int) -> torch.Tensor:
        """Return the targets of the images of `held_out`."""
        assert self._targets is not None
        return self._targets[self._held_out[:num_images].to(self._targets.device)]

    def state(self) -> State:
        """Return the order of the rest of the epoch, and the random state that the next epoch is drawn from."""
        return {"order": self._order, "rng": self._rng.get_state()}, {}

    def restore(self, state: State) -> None:
        """Continue from `state`."""
        tensors, _ = state
        self._order = tensors["order"]
        self._rng.set_state(tensors["rng"])


class MirroringPool(ImagePool):
    """An `ImagePool` that mirrors each image in every second epoch, a random half of them in the first one.

    In any two epochs in a row, each image is seen in both ways (alternating flip: Jordan 2024, section 3.6).
    """

    def __init__(self, images: torch.Tensor, targets: torch.Tensor | None, seed: int, device: torch.device) -> None:
        super().__init__(images, targets, seed, device)
        rng = torch.Generator().manual_seed(seed + 2)
        self._mirrored_first = (torch.rand(len(images), generator=rng) < 0.5).to(device)
        self._seen = 0

    def state(self) -> State:
        """Return the state of the pool, and the number of images drawn so far."""
        tensors, _ = super().state()
        return tensors, {"seen": self._seen}

    def restore(self, state: State) -> None:
        """Continue from `state`."""
        super().restore(state)
        self._seen = int(state[1]["seen"])

    def _images_of(self, rows: torch.Tensor) -> torch.Tensor:
        epochs = (self._seen + torch.arange(len(rows))) // self.num_images
        self._seen += len(rows)
        mirrored = self._mirrored_first[rows] ^ (epochs % 2 == 1).to(rows.device)
        images = super()._images_of(rows)
        return torch.where(mirrored.view(-1, 1, 1, 1), images.flip(3), images)


class Mixture:
    """Draws a share of each batch from one pool and the rest from another; both have targets of one kind.

    Args:
        share: the second pool's share of each batch, in [0, 1].
    """

    def __init__(self, first: ImagePool, second: ImagePool, share: float) -> None:
        self._pools, self._share = {"first": first, "second": second}, share

    def sample(self, num_images: int) -> Batch:
        """Return images of the first pool, followed by images of the second."""
        from_second = round(self._share * num_images)
        counts = {"first": num_images - from_second, "second": from_second}
        batches = [self._pools[name].sample(count) for name, count in counts.items() if count]
        images = torch.cat([batch.images for batch in batches]).contiguous(memory_format=torch.channels_last)
        targets = [batch.targets for batch in batches if batch.targets is not None]
        return Batch(images, torch.cat(targets) if targets else None)

    def state(self) -> State:
        """Return the states of both pools."""
        tensors: Tensors = {}
        values: dict[str, Any] = {}
        for name, pool in self._pools.items():
            own, values[name] = pool.state()
            tensors |= {f"{name}.{key}": tensor for key, tensor in own.items()}
        return tensors, values

    def restore(self, state: State) -> None:
        """Continue from `state`."""
        for name, pool in self._pools.items():
            pool.restore((with_prefix(state[0], f"{name}."), state[1][name]))


class FreshImages:
    """What sources have in common whose every image is new and does not depend on the student.

    Args:
        seed: of everything that is drawn at random.
    """

    def __init__(self, seed: int) -> None:
        self._rng = torch.Generator().manual_seed(seed)
        self._drawn = 0

    @property
    def num_images(self) -> int:
        """Number of images made so far."""
        return self._drawn

    def update(self, student: Classifier) -> dict[str, float]:
        """Do nothing: the images do not depend on the student."""
        return {}

    def state(self) -> State:
        """Return the random state, and the number of images made."""
        return {"rng": self._rng.get_state()}, {"drawn": self._drawn}

    def restore(self, state: State) -> None:
        """Continue from `state`."""
        tensors, values = state
        self._rng.set_state(tensors["rng"])
        self._drawn = int(values["drawn"])


class NoiseSource(FreshImages):
    """Independent random pixels, new in every batch: the baseline that any method should exceed.

    Args:
        kind: `normal` (standard normal in the teacher's normalized coordinates, clipped to valid pixels) or
            `uniform` on [0, 1].
    """

    def __init__(self, kind: str, teacher: Classifier, seed: int) -> None:
        self._kind = kind
        self._shape: InputShape = teacher.input_shape
        self._mean, self._std = teacher.mean, teacher.std
        super().__init__(seed)

    def sample(self, num_images: int) -> Batch:
        """Return new noise."""
        self._drawn += num_images
        pixels = self._noise(num_images, self._rng)
        return Batch(pixels.contiguous(memory_format=torch.channels_last), None)

    def held_out(self, num_images: int) -> torch.Tensor:
        """Return noise from another random number generator with a fixed seed."""
        return to_uint8(self._noise(num_images, torch.Generator().manual_seed(HELD_OUT_SEED)))

    def _noise(self, num_images: int, rng: torch.Generator) -> torch.Tensor:
        shape = (num_images, *self._shape)
        if self._kind == "uniform":
            return torch.rand(shape, generator=rng).to(self._mean.device)
        noise = torch.randn(shape, generator=rng).to(self._mean.device)
        return (noise * self._std + self._mean).clamp_(0, 1)
