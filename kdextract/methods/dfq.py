"""DFQ: data-free quantization with adversarial knowledge distillation (Choi et al. 2020, arXiv 2005.04136).

The generator minimizes a sum of four terms: the distance of the batch's statistics to those of the teacher's batch
normalization; the cross-entropy of the teacher to its own predicted class; minus the KL divergence of teacher and
student on images for which both predict the same class; minus the entropy of the mean prediction. The first term is
absent for a teacher without batch normalization. The weights are those of the DataFree code base for classifiers.
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
class DfqConfig(GameConfig):
    """How often the generator is trained, and the weights of its loss."""

    student_steps: int = option(10, "Student steps per generator step.", minimum=1)
    bn: float = option(1.0, "Weight of the distance to the teacher's batch normalization (BN) statistics.", minimum=0)
    oh: float = option(1.0, "Weight of the teacher's cross-entropy with its own predicted class.", minimum=0)
    adv: float = option(
        1.0, "Weight of the KL divergence of student and teacher where both predict the same class.", minimum=0
    )
    bal: float = option(20.0, "Weight of the class imbalance of a batch.", minimum=0)


@register_live(
    "dfq",
    config=DfqConfig,
    source="Choi et al. 2020, section 3",
    settings={"loss": "kl", "temperature": 20.0, "shift": 0, "warp": 0.0},
    structured=True,
)
def dfq(given: Given, config: DfqConfig, seed: int) -> AdversarialSource:
    """Train a generator for images with the teacher's statistics and all classes, on which the student disagrees."""
    import torch

    from ..synthesis.adversarial_game import GameSchedule, open_game
    from ..synthesis.losses import agreed_kl, class_imbalance, one_hot_error, statistics_distance

    def terms(outputs: NetworkOutputs) -> Terms:
        terms = {
            "oh": config.oh * one_hot_error(outputs.teacher),
            "adv": -config.adv * agreed_kl(outputs.student, outputs.teacher),
            "bal": config.bal * class_imbalance(outputs.teacher),
        }
        if not outputs.batch_norm:
            return terms
        distances = [
            statistics_distance(layer.mean, layer.variance, layer.kept_mean, layer.kept_variance)
            for layer in outputs.batch_norm
        ]
        return {**terms, "bn": config.bn * torch.stack(distances).sum()}

    schedule = GameSchedule(terms, config.student_steps, uses_batch_norm=config.bn > 0)
    return open_game(given.teacher, schedule, config, seed)
