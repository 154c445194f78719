"""The initial student: a new network of any origin, a cut or narrower teacher, an artifact of weights, or a file."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ...errors import ConfigError
from ...models.external.names import HALF, Share, parse_name, parse_narrower, parse_share
from ...models.external.user_code import as_file
from ...storage.artifacts import Input
from ...storage.run_dir import MODEL_FILE, PLACES, InputFile, RunDir
from ..inputs.user_model import kdx_file

if TYPE_CHECKING:
    from ...models.classifier import Classifier, ClassifierSpec
    from ...models.external.blueprint import Blueprint

KeptOutputs = dict[str, list[int]]
"""Name of a layer of the teacher that was cut -> the outputs that the student has, ascending."""
STARTS = {"compressed": "kdx compress", "pruned": "kdx prune"}
"""Kind of artifact that is an initial student -> the command that makes it."""


@dataclass(frozen=True)
class StudentStart:
    """How the initial student is made: from the file of a classifier, as a new network by its `blueprint`, or as a
    `share` of the teacher, whose channels are cut.

    `name` is the default name of the student's artifact; `inputs` are the files that the student is made from, and
    `needs` is the access to data that they took. `is_artifact` says that the file is a compressed or pruned classifier.
    """

    name: str
    inputs: tuple[Input, ...]
    file: InputFile | None = None
    blueprint: Blueprint | None = None
    share: Share | None = None
    needs: str = "teacher"
    is_artifact: bool = False

    @property
    def is_new(self) -> bool:
        """Whether its weights are random ones."""
        return self.blueprint is not None

    @property
    def is_from_teacher(self) -> bool:
        """Whether it is the teacher with channels cut or layers factorized, so that its blocks are the teacher's."""
        return self.share is not None or self.is_artifact

    def build(self, teacher: Classifier, inherit: bool, say: Callable[[str], None]) -> tuple[Classifier, KeptOutputs]:
        """Return a student with the teacher's input shape and classes, on the CPU, and which outputs a cut layer kept.

        Args:
            inherit: whether a cut student keeps the teacher's weights; otherwise they are random ones.
            say: prints a line.

        Raises:
            ConfigError: it has another input shape or another number of classes, or the teacher cannot be cut.
        """
        from ...models.classifier import Classifier, load_classifier

        if self.share is not None:
            from ...models.pruning.cut import cut_to, kept_outputs

            made = cut_to(teacher, self.share)
            left = made.classifier.multiply_adds() / teacher.multiply_adds()
            say(f"channels cut to {100 * left:.3g} % of the multiply-adds, in {made.summary}")
            student = made.classifier if inherit else Classifier(made.classifier.spec)
            return student, kept_outputs(teacher, made)
        if self.file is None:
            assert self.blueprint is not None
            return _fresh(self.blueprint, teacher.spec), {}
        student = self.file.read(load_classifier)
        for what, ours, theirs in (
            ("images of shape", student.input_shape, teacher.input_shape),
            ("classes:", student.num_classes, teacher.num_classes),
        ):
            if ours != theirs:
                raise ConfigError(
                    f"the student {self.file.path} has {what} {ours}, the teacher {theirs}; they must be equal"
                )
        return student, {}


def student_start(spec: str, run: RunDir) -> StudentStart:
    """Return the student that `--student` names. A network is built once, to check that it fits the run's teacher.

    Raises:
        UsageError: there is no such network.
        ConfigError: it does not fit the teacher, or it is a narrower network than one without a width, or the run has
            no such compressed or pruned classifier.
        ArtifactError: there is no such file.
    """
    given = _given(spec, run)
    if given is not None:
        return given
    from ...models.classifier import read_spec

    teacher = run.artifact(run.teacher()).file(MODEL_FILE).read(read_spec)
    share = parse_share(spec)
    if share is not None and not (share == HALF and _has_width(teacher)):
        if teacher.blueprint().name.kind == "program":
            raise ConfigError("a .pt2 program cannot be cut: its operations have fixed sizes; name another student")
        return StudentStart(f"{_short(teacher.blueprint())}-{share.short}", (), share=share)
    blueprint, inputs = _blueprint(spec, teacher, run)
    blueprint = blueprint.with_inferred_arguments(teacher.input_shape, teacher.num_classes)
    try:
        _require_fitting(blueprint, teacher)
    except ConfigError as error:
        raise ConfigError(
            f"the student does not fit the teacher: {error}; `half` is the teacher at half its width"
        ) from error
    return StudentStart(_called_after(spec, blueprint), tuple(inputs), None, blueprint)


