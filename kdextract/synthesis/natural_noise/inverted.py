"""A pool of images of a mixture that are moved a few steps towards the statistics of the teacher's layers."""

from __future__ import annotations

import torch

from ...models.pixels import to_pixels, to_uint8
from ...models.queries import HELD_OUT
from ..interface import Given
from ..inversion.deep_inversion import PixelSchedule, TermWeights, invert
from ..structured_noise.by_class import pool_sizes, require_images
from ..structured_noise.pool import RefreshedPool
from .mixture import Fitted
from .pool import maker, mixture_of_seed

LR = 0.05
"""Learning rate of Adam on normalized pixels, that of DeepInversion on CIFAR-10 (Yin et al. 2020, section 4.1)."""
JITTER = 2
STATISTICS_ALONE = TermWeights(ce=0.0, tv=0.0, tv_l1=0.0, l2=0.0, bn=1.0)
TOGETHER, FEWEST_TOGETHER, PIXELS_TOGETHER = 512, 32, 2**20
"""Largest and smallest number of images whose statistics are matched together, and their pixels, which limit it."""
PASSES = 3
"""Cost of a step with gradients, in forward passes."""
COST = 8
"""The pool may cost this many times as much as a pool of images without steps (`by_class.POOL_COST`)."""


class InvertedPool(RefreshedPool):
    """A `RefreshedPool` of a mixture whose images are optimized, and what is recorded of the mixture.

    Held-out images are chosen among images of the mixture, so that all classes have as many, and then optimized.

    Args:
        steps: Adam steps of each image.
        size: as in `RefreshedPool`; None: as many as may cost `COST` times what a pool without steps does.

    Raises:
        ConfigError: the teacher has no batch normalization, and there are no recorded statistics.
        DivergedError: the loss or a pixel is not finite.
    """

    def __init__(self, fitted: Fitted, given: Given, steps: int, size: int | None, fresh: int, seed: int) -> None:
        self.facts = fitted.facts
        self._given, self._steps = given, steps
        self._draw = maker(fitted.mixture, given.teacher)
        sizes = pool_sizes(given.teacher, size, fresh, passes=(1 + PASSES * steps) / COST)
        super().__init__(self._draw_and_optimize, given.teacher, *sizes, seed)

    def held_out(self, num_images: int) -> torch.Tensor:
        """Return images of another pool, all classes equally often before the steps."""
        chosen = self.held_out_of(self._draw, num_images)
        with self._teacher.queries.purpose(HELD_OUT):
            return to_uint8(self._optimized(to_pixels(chosen), torch.Generator().manual_seed(self._seed)))

    def _draw_and_optimize(self, count: int, rng: torch.Generator) -> torch.Tensor:
        return self._optimized(self._draw(count, rng), rng)

    def _optimized(self, images: torch.Tensor, rng: torch.Generator) -> torch.Tensor:
        """Return the images after `steps` steps."""
        schedule = PixelSchedule(self._steps, LR, (0.9, 0.999), jitter=JITTER, flip=True)
        together = max(FEWEST_TOGETHER, min(TOGETHER, PIXELS_TOGETHER // images[0, 0].numel()))
        parts = -(-len(images) // together)
        done = []
        for part in images.to(self._teacher.device).chunk(parts):
            labels = torch.zeros(len(part), dtype=torch.int64)  # not used, since the weight `ce` is 0
            made = invert(
                self._given.teacher, None, self._given.statistics, labels, STATISTICS_ALONE, schedule, rng, part
            )
            done.append(made.images)
        return torch.cat(done)


def inverted_pool(
    given: Given, mixture: str, trials: int, size: int | None, fresh: int, steps: int, seed: int
) -> InvertedPool:
    """Return a pool of `size` images, of which `fresh` per step are replaced; 0: none.

    Args:
        mixture: one of `names.MIXTURES`.
        trials: as in `mixture.fitted_mixture`.
        steps: Adam steps of each image.

    Raises:
        ConfigError: the teacher takes rows of a table, or there are no statistics to match.
    """
    require_images(given.teacher)
    chosen = mixture_of_seed(mixture, given.teacher, trials, seed)
    return InvertedPool(chosen, given, steps, size, fresh, seed)
