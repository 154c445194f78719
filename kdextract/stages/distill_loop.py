"""The loop of `kdx distill`, as the options describe it."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from ..progress import Reporter
from .distill_settings import Settings

if TYPE_CHECKING:
    from ..classifier import Classifier
    from ..sources import Source
    from ..training import CheckpointSaver, Monitor, Row

WARMUP_SHARE = 0.05


class LoopOptions(Protocol):
    """The options of `distill` that are the same for every source of images."""

    @property
    def seed(self) -> int:
        """`--seed`."""
        ...

    @property
    def schedule(self) -> str:
        """`--schedule`."""
        ...

    @property
    def optimizer(self) -> str:
        """`--optimizer`."""
        ...

    @property
    def temperature_scaling(self) -> bool:
        """`--temperature-scaling`."""
        ...

    @property
    def flip(self) -> bool:
        """`--flip`."""
        ...

    @property
    def batch_norm(self) -> str | None:
        """`--batch-norm`."""
        ...


@dataclass(frozen=True)
class Loop:
    """The distillation that the options describe, but for the student and the number of steps."""

    config: LoopOptions
    settings: Settings
    teacher: Classifier
    source: Source

    def run(
        self,
        student: Classifier,
        steps: int,
        checkpoints: CheckpointSaver,
        reporter: Reporter,
        monitor: Monitor[Classifier] | None = None,
        in_source: Callable[[], AbstractContextManager[None]] = nullcontext,
    ) -> list[Row]:
        """Train the student, in place."""
        from ..distillation import DistillationLossOptions, distill
        from ..training import Schedule

        config, settings = self.config, self.settings
        return distill(
            self.teacher,
            student,
            self.source,
            settings.batch_size,
            Schedule(steps, settings.lr, config.schedule, round(WARMUP_SHARE * steps), optimizer=config.optimizer),
            DistillationLossOptions(settings.loss, settings.temperature, config.temperature_scaling),
            settings.augmenter(config.flip, self.teacher, config.seed + 1),
            checkpoints,
            reporter,
            monitor,
            config.batch_norm or "train",
            in_source,
        )
