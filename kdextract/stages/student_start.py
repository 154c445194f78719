"""What a student starts as: an architecture, a compressed teacher of the run, or a file."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from ..artifacts import Input
from ..errors import ConfigError
from ..run_dir import RunDir
from ..stage_runner import artifact_input, file_input

if TYPE_CHECKING:
    from ..classifier import Classifier


def build_student(spec: str | Path, teacher: Classifier) -> Classifier:
    """Return a fresh student of the teacher's shape and classes, or the classifier of a file, which must have them.

    Raises:
        ConfigError: the student cannot take the teacher's images, or has other classes.
    """
    from ..classifier import Classifier, load_classifier

    if isinstance(spec, str):
        return Classifier(replace(teacher.spec, architecture=spec, factors=()))
    student = load_classifier(spec)
    for what, ours, theirs in (
        ("images of shape", student.input_shape, teacher.input_shape),
        ("classes:", student.num_classes, teacher.num_classes),
    ):
        if ours != theirs:
            raise ConfigError(f"the student {spec} has {what} {ours}, the teacher {theirs}; they must be equal")
    return student


@dataclass(frozen=True)
class GivenStudent:
    """The file of a classifier that a student starts as, the input that it is, and what the student is called after."""

    path: Path
    input: Input
    name: str


def given_student(spec: str, run: RunDir) -> GivenStudent | None:
    """Return what `--student` names if it is not an architecture: a compressed teacher of the run, or a file.

    Raises:
        ConfigError: the run has no such compressed teacher.
        ArtifactError: there is no such file.
    """
    compressed = run.artifacts("compressed")
    for ref in compressed:
        if spec.rstrip("/") in (ref.label, str(ref.directory)):
            return GivenStudent(ref.directory / "model.safetensors", artifact_input("student", ref), ref.name)
    path = Path(spec)
    if spec.startswith("compressed/") and not path.exists():
        there = ", ".join(ref.label for ref in compressed) or "nothing compressed; make it with: kdx compress"
        raise ConfigError(f"{run.root} has no {spec}, but {there}")
    if spec.endswith(".safetensors") or "/" in spec:
        return GivenStudent(path, file_input("student", path), path.parent.name or "student")
    return None
