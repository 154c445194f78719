"""A pool of generated images with the teacher's logits, whose images are replaced while a student is trained."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch

from ...models.classifier import Classifier
from ...models.pixels import to_pixels, to_uint8
from ...models.queries import HELD_OUT, TARGETS
from ...training.class_index import ClassIndex
from ...training.sources import HELD_OUT_SEED, Batch, State
from ...training.supervised import predict

RARE = 0.1
"""A class with less than this share of the mean number of images per class is drawn proportionally less often."""

HELD_OUT_POOL = 4
"""Number of images that are made per held-out image."""

MAX_POOL_BYTES, MAX_HELD_OUT_BYTES = 2**29, 2**26
"""Largest size of a pool, and of the images among which held-out images are chosen: 3,566 and 445 of 3x224x224."""

MakeImages = Callable[[int, torch.Generator], torch.Tensor]
"""(count, rng) -> pixels in [0, 1], [count, channels, height, width]."""


class RefreshedPool:
    """A `Source` of images in chunks, of which a new one replaces the oldest; classes are drawn equally often.

    Chunk number i depends only on the seed and on i, so that a pool is restored by making its chunks again. The
    teacher's logits are computed once for each image, when its chunk is added.

    Args:
        make: makes the images.
        size: number of images in the pool, rounded up to whole chunks.
        chunk: images per chunk.
        period: `update` adds a chunk at every `period`-th call; 0: never.
        seed: of images and draws.
    """

    def __init__(self, make: MakeImages, teacher: Classifier, size: int, chunk: int, period: int, seed: int) -> None:
        self._make, self._teacher, self._period, self._seed = make, teacher, period, seed
        self._num_chunks = -(-size // chunk)
        self._chunk = chunk
        self._rng = torch.Generator().manual_seed(seed)
        self._images = torch.empty((self._num_chunks * chunk, *teacher.input_shape), dtype=torch.uint8)
        self._images = self._images.to(teacher.device)
        self._targets = torch.empty((len(self._images), teacher.num_classes), device=teacher.device)
        self._entered, self._updates = 0, 0
        self._hold_chunks(self._num_chunks)

    @property
    def num_images(self) -> int:
        """Number of images made so far."""
        return self._entered * self._chunk

    def update(self, student: Classifier) -> dict[str, float]:
        """Add a new chunk if it is due."""
        self._updates += 1
        if self._period and self._updates % self._period == 0:
            self._hold_chunks(self._entered + 1)
        return {}

    def sample(self, num_images: int) -> Batch:
        """Draw a class for each image, then a random image for which the teacher predicts this class."""
        classes = torch.multinomial(self._class_weights, num_images, replacement=True, generator=self._rng)
        rows = self._index.draw(classes, self._rng).to(self._images.device)
        return Batch(to_pixels(self._images[rows]), self._targets[rows])

    def held_out(self, num_images: int) -> torch.Tensor:
        """Return images of another pool, all classes equally often."""
        return self.held_out_of(self._make, num_images)

    def held_out_of(self, make: MakeImages, num_images: int) -> torch.Tensor:
        """Return images that `make` draws with a seed of their own, uint8, all classes equally often."""
        size = max(num_images, at_most(HELD_OUT_POOL * num_images, MAX_HELD_OUT_BYTES, self._teacher))
        with self._teacher.queries.purpose(HELD_OUT):
            other = RefreshedPool(make, self._teacher, size, num_images, 0, HELD_OUT_SEED)
        return to_uint8(other.sample(num_images).images)

    def state(self) -> State:
        """Return the random state of the draws, and the numbers of chunks added and of updates."""
        return {"rng": self._rng.get_state()}, {"entered": self._entered, "updates": self._updates}

    def restore(self, state: State) -> None:
        """Continue from `state`: make the chunks that were in the pool and are not in it now."""
        tensors, values = state
        entered, self._updates = values["entered"], values["updates"]
        self._rng.set_state(tensors["rng"])
        if entered != self._entered:
            self._hold_chunks(entered)

    def _hold_chunks(self, entered: int) -> None:
        """Make the pool hold the chunks that it has after `entered` chunks were added, and index the classes."""
        there = range(max(0, self._entered - self._num_chunks), self._entered)
        for index in range(max(0, entered - self._num_chunks), entered):
            if index in there:
                continue
            rng = torch.Generator().manual_seed(self._seed * 1_000_003 + index + 1)
            images = to_uint8(self._make(self._chunk, rng))
            place = slice(index % self._num_chunks * self._chunk, (index % self._num_chunks + 1) * self._chunk)
            self._images[place] = images.to(self._images.device)
            with self._teacher.queries.purpose(TARGETS):
                self._targets[place] = predict(self._teacher, images).to(self._targets.device)
        self._entered = entered
        answers = self._targets.argmax(1).cpu()
        self._index = ClassIndex(answers, self._targets.shape[1])
        fair = RARE * len(answers) / self._targets.shape[1]
        self._class_weights = (self._index.counts / fair).clamp_(max=1.0)


def at_most(num_images: int, num_bytes: int, teacher: Classifier) -> int:
    """Return the smaller one of `num_images` and the number of the teacher's images that fit into `num_bytes`."""
    return min(num_images, num_bytes // math.prod(teacher.input_shape))
