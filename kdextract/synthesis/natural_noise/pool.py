"""A pool of images of a mixture, and images of given classes of it."""

from __future__ import annotations

from weakref import WeakKeyDictionary

import torch

from ...models.classifier import Classifier
from ..interface import Inverted
from ..structured_noise.by_class import images_of_classes, pool_sizes, require_images
from ..structured_noise.pool import MakeImages, RefreshedPool
from .kinds import Component, Mixture, natural_images
from .mixture import Fitted, equal_mixture, fitted_mixture
from .names import EQUAL, FITTED

_FITTED: WeakKeyDictionary[Classifier, dict[tuple[str, int, int], Fitted]] = WeakKeyDictionary()
"""The mixtures of teachers that are in use, so that a trial of methods and the method itself fit one once."""


class NaturalPool(RefreshedPool):
    """A `RefreshedPool` of a mixture, and what is recorded of the mixture."""

    def __init__(self, fitted: Fitted, teacher: Classifier, size: int | None, fresh: int, seed: int) -> None:
        self.facts = fitted.facts
        super().__init__(maker(fitted.mixture, teacher), teacher, *pool_sizes(teacher, size, fresh), seed)


def natural_pool(
    teacher: Classifier, mixture: str, trials: int, size: int | None, fresh: int, seed: int
) -> NaturalPool:
    """Return a pool of `size` images, of which `fresh` per step are replaced; 0: none.

    Of large images, it holds at most half a gigabyte.

    Args:
        mixture: one of `names.MIXTURES`.
        trials: as in `fitted_mixture`.

    Raises:
        ConfigError: the teacher takes rows of a table.
    """
    require_images(teacher)
    chosen = mixture_of_seed(mixture, teacher, trials, seed)
    return NaturalPool(chosen, teacher, size, fresh, seed)


def natural_images_of_classes(
    teacher: Classifier, mixture: str, trials: int, labels: torch.Tensor, candidates: int, rng: torch.Generator
) -> Inverted:
    """Draw images and keep, for each label, one for which the teacher predicts this class; see `images_of_classes`.

    Raises:
        ConfigError: the teacher takes rows of a table.
    """
    require_images(teacher)
    asked = teacher.queries.total
    chosen = named_mixture(mixture, teacher, trials, rng)
    fitting = teacher.queries.total - asked
    made = images_of_classes(maker(chosen.mixture, teacher), teacher, labels, candidates, rng)
    return Inverted(made.images, made.loss, made.teacher_queries + fitting)


def named_mixture(name: str, teacher: Classifier, trials: int, rng: torch.Generator) -> Fitted:
    """Return the mixture of a name in `names.MIXTURES`."""
    if name == FITTED:
        return fitted_mixture(teacher, trials, rng)
    return Fitted(equal_mixture() if name == EQUAL else Mixture((Component.whole(name),), (1.0,)))


def mixture_of_seed(name: str, teacher: Classifier, trials: int, seed: int) -> Fitted:
    """Return `named_mixture` with this seed. It is fitted once for a teacher, whose weights do not change."""
    known = _FITTED.setdefault(teacher, {})
    key = name, trials, seed
    if key not in known:
        known[key] = named_mixture(name, teacher, trials, torch.Generator().manual_seed(seed))
    return known[key]


def maker(mixture: Mixture, teacher: Classifier) -> MakeImages:
    """Return a function (count, rng) -> images of the mixture, with the teacher's image shape and mean pixel."""
    mean = teacher.mean.flatten()
    return lambda count, rng: natural_images(count, mixture, teacher.input_shape, mean, rng)
