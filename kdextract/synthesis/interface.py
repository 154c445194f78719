"""The inputs of a method, and the result of an objective."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

    from ..models.classifier import Classifier
    from .statistics.recorded import Statistics


@dataclass(frozen=True)
class Inverted:
    """The images that an objective made.

    Attributes:
        images: pixels in [0, 1], [batch, channels, height, width].
        loss: the loss at the end.
        teacher_queries: number of images for which the teacher's logits were computed.
        curve: rows {step, loss, term ...} of about `CURVE_POINTS` steps; empty if pixels were not optimized.
    """

    images: torch.Tensor
    loss: float
    teacher_queries: int
    curve: list[dict[str, float]] = field(default_factory=list)


@dataclass(frozen=True)
class Given:
    """The inputs of a method.

    Attributes:
        teacher: frozen, in evaluation mode.
        statistics: recorded statistics of the teacher; None if the method does not use them.
        student: the student of the competition term; None if the method has no such term.
    """

    teacher: Classifier
    statistics: Statistics | None = None
    student: Classifier | None = None

    @property
    def recorded(self) -> Statistics:
        """The statistics, which must be present."""
        assert self.statistics is not None
        return self.statistics


TWO_WAYS = (
    "the teacher has no batch normalization, whose statistics images could match; record the statistics of its layers "
    "with: kdx compute-stats, or use a method that needs only the teacher (kdx methods), such as deep_dream"
)
"""Error message of a method that `matches_batch_norm` where neither batch normalization nor statistics exist."""
