"""The classifier that is an argument of a command: one of the run, or another file."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ...errors import ConfigError
from ...storage.artifacts import Input
from ...storage.run_dir import MODEL_FILE, ONNX_FILE, Artifact, ArtifactRef, InputFile, RunDir

CLASSIFIERS = ("teacher", "compressed", "pruned", "student", "extended")
QUANTIZED = "quantized"


@dataclass(frozen=True)
class ChosenClassifier:
    """The file of a classifier, and its artifact if it is one of the run.

    `name` is the default name of an artifact that is made from it.
    """

    file: InputFile
    name: str
    artifact: Artifact | None = None

    @property
    def is_extended(self) -> bool:
        """Whether classes were added to it, so that no data set has its classes in their order."""
        return self.artifact is not None and self.artifact.kind == "extended"

    @property
    def input(self) -> Input:
        """The classifier as an input of a stage."""
        return (self.artifact or self.file).input("classifier")


def find_classifier(label: str | None, run: RunDir, quantized: bool = False) -> ChosenClassifier:
    """Return the classifier that `label` names.

    Args:
        label: an artifact of the run, the directory of one, or a safetensors file; None for the run's only student.
        quantized: whether quantized classifiers can be named as well, by artifact, directory or ONNX file.

    Raises:
        UsageError: there is no such artifact.
        ConfigError: the run has no student, or several, or the name fits several artifacts, or it is a quantized
            classifier's and `quantized` is not set.
        ArtifactError: a file is missing or was changed.
    """
    if not quantized and label in {ref.label for ref in run.artifacts(QUANTIZED)}:
        raise ConfigError(f"{label} is quantized, which this command cannot use; its {ONNX_FILE} is exported already")
    kinds = (*CLASSIFIERS, QUANTIZED) if quantized else CLASSIFIERS
    files = (MODEL_FILE, ONNX_FILE) if quantized else (MODEL_FILE,)
    if label is not None and Path(label).suffix in {Path(file).suffix for file in files}:
        return ChosenClassifier(run.file(Path(label)), Path(label).resolve().parent.name)
    inside = next((path for file in files if label is not None and (path := Path(label) / file).is_file()), None)
    if label is not None and inside is not None:
        here = [ref for ref in run.artifacts(*kinds) if ref.directory.samefile(label)]
        if not here:
            return find_classifier(str(inside), run, quantized)
        label = here[0].label
    ref = only_student(run) if label is None else run.find(label, *kinds)
    name = f"{ref.name}-{ref.kind}" if ref.kind in ("compressed", "pruned") else ref.name
    artifact = run.artifact(ref)
    return ChosenClassifier(artifact.file(ONNX_FILE if ref.kind == QUANTIZED else MODEL_FILE), name, artifact)


def only_student(run: RunDir) -> ArtifactRef:
    """Return the run's only student. Raises `ConfigError` if it has none or several."""
    students = run.artifacts("student")
    if not students:
        raise ConfigError(f"{run.root} has no student; make one with: kdx distill")
    if len(students) > 1:
        labels = ", ".join(ref.label for ref in students)
        raise ConfigError(f"{run.root} has several students, say which: {labels}")
    return students[0]
