"""KeFlow: conditional normalizing flows trained through the teacher (bi-directional normalizing flow, BDNF, 2020).

A flow makes images of given classes and computes the log-determinant of its Jacobian for each. It is trained without
data by the likelihood of the noise given the label (equations 1 to 9), a sum of three terms: the log-determinant, the
teacher's log-probability of the label, and the log-probability of the image without the label. The published method
replaces the last term by the distance to the teacher's batch normalization statistics, and omits it for a teacher
without them; ours is the log-probability under smooth random fields, which are the distribution of an untrained flow.
The flow can also be trained on a few real images, by their likelihood. That has little effect on a small flow.
Therefore ours also stores the noise of shifted and warped copies of these images, and draws half of its noise near it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..options.declare import option
from ..synthesis.options import GeneratorConfig, sized_width, widening
from .registry import register_generator

if TYPE_CHECKING:
    from ..models.classifier import Classifier
    from ..synthesis.generators.training import GeneratorTraining, Samples
    from ..synthesis.losses import Terms

FLOWS: dict[str, dict[str, int]] = {
    "nice": {"couplings": 8},
    "nice_affine": {"couplings": 8},
    "realnvp": {"blocks": 2},
    "glow": {"levels": 2, "steps": 4},
}
"""Each flow and its options, except the width."""
FIRST_LAYER = 2.0
"""Weight of the first batch normalization layer, as published; the weight of the others is 1."""
MAX_GRADIENT = 1.0
"""Largest norm of the gradient, as published."""
ENCODINGS = 640
"""Number of copies of the samples whose noise a flow stores; with more samples, each of them once."""

WIDEN = 2.0
"""Default of --widen: the factor of the noise's standard deviation when a student is trained."""


@dataclass(frozen=True, kw_only=True)
class KeflowConfig(GeneratorConfig):
    """The flow, and the weights of its loss."""

    generators: int = option(
        2, "Number of generators; each has its own seed.", minimum=1, maximum=100, panel="Generators"
    )
    steps: int = option(300, "Optimizer steps per generator.", minimum=1, panel="Schedule")
    flow: str = option(
        "nice_affine",
        "Normalizing flow; nice and nice_affine couple pixels, realnvp and glow channels.",
        choices=list(FLOWS),
    )
    width: int | None = sized_width()
    noise_scale: float = option(1.0, "Standard deviation of the noise during training.", above=0)
    widen: float | None = widening(WIDEN)
    spread: float = option(
        0.3, "Weight of the KL divergence from smooth random fields; more gives more varied images.", minimum=0
    )
    bn: float = option(1.0, "Weight of the distance to the teacher's batch normalization (BN) statistics.", minimum=0)
    aided: float = option(1e-3, "Weight of the log-likelihood of --samples.", minimum=0)


@register_generator("keflow", config=KeflowConfig, source="BDNF (KeFlow 2020), equations 1 to 9", takes_samples=True)
def keflow(teacher: Classifier, config: KeflowConfig, seed: int, samples: Samples | None) -> GeneratorTraining:
    """Normalizing flows of varied images that the teacher assigns to a given class."""
    import torch
    import torch.nn.functional as F

    from ..models.hooks import record_batch_statistics
    from ..synthesis.generators.flows import Flow, dequantized
    from ..synthesis.generators.training import GeneratorTraining, copies_of, draws_for, sized_generator
    from ..synthesis.losses import statistics_distance

    widen = (1.0 if teacher.spec.is_table else WIDEN) if config.widen is None else config.widen
    options = FLOWS[config.flow]
    generator = sized_generator(teacher, config.flow, options, config.width, seed, config.noise_scale, widen)
    draws = draws_for(generator, config, seed)
    flow = generator.network
    assert isinstance(flow, Flow)

    def terms() -> Terms:
        noise, labels = draws.next()
        images, divergence = flow.transform_with_divergence(noise, labels)
        with record_batch_statistics(teacher) as layers:
            found = {"ce": F.cross_entropy(teacher(images), labels), "spread": config.spread * divergence.mean()}
        if config.bn and layers:
            distances = [statistics_distance(s.mean, s.variance, s.kept_mean, s.kept_variance) for s in layers.values()]
            distances[0] = FIRST_LAYER * distances[0]
            found["bn"] = config.bn * torch.stack(distances).sum()
        if samples is not None:
            images = dequantized(samples.images, draws.rng)
            found["aided"] = -config.aided * flow.log_prob(images, samples.labels).mean()
        return found

    def finish() -> None:
        if samples is None:
            return
        rng = torch.Generator().manual_seed(seed + 2)
        copies = copies_of(samples, ENCODINGS, rng, flat=teacher.spec.is_table)
        with torch.no_grad():
            noise, _ = flow.inverse(dequantized(copies.images, rng), copies.labels)
        generator.remember(noise, copies.labels)

    lr = 1e-3 if config.lr is None else config.lr
    return GeneratorTraining(generator, draws, terms, lr, clip=MAX_GRADIENT, finish=finish)
