"""The inputs of a method besides the teacher: the run's statistics, a student."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...data.tables import is_table
from ...errors import ArtifactError, ConfigError
from ...methods import TWO_WAYS, Given, LiveMethod, Objective, SynthesisMethod
from ...storage.artifacts import BATCH_NORM_KEY, Input, read_manifest, read_safetensors_header, strongest
from ...storage.run_dir import MODEL_FILE, Artifact, ArtifactRef, InputFile, RunDir
from ..running.runner import StageContext

if TYPE_CHECKING:
    from ...models.classifier import Classifier
    from ...synthesis.statistics.recorded import Statistics


@dataclass(frozen=True)
class MethodInputs:
    """The statistics and the student of the run that a method needs; None for those that it does not need."""

    statistics: Artifact | None = None
    student: Artifact | None = None

    @property
    def inputs(self) -> list[Input]:
        """These artifacts, as inputs of a stage."""
        found = {"statistics": self.statistics, "student": self.student}
        return [artifact.input(role) for role, artifact in found.items() if artifact is not None]

    @property
    def needs(self) -> str:
        """The access to data of the artifact that took the most."""
        of_student = "" if self.student is None else self.student.manifest.needs
        return strongest("teacher", of_student, "teacher+statistics" if self.statistics else "")

    def given(self, teacher: Classifier, context: StageContext) -> Given:
        """Return the teacher with the loaded artifacts, on the stage's device."""
        student = None
        if self.student is not None:
            student = context.classifier(self.student.file(MODEL_FILE))
            if (student.input_shape, student.num_classes) != (teacher.input_shape, teacher.num_classes):
                raise ConfigError(f"{self.student.label} has another input shape or number of classes than the teacher")
        return Given(teacher, self._statistics(context), student)

    def _statistics(self, context: StageContext) -> Statistics | None:
        from ...storage.tensor_files import read_safetensors
        from ...synthesis.statistics.recorded import Statistics

        if self.statistics is None:
            return None
        contents = self.statistics.file("statistics.safetensors").read(read_safetensors)
        return Statistics.from_tensors(*contents).to(context.device)


def find_method_inputs(
    method: Objective | LiveMethod, run: RunDir, student: str | None = None, teacher: InputFile | None = None
) -> MethodInputs:
    """Return the inputs of a method in this run, every file of them checked.

    Args:
        student: the name of a student of the run, for a method that needs one.
        teacher: the file of the teacher if it is not the run's; the run's statistics are then not those of the teacher.

    Raises:
        ConfigError: the teacher or the statistics that the method needs are missing.
        UsageError: there is no such student.
        ArtifactError: a file is missing or was changed.
    """
    file = run.teacher().directory / MODEL_FILE if teacher is None else teacher.path
    competitor = None if student is None else run.find(student, "student")
    statistics = _statistics_for(method, run, file, of_run=teacher is None)
    return MethodInputs(*(None if ref is None else run.artifact(ref) for ref in (statistics, competitor)))


def missing_inputs(method: SynthesisMethod, run: RunDir) -> str:
    """Return in words what is missing in the run for the method; '' if the method can be used."""
    try:
        file = run.teacher().directory / MODEL_FILE
        shape = tuple(_header(file)["classifier"]["input_shape"])
    except ConfigError as error:
        return str(error)
    try:
        if not method.supports_tables and is_table(shape):
            return "images: the teacher takes rows of a table"
        if isinstance(method, Objective | LiveMethod):
            _statistics_for(method, run, file)
        if isinstance(method, Objective) and method.needs_student and not run.artifacts("student"):
            return f"{run.root} has no student; make one with: kdx distill"
    except (ConfigError, ArtifactError) as error:
        return str(error)
    return ""


def _statistics_for(
    method: Objective | LiveMethod, run: RunDir, teacher: Path, of_run: bool = True
) -> ArtifactRef | None:
    """Return the run's statistics if the method needs them. Raises `ConfigError` if they, or a record, are missing.

    Args:
        teacher: the file of the teacher; `of_run` says whether it is the run's, of which the statistics are.
    """
    record = method.record if isinstance(method, Objective) else None
    if record is not None:
        return _with_record(run, method.name, record)
    if not method.matches_batch_norm or _has_batch_norm(teacher):
        return None
    if not of_run:
        raise ConfigError(
            f"{method.name} needs batch normalization in {teacher}, or its recorded statistics: make it the teacher of "
            "another run with kdx import-model, and record them there with kdx compute-stats"
        )
    statistics = run.place("statistics")
    if not statistics.directory.is_dir():
        raise ConfigError(TWO_WAYS)
    return statistics


def _header(teacher: Path) -> dict[str, Any]:
    """Return the description in the header of the teacher's file."""
    return read_safetensors_header(teacher)[1]


def _has_batch_norm(teacher: Path) -> bool:
    """Return whether the teacher has batch normalization that keeps statistics (`hooks.batch_norm_layers`).

    Files of version 0.1 do not record this; for these the teacher is loaded.

    Raises:
        ArtifactError: it is such a file, and the teacher cannot be loaded.
    """
    recorded = _header(teacher).get(BATCH_NORM_KEY)
    if isinstance(recorded, bool):
        return recorded
    from ...models.classifier import load_classifier
    from ...models.hooks import batch_norm_layers

    return bool(batch_norm_layers(load_classifier(teacher).network))


def _with_record(run: RunDir, name: str, record: str) -> ArtifactRef:
    """Return the run's statistics. Raises `ConfigError` if the record is not among them."""
    statistics = run.existing("statistics", "kdx compute-stats")
    recorded = read_manifest(statistics.directory).metrics.get("records", [])
    if record not in recorded:
        raise ConfigError(
            f"{name} needs the {record} record, and the statistics have only {', '.join(recorded)}; "
            "make them again with: kdx compute-stats --spectral --force"
        )
    return statistics