def _given(spec: str, run: RunDir) -> StudentStart | None:
    """Return a student that comes with weights: an artifact that is one, or a classifier's file; None for others."""
    for kind, command in STARTS.items():
        present = run.artifacts(kind)
        for ref in present:
            if spec.rstrip("/") in (ref.label, str(ref.directory)):
                artifact = run.artifact(ref)
                file, needs = artifact.file(MODEL_FILE), artifact.manifest.needs
                return StudentStart(artifact.name, (artifact.input("student"),), file, needs=needs, is_artifact=True)
        if spec.startswith(PLACES[kind]) and not Path(spec).exists():
            there = f"it has {', '.join(ref.label for ref in present)}" if present else f"make it with: {command}"
            raise ConfigError(f"{run.root} has no {spec}; {there}")
    path = kdx_file(spec)
    if path is None:
        return None
    file = run.file(path)
    return StudentStart(path.absolute().parent.name or "student", (file.input("student"),), file)


def _blueprint(spec: str, teacher: ClassifierSpec, run: RunDir) -> tuple[Blueprint, list[Input]]:
    """Return the network of a new student, and the files that it is read from."""
    from ...models.importer import blueprint_of

    narrower = parse_narrower(spec)
    typed = spec if narrower is None else narrower[0]
    files: list[InputFile] = []
    if typed is None:
        blueprint = teacher.blueprint()
    else:
        name = as_file(parse_name(typed))
        if name.kind in ("file", "program"):
            files.append(run.file(Path(name.place)))
        blueprint = blueprint_of(typed)
        for file in files:
            file.require_unchanged()
    inputs = [file.input("student") for file in files]
    return (blueprint if narrower is None else blueprint.narrowed(narrower[1])), inputs


def _called_after(spec: str, blueprint: Blueprint) -> str:
    """Return the default name of a student: `build`, `resnet18`, `lenet5-half`."""
    narrower = parse_narrower(spec)
    if narrower is None:
        return parse_name(spec).short
    ending = "half" if narrower[1] == 0.5 else f"{narrower[1]:g}"
    return f"{_short(blueprint)}-{ending}"


def _short(blueprint: Blueprint) -> str:
    return parse_name(blueprint.name.target).short


def _has_width(teacher: ClassifierSpec) -> bool:
    """Whether a narrower copy of the teacher can be built by its name, which a teacher with cut channels is not."""
    try:
        teacher.blueprint().narrowed(HALF.value)
    except ConfigError:
        return False
    return not teacher.kept


def _require_fitting(blueprint: Blueprint, teacher: ClassifierSpec) -> None:
    """Raise `ConfigError` unless the network has the teacher's input shape and number of classes."""
    import torch

    state = torch.get_rng_state()
    try:
        if blueprint.name.is_foreign:
            _fresh(blueprint, teacher)
        else:
            with torch.device("meta"):
                blueprint.build(teacher.input_shape, teacher.num_classes)
    finally:
        torch.set_rng_state(state)


def _fresh(blueprint: Blueprint, teacher: ClassifierSpec) -> Classifier:
    from ...models.classifier import Classifier
    from ...models.external.probe import probe

    if not blueprint.name.is_foreign:
        return Classifier(teacher.student(str(blueprint.name)))
    network = blueprint.build(teacher.input_shape, teacher.num_classes).float()
    probed = probe(network, blueprint.name, teacher.input_shape)
    if probed.num_classes != teacher.num_classes:
        raise ConfigError(
            f"the student {blueprint.name} has {probed.num_classes} classes, the teacher {teacher.num_classes}; if it "
            f"has an argument for their number, use: {blueprint.name.with_arguments(num_classes=teacher.num_classes)}"
        )
    code = blueprint.with_imported_files().code
    return Classifier(teacher.student(str(blueprint.name), code, probed.head), network)
