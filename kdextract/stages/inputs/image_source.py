"""The source of images for a student or a calibration: a transfer set, generators, noise, real data, a live method."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Protocol

from ...errors import UsageError
from ...methods import LiveMethod, live_method, live_names, objective, objective_names
from ...models.queries import HELD_OUT, PROBE
from ...options.declare import OptionSet, option
from ...storage.artifacts import Input
from ...storage.run_dir import MODEL_FILE, InputFile, RunDir
from .image_artifacts import ImageArtifact, find_image_artifact, open_generators, read_transfer_set
from .method_inputs import MethodInputs, find_method_inputs
from .real_data import OpensRealData, images_for, open_real_data, real_data_input

if TYPE_CHECKING:
    from ...models.classifier import Classifier
    from ...training.observer import Probe
    from ...training.sources import Source
    from ..running.runner import StageContext

AUTO = "auto"
STORED = ["transfer-set", "generator"]
REAL_IMAGES, TRAINED_GENERATORS = "real images", "trained generators"
NOISE = ["noise:normal", "noise:uniform"]


def live_method_option() -> Any:
    """Declare `--method` of a stage that trains a network on images made meanwhile."""
    return option(
        None,
        "Method that makes images; `kdx methods` lists them.",
        choices=lambda: [AUTO, *live_names()],
        metavar="NAME",
        panel="Source",
    )


def chosen_live_method(stage: str, method: str | None) -> tuple[str, type[OptionSet]]:
    """Return the method of `--method` as errors name it, and the class of its options."""
    if method in (None, AUTO):
        return (f"{stage} without --method" if method is None else "--method auto"), OptionSet
    return f"--method {method}", live_method(str(method)).config


def live_method_options() -> dict[str, type[OptionSet]]:
    """Return the options of every live method, by name."""
    return {name: live_method(name).config for name in live_names()}


class OpensSource(OpensRealData, Protocol):
    """The options of a stage that opens a source of images."""

    @property
    def seed(self) -> int:
        """`--seed`."""
        ...


class NamesSource(OpensSource, Protocol):
    """The options of a stage that selects a source of images, besides the one that names stored images."""

    @property
    def method(self) -> str | None:
        """`--method`."""
        ...

    def method_config(self) -> Any:
        """Options of the method of `--method`."""
        ...


@dataclass(frozen=True, kw_only=True)
class ImageSource(ABC):
    """Where images come from that a student learns from, or that others use; its files are found and hashed.

    Attributes:
        name: its name in the summary.
        learned_from: the kind of images, as in `synthesis.estimate.LEARNED_FROM`, or another text for other kinds.
        inputs: what is read besides the teacher; `needs` is the access to data that the student then takes.
        settings: defaults of options of `distill` that it changes; a value of the user comes first.
        makes_images: whether images are made while the student learns.
        structured: whether its images are structured noise, or start as such.
        low_diversity: whether its images are similar to each other, as those of generators and of inversion without
            statistics are.
        reason: why `--method auto` selected it; '' if the options name it.
    """

    name: str
    learned_from: str
    inputs: tuple[Input, ...] = ()
    needs: str = "teacher"
    settings: dict[str, Any] = field(default_factory=dict)
    makes_images: bool = False
    structured: bool = False
    low_diversity: bool = False
    reason: str = ""

    @abstractmethod
    def open(self, config: OpensSource, teacher: Classifier, context: StageContext) -> Source:
        """Return the source that batches are drawn from."""


@dataclass(frozen=True, kw_only=True)
class NoiseImages(ImageSource):
    """Noise of the distribution at the end of the name: normal or uniform."""

    @classmethod
    def named(cls, spec: str) -> NoiseImages:
        """Return the noise of a name in `NOISE`."""
        return cls(name=spec, learned_from=spec)

    def open(self, config: OpensSource, teacher: Classifier, context: StageContext) -> Source:
        """Return a source with new noise in every batch."""
        from ...training.sources import NoiseSource

        return NoiseSource(self.name.removeprefix("noise:"), teacher, config.seed)


@dataclass(frozen=True, kw_only=True)
class RealImages(ImageSource):
    """The training images of a real data set."""

    purpose: str

    @classmethod
    def of(cls, spec: str, data: Input, purpose: str) -> RealImages:
        """Return the images of a data set; the input `data` has the hash of its files.

        Args:
            purpose: of reading them, for the manifest.
        """
        return cls(name=spec, learned_from=REAL_IMAGES, inputs=(data,), needs="teacher+data", purpose=purpose)

    def open(self, config: OpensSource, teacher: Classifier, context: StageContext) -> Source:
        """Return the images at the teacher's input size, without their labels."""
        from ...training.sources import ImagePool

        data = open_real_data(config, self.name, "train", self.purpose, context)
        images = images_for(teacher.input_shape, None, data, self.name, context)
        return ImagePool(images, None, config.seed, context.device, holds_out=True)


