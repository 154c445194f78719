"""What a method is given, and what an objective returns."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

    from ..models.classifier import Classifier
    from .statistics.recorded import Statistics


@dataclass(frozen=True)
class Inverted:
    """Images [batch, channels, height, width] with pixels in [0, 1], the last loss per image, and what they cost.

    `teacher_queries` is how many images the teacher was shown on the way. `curve` has rows {step, loss, term ...}, of
    about `CURVE_POINTS` moments, where pixels were optimized.
    """

    images: torch.Tensor
    loss: float
    teacher_queries: int
    curve: list[dict[str, float]] = field(default_factory=list)


@dataclass(frozen=True)
class Given:
    """What a method may look at.

    Attributes:
        teacher: frozen, in evaluation mode.
        statistics: those of the run, where the method needs them, or can do with them.
        student: whom images compete with, where the method's images compete.
    """

    teacher: Classifier
    statistics: Statistics | None = None
    student: Classifier | None = None

    @property
    def recorded(self) -> Statistics:
        """The statistics, for a method that needs them."""
        assert self.statistics is not None
        return self.statistics


TWO_WAYS = (
    "the teacher has no batch normalization, whose statistics images could match; record the statistics of its layers "
    "with: kdx compute-stats, or take a method that needs the teacher alone (kdx methods), such as deep_dream"
)
"""What a method that `inverts` says where it lacks both."""
