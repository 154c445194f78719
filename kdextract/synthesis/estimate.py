"""An estimate of a student's accuracy on real images, without real images.

The student is compared with its teacher on structured noise. Real images are easier, so the two disagree less on them:
the log odds of the disagreement on real images are a linear function of those on structured noise, of the teacher's
error, and of whether the student was trained on structured noise. The coefficients were fitted once to students of
several teachers, with real images (docs/methods.md lists them and the errors of the estimates).
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
"""Number of images of a comparison, and number of images drawn for each of them, to find images of all classes."""
SHARE = 1 / 8
"""Images of a comparison are at most this share of the images that the student was trained on."""
FEWEST = 50
"""Least number of images of a comparison."""

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
"""The range of the calibration (benchmarks/results/calibration.json): sources of the students' images, games with their
default options; size of the teachers' grey images, number of classes, largest number of parameters, accuracy; steps of
the students and their agreement on structured noise. Outside of this range nothing is estimated. The one teacher of
colour images is excluded: its students were 13 points better than estimated."""


@dataclass(frozen=True)
class CalibrationLine:
    """Coefficients of the log odds of a disagreement on real images.

    Attributes:
        intercept: constant.
        disagreement: factor of the logit of the disagreement on structured noise.
        teacher_error: factor of the logit of the teacher's error on real images.
        other_images: added for a student that was trained on other images than structured noise.
        spread: standard deviation of the residuals, in log odds, for a teacher that was not part of the fit.
    """

    intercept: float
    disagreement: float
    teacher_error: float
    other_images: float
    spread: float

    def log_odds(self, agreement: float, teacher_accuracy: float, structured: bool) -> float:
        """Return the log odds of a disagreement on real images, from shares in [0, 1]."""
        return (
            self.intercept
            + self.disagreement * logit(1 - agreement)
            + self.teacher_error * logit(1 - teacher_accuracy)
            + self.other_images * (not structured)
        )


LINE = CalibrationLine(intercept=0.21, disagreement=1.14, teacher_error=0.66, other_images=-0.5, spread=0.46)
LEAST_SHARE = 2e-4
"""Shares are clipped to this distance from 0 and 1."""


@dataclass(frozen=True)
class Estimate:
    """`agreement` with the teacher and `accuracy`, both on real images, in [0, 1], with one standard error each."""

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
        """Return the accuracy by Laplace's rule of succession, which is below 1 even without errors."""
        value = (accuracy * num_images + 1) / (num_images + 2)
        return cls(value, math.sqrt(value * (1 - value) / num_images))


def why_not(teacher: Classifier, learned_from: str, accuracy: TeacherAccuracy | None) -> str:
    """Return why nothing is estimated for students of this teacher that are trained on `learned_from`; else ''."""
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
        return "the teacher's accuracy is not known; give it with --teacher-accuracy"
    if not ACCURACIES[0] <= accuracy.value <= ACCURACIES[1]:
        least, most = (100 * share for share in ACCURACIES)
        return f"it was calibrated on teachers of {least:g} to {most:g} % accuracy, not of {100 * accuracy.value:.1f} %"
    return ""


def why_not_student(agreement: float, steps: int) -> str:
    """Return why nothing is estimated for a student with this agreement after this number of steps; else ''."""
    if steps < FEWEST_STEPS:
        return f"it was calibrated on students of {FEWEST_STEPS} steps and more, not of {steps}"
    if agreement < LEAST_AGREEMENT:
        return f"the student agrees with its teacher on less than {100 * LEAST_AGREEMENT:g} % of structured noise"
    if agreement > MOST_AGREEMENT:
        return (
            f"it was calibrated on students that agree with their teacher on {100 * LEAST_AGREEMENT:g} to "
            f"{100 * MOST_AGREEMENT:g} % of structured noise, not on {100 * agreement:.1f} %"
        )
    return ""


def compared(images_seen: int) -> int:
    """Return the number of images of a comparison, for a student trained on `images_seen` images, repeats included."""
    return max(FEWEST, min(IMAGES, round(SHARE * images_seen / DRAWN)))


def structured_agreement(teacher: Classifier, student: Classifier, images_seen: int) -> float:
    """Return the share, in [0, 1], of structured images for which both predict the same class.

    The teacher predicts each class equally often.

    Args:
        images_seen: images that the student was trained on, repeats included; with few, fewer are compared.
    """
    count = compared(images_seen)
    batch = structured_pool(teacher, DRAWN * count, 0, HELD_OUT_SEED).sample(count)
    assert batch.targets is not None
    return Probe(to_uint8(batch.images), batch.targets.argmax(1).cpu(), stability=1.0).agreement(student)


def estimate(
    agreement: float, teacher: TeacherAccuracy, structured: bool, line: CalibrationLine = LINE
) -> Estimate | None:
    """Return the estimate for real images; None if the agreement is below `LEAST_AGREEMENT`.

    Args:
        agreement: on structured noise, as `structured_agreement` returns it.
        teacher: the teacher's accuracy.
        structured: whether the student was trained on structured noise or on images made from it.
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
    """Return the difference of the teacher's and the student's accuracy.

    If the teacher is nearly always right, a disagreement is an error of the student. If the disagreement is about as
    frequent as the teacher's errors, about half of it is an error of the student.
    """
    return disagreement**2 / (disagreement + teacher_error + LEAST_SHARE)


def logit(share: float) -> float:
    """Return the log odds of a share in [0, 1]."""
    share = min(max(share, LEAST_SHARE), 1 - LEAST_SHARE)
    return math.log(share / (1 - share))


def logistic(log_odds: float) -> float:
    """Return the share of these log odds: the inverse of `logit`."""
    return 1 / (1 + math.exp(-log_odds))