@dataclass(frozen=True, kw_only=True)
class TransferSetImages(ImageSource):
    """The images of a transfer set."""

    artifact: ImageArtifact

    @classmethod
    def of(cls, artifact: ImageArtifact) -> TransferSetImages:
        """Return the images of this artifact."""
        made_for = str(artifact.manifest.config.get("objective"))
        generated = artifact.manifest.stage == "generate"
        structured = made_for in objective_names() and objective(made_for).gradient_free
        inverted = made_for in objective_names() and not objective(made_for).supports_tables and not structured
        return cls(
            name=artifact.name,
            learned_from=TRAINED_GENERATORS if generated else made_for,
            inputs=(artifact.input(artifact.kind),),
            needs=artifact.manifest.needs,
            structured=structured,
            low_diversity=generated or inverted,
            artifact=artifact,
        )

    def open(self, config: OpensSource, teacher: Classifier, context: StageContext) -> Source:
        """Return the images with the teacher's logits."""
        from ...training.sources import ImagePool

        images, targets = read_transfer_set(self.artifact, teacher.input_shape, teacher.num_classes)
        return ImagePool(images, targets, config.seed, context.device, holds_out=True)


@dataclass(frozen=True, kw_only=True)
class GeneratorImages(ImageSource):
    """Images of trained generators, new in every batch."""

    artifact: ImageArtifact

    @classmethod
    def of(cls, artifact: ImageArtifact) -> GeneratorImages:
        """Return the images of the generators of this artifact."""
        return cls(
            name=artifact.name,
            learned_from=TRAINED_GENERATORS,
            inputs=(artifact.input(artifact.kind),),
            needs=artifact.manifest.needs,
            makes_images=True,
            low_diversity=True,
            artifact=artifact,
        )

    def open(self, config: OpensSource, teacher: Classifier, context: StageContext) -> Source:
        """Return a source that draws from the generators."""
        from ...synthesis.generators.source import GeneratorSource

        return GeneratorSource(open_generators([self.artifact], teacher), teacher, config.seed)


@dataclass(frozen=True, kw_only=True)
class LiveImages(ImageSource):
    """Images of a live method, with its options and its inputs besides the teacher.

    `others` are those of other methods that a trial of `--method auto` may select instead.
    """

    method: LiveMethod
    options: Any
    given: MethodInputs
    others: tuple[LiveImages, ...] = ()

    @classmethod
    def of(cls, method: LiveMethod, options: Any, given: MethodInputs, reason: str = "") -> LiveImages:
        """Return the images that a method makes with these options."""
        return cls(
            name=method.name,
            learned_from=_game_or_name(method, options),
            inputs=tuple(given.inputs),
            needs=given.needs,
            settings=method.settings,
            makes_images=True,
            structured=method.structured,
            low_diversity=not method.structured,
            reason=reason,
            method=method,
            options=options,
            given=given,
        )

    def open(self, config: OpensSource, teacher: Classifier, context: StageContext) -> Source:
        """Return the method's source."""
        from ...synthesis.structured_noise.by_class import require_images

        if self.structured:
            require_images(teacher)
        return self.method.open_source(self.given.given(teacher, context), self.options, config.seed)


def _game_or_name(method: LiveMethod, options: Any) -> str:
    """Return the method's name, with options for which the estimate's rule was not fitted."""
    from ...synthesis.options import GameConfig

    if isinstance(options, GameConfig):
        usual = GameConfig()
        if options.start != usual.start:
            return f"{method.name} with --start {options.start}"
        if options.replay < usual.replay:
            return f"{method.name} with --replay {options.replay:g}"
    return method.name


