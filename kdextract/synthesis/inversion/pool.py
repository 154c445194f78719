"""A pool that grows while the student learns: batches of images inverted from the teacher, perhaps against the student.

The protocol of DeepInversion's experiments on CIFAR-10 (Yin et al. 2020, section 4.1 and supplement): a batch is made
every few student steps, used at once, and kept; the student then learns from all that were made.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import torch

from ...models.classifier import Classifier
from ...models.hooks import frozen_evaluation
from ...models.pixels import to_pixels, to_uint8
from ...models.queries import HELD_OUT, TARGETS
from ...training.class_index import ClassIndex, labels_in_turn
from ...training.sources import HELD_OUT_SEED, Batch, State
from ..interface import Inverted

MakeBatch = Callable[[torch.Tensor, Classifier | None, torch.Generator, torch.Tensor | None], Inverted]
"""(labels int64 [batch], the student or None, random, pixels to begin from or None) -> one image per label."""
TERMS = ("loss", "ce", "tv", "l2", "bn", "compete")
"""What is kept of each batch's loss."""


class GrowingPool:
    """A `Source` of inverted images; targets are the teacher's logits.

    Batch number i depends on the seed, on i and on the student at that moment. The first one is made without a student,
    when it is first asked for. Classes take turns over all images of the pool, so that each is made equally often.

    Args:
        make: makes a batch.
        teacher: asked about each image when it enters.
        batch: images made at a time.
        period: `update` makes a batch at every so many calls.
        seed: fixes noise and draws.
        from_noise: so many batches begin from noise, and more until every class has an image; later ones begin from
            images of the pool. 0: all begin from noise.
    """

    def __init__(
        self, make: MakeBatch, teacher: Classifier, batch: int, period: int, seed: int, from_noise: int = 0
    ) -> None:
        self._make, self._teacher, self._batch, self.period, self._seed = make, teacher, batch, period, seed
        self._from_noise = from_noise
        self._rng = torch.Generator().manual_seed(seed)
        shape = (0, *teacher.input_shape)
        self._images = torch.empty(shape, dtype=torch.uint8, device=teacher.device)
        self._targets = torch.empty((0, teacher.num_classes), device=teacher.device)
        self._size, self._updates, self._unseen = 0, 0, 0
        self._ends: list[list[float]] = []
        self.batch_seconds = 0.0

    @property
    def num_images(self) -> int:
        """Images made so far."""
        return self._size

    @property
    def curve(self) -> list[dict[str, float]]:
        """The terms that each batch ended with."""
        return [{"batch": i, **dict(zip(TERMS, ends, strict=True))} for i, ends in enumerate(self._ends, 1)]

    def update(self, student: Classifier) -> dict[str, float]:
        """Make a batch if it is time to, and return its loss, {} otherwise."""
        self._begin()
        self._updates += 1
        if self._updates % self.period:
            return {}
        with frozen_evaluation(student.network):
            return {"inversion_loss": self._enter(student)}

    def sample(self, num_images: int) -> Batch:
        """Draw from the newest batch until each of its images was seen once, and then from all."""
        self._begin()
        if self._unseen >= num_images:
            rows = torch.arange(self._size - self._unseen, self._size - self._unseen + num_images)
            self._unseen -= num_images
        else:
            rows = torch.randint(self._size, (num_images,), generator=self._rng)
        rows = rows.to(self._images.device)
        return Batch(to_pixels(self._images[rows]), self._targets[rows])

    def held_out(self, num_images: int) -> torch.Tensor:
        """Return a batch that does not enter the pool, made without a student, or the first images of it.

        Its classes are spread evenly over all classes.
        """
        num_classes = self._teacher.num_classes
        labels = torch.arange(self._batch) * max(num_classes, self._batch) // self._batch % num_classes
        with self._teacher.queries.purpose(HELD_OUT):
            made = self._make(labels, None, _seeded(HELD_OUT_SEED), None)
        return to_uint8(made.images)[:num_images].cpu()

    def state(self) -> State:
        """The images themselves, for the students that they were made against are gone."""
        self._begin()
        counters = torch.tensor([self._updates, self._unseen])
        kept = {"images": self._images[: self._size], "targets": self._targets[: self._size]}
        ends = torch.tensor(self._ends, dtype=torch.float64)
        return {**kept, "counters": counters, "ends": ends, "rng": self._rng.get_state()}

    def restore(self, state: State) -> None:
        """Continue with the pool of `state`."""
        self._images, self._targets = (state[name].to(self._images.device) for name in ("images", "targets"))
        self._size = len(self._images)
        self._updates, self._unseen = state["counters"].tolist()
        self._ends = state["ends"].tolist()
        self._rng.set_state(state["rng"])

    def _begin(self) -> None:
        """Make the first batch, unless there is one."""
        if self._size == 0:
            self._enter(None)

    def _enter(self, student: Classifier | None) -> float:
        """Let a new batch enter, and return its loss."""
        began = time.monotonic()
        made = self._next_batch(student)
        images = to_uint8(made.images)
        last = self._size + len(images)
        if last > len(self._images):
            self._images, self._targets = (_roomier(pool, last) for pool in (self._images, self._targets))
        self._images[self._size : last] = images
        with torch.no_grad(), self._teacher.queries.purpose(TARGETS):
            self._targets[self._size : last] = self._teacher(to_pixels(images))
        self._size, self._unseen = last, len(images)
        self.batch_seconds = time.monotonic() - began
        self._ends.append([made.curve[-1].get(term, 0.0) for term in TERMS])
        return made.loss

    def _next_batch(self, student: Classifier | None) -> Inverted:
        """Make the batch that enters next."""
        num_classes, batches = self._teacher.num_classes, self._size // self._batch
        labels = labels_in_turn(self._size, self._batch, num_classes)
        rng = _seeded(self._seed * 1_000_003 + batches + 1)
        if not self._from_noise or batches < self._from_noise or self._size < num_classes:
            return self._make(labels, student, rng, None)
        rows = self._images_of(labels, rng).to(self._images.device)
        return self._make(labels, student, rng, to_pixels(self._images[rows]))

    def _images_of(self, labels: torch.Tensor, rng: torch.Generator) -> torch.Tensor:
        """Return, for each label, the row of a random image that the teacher gives to this class or, where it gives
        none to it, of one that was made for it."""
        num_classes = self._teacher.num_classes
        answered = ClassIndex(self._targets[: self._size].argmax(1).cpu(), num_classes)
        rows = ClassIndex(labels_in_turn(0, self._size, num_classes), num_classes).draw(labels, rng)
        known = answered.counts[labels] > 0
        rows[known] = answered.draw(labels[known], rng)
        return rows


def _seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _roomier(pool: torch.Tensor, needed: int) -> torch.Tensor:
    """Return a tensor whose first rows are those of `pool`, with room for `needed` rows and as many again."""
    larger = torch.empty((2 * needed, *pool.shape[1:]), dtype=pool.dtype, device=pool.device)
    larger[: len(pool)] = pool
    return larger
