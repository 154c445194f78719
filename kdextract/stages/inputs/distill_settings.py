"""Options of a distillation whose defaults depend on the source of images, the teacher and the student.

`kdx distill` has them as options; other stages that distil use the defaults.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ...errors import ConfigError
from .augmentation import USUAL_AUGMENTATION, drawing_background, usual_augmentation

if TYPE_CHECKING:
    from ...models.classifier import Classifier
    from ...training.augmentation import Augmenter
    from ...training.blocks import BlockOptions
    from ...training.distill import DistillationOptions
    from .image_source import ImageSource

CONVOLUTION_RATE, LINEAR_RATE = 4e-3, 1e-3
USUAL_SETTINGS: dict[str, Any] = {
    "steps": 4000,
    "batch_size": 128,
    "loss": "kl",
    "temperature": 4.0,
    **USUAL_AUGMENTATION,
}
"""Defaults, unless the user or the source of images sets another value."""
OPTIMIZER = "soap"
WARMUP_SHARE = 0.05


@dataclass(frozen=True)
class Settings:
    """The options of `distill` with defaults filled in."""

    batch_size: int
    lr: float
    loss: str
    temperature: float
    shift: int
    warp: float
    flip: bool
    splice: bool
    redraw: bool

    def augmenter(self, teacher: Classifier, seed: int) -> Augmenter:
        """Return the augmentation of images before they are given to both networks."""
        from ...training.augmentation import Augmenter

        background = drawing_background(teacher) if self.redraw else None
        return Augmenter(self.shift, self.flip, self.warp, seed, background, self.splice)

    def loop_options(
        self,
        steps: int,
        teacher: Classifier,
        seed: int,
        optimizer: str = OPTIMIZER,
        batch_norm: str | None = None,
        blocks: BlockOptions | None = None,
    ) -> DistillationOptions:
        """Return the options of the distillation loop for this number of steps.

        Args:
            seed: of the stage.
        """
        from ...training.distill import DistillationLossOptions, DistillationOptions
        from ...training.loop import Schedule

        return DistillationOptions(
            self.batch_size,
            Schedule(steps, self.lr, warmup=round(WARMUP_SHARE * steps), optimizer=optimizer),
            DistillationLossOptions(self.loss, self.temperature, scale=True),
            self.augmenter(teacher, seed + 1),
            batch_norm or "train",
            blocks,
        )


def fill_in(given: Any, images: ImageSource, teacher: Classifier, student: Classifier) -> Settings:
    """Return the options of a distillation, those that are None in `given` replaced by defaults.

    Args:
        given: has these options as attributes; None: no option is given.

    Raises:
        ConfigError: `--redraw` is given, and the teacher takes rows of a table.
    """
    from torch import nn

    if given is not None and given.redraw and student.is_table:
        raise ConfigError("--redraw changes images, and the teacher takes rows of a table")
    convolves = any(isinstance(module, nn.Conv2d) for module in student.network.modules())
    usual = {**USUAL_SETTINGS, **images.settings, "lr": CONVOLUTION_RATE if convolves else LINEAR_RATE}
    usual |= usual_augmentation(images, teacher)
    chosen = {name: getattr(given, name, None) for name in Settings.__dataclass_fields__}
    return Settings(**{name: usual[name] if value is None else value for name, value in chosen.items()})
