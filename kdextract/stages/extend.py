"""`kdx extend`: add classes to a classifier. It reads real images of the new classes, none of the old ones."""

from __future__ import annotations

from dataclasses import MISSING, dataclass
from typing import TYPE_CHECKING, Any

from ..errors import ConfigError, UsageError
from ..models.queries import EVALUATION
from ..options.declare import DataAccess, MethodStageConfig, NetworkConfig, OptionSet, TeacherConfig, option
from ..storage.artifacts import with_new_data
from ..storage.run_dir import MODEL_FILE, RunDir
from .inputs.augmentation import USUAL_AUGMENTATION, drawing_background, usual_augmentation
from .inputs.class_selection import images_of_classes, images_of_names, parse_classes
from .inputs.classifiers import ChosenClassifier, find_classifier
from .inputs.image_source import (
    REAL_IMAGES,
    ImageSource,
    choose_source,
    chosen_live_method,
    live_method_option,
    live_method_options,
    open_with_probe,
)
from .inputs.real_data import as_name, images_for, open_real_data, real_data_input
from .outputs.lineage import data_name
from .outputs.task_scores import HELD_OUT_IMAGES, SCORES_FILE, SCORES_PICTURE, Answers, Task, TaskScores
from .outputs.transfer_set import write_source_pictures
from .running.runner import Plan, Stage, StageContext

if TYPE_CHECKING:
    import torch

    from ..models.classifier import Classifier
    from ..training.loop import Row
    from ..training.observer import Probe
    from ..training.sources import ImagePool, Source

NONE = "none"
"""The value of `--old-images` without which synthetic images are made."""
HELD_OUT_NEW = 10_000
"""The accuracy on new images that are set aside is measured on at most so many of them."""
WARMUP_SHARE = 0.05
SHIFT, WARP = 2, 0.1
"""Augmentation of new images, as usual in `kdx train`; rows of a table are not changed."""


@dataclass(frozen=True, kw_only=True)
class ExtendConfig(MethodStageConfig, TeacherConfig, NetworkConfig, DataAccess):
    """Add classes to a classifier without data of its old ones.

    It learns from real images of the new classes (--data, --classes) and from synthetic images of the old ones, for
    which the old classifier gives the targets. These come from a method (--method), or are a transfer set, generators
    or other images (--old-images); without both options, as in kdx distill. The new classes follow the old ones. Real
    test images of all classes are read only for --test-data, and only to measure the accuracy.

    Examples:

      kdx extend --data folder:birds
      kdx extend --data mnist --classes 5-9 --test-data mnist
      kdx extend extended/birds --data folder:trees --method deep_inversion
      kdx extend --data folder:birds --old-images generators/kegnet --name from_generators
    """

    artifact: str | None = option(
        None,
        "Classifier of the run, or a model.safetensors file; default: the teacher.",
        positional=True,
    )
    data: str = option(MISSING, "Real images of the new classes, as in `kdx train`.", metavar="SPEC", panel="Source")
    classes: str | None = option(
        None,
        "New classes in --data: names or numbers, such as 5-9 or cat,dog.",
        metavar="LIST",
        panel="Source",
        otherwise="all that have images",
    )
    old_images: str | None = option(
        None,
        "Images of old classes: transfer set or generators (name or path), noise:normal, noise:uniform, real data, or "
        "none.",
        metavar="SPEC",
        panel="Source",
    )
    method: str | None = live_method_option()
    test_data: str | None = option(
        None,
        "Real data of all classes, whose test images are read for the accuracy alone.",
        metavar="SPEC",
        panel="Output",
    )
    lwf: bool = option(
        True,
        "Keep the old answers on the new images as well (Learning without Forgetting).",
        panel="Loss",
    )
    steps: int = option(1000, "Optimizer steps.", minimum=1, panel="Schedule")
    batch_size: int = option(64, "New images per step, and as many old ones.", minimum=2, panel="Schedule")
    lr: float = option(0.001, "Peak learning rate.", above=0, panel="Schedule")

    def __post_init__(self) -> None:
        super().__post_init__()
        parse_classes(self.classes)
        if self.old_images == NONE and self.method is not None:
            raise UsageError("--old-images none and --method exclude each other")

    def chosen_method(self) -> tuple[str, type[OptionSet]]:
        """The live method, if one is named, and the class of its options."""
        return chosen_live_method("extend", self.method)

    @classmethod
    def methods(cls) -> dict[str, type[OptionSet]]:
        """The options of every live method, by name."""
        return live_method_options()


@dataclass(frozen=True)
class ExtendInputs:
    """The classifier to extend, the source of images of its classes, and the label of the result.

    `start.file` is the file of the classifier; `images` is None for `--old-images none`.
    """

    start: ChosenClassifier
    images: ImageSource | None
    label: str


