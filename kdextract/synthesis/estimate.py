"""How well a student does on real images, told without any.

The student is compared with its teacher on structured noise. Real images are far easier than those, so the two disagree
less on them: the log odds of both disagreements lie along a line, which depends on how often the teacher itself is
wrong and on whether the student learned from structured noise. Its coefficients were fitted to students of several
teachers, once, with real images at hand (docs/methods.md says which, and how far off the estimates are).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from ..models.classifier import Classifier
from ..models.pixels import to_uint8
from ..training.observer import Probe
from ..training.sources import HELD_OUT_SEED
from .structured_noise.by_class import structured_pool

IMAGES, DRAWN = 2000, 4
"""Images that the two are compared on, and how many are drawn for each of them, to have all classes."""
SHARE = 1 / 8
"""The comparison takes at most so many images for each one that the student has seen."""
FEWEST = 50

LEARNED_FROM = (
    "real images",
    "all_layers",
    "spectral_all_layers",
    "top_layer",
    "structured_noise",
    "dfad",
    "dfq",
    "zskt",
)
SIDES, CLASSES, MOST_PARAMETERS = (28, 32), 10, 2_500_000
ACCURACIES = (0.96, 0.996)
FEWEST_STEPS = 400
LEAST_AGREEMENT, MOST_AGREEMENT = 0.5, 0.96
"""Where students were calibrated on (benchmarks/results/calibration.json): what they learned from, games being as they
are by default; teachers of grey images, their size, accuracy and classes; steps of the students and their agreement on
structured noise. Nothing is estimated elsewhere. The one teacher of images in colour is left out: its students were 13
points better than estimated."""


@dataclass(frozen=True)
class CalibrationLine:
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


LINE = CalibrationLine(intercept=0.21, disagreement=1.14, teacher_error=0.66, other_images=-0.5, spread=0.46)
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


def why_not(teacher: Classifier, learned_from: str, accuracy: TeacherAccuracy | None) -> str:
    """Return why nothing is estimated for students of this teacher that learn from this; '' if something may be."""
    channels, *sides = teacher.input_shape
    shape = "x".join(map(str, teacher.input_shape))
    if channels != 1 or not all(SIDES[0] <= side <= SIDES[1] for side in sides):
        size = f"{SIDES[0]}x{SIDES[0]} to {SIDES[1]}x{SIDES[1]}"
        return f"it was calibrated on teachers of grey images of {size}, not of {shape}"
    if teacher.num_classes != CLASSES:
        return f"it was calibrated on teachers of {CLASSES} classes, not of {teacher.num_classes}"
    if teacher.num_parameters > MOST_PARAMETERS:
        return (
            f"it was calibrated on teachers of up to {MOST_PARAMETERS:,} parameters, not of {teacher.num_parameters:,}"
        )
    if learned_from not in LEARNED_FROM:
        return f"it was calibrated on students of {', '.join(LEARNED_FROM)}, not of {learned_from}"
    if accuracy is None:
        return "the teacher's accuracy is not known; --teacher-accuracy says it"
    if not ACCURACIES[0] <= accuracy.value <= ACCURACIES[1]:
        least, most = (100 * share for share in ACCURACIES)
        return f"it was calibrated on teachers of {least:g} to {most:g} % accuracy, not of {100 * accuracy.value:.1f} %"
    return ""


def why_not_student(agreement: float, steps: int) -> str:
    """Return why nothing is estimated for a student after so many steps that agrees so often; `""` if something is."""
    if steps < FEWEST_STEPS:
        return f"it was calibrated on students of {FEWEST_STEPS} steps and more, not of {steps}"
    if agreement < LEAST_AGREEMENT:
        return "the student is too unlike its teacher on structured noise"
    if agreement > MOST_AGREEMENT:
        return (
            f"it was calibrated on students that agree with their teacher on {100 * LEAST_AGREEMENT:g} to "
            f"{100 * MOST_AGREEMENT:g} % of structured noise, not on {100 * agreement:.1f} %"
        )
    return ""


def compared(images_seen: int) -> int:
    """Return on how many images a student is compared that has learned from so many, counted each time."""
    return max(FEWEST, min(IMAGES, round(SHARE * images_seen / DRAWN)))


def structured_agreement(teacher: Classifier, student: Classifier, images_seen: int) -> float:
    """Return the share of structured images, of each of the teacher's classes as many, that both give to one class.

    Args:
        images_seen: images that the student has learned from, counted each time; fewer take a shorter comparison.
    """
    count = compared(images_seen)
    batch = structured_pool(teacher, DRAWN * count, 0, HELD_OUT_SEED).sample(count)
    assert batch.targets is not None
    return Probe(to_uint8(batch.images), batch.targets.argmax(1).cpu(), stability=1.0).agreement(student)


def estimate(
    agreement: float, teacher: TeacherAccuracy, structured: bool, line: CalibrationLine = LINE
) -> Estimate | None:
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
