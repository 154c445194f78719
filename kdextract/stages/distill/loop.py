"""The distillation loop with the settings of `kdx distill`."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ...training.progress import Reporter
from .settings import Settings

if TYPE_CHECKING:
    from ...models.classifier import Classifier
    from ...training.blocks import BlockOptions
    from ...training.loop import CheckpointSaver, Monitor, Row
    from ...training.sources import Source
    from .config import DistillConfig

WARMUP_SHARE = 0.05


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
        from ...training.distill import DistillationLossOptions, DistillationOptions, distill
        from ...training.loop import Schedule

        config, settings = self.config, self.settings
        options = DistillationOptions(
            settings.batch_size,
            Schedule(steps, settings.lr, warmup=round(WARMUP_SHARE * steps), optimizer=config.optimizer),
            DistillationLossOptions(settings.loss, settings.temperature, scale=True),
            settings.augmenter(config.flip, self.teacher, config.seed + 1),
            config.batch_norm or "train",
            self.blocks,
        )
        return distill(self.teacher, student, self.source, options, checkpoints, reporter, monitor, in_source)