def choose_source(
    config: NamesSource, spec: str | None, option: str, run: RunDir, teacher: InputFile | None = None
) -> ImageSource:
    """Return the source that `spec` or `--method` names; without both, the run's only one, or what `auto` selects.

    Args:
        spec: the value of the option that names a transfer set, generators, noise or real data.
        option: this option as the user types it, for errors.
        teacher: the file of the classifier that gives targets, if it is not the run's teacher. The run's transfer sets,
            generators and statistics are not used for it unless `spec` names them.

    Raises:
        UsageError: the name is unknown, or both options are given.
        ConfigError: the run has several transfer sets or generators, or inputs of the method are missing in it.
        ArtifactError: a file is missing or was changed.
    """
    if config.method is not None:
        if spec is not None:
            raise UsageError(f"{option} and --method both name a source of images; give one of them")
        if config.method == AUTO:
            return _auto(run, teacher)
        method = live_method(config.method)
        return LiveImages.of(method, config.method_config(), find_method_inputs(method, run, teacher=teacher))
    if spec is None and (teacher is not None or not run.artifacts(*STORED)):
        return _auto(run, teacher)
    return images_named(spec, option, config, run, "distillation")


def images_named(spec: str | None, option: str, config: OpensSource, run: RunDir, purpose: str) -> ImageSource:
    """Return the source of a value of `--data`; None: the run's only transfer set or generators.

    Args:
        option: the option that has the value, for errors.
        purpose: of reading real data, if `spec` names some, for the manifest.

    Raises:
        UsageError: the name is unknown.
        ConfigError: the run has several transfer sets or generators.
        ArtifactError: a file is missing or was changed.
    """
    from ...data.load import data_names, is_real_data

    if spec in NOISE:
        return NoiseImages.named(spec)
    if spec is not None and is_real_data(spec):
        return RealImages.of(spec, real_data_input(config, spec, "train"), purpose)
    artifact = find_image_artifact(spec, run, option, STORED, NOISE + data_names())
    return TransferSetImages.of(artifact) if artifact.kind == "transfer-set" else GeneratorImages.of(artifact)


def open_with_probe(
    images: ImageSource, config: NamesSource, teacher: Classifier, context: StageContext
) -> tuple[Source, Probe, dict[str, float]]:
    """Return the source of images, held-out images with the teacher's classes, and the choices of the source.

    The seconds are those of the phase `source`, and the images are counted as `held_out` and `probe`.
    """
    from ...training.observer import HELD_OUT_IMAGES, Probe
    from ...training.sources import Batched, Described

    with context.phase("source"):
        source = images.open(config, teacher, context)
        with teacher.queries.purpose(HELD_OUT):
            if isinstance(source, Batched):  # its images take long to make
                held_out = context.checkpoints.once_tensor("held_out", lambda: source.held_out(HELD_OUT_IMAGES))
            else:
                held_out = source.held_out(HELD_OUT_IMAGES)
        with teacher.queries.purpose(PROBE):
            probe = Probe.of(teacher, held_out)
    facts = dict(source.facts) if isinstance(source, Described) else {}
    if facts:
        context.reporter.line(", ".join(f"{name.replace('_', ' ')}: {value}" for name, value in facts.items()))
    return source, probe, facts


def images_from_formulas(file: InputFile, **options: int) -> ImageSource:
    """Return images that need nothing but the classifier of a file: those of a method that `methods.auto` selects, and
    whose pixels are not optimized.

    For rows of a table, it is normal noise.

    Args:
        options: of the method, such as `pool`.
    """
    from ...methods.auto import pick
    from ...models.classifier import load_classifier

    classifier = file.read(load_classifier)
    if classifier.is_table:
        return NoiseImages.named("noise:normal")
    method = live_method(pick(classifier, optimizes=False)[0])
    config: Any = method.config
    return LiveImages.of(method, config(**options), MethodInputs())


def _auto(run: RunDir, teacher: InputFile | None) -> ImageSource:
    """Return the images of the live method that `methods.auto` selects for the teacher, with default options."""
    from ...methods.auto import candidates, pick
    from ...models.classifier import load_classifier

    file = teacher or run.artifact(run.teacher()).file(MODEL_FILE)
    classifier = file.read(load_classifier)
    _, reason = pick(classifier)
    first, *others = (
        LiveImages.of(method, method.config(), find_method_inputs(method, run, teacher=teacher), reason)
        for method in map(live_method, candidates(classifier))
    )
    return replace(first, others=tuple(others))
