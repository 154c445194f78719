"""`kdx generate`: make a transfer set with trained generators. Reads no real data."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..options.declare import NamedStageConfig, TeacherConfig, VerifierConfig, option
from ..storage.artifacts import strongest
from ..storage.run_dir import InputFile, RunDir
from .inputs.image_artifacts import ImageArtifact, find_generators, open_generators
from .outputs.transfer_set import find_verifier, verifier_inputs, write_transfer_set
from .running.runner import Plan, Stage, StageContext

if TYPE_CHECKING:
    import torch

    from ..models.classifier import Classifier
    from ..synthesis.generators.mix import GeneratorMix


@dataclass(frozen=True, kw_only=True)
class GenerateConfig(NamedStageConfig, TeacherConfig, VerifierConfig):
    """Make a transfer set with trained generators.

    `kdx train-generator` trains them. Several artifacts are separated by commas; each of their generators makes the
    same number of images. Writes images.npy, labels.npy (the requested class; for generators without classes, the
    teacher's prediction), targets.npy (the teacher's logits) and grid.png, as `kdx optimize-dataset` does. Its default
    name is that of the first artifact.

    Examples:

      kdx generate
      kdx generate kegnet,dafl --images-per-class 500 --name both
    """

    generator: str | None = option(
        None, "Generators of the run, or paths, separated by commas; default: the run's only ones.", positional=True
    )
    images_per_class: int = option(1000, "Images per class.", minimum=1, panel="Images")
    batch_size: int = option(500, "Images per forward pass.", minimum=1, panel="Compute")
    noise_scale: float | None = option(
        None, "Standard deviation of the noise.", above=0, panel="Images", otherwise="as in the generator's training"
    )


@dataclass(frozen=True)
class GenerateInputs:
    """The generators, in the order of the argument, and the verifier."""

    generators: list[ImageArtifact]
    verifier: InputFile | None


def plan(config: GenerateConfig, run: RunDir) -> Plan[GenerateInputs]:
    """Plan: reads the teacher, the generators, and the verifier if there is one."""
    generators = find_generators(config.generator, run)
    inputs = [run.artifact(run.teacher()).input("teacher")]
    inputs += [artifact.input("generator") for artifact in generators]
    verifier = find_verifier(config, run)
    place = run.place("transfer-set", config.name or generators[0].name)
    needs = strongest(*(artifact.manifest.needs for artifact in generators))
    return Plan(place, (*inputs, *verifier_inputs(verifier)), needs, GenerateInputs(generators, verifier))


def execute(config: GenerateConfig, resolved: GenerateInputs, context: StageContext) -> dict[str, Any]:
    """Make the images, get the teacher's logits for them, and write arrays and a picture."""
    import torch

    teacher = context.teacher()
    mix = open_generators(resolved.generators, teacher)
    with context.phase("synthesis"):
        images, labels = _sample_images(config, mix, teacher, context)
    row: dict[str, float] = {"images": len(images), "teacher_queries": 0 if mix.conditional else len(images)}
    metrics = write_transfer_set(resolved.verifier, context, teacher, images, labels, [row])
    if not mix.conditional:
        shares = torch.bincount(labels, minlength=teacher.num_classes) / len(labels)
        metrics["rarest_class_share"] = round(float(shares.min()), 4)
    return metrics


def _sample_images(
    config: GenerateConfig, mix: GeneratorMix, teacher: Classifier, context: StageContext
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return uint8 images [N, channels, height, width] and labels [N]; each batch has a random state of its own."""
    import torch

    from ..models.pixels import to_uint8
    from ..training.class_index import labels_in_turn
    from ..training.supervised import predict

    labels = labels_in_turn(0, config.images_per_class * teacher.num_classes, teacher.num_classes)
    made = []
    with context.reporter.task("generate", len(labels)) as task:
        for index, batch in enumerate(labels.split(config.batch_size)):
            rng = torch.Generator().manual_seed(config.seed * 1_000_003 + index)
            made.append(to_uint8(mix.sample(batch, rng, config.noise_scale)).cpu().contiguous())
            task.advance(len(batch))
    images = torch.cat(made)
    return images, labels if mix.conditional else predict(teacher, images).argmax(1)


STAGE = Stage("generate", GenerateConfig, plan, execute)
