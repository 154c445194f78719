"""A pool that grows while the student learns: batches of images inverted from the teacher, perhaps against the student.

The protocol of DeepInversion's experiments on CIFAR-10 (Yin et al. 2020, section 4.1 and supplement): a batch is made
every few student steps, used at once, and kept; the student then learns from all that were made.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import torch

from .classifier import Classifier
from .hooks import evaluation_mode
from .images import to_pixels, to_uint8
from .inversion import Inverted
from .queries import HELD_OUT, TARGETS
from .sources import HELD_OUT_SEED, Batch, State

MakeBatch = Callable[[torch.Tensor, Classifier | None, torch.Generator, torch.Tensor | None], Inverted]
"""(labels int64 [batch], the student or None, random, pixels to begin from or None) -> one image per label."""
TERMS = ("loss", "ce", "tv", "l2", "bn", "compete")
"""What is kept of each batch's loss."""


class InversionPool:
    """A `Source` of inverted images; targets are the teacher's logits.

    Batch number i depends on the seed, on i and on the student at that moment. The first one is made without a student.

    Args:
        make: makes a batch.
        teacher: asked about each image when it enters.
        batch: images made at a time; classes take turns.
        period: `update` makes a batch at every so many calls.
        seed: fixes noise and draws.
        from_noise: so many batches begin from noise, and later ones from images of the pool; 0 for all.
    """

    def __init__(
        self, make: MakeBatch, teacher: Classifier, batch: int, period: int, seed: int, from_noise: int = 0
    ) -> None:
        self._make, self._teacher, self._batch, self.period, self._seed = make, teacher, batch, period, seed
        self._from_noise = from_noise
        self._random = torch.Generator().manual_seed(seed)
        shape = (0, *teacher.input_shape)
        self._images = torch.empty(shape, dtype=torch.uint8, device=teacher.device)
        self._targets = torch.empty((0, teacher.num_classes), device=teacher.device)
        self._size, self._updates, self._unseen = 0, 0, 0
        self._ends: list[list[float]] = []
        self.batch_seconds = 0.0
        self._enter(None)

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
        self._updates += 1
        if self._updates % self.period:
            return {}
        with evaluation_mode(student.network):
            return {"inversion_loss": self._enter(student)}

    def sample(self, num_images: int) -> Batch:
        """Draw from the newest batch until each of its images was seen once, and then from all."""
        if self._unseen >= num_images:
            rows = torch.arange(self._size - self._unseen, self._size - self._unseen + num_images)
            self._unseen -= num_images
        else:
            rows = torch.randint(self._size, (num_images,), generator=self._random)
        rows = rows.to(self._images.device)
        return Batch(to_pixels(self._images[rows]), self._targets[rows])

    def held_out(self, num_images: int) -> torch.Tensor:
        """Return a batch that does not enter the pool, made without a student, or the first images of it."""
        with self._teacher.queries.purpose(HELD_OUT):
            made = self._made(HELD_OUT_SEED, None)
        return to_uint8(made.images)[:num_images].cpu()

    def state(self) -> State:
        """The images themselves, for the students that they were made against are gone."""
        counters = torch.tensor([self._updates, self._unseen])
        kept = {"images": self._images[: self._size], "targets": self._targets[: self._size]}
        ends = torch.tensor(self._ends, dtype=torch.float64)
        return {**kept, "counters": counters, "ends": ends, "random": self._random.get_state()}

    def restore(self, state: State) -> None:
        """Continue with the pool of `state`."""
        self._images, self._targets = (state[name].to(self._images.device) for name in ("images", "targets"))
        self._size = len(self._images)
        self._updates, self._unseen = state["counters"].tolist()
        self._ends = state["ends"].tolist()
        self._random.set_state(state["random"])

    def _enter(self, student: Classifier | None) -> float:
        """Let a new batch enter, and return its loss."""
        began = time.monotonic()
        batches = self._size // self._batch
        begun = 0 < self._from_noise <= batches
        made = self._made(self._seed * 1_000_003 + batches + 1, student, begun)
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

    def _made(self, seed: int, student: Classifier | None, begun: bool = False) -> Inverted:
        random = torch.Generator().manual_seed(seed)
        if begun:
            rows = torch.randint(self._size, (self._batch,), generator=random).to(self._images.device)
            return self._make(self._targets[rows].argmax(1), student, random, to_pixels(self._images[rows]))
        return self._make(torch.arange(self._batch) % self._teacher.num_classes, student, random, None)


def _roomier(pool: torch.Tensor, needed: int) -> torch.Tensor:
    """Return a tensor whose first rows are those of `pool`, with room for `needed` rows and as many again."""
    larger = torch.empty((2 * needed, *pool.shape[1:]), dtype=pool.dtype, device=pool.device)
    larger[: len(pool)] = pool
    return larger
