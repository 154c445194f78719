"""How well a student does on real images, told without any.

The student is compared with its teacher on structured noise. Real images are far easier than those, so the two disagree
less on them: the log odds of both disagreements lie along a line, which depends on how often the teacher itself is
wrong and on whether the student learned from structured noise. Its coefficients were fitted to students of several
teachers, once, with real images at hand (docs/methods.md says which, and how far off the estimates are).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from .classifier import Classifier
from .images import to_uint8
from .observer import Probe
from .sources import HELD_OUT_SEED
from .structured_noise import structured_pool

IMAGES, DRAWN = 2000, 4
"""Images that the two are compared on, and how many are drawn for each of them, to have all classes."""
SHARE = 1 / 8
"""The comparison takes at most so many images for each one that the student has seen."""
FEWEST = 50
LEAST_AGREEMENT = 0.5
"""Below this agreement on structured noise nothing is estimated: such a student has learned something else."""


@dataclass(frozen=True)
class Line:
    """logit(disagreement on real images) = intercept + sum of the other fields, each times what it is about.

    `disagreement`: logit of the disagreement on structured noise. `teacher_error`: logit of the teacher's error on real
    images. `other_images`: 1 if the student learned from other images than structured noise, else 0. `spread` is the
    standard deviation of what the line leaves unexplained for a teacher that it was not fitted to.
    """

    intercept: float
    disagreement: float
    teacher_error: float
    other_images: float
    spread: float

    def log_odds(self, agreement: float, teacher_accuracy: float, structured: bool) -> float:
        """Return the log odds of a disagreement on real images."""
        return (
            self.intercept
            + self.disagreement * logit(1 - agreement)
            + self.teacher_error * logit(1 - teacher_accuracy)
            + self.other_images * (not structured)
        )


LINE = Line(intercept=0.21, disagreement=1.14, teacher_error=0.66, other_images=-0.5, spread=0.46)
LEAST_SHARE = 2e-4
"""Shares are kept this far from 0 and 1."""


@dataclass(frozen=True)
class Estimate:
    """Shares in [0, 1] with one standard error each: `agreement` with the teacher and `accuracy` on real images."""

    agreement: float
    agreement_error: float
    accuracy: float
    accuracy_error: float


@dataclass(frozen=True)
class TeacherAccuracy:
    """Accuracy of a teacher on real images, and its standard error, in [0, 1]."""

    value: float
    error: float

    @classmethod
    def measured(cls, accuracy: float, num_images: int) -> TeacherAccuracy:
        """Return what so many images say; by Laplace's rule, so that a few that are all right don't promise 100 %."""
        value = (accuracy * num_images + 1) / (num_images + 2)
        return cls(value, math.sqrt(value * (1 - value) / num_images))


def structured_agreement(teacher: Classifier, student: Classifier, images_seen: int) -> float:
    """Return the share of structured images, of each of the teacher's classes as many, that both give to one class.

    Args:
        images_seen: images that the student has learned from, counted each time; fewer take a shorter comparison.
    """
    count = max(FEWEST, min(IMAGES, round(SHARE * images_seen / DRAWN)))
    batch = structured_pool(teacher, DRAWN * count, 0, HELD_OUT_SEED).sample(count)
    assert batch.targets is not None
    return Probe(to_uint8(batch.images), batch.targets.argmax(1).cpu(), stability=1.0).agreement(student)


def estimate(agreement: float, teacher: TeacherAccuracy, structured: bool, line: Line = LINE) -> Estimate | None:
    """Return what the agreement on structured noise says about real images; None if it is too low to say anything.

    Args:
        agreement: as `structured_agreement` returns it.
        structured: whether the student learned from structured noise, or from images that began as such.
    """
    if agreement < LEAST_AGREEMENT:
        return None
    at = line.log_odds(agreement, teacher.value, structured)
    low, middle, high = (logistic(at + shift * line.spread) for shift in (-1, 0, 1))
    teacher_error = 1 - teacher.value
    least, loss, most = (_loss(disagreement, teacher_error) for disagreement in (low, middle, high))
    return Estimate(
        1 - middle,
        (high - low) / 2,
        max(0.0, teacher.value - loss),
        math.hypot((most - least) / 2, (middle - loss) / 2, teacher.error),
    )


def _loss(disagreement: float, teacher_error: float) -> float:
    """Return how far the student's accuracy is below the teacher's.

    Where a student differs from a teacher that is nearly always right, it is wrong; where both differ about as often as
    the teacher errs, it is right about as often as the teacher. Between the two lies what cannot be known: half of the
    difference counts as error.
    """
    return disagreement**2 / (disagreement + teacher_error + LEAST_SHARE)


def logit(share: float) -> float:
    """Return the log odds of a share in [0, 1]."""
    share = min(max(share, LEAST_SHARE), 1 - LEAST_SHARE)
    return math.log(share / (1 - share))


def logistic(log_odds: float) -> float:
    """Undo `logit`."""
    return 1 / (1 + math.exp(-log_odds))
