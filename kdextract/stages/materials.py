"""What a method that makes images may look at besides the teacher: a run's statistics, a student, as it needs them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..artifacts import BATCH_NORM_KEY, Input, read_header, read_manifest, strongest
from ..errors import ArtifactError, ConfigError
from ..methods import TWO_WAYS, Given, LiveMethod, Method, Objective
from ..run_dir import MODEL_FILE, ArtifactRef, RunDir
from ..stage_runner import StageContext, artifact_input
from ..tables import is_table

if TYPE_CHECKING:
    from ..classifier import Classifier
    from ..statistics import Statistics


@dataclass(frozen=True)
class Materials:
    """Artifacts of the run: the statistics and the student that a method is given, where it is given any.

    `needs` is what images take that are made from them.
    """

    statistics: ArtifactRef | None = None
    student: ArtifactRef | None = None

    @property
    def inputs(self) -> list[Input]:
        """These artifacts, after a check of every file."""
        found = {"statistics": self.statistics, "student": self.student}
        return [artifact_input(role, ref) for role, ref in found.items() if ref is not None]

    @property
    def needs(self) -> str:
        """The most that any of them took."""
        handed_down = "" if self.student is None else read_manifest(self.student.directory).needs
        return strongest("teacher", handed_down, "teacher+statistics" if self.statistics else "")

    def given(self, teacher: Classifier, context: StageContext) -> Given:
        """Return teacher and artifacts, opened, on the teacher's device."""
        from ..classifier import load_classifier

        student = None
        if self.student is not None:
            student = context.placed(load_classifier(self.student.directory / "model.safetensors").frozen())
            if (student.input_shape, student.num_classes) != (teacher.input_shape, teacher.num_classes):
                raise ConfigError(f"{self.student.label} takes other images than the teacher, or has other classes")
        return Given(teacher, self._statistics(context), student)

    def _statistics(self, context: StageContext) -> Statistics | None:
        from ..statistics import Statistics
        from ..tensor_files import read_safetensors

        if self.statistics is None:
            return None
        contents = read_safetensors(self.statistics.directory / "statistics.safetensors")
        return Statistics.from_tensors(*contents).to(context.device)


def materials(method: Objective | LiveMethod, run: RunDir, student: str | None = None) -> Materials:
    """Return what a method is given in this run.

    Args:
        student: the name of a student of the run, for a method that competes.

    Raises:
        ConfigError: the run has no teacher, or lacks the statistics that the method needs.
        UsageError: there is no such student.
    """
    run.teacher()
    competitor = None if student is None else run.find(student, "student")
    record = method.record if isinstance(method, Objective) else None
    if record is not None:
        return Materials(_with_record(run, method.name, record), competitor)
    if method.inverts and not _has_batch_norm(run):
        statistics = run.place("statistics")
        if not statistics.directory.is_dir():
            raise ConfigError(TWO_WAYS)
        return Materials(statistics, competitor)
    return Materials(None, competitor)


def lacking(method: Method, run: RunDir) -> str:
    """Return what a method lacks in this run, in words, and '' if it can be used."""
    try:
        shape = tuple(_header(run)["classifier"]["input_shape"])
    except ConfigError as error:
        return str(error)
    try:
        if method.images_only and is_table(shape):
            return "images: the teacher takes rows of a table"
        if isinstance(method, Objective | LiveMethod):
            materials(method, run)
        if isinstance(method, Objective) and method.competes and not run.artifacts("student"):
            return f"{run.root} has no student; make one with: kdx distill"
    except (ConfigError, ArtifactError) as error:
        return str(error)
    return ""


def _header(run: RunDir) -> dict[str, Any]:
    """Return what the teacher's file says of itself."""
    return read_header(_teacher_file(run))[1]


def _teacher_file(run: RunDir) -> Path:
    return run.teacher().directory / MODEL_FILE


def _has_batch_norm(run: RunDir) -> bool:
    """Whether the teacher has batch normalization that keeps statistics, as `hooks.batch_norm_layers` finds it.

    Files of version 0.1 do not say so; then the teacher is loaded.

    Raises:
        ArtifactError: it is such a file, and the teacher cannot be loaded.
    """
    recorded = _header(run).get(BATCH_NORM_KEY)
    if isinstance(recorded, bool):
        return recorded
    from ..classifier import load_classifier
    from ..hooks import batch_norm_layers

    return bool(batch_norm_layers(load_classifier(_teacher_file(run)).network))


def _with_record(run: RunDir, name: str, record: str) -> ArtifactRef:
    """Return the run's statistics. Raises `ConfigError` unless they hold the record."""
    statistics = run.existing("statistics", "kdx compute-stats")
    recorded = read_manifest(statistics.directory).metrics.get("records", [])
    if record not in recorded:
        raise ConfigError(
            f"{name} needs the {record} record, and the statistics hold only {', '.join(recorded)}; "
            "make them again with: kdx compute-stats --spectral --force"
        )
    return statistics
