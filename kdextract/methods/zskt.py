"""ZSKT: zero-shot knowledge transfer by an adversarial game (Micaelli and Storkey 2019, arXiv 1905.09768).

The generator maximizes KL(teacher || student); the student minimizes it, in several steps on the same images. The
paper's attention term is left out, since it needs layers of equal size in both networks.
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
class ZsktConfig(GameConfig):
    """How often the generator is trained, and how often images are used."""

    student_steps: int = option(10, "Student steps per generator step.", minimum=1)
    repeat: int = option(10, "Student steps on the same images; each image is one teacher query.", minimum=1)


@register_live(
    "zskt",
    config=ZsktConfig,
    source="Micaelli and Storkey 2019, section 3",
    settings={"loss": "kl", "temperature": 1.0, "shift": 0, "warp": 0.0},
    structured=True,
)
def zskt(given: Given, config: ZsktConfig, seed: int) -> AdversarialSource:
    """Train a generator to maximize the KL divergence of the teacher's and the student's probabilities."""
    from ..synthesis.adversarial_game import GameSchedule, open_game
    from ..training.losses import kl_divergence

    def terms(outputs: NetworkOutputs) -> Terms:
        return {"kl": -kl_divergence(outputs.student, outputs.teacher, 1.0, False)}

    return open_game(given.teacher, GameSchedule(terms, config.student_steps, config.repeat), config, seed)
