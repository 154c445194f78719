"""DAFL: data-free learning of student networks (Chen et al. 2019, arXiv 1904.01186).

The generator's loss does not depend on the student. It is small for images for which the teacher's prediction is
confident and its features are large, and for batches that contain all classes equally often.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..options.declare import OptionSet, option
from ..synthesis.interface import Given
from ..synthesis.options import GameConfig, GeneratorConfig, sized_width
from .registry import register_generator, register_live

if TYPE_CHECKING:
    import torch

    from ..models.classifier import Classifier
    from ..synthesis.adversarial_game import AdversarialSource, NetworkOutputs
    from ..synthesis.generators.training import GeneratorTraining, Samples
    from ..synthesis.losses import Terms

SOURCE = "Chen et al. 2019, equations 2 to 5"


@dataclass(frozen=True, kw_only=True)
class DaflWeights(OptionSet):
    """Weights of the terms of the generator's loss."""

    oh: float = option(1.0, "Weight of the teacher's cross-entropy with its own predicted class.", minimum=0)
    act: float = option(0.1, "Weight of the mean absolute feature of the teacher, which is maximized.", minimum=0)
    ie: float = option(
        5.0, "Weight of the entropy of the mean prediction of a batch, relative to its maximum.", minimum=0
    )

    def terms(self, logits: torch.Tensor, features: torch.Tensor) -> Terms:
        """Return the weighted terms of the loss of a batch (Chen et al. 2019, equations 2 to 5).

        The published entropy is in decimal logarithms and grows with the number of classes; here it is divided by its
        maximum, so that one weight suits any number of classes.

        Args:
            logits: of the teacher, [batch, K].
            features: what enters the teacher's last linear layer, [batch, units].
        """
        from ..synthesis.losses import class_imbalance, one_hot_error

        evenness = class_imbalance(logits) / math.log(logits.shape[1])
        terms = {"oh": self.oh * one_hot_error(logits), "ie": self.ie * evenness}
        return {**terms, "act": -self.act * features.abs().mean()} if self.act else terms


@dataclass(frozen=True, kw_only=True)
class DaflConfig(DaflWeights, GameConfig):
    """How often the generator is trained, and the weights of its loss."""

    student_steps: int = option(1, "Student steps per generator step.", minimum=1)


@dataclass(frozen=True, kw_only=True)
class DaflGeneratorConfig(DaflWeights, GeneratorConfig):
    """The generator's size, and the weights of its loss."""

    width: int | None = sized_width()


@register_live(
    "dafl",
    config=DaflConfig,
    source=SOURCE,
    settings={"loss": "kl", "temperature": 1.0, "shift": 0, "warp": 0.0},
    structured=True,
)
def dafl(given: Given, config: DaflConfig, seed: int) -> AdversarialSource:
    """Train a generator for images with confident predictions of the teacher, large features and all classes."""
    from ..synthesis.adversarial_game import GameSchedule, open_game

    def terms(outputs: NetworkOutputs) -> Terms:
        return config.terms(outputs.teacher, outputs.features)

    return open_game(
        given.teacher, GameSchedule(terms, config.student_steps, uses_features=config.act > 0), config, seed
    )


@register_generator("dafl", config=DaflGeneratorConfig, source=SOURCE)
def dafl_generator(
    teacher: Classifier, config: DaflGeneratorConfig, seed: int, samples: Samples | None
) -> GeneratorTraining:
    """Generators without labels for images with confident predictions of the teacher, large features, all classes."""
    from ..models.hooks import record_features
    from ..synthesis.generators.training import GeneratorTraining, draws_for, sized_generator

    generator = sized_generator(teacher, "latent", {}, config.width, seed)
    draws = draws_for(generator, config, seed)

    def terms() -> Terms:
        with record_features(teacher.network, teacher.feature_layer) as features:
            logits = teacher.of_normalized(generator.normalized(*draws.next()))
        return config.terms(logits, features[-1])

    return GeneratorTraining(generator, draws, terms, 1e-3 if config.lr is None else config.lr)
