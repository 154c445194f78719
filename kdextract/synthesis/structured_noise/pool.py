"""A pool of images that are made on the spot, labelled by the teacher, and replaced while a student learns."""

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
"""A class that has less than this share of its fair part of the pool is drawn as much less often."""

HELD_OUT_POOL = 4
"""Held-out images are chosen among so many times as many."""

MAX_POOL_BYTES, MAX_HELD_OUT_BYTES = 2**29, 2**26
"""Of large images, pools hold no more than this: 3,566 of 3x224x224, and 445 for the held-out ones."""

MakeImages = Callable[[int, torch.Generator], torch.Tensor]


class RefreshedPool:
    """Images that enter in chunks and leave in the order in which they came; classes are drawn equally often.

    Chunk number i depends on the seed and on i alone, so a pool is restored by making its chunks again. The teacher is
    asked once about each image, when it enters.

    Args:
        make: (count, rng) -> pixels in [0, 1], [count, channels, height, width].
        size: images in the pool, rounded up to whole chunks.
        chunk: images that enter at a time.
        period: `update` lets a new chunk enter at every so many calls; 0: never.
        seed: fixes all of it.
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
        self._let_enter(self._num_chunks)

    @property
    def num_images(self) -> int:
        """Images made so far."""
        return self._entered * self._chunk

    def update(self, student: Classifier) -> dict[str, float]:
        """Let a new chunk enter if it is time to."""
        self._updates += 1
        if self._period and self._updates % self._period == 0:
            self._let_enter(self._entered + 1)
        return {}

    def sample(self, num_images: int) -> Batch:
        """Draw a class for each image, then one of the images that the teacher gives to this class."""
        classes = torch.multinomial(self._class_weights, num_images, replacement=True, generator=self._rng)
        rows = self._index.draw(classes, self._rng).to(self._images.device)
        return Batch(to_pixels(self._images[rows]), self._targets[rows])

    def held_out(self, num_images: int) -> torch.Tensor:
        """Return images from another pool, each class equally often."""
        size = max(num_images, at_most(HELD_OUT_POOL * num_images, MAX_HELD_OUT_BYTES, self._teacher))
        with self._teacher.queries.purpose(HELD_OUT):
            other = RefreshedPool(self._make, self._teacher, size, num_images, 0, HELD_OUT_SEED)
        return to_uint8(other.sample(num_images).images)

    def state(self) -> State:
        """How many chunks have entered, and the generator of the draws."""
        counters = torch.tensor([self._entered, self._updates])
        return {"counters": counters, "rng": self._rng.get_state()}

    def restore(self, state: State) -> None:
        """Make the chunks again that were in the pool and are not now."""
        entered, self._updates = state["counters"].tolist()
        self._rng.set_state(state["rng"])
        if entered != self._entered:
            self._let_enter(entered)

    def _let_enter(self, entered: int) -> None:
        """Hold the chunks that are there once so many have entered, and index the classes anew."""
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
    """Return the number of images, or as many of the teacher's as fit into so many bytes, if they are fewer."""
    return min(num_images, num_bytes // math.prod(teacher.input_shape))