def plan(config: ExtendConfig, run: RunDir) -> Plan[ExtendInputs]:
    """Plan: reads a classifier, real images of new classes, a source of old images, and test data if it is named."""
    config.method_config()
    if config.artifact is None:
        run.teacher()
    start = find_classifier(config.artifact or "teacher", run)
    is_teacher = start.artifact is not None and start.artifact.kind == "teacher"
    images = None
    if config.old_images != NONE:
        images = choose_source(config, config.old_images, "--old-images", run, None if is_teacher else start.file)
    inputs = [start.input, real_data_input(config, config.data, "train", "new-data")]
    inputs += [] if images is None else images.inputs
    if config.test_data is not None:
        inputs.append(real_data_input(config, config.test_data, "test", "test-data"))
    named = "-".join(filter(None, (data_name(config.data), config.classes)))
    place = run.place("extended", config.name or as_name(named))
    needs = with_new_data(
        "teacher" if start.artifact is None else start.artifact.manifest.needs, "" if images is None else images.needs
    )
    return Plan(place, tuple(inputs), needs, ExtendInputs(start, images, place.label))


@dataclass(frozen=True)
class NewImages:
    """Images of the new classes: the pool that is learned from, the images set aside with their labels, and the names.

    `aside` is uint8 [N, channels, height, width], `aside_labels` int64 [N] in [K_old, K).
    """

    pool: ImagePool
    aside: torch.Tensor
    aside_labels: torch.Tensor
    names: tuple[str, ...]


@dataclass(frozen=True)
class OldImages:
    """Images for the old classes: `found` as `plan` found them, opened as `source`; `facts` are its choices.

    `probe` has the held-out images with the old classifier's answers, `augmentation` values of `USUAL_AUGMENTATION`.
    """

    found: ImageSource
    source: Source
    probe: Probe
    augmentation: dict[str, Any]
    facts: dict[str, float]


@dataclass(frozen=True)
class TestImages:
    """Test images of all classes, uint8 [N, channels, height, width], and their labels, int64 [N] in [0, K).

    `spec` is the name of the data set.
    """

    images: torch.Tensor
    labels: torch.Tensor
    spec: str


def execute(config: ExtendConfig, resolved: ExtendInputs, context: StageContext) -> dict[str, Any]:
    """Enlarge the classifier, train it, measure it, and write it with its scores."""
    import torch

    from ..models.more_classes import with_more_classes

    torch.manual_seed(config.seed)
    old = context.teacher(file=resolved.start.file)
    with context.phase("data"):
        new_images = read_new_images(config, old, context)
        new = with_more_classes(old, new_images.names)
        tests = read_test_images(config, new, context)
        scores = earlier_scores(resolved.start, old)
    old_images = open_old_images(config, resolved.images, old, context)
    rows = train(config, old, context.placed(new), new_images, old_images, context)
    write(new, rows, old, old_images, context)
    with context.phase("evaluation"), old.queries.purpose(EVALUATION):
        scores, figures = score(scores, resolved.label, old, new, new_images, old_images, tests)
    context.write(SCORES_FILE, scores.encode())
    context.write(SCORES_PICTURE, scores.picture())
    context.count(images=new_images.pool.num_images, student_steps=int(rows[-1]["step"]))
    return {
        "model": new.spec.architecture,
        "num_parameters": new.num_parameters,
        "old_classes": old.num_classes,
        "new_classes": list(new_images.names),
        "source": NONE if old_images is None else old_images.found.name,
        "num_images": new_images.pool.num_images,
        "num_old_images": 0 if old_images is None else old_images.source.num_images,
        "steps": int(rows[-1]["step"]),
        "loss": rows[-1]["loss"],
        **figures,
        **({} if old_images is None else {"settings": old_images.augmentation}),
        **({} if old_images is None or not old_images.facts else {"source_facts": old_images.facts}),
    }


def read_new_images(config: ExtendConfig, old: Classifier, context: StageContext) -> NewImages:
    """Return the images of the new classes at the classifier's input size; one image in 20 is set aside.

    Raises:
        UsageError: the data set has no such class.
        ConfigError: a class is one of the classifier's already, or has no images, or the images do not fit.
    """
    from ..training.sources import ImagePool

    data = open_real_data(config, config.data, "train", "new classes", context)
    found = images_of_classes(data, config.classes, config.data)
    known = [name for name in found.names if name in old.spec.class_names]
    if known:
        raise ConfigError(
            f"class {known[0]!r} of {config.data} is a class of the classifier already; select others with --classes, "
            "or rename it in the data set"
        )
    images = images_for(old.input_shape, None, data, config.data, context, found.rows)
    labels = found.labels + old.num_classes
    pool = ImagePool(images, labels, config.seed, context.device, holds_out=True)
    aside, aside_labels = pool.held_out(HELD_OUT_NEW), pool.held_out_targets(HELD_OUT_NEW)
    return NewImages(pool, aside, aside_labels.cpu(), found.names)


def read_test_images(config: ExtendConfig, new: Classifier, context: StageContext) -> TestImages | None:
    """Return the test images of `--test-data` whose classes, by name, are those of the classifier; None without it.

    Raises:
        ConfigError: a class of the classifier has no test images, or the images do not fit.
    """
    if config.test_data is None:
        return None
    data = open_real_data(config, config.test_data, "test", "evaluation", context)
    found = images_of_names(data, new.spec.class_names, config.test_data)
    return TestImages(
        images_for(new.input_shape, None, data, config.test_data, context, found.rows), found.labels, config.test_data
    )


