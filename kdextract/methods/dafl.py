"""DAFL: data-free learning of student networks (Chen et al. 2019, arXiv 1904.01186).

The generator does not look at the student: it seeks images that the teacher is sure of, that excite its features, and
that fill all classes evenly.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..config import option
from .options import GameConfig
from .registry import register_live

if TYPE_CHECKING:
    import torch

    from ..classifier import Classifier
    from ..game import Answers, Game


@dataclass(frozen=True, kw_only=True)
class DaflConfig(GameConfig):
    """How often the generator moves, and what each term of its loss weighs."""

    student_steps: int = option(1, "Student steps per step of the generator.", minimum=1)
    oh: float = option(1.0, "Weight of the teacher's cross-entropy to its own answer.", minimum=0)
    act: float = option(0.1, "Weight of the mean size of the teacher's features.", minimum=0)
    ie: float = option(5.0, "Weight of the classes' entropy in a batch, as a share of the largest.", minimum=0)


@register_live(
    "dafl",
    config=DaflConfig,
    source="Chen et al. 2019, equations 2 to 5",
    settings={"loss": "kl", "temperature": 1.0, "shift": 0, "warp": 0.0},
    structured=True,
)
def dafl(teacher: Classifier, config: DaflConfig, seed: int) -> Game:
    """A generator seeks images that the teacher is sure of, with strong features and all classes alike."""
    from ..game import Rules, open_game
    from ..losses import class_imbalance, one_hot_error

    def loss(answers: Answers) -> torch.Tensor:
        evenness = class_imbalance(answers.teacher) / math.log(teacher.num_classes)
        total = config.oh * one_hot_error(answers.teacher) + config.ie * evenness
        return total - config.act * answers.features.abs().mean() if config.act else total

    return open_game(teacher, Rules(loss, config.student_steps, watches_features=config.act > 0), config, seed)
