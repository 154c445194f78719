"""DFAD: data-free adversarial distillation (Fang et al. 2019, arXiv 1912.11006).

The mean absolute difference of logits is what the generator maximizes and the student minimizes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..options.declare import option
from ..synthesis.interface import Given
from ..synthesis.options import GameConfig
from .registry import register_live

if TYPE_CHECKING:
    from ..synthesis.adversarial_game import AdversarialSource, NetworkOutputs
    from ..synthesis.losses import Terms


@dataclass(frozen=True, kw_only=True)
class DfadConfig(GameConfig):
    """How often the generator is trained."""

    student_steps: int = option(5, "Student steps per generator step.", minimum=1)


@register_live(
    "dfad",
    config=DfadConfig,
    source="Fang et al. 2019, section 3, algorithm 1",
    settings={"loss": "l1", "temperature": 1.0, "shift": 0, "warp": 0.0},
    structured=True,
)
def dfad(given: Given, config: DfadConfig, seed: int) -> AdversarialSource:
    """Train a generator to maximize the mean absolute difference of the student's and the teacher's logits."""
    from ..synthesis.adversarial_game import GameSchedule, open_game
    from ..training.losses import logit_l1

    def terms(outputs: NetworkOutputs) -> Terms:
        return {"l1": -logit_l1(outputs.student, outputs.teacher, 1.0, False)}

    return open_game(given.teacher, GameSchedule(terms, config.student_steps), config, seed)
