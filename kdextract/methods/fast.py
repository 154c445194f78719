"""FastDFKD (Fang et al. 2022, arXiv 2112.15390): a meta generator from which a batch of images takes five steps."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..options.declare import OptionSet, option
from ..synthesis.interface import Given
from .registry import register_live

if TYPE_CHECKING:
    from ..synthesis.generators.bank import GeneratorBank


@dataclass(frozen=True, kw_only=True)
class FastConfig(OptionSet):
    """The steps of a batch, and the growth of the pool. The defaults of the weights are those for CIFAR."""

    pixel_steps: int = option(5, "Steps of the generator's copy and of its noise, per batch.", minimum=1)
    ce: float = option(0.4, "Weight of the teacher's cross-entropy with the wanted class.", minimum=0)
    bn: float = option(10.0, "Weight of the distance to the teacher's batch normalization (BN) statistics.", minimum=0)
    compete: float = option(
        1.1, "Weight of the student's disagreement where it predicts the teacher's class.", minimum=0
    )
    pool_batch: int = option(256, "Images per batch that is added to the pool.", minimum=2)
    period: int = option(20, "Student steps between two batches; published: 400.", minimum=1)
    warmup: int = option(20, "Batches before the first step of the student.", minimum=1)


LR, NOISE_LR = 3e-3, 1e-2
"""Learning rates for five steps in the authors' code."""


@register_live(
    "fast",
    config=FastConfig,
    source="Fang et al. 2022, algorithm 1",
    settings={"temperature": 20.0, "shift": 2, "warp": 0.0, "flip": True},
    structured=False,
    matches_batch_norm=True,
)
def fast(given: Given, config: FastConfig, seed: int) -> GeneratorBank:
    """A growing pool of a generator that learns from each batch, so that the next one takes few steps."""
    from ..synthesis.generators.bank import BatchLoss, BatchWeights, GeneratorBank
    from ..synthesis.generators.meta import MetaGenerator, MetaOptions

    loss = BatchLoss(given.teacher, given.statistics, BatchWeights(config.ce, config.bn, config.compete))
    maker = MetaGenerator(given.teacher, loss, MetaOptions(config.pixel_steps, LR, NOISE_LR, config.warmup), seed)
    return GeneratorBank(maker, given.teacher, config.pool_batch, config.period, config.warmup, seed)
