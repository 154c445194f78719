"""`kdx train-generator`: train generators through the frozen teacher. Reads no real data without `--samples`."""

from __future__ import annotations

from dataclasses import MISSING, dataclass
from typing import TYPE_CHECKING, Any

from ..errors import UsageError
from ..methods import generator_method, generator_names
from ..models.queries import PICTURES
from ..options.declare import DataAccess, MethodStageConfig, OptionSet, TeacherConfig, option
from ..storage.run_dir import RunDir
from .inputs.real_data import few_images, images_for, open_real_data, real_data_input, teacher_data
from .running.checkpoints import SequentialCheckpoints
from .running.runner import Plan, Stage, StageContext

if TYPE_CHECKING:
    from ..models.classifier import Classifier
    from ..synthesis.generators.generator import Generator
    from ..synthesis.generators.training import Samples

SEED_STRIDE = 1009
"""Generator number i is trained with the seed 1009 * seed + i, so that artifacts of different seeds share none."""
CHECKED_PER_CLASS = 25

Rows = list[dict[str, float]]


@dataclass(frozen=True, kw_only=True)
class TrainGeneratorConfig(MethodStageConfig, TeacherConfig, DataAccess):
    """Train generators of images without data.

    A generator is a small network from noise (and a class) to images, trained through the frozen teacher. `kdx distill
    --data NAME` then draws new images from it at every step; `kdx generate` makes a transfer set with it. Writes
    generator-0.safetensors and so on, grid.png (one class per row, one noise vector per column) and walk.png (images
    between two noise vectors).

    Examples:

      kdx train-generator kegnet && kdx distill --student lenet_half
      kdx train-generator kegnet --generators 2 --steps 500 --name quick
      kdx train-generator keflow --flow nice_affine --samples 10
    """

    method: str = option(MISSING, "Training method.", choices=generator_names, positional=True)
    samples: int | None = option(
        None,
        "Also learn from N real images, equally many per class, drawn by the seed; the manifest records this.",
        minimum=1,
        panel="Source",
    )
    data: str | None = option(
        None, "Real data of --samples.", metavar="SPEC", panel="Source", otherwise="the teacher's training data"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.samples is not None and not generator_method(self.method).takes_samples:
            able = ", ".join(name for name in generator_names() if generator_method(name).takes_samples)
            raise UsageError(f"--samples has no effect on {self.method}; it is for {able}")
        if self.data is not None and self.samples is None:
            raise UsageError("--data has no effect without --samples")

    def chosen_method(self) -> tuple[str, type[OptionSet]]:
        """The method, and the class of its options."""
        return self.method, generator_method(self.method).config

    @classmethod
    def methods(cls) -> dict[str, type[OptionSet]]:
        """The options of every method that trains generators, by name."""
        return {name: generator_method(name).config for name in generator_names()}


def plan(config: TrainGeneratorConfig, run: RunDir) -> Plan[str | None]:
    """Plan: reads the teacher and, with `--samples`, real data; resolved is the name of the data."""
    config.method_config()
    inputs = [run.artifact(run.teacher()).input("teacher")]
    spec, needs = None, "teacher"
    if config.samples is not None:
        spec, needs = teacher_data(config.data, run), "teacher+samples"
        inputs.append(real_data_input(config, spec, "train"))
    return Plan(run.place("generator", config.name or config.method), tuple(inputs), needs, spec)


def execute(config: TrainGeneratorConfig, spec: str | None, context: StageContext) -> dict[str, Any]:
    """Train one generator after the other, and write them, pictures of their images, and their losses."""
    from ..synthesis.generators.generator import encode_generator
    from ..synthesis.generators.training import multiply_adds
    from .outputs.curves import term_curves

    teacher = context.teacher()
    options = config.method_config()
    samples = _samples(config, spec, teacher, context)
    trained: list[Generator] = []
    rows: Rows = []
    checkpoints = SequentialCheckpoints(context.checkpoints)
    with context.phase("training"), context.checkpoints.loop():
        for index in range(options.generators):
            generator, losses = _train(config, index, teacher, samples, checkpoints, context)
            trained.append(generator)
            rows += [{"generator": index, **row} for row in losses]
    for index, generator in enumerate(trained):
        context.write(f"generator-{index}.safetensors", encode_generator(generator))
    context.write_metrics(rows)
    context.write("terms.png", term_curves([{k: v for k, v in row.items() if k != "lr"} for row in rows]))
    context.count(images=options.generators * options.steps * options.batch_size)
    with teacher.queries.purpose(PICTURES):
        pictured = _draw_pictures(trained, teacher, config.seed, context)
    return {
        "method": config.method,
        "generators": options.generators,
        "num_parameters": trained[0].num_parameters,
        "generator_multiply_adds": multiply_adds(trained[0].spec),
        "teacher_multiply_adds": teacher.multiply_adds(),
        "network": trained[0].spec.network,
        "network_options": trained[0].spec.options,
        "steps": options.steps,
        "loss": rows[-1]["loss"],
        **pictured,
    }


def _samples(
    config: TrainGeneratorConfig, spec: str | None, teacher: Classifier, context: StageContext
) -> Samples | None:
    """Return the real images of `--samples`, None without this option."""
    from ..models.pixels import to_pixels
    from ..synthesis.generators.training import Samples

    if config.samples is None or spec is None:
        return None
    data = open_real_data(config, spec, "train", f"{config.samples} samples", context)
    chosen = few_images(data, config.samples, config.seed)
    images = images_for(teacher.input_shape, teacher.spec.class_names, data, spec, context, chosen)
    return Samples(to_pixels(images).to(teacher.device), data.labels[chosen].to(teacher.device))


def _train(
    config: TrainGeneratorConfig,
    index: int,
    teacher: Classifier,
    samples: Samples | None,
    checkpoints: SequentialCheckpoints,
    context: StageContext,
) -> tuple[Generator, Rows]:
    """Return generator number `index`, trained and frozen, and its metric rows."""
    from ..training.loop import Stateful, take_steps

    options = config.method_config()
    training = generator_method(config.method).build_training(
        teacher, options, config.seed * SEED_STRIDE + index, samples
    )
    if index < len(checkpoints.finished):
        weights, rows = checkpoints.finished[index]
        training.generator.network.load_state_dict(weights)
        training.finish()
        return training.generator.frozen(), rows
    training.network.train()
    title = f"train-generator ({config.method})"
    if options.generators > 1:
        title = f"{title} {index + 1}/{options.generators}"
    schedule, members = training.schedule(options.steps), dict[str, Stateful](draws=training.draws)
    rows = take_steps(training, training.loss, schedule, members, checkpoints, context.reporter, title, training.log)
    checkpoints.finish(training.generator.network.state_dict(), rows)
    training.finish()
    return training.generator.frozen(), rows


def _draw_pictures(trained: list[Generator], teacher: Classifier, seed: int, context: StageContext) -> dict[str, float]:
    """Write grid.png and walk.png; return figures of the teacher's predictions for images of all generators."""
    import torch

    from ..models.pixels import to_uint8
    from ..synthesis.generators.mix import GeneratorMix
    from ..synthesis.generators.views import class_by_noise, latent_walk
    from ..training.supervised import predict
    from .outputs.pictures import IMAGES_PER_CLASS, class_grid, image_rows

    names = teacher.spec.class_names
    mix, rng = GeneratorMix(trained), torch.Generator().manual_seed(seed)
    labels = torch.arange(teacher.num_classes).repeat(CHECKED_PER_CLASS)
    images = torch.cat([to_uint8(mix.sample(chunk, rng)).cpu() for chunk in labels.split(500)])
    probabilities = predict(teacher, images).softmax(1)
    answers = probabilities.argmax(1)
    shares = torch.bincount(answers, minlength=teacher.num_classes) / len(answers)
    if mix.conditional:
        shown, rows = class_by_noise(trained, IMAGES_PER_CLASS, seed)
        shown = to_uint8(shown).cpu()
        context.write("grid.png", class_grid(shown, rows, predict(teacher, shown).softmax(1), names))
        captions = dict(enumerate(names))
    else:
        context.write("grid.png", class_grid(images, answers, probabilities, names))
        captions = {row: f"walk {row + 1}" for row in range(teacher.num_classes)}
    walked, rows = latent_walk(trained[0], IMAGES_PER_CLASS, seed)
    context.write("walk.png", image_rows(to_uint8(walked).cpu(), rows, captions))
    agreement = round(float((answers == labels).float().mean()), 4)
    return {
        **({"teacher_agrees_with_label": agreement} if mix.conditional else {}),
        "mean_confidence": round(float(probabilities.amax(1).mean()), 4),
        "rarest_class_share": round(float(shares.min()), 4),
    }


STAGE = Stage("train-generator", TrainGeneratorConfig, plan, execute)
