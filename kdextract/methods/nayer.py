"""NAYER (Tran et al. 2024, arXiv 2310.00258) without a language model: rows of the last layer are its input."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..options.declare import OptionSet, option
from ..synthesis.interface import Given
from .registry import register_live

if TYPE_CHECKING:
    from ..synthesis.generators.bank import GeneratorBank

LR, LIFE = 4e-3, 20
"""Learning rate of the generator, and batches after which a new one begins: ten epochs of two batches in the paper."""


@dataclass(frozen=True, kw_only=True)
class NayerConfig(OptionSet):
    """The steps of a batch, and the growth of the pool. The defaults of the weights are those for CIFAR."""

    pixel_steps: int = option(40, "Steps of the generator per batch.", minimum=1)
    ce: float = option(0.5, "Weight of the teacher's cross-entropy with the wanted class.", minimum=0)
    bn: float = option(10.0, "Weight of the distance to the teacher's batch normalization (BN) statistics.", minimum=0)
    compete: float = option(
        1.33, "Weight of the student's disagreement where it predicts the teacher's class.", minimum=0
    )
    pool_batch: int = option(400, "Images per batch that is added to the pool.", minimum=2)
    period: int = option(100, "Student steps between two batches.", minimum=1)
    warmup: int = option(4, "Batches before the first step of the student; published: 200.", minimum=1)


@register_live(
    "nayer",
    config=NayerConfig,
    source="Tran et al. 2024, section 3, with rows of the teacher's last layer",
    settings={"temperature": 20.0, "shift": 2, "warp": 0.0, "flip": True},
    structured=False,
    matches_batch_norm=True,
)
def nayer(given: Given, config: NayerConfig, seed: int) -> GeneratorBank:
    """A growing pool of a generator of the teacher's rows of the classes, with a first layer that is drawn anew."""
    from ..synthesis.generators.bank import BatchLoss, BatchWeights, GeneratorBank
    from ..synthesis.generators.class_rows import RowMaker, RowOptions

    loss = BatchLoss(given.teacher, given.statistics, BatchWeights(config.ce, config.bn, config.compete))
    maker = RowMaker(given.teacher, loss, RowOptions(config.pixel_steps, LR, LIFE), seed)
    return GeneratorBank(maker, given.teacher, config.pool_batch, config.period, config.warmup, seed)
