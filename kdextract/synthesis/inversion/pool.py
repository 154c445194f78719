"""A growing pool of images whose pixels are optimized while the student is trained.

The protocol of DeepInversion's experiments on CIFAR-10 (Yin et al. 2020, section 4.1 and supplement): after every few
student steps a batch of images is made, used at once, and added to the pool; the student is trained on the whole pool.
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
"""(labels int64 [batch], the student or None, rng, first pixels or None) -> one image per label."""


class GrowingPool:
    """A `Source` of images made by optimizing pixels; targets are the teacher's logits.

    Batch number i depends on the seed, on i and on the student at that moment. The first batch is made without a
    student, before the first `update` or `sample`. Classes alternate over all images of the pool, so that there are
    equally many of each.

    Args:
        make: makes a batch.
        teacher: its logits are computed once for each image, when it is added to the pool.
        batch: images per batch.
        period: `update` makes a batch at every `period`-th call.
        seed: of noise and draws.
        terms: names of the terms of the loss of a batch; they are kept beside the loss itself.
        from_noise: number of first batches that start from noise, and at least until every class has an image; later
            ones start from images of the pool. 0: all batches start from noise.
    """

    def __init__(
        self,
        make: MakeBatch,
        teacher: Classifier,
        batch: int,
        period: int,
        seed: int,
        from_noise: int = 0,
        terms: tuple[str, ...] = ("ce", "tv", "l2", "bn", "compete"),
    ) -> None:
        self._make, self._teacher, self._batch, self.period, self._seed = make, teacher, batch, period, seed
        self._terms = ("loss", *terms)
        self._from_noise = from_noise
        self._rng = torch.Generator().manual_seed(seed)
        shape = (0, *teacher.input_shape)
        self._images = torch.empty(shape, dtype=torch.uint8, device=teacher.device)
        self._targets = torch.empty((0, teacher.num_classes), device=teacher.device)
        self._size, self._updates, self._unseen = 0, 0, 0
        self._last_terms: list[list[float]] = []
        self.batch_seconds = 0.0

    @property
    def num_images(self) -> int:
        """Number of images made so far."""
        return self._size

    @property
    def curve(self) -> list[dict[str, float]]:
        """Rows {batch, loss, term ...}: the terms of each batch at its last step."""
        return [
            {"batch": i, **dict(zip(self._terms, terms, strict=True))} for i, terms in enumerate(self._last_terms, 1)
        ]

    def update(self, student: Classifier) -> dict[str, float]:
        """Make a batch if it is due, and return its loss; {} otherwise."""
        self._ensure_first_batch()
        self._updates += 1
        if self._updates % self.period:
            return {}
        with frozen_evaluation(student.network):
            return {"inversion_loss": self._add_batch(student)}

    def sample(self, num_images: int) -> Batch:
        """Return the images of the newest batch until each was used once, then random images of the pool."""
        self._ensure_first_batch()
        if self._unseen >= num_images:
            rows = torch.arange(self._size - self._unseen, self._size - self._unseen + num_images)
            self._unseen -= num_images
        else:
            rows = torch.randint(self._size, (num_images,), generator=self._rng)
        rows = rows.to(self._images.device)
        return Batch(to_pixels(self._images[rows]), self._targets[rows])

    def held_out(self, num_images: int) -> torch.Tensor:
        """Return up to `num_images` images of a batch that is made without a student and not added to the pool.

        Its labels are spread evenly over all classes.
        """
        num_classes = self._teacher.num_classes
        labels = torch.arange(self._batch) * max(num_classes, self._batch) // self._batch % num_classes
        with self._teacher.queries.purpose(HELD_OUT):
            made = self._make(labels, None, _seeded(HELD_OUT_SEED), None)
        return to_uint8(made.images)[:num_images].cpu()

    def state(self) -> State:
        """Return the images themselves too: they cannot be made again without the students of those moments."""
        self._ensure_first_batch()
        tensors = {
            "images": self._images[: self._size],
            "targets": self._targets[: self._size],
            "last_terms": torch.tensor(self._last_terms, dtype=torch.float64),
            "rng": self._rng.get_state(),
        }
        return tensors, {"updates": self._updates, "unseen": self._unseen}

    def restore(self, state: State) -> None:
        """Continue from `state`."""
        tensors, values = state
        self._images, self._targets = (tensors[name].to(self._images.device) for name in ("images", "targets"))
        self._size = len(self._images)
        self._updates, self._unseen = values["updates"], values["unseen"]
        self._last_terms = tensors["last_terms"].tolist()
        self._rng.set_state(tensors["rng"])

    def _ensure_first_batch(self) -> None:
        """Make the first batch, unless it exists."""
        if self._size == 0:
            self._add_batch(None)

    def _add_batch(self, student: Classifier | None) -> float:
        """Add a new batch to the pool, and return its loss."""
        began = time.monotonic()
        made = self._next_batch(student)
        images = to_uint8(made.images)
        last = self._size + len(images)
        if last > len(self._images):
            self._images, self._targets = (_with_capacity(pool, last) for pool in (self._images, self._targets))
        self._images[self._size : last] = images
        with torch.no_grad(), self._teacher.queries.purpose(TARGETS):
            self._targets[self._size : last] = self._teacher(to_pixels(images))
        self._size, self._unseen = last, len(images)
        self.batch_seconds = time.monotonic() - began
        self._last_terms.append([made.curve[-1].get(term, 0.0) for term in self._terms])
        return made.loss

    def _next_batch(self, student: Classifier | None) -> Inverted:
        """Make the next batch."""
        num_classes, batches = self._teacher.num_classes, self._size // self._batch
        labels = labels_in_turn(self._size, self._batch, num_classes)
        rng = _seeded(self._seed * 1_000_003 + batches + 1)
        if not self._from_noise or batches < self._from_noise or self._size < num_classes:
            return self._make(labels, student, rng, None)
        rows = self._images_of(labels, rng).to(self._images.device)
        return self._make(labels, student, rng, to_pixels(self._images[rows]))

    def _images_of(self, labels: torch.Tensor, rng: torch.Generator) -> torch.Tensor:
        """Return, for each label, the row of a random image for which the teacher predicts this class or, if there is
        none, of a random image that was made for this class."""
        num_classes = self._teacher.num_classes
        predicted = ClassIndex(self._targets[: self._size].argmax(1).cpu(), num_classes)
        rows = ClassIndex(labels_in_turn(0, self._size, num_classes), num_classes).draw(labels, rng)
        known = predicted.counts[labels] > 0
        rows[known] = predicted.draw(labels[known], rng)
        return rows


def _seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _with_capacity(pool: torch.Tensor, needed: int) -> torch.Tensor:
    """Return a tensor of 2 * `needed` rows whose first rows are those of `pool`."""
    larger = torch.empty((2 * needed, *pool.shape[1:]), dtype=pool.dtype, device=pool.device)
    larger[: len(pool)] = pool
    return larger
