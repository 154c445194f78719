"""KegNet: knowledge extraction with no observable data (Yoo et al. 2019).

A generator makes images of given classes. A decoder predicts the noise of each image, so that images must depend on
the noise; a diversity term is small where images of different noise differ. The published code leaves the teacher in
training mode, so that its batch normalization statistics change towards those of generated images; here the teacher is
frozen.

As published, teacher, decoder and diversity term get the standardized output of the generator, whose values may lie
outside the range of pixels.
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

PRESETS: dict[str, dict[str, float]] = {
    "diverse": {"decoder_layers": 1, "lr": 2e-3, "alpha": 5, "beta": 10},
    "mnist": {"decoder_layers": 1, "lr": 1e-3, "alpha": 1, "beta": 0},
    "fashion": {"decoder_layers": 3, "lr": 1e-2, "alpha": 1, "beta": 10},
    "svhn": {"decoder_layers": 3, "lr": 1e-2, "alpha": 1, "beta": 1},
    "tabular": {"decoder_layers": 2, "lr": 1e-4, "alpha": 1, "beta": 0},
}
"""Values of the published code for each data set; `diverse` is ours."""
DECODER_WIDTH = 120
WIDEN = 1.5
"""Default of --widen: the factor of the noise's standard deviation when a student is trained."""


def _preset_values(name: str) -> str:
    return "by --preset: " + ", ".join(f"{preset} {PRESETS[preset][name]:g}" for preset in sorted(PRESETS))


@dataclass(frozen=True, kw_only=True)
class KegnetConfig(GeneratorConfig):
    """The generator network, and the weights of the loss."""

    generators: int = option(
        5, "Number of generators; each has its own seed.", minimum=1, maximum=100, panel="Generators"
    )
    steps: int = option(300, "Optimizer steps per generator.", minimum=1, panel="Schedule")
    lr: float | None = option(None, "First learning rate.", above=0, panel="Schedule", otherwise=_preset_values("lr"))
    preset: str | None = option(
        None,
        "Values of --lr, --alpha, --beta and --decoder-layers that are not given: those published for a data set, or "
        "diverse, ours.",
        choices=sorted(PRESETS),
        otherwise="diverse; tables: tabular",
    )
    network: str | None = option(
        None,
        "Generator network: resized, bilinear upsampling; strided, transposed convolutions, as published; dense, "
        "linear layers.",
        choices=["resized", "strided", "dense"],
        otherwise="resized; tables: dense",
    )
    width: int | None = sized_width()
    widen: float | None = widening(WIDEN)
    alpha: float | None = option(
        None, "Weight of the decoder's mean squared error.", minimum=0, otherwise=_preset_values("alpha")
    )
    beta: float | None = option(None, "Weight of the diversity loss.", minimum=0, otherwise=_preset_values("beta"))
    decoder_layers: int | None = option(
        None, "Hidden layers of the decoder after the first.", minimum=0, otherwise=_preset_values("decoder_layers")
    )

    def setting(self, name: str, is_table: bool) -> float:
        """Return an option as given, or else the value of the preset."""
        given: float | None = getattr(self, name)
        return PRESETS[self.preset or ("tabular" if is_table else "diverse")][name] if given is None else given


@register_generator("kegnet", config=KegnetConfig, source="Yoo et al. 2019, section 3")
def kegnet(teacher: Classifier, config: KegnetConfig, seed: int, samples: Samples | None) -> GeneratorTraining:
    """Generators of images that the teacher assigns to a given class, and from which a decoder predicts the noise."""
    import torch
    import torch.nn.functional as F

    from ..synthesis.generators.kegnet_networks import NoiseDecoder
    from ..synthesis.generators.training import GeneratorTraining, draws_for, sized_generator
    from ..synthesis.losses import diversity_penalty

    is_table = teacher.spec.is_table
    network = config.network or ("dense" if is_table else "resized")
    options = {"layers": 2} if network == "dense" else {}
    widen = (1.0 if is_table else WIDEN) if config.widen is None else config.widen
    generator = sized_generator(teacher, network, options, config.width, seed, widen=widen)
    alpha, beta = config.setting("alpha", is_table), config.setting("beta", is_table)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed + 1)
        layers = int(config.setting("decoder_layers", is_table))
        decoder = NoiseDecoder(teacher.input_shape, layers, DECODER_WIDTH).to(teacher.device)
    draws = draws_for(generator, config, seed)

    def terms() -> Terms:
        noise, labels = draws.next()
        images = generator.normalized(noise, labels)
        found = {"ce": F.cross_entropy(teacher.of_normalized(images), labels)}
        if alpha:
            found["noise"] = alpha * F.mse_loss(decoder(images), noise)
        return {**found, "sameness": beta * diversity_penalty(images, noise)} if beta else found

    lr = config.setting("lr", is_table)
    return GeneratorTraining(generator, draws, terms, lr, helpers={"decoder": decoder})