def open_old_images(
    config: ExtendConfig, found: ImageSource | None, old: Classifier, context: StageContext
) -> OldImages | None:
    """Open the source of images for the old classes; None for `--old-images none`."""
    if found is None:
        return None
    if found.reason:
        context.reporter.line(f"--method auto: {found.name}, because {found.reason}")
    source, probe, facts = open_with_probe(found, config, old, context)
    return OldImages(found, source, probe, usual_augmentation(found, old), facts)


def train(
    config: ExtendConfig,
    old: Classifier,
    new: Classifier,
    new_images: NewImages,
    old_images: OldImages | None,
    context: StageContext,
) -> list[Row]:
    """Train `new`, in place, and return the metric rows; agreement on held-out images is measured if there are any."""
    from ..training.augmentation import Augmenter
    from ..training.crossing import Crossings
    from ..training.extension import ALONE_NOT_NEW_WEIGHT, ExtensionOptions, extend
    from ..training.loop import Schedule
    from ..training.observer import Observer

    usual = USUAL_AUGMENTATION if old_images is None else old_images.augmentation
    background = drawing_background(old) if usual["redraw"] else None
    shift, warp = (0, 0.0) if old.is_table else (SHIFT, WARP)
    real = old_images is not None and old_images.found.learned_from == REAL_IMAGES
    crosses = old_images is not None and not real and len(new_images.names) > 1 and not old.is_table
    options = ExtensionOptions(
        config.batch_size,
        Schedule(config.steps, config.lr, warmup=round(WARMUP_SHARE * config.steps)),
        Augmenter(shift, False, warp, config.seed + 1),
        Augmenter(usual["shift"], usual["flip"], usual["warp"], config.seed + 2, background, splice=usual["splice"]),
        config.lwf,
        Crossings(config.seed + 3) if crosses else None,
        1.0 if crosses or real else ALONE_NOT_NEW_WEIGHT,
    )
    with context.phase("extension"), context.checkpoints.loop():
        return extend(
            old,
            new,
            new_images.pool,
            None if old_images is None else old_images.source,
            options,
            context.checkpoints,
            context.reporter,
            None if old_images is None else Observer(old_images.probe, config.steps, None, 0),
            lambda: context.phase("synthesis"),
        )


def write(
    new: Classifier, rows: list[Row], old: Classifier, old_images: OldImages | None, context: StageContext
) -> None:
    """Write the classifier, its metric rows and, where images were made, pictures of some."""
    from ..models.classifier import encode_classifier

    context.write(MODEL_FILE, encode_classifier(new))
    context.write_metrics(rows)
    if old_images is not None and old_images.found.makes_images:
        write_source_pictures(None, context, old, old_images.source)


def earlier_scores(start: ChosenClassifier, old: Classifier) -> TaskScores:
    """Return the scores of the classifier that is extended; without rows if it is the first of its kind.

    Raises:
        ArtifactError: the scores are malformed, or were changed since they were hashed.
    """
    if start.artifact is not None and start.is_extended:
        return TaskScores.read(start.artifact.file(SCORES_FILE))
    label = start.name if start.artifact is None else start.artifact.label
    return TaskScores((Task(label, old.spec.class_names),))


def score(
    scores: TaskScores,
    label: str,
    old: Classifier,
    new: Classifier,
    new_images: NewImages,
    old_images: OldImages | None,
    tests: TestImages | None,
) -> tuple[TaskScores, dict[str, float | None]]:
    """Return the scores with those of the new classifier, whose label is given, and the figures of the summary.

    If there are no earlier scores, the first row is that of the classifier that was extended, on test images.
    """
    if tests is not None and not scores.rows:
        known = tests.labels < old.num_classes
        answers = Answers.of(old, tests.images[known], tests.labels[known])
        scores = scores.with_row(scores.tasks[-1].stage, tests.spec, answers)
    scores = scores.with_task(Task(label, new_images.names))
    aside = Answers.of(new, new_images.aside, new_images.aside_labels)
    figures: dict[str, float | None] = {}
    held_out = aside
    if old_images is not None:
        of_old = Answers.of(new, old_images.probe.images, old_images.probe.answers)
        figures["held_out_agreement"] = of_old.right(0, old.num_classes)
        held_out = of_old.followed_by(aside)
    figures["held_out_new_accuracy"] = aside.right(old.num_classes, new.num_classes)
    if tests is None:
        scores = scores.with_row(label, HELD_OUT_IMAGES, held_out)
    else:
        answers = Answers.of(new, tests.images, tests.labels)
        scores = scores.with_row(label, tests.spec, answers)
        figures["old_accuracy"] = answers.right(0, old.num_classes)
        figures["new_accuracy"] = answers.right(old.num_classes, new.num_classes)
        figures["accuracy"] = answers.right(0, new.num_classes)
    return scores, figures


STAGE = Stage("extend", ExtendConfig, plan, execute)
