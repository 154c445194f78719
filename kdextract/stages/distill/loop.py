"""The distillation loop with the settings of `kdx distill`."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ...training.progress import Reporter
from ..inputs.distill_settings import Settings

if TYPE_CHECKING:
    from ...models.classifier import Classifier
    from ...training.blocks import BlockOptions
    from ...training.loop import CheckpointSaver, Monitor, Row
    from ...training.sources import Source
    from .config import DistillConfig


@dataclass(frozen=True)
class Loop:
    """All arguments of the distillation loop except the student and the number of steps."""

    config: DistillConfig
    settings: Settings
    teacher: Classifier
    source: Source
    blocks: BlockOptions | None = None

    def run(
        self,
        student: Classifier,
        steps: int,
        checkpoints: CheckpointSaver,
        reporter: Reporter,
        monitor: Monitor[Classifier] | None = None,
        in_source: Callable[[], AbstractContextManager[None]] = nullcontext,
    ) -> list[Row]:
        """Train the student, in place, for `steps` steps; return the metric rows of `training.distill.distill`."""
        from ...training.distill import distill

        config = self.config
        options = self.settings.loop_options(
            steps, self.teacher, config.seed, config.optimizer, config.batch_norm, self.blocks
        )
        return distill(self.teacher, student, self.source, options, checkpoints, reporter, monitor, in_source)
