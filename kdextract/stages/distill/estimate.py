"""The estimate of a student's accuracy on real images at the end of `kdx distill`. No real data is read for it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ...models.queries import ESTIMATE

if TYPE_CHECKING:
    from ...models.classifier import Classifier
    from ...synthesis.estimate import TeacherAccuracy
    from ..running.runner import StageContext


def teacher_accuracy(given: float | None, context: StageContext) -> TeacherAccuracy | None:
    """Return the teacher's accuracy on real images, in [0, 1]: `given`, or as `kdx train` measured; None if unknown."""
    from ...synthesis.estimate import TeacherAccuracy

    if given is not None:
        return TeacherAccuracy(given, 0.0)
    measured = context.run.artifact(context.run.teacher()).manifest.metrics
    if "validation_accuracy" not in measured:
        return None
    return TeacherAccuracy.measured(measured["validation_accuracy"], measured["validation_images"])


def estimated_figures(
    teacher: Classifier,
    student: Classifier,
    accuracy: TeacherAccuracy,
    structured: bool,
    steps: int,
    batch_size: int,
    context: StageContext,
) -> dict[str, float]:
    """Return the estimated agreement and accuracy of the student on real images; one line says why, if there are none.

    Args:
        structured: whether the student learned from structured noise.
        steps: number of training steps of the student, with batches of `batch_size` images.
    """
    from ...synthesis.estimate import estimate, structured_agreement, why_not_student

    with context.phase("estimate"), teacher.queries.purpose(ESTIMATE):
        agreement = structured_agreement(teacher, student, steps * batch_size)
    reason = why_not_student(agreement, steps)
    estimated = None if reason else estimate(agreement, accuracy, structured)
    if reason:
        context.reporter.line(f"no estimate of accuracy: {reason}")
    figures = {} if estimated is None else vars(estimated)
    return {
        "structured_agreement": round(agreement, 6),
        **{f"estimated_{name}": round(figure, 4) for name, figure in figures.items()},
    }
