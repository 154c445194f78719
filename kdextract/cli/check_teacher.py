"""`kdx check-teacher`: whether a model can be a teacher, and which methods apply to it. Writes nothing."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..errors import ConfigError
from ..methods import Objective, SynthesisMethod, every_method
from ..options.declare import DataAccess, RunConfig, option
from ..options.entries import OutputOptions
from ..stages.inputs.user_model import ModelConfig, load_user_model, model_files, model_summary, trust_code
from ..stages.running.html import Record
from ..storage.run_dir import MODEL_FILE, RunDir
from ..training.progress import Reporter
from .command import Command, Json
from .printing import print_line, print_table

if TYPE_CHECKING:
    from ..models.classifier import Classifier
    from ..models.teacher_checks import Examination, RealSample


@dataclass(frozen=True, kw_only=True)
class CheckTeacherConfig(ModelConfig, RunConfig, DataAccess):
    """Check whether a model can be a teacher.

    Lists the methods that apply; writes nothing. The model is run on plain images, noise, patterns and, with --data,
    real test images. The checks are: its outputs, whether they are deterministic, whether gradients reach the pixels,
    its batch normalization statistics, and whether the input normalization is plausible. Without MODEL, the run's
    teacher is checked. Exit code 3 if the model cannot be a teacher.

    Examples:

      kdx check-teacher --data digits
      kdx check-teacher model.py:build --weights model.pth --mean 0.5 --std 0.5
      kdx check-teacher torchvision/resnet18 --weights resnet18.pth --json
    """

    data: str | None = option(None, "Real data to take test images from.", metavar="SPEC", panel="Source")
    images: int = option(256, "Number of test images from --data.", minimum=1, panel="Source")


def check_teacher(config: CheckTeacherConfig, reporter: Reporter) -> Record:
    """Return the properties of the model, the checks, and the methods that apply."""
    from ..models.importer import Findings
    from ..models.teacher_checks import examine
    from ..synthesis.structured_noise.patterns import structured_images

    findings = Findings()
    teacher = _load_teacher(config, findings).frozen()
    real, lines = _real_images(config, teacher)
    examination = examine(teacher, structured_images, real)
    return Record(
        model_summary(teacher),
        found=findings.lines + lines,
        checks=[vars(check) for check in examination.checks],
        methods=_method_rows(teacher, examination),
    )


def print_check(config: CheckTeacherConfig, record: Json, output: OutputOptions) -> None:
    """Print findings, checks and methods; with --quiet, only the methods that apply."""
    if output.quiet:
        print_line("\n".join(dict.fromkeys(row["method"] for row in record["methods"] if row["applies"] == "yes")))
        return
    size = f"{record['num_parameters']:,} parameters, {record['input_size']} pixels, {record['num_classes']} classes"
    print_line(f"{record['model']}: {size}")
    for line in record["found"]:
        print_line(f"  {line}")
    for name in ("checks", "methods"):
        rows = record[name]
        print_table(list(rows[0]), [[str(value) for value in row.values()] for row in rows])


def refuse_unfit(config: CheckTeacherConfig, record: Json) -> None:
    """Raise `ConfigError` if the model cannot be a teacher."""
    problems = [row for row in record["checks"] if row["result"] == "problem" and row["check"] != "gradients"]
    if problems:
        raise ConfigError(f"{record['model']} cannot be a teacher: {problems[0]['check']}: {problems[0]['detail']}")


def _load_teacher(config: CheckTeacherConfig, findings: Any) -> Classifier:
    from ..models.classifier import load_classifier

    if config.model is None:
        path = RunDir(config.run).teacher().directory / MODEL_FILE
        if config.trust_code:
            trust_code(path)
        return load_classifier(path)
    return load_user_model(config, model_files(config, RunDir(config.run)), findings)


def _real_images(config: CheckTeacherConfig, teacher: Classifier) -> tuple[RealSample | None, list[str]]:
    """Return real test images in the teacher's input size, and one line per change that was made to them."""
    import torch

    from ..data.load import load_data
    from ..models.teacher_checks import RealSample
    from ..stages.inputs.real_data import fitted, kept_line

    if config.data is None:
        return None, []
    data = load_data(config.data, "test", config.data_dir, config.download)
    rows = torch.randperm(len(data.images), generator=torch.Generator().manual_seed(0))[: config.images]
    stored, lines = "x".join(map(str, data.images.shape[1:])), kept_line(config.data, "test", data)
    if tuple(data.images.shape[1:]) != teacher.input_shape:
        lines.append(f"{config.data}: images of {stored} are resized to the model's input size")
    labels = data.labels[rows]
    if len(data.class_names) != teacher.num_classes:
        lines.append(
            f"{config.data}: has {len(data.class_names)} classes, the model {teacher.num_classes}: labels are ignored"
        )
        return RealSample(fitted(data.images[rows], teacher.input_shape), None), lines
    return RealSample(fitted(data.images[rows], teacher.input_shape), labels), lines


def _method_rows(teacher: Classifier, examination: Examination) -> list[dict[str, str]]:
    """Return a row per command and method: whether it applies to the teacher, and the reason if not."""
    rows = []
    for command, method in every_method():
        applies, reason = _applicability(method, teacher, examination)
        rows.append({"command": command, "method": method.name, "applies": applies, "reason": reason})
    return rows


def _applicability(method: SynthesisMethod, teacher: Classifier, examination: Examination) -> tuple[str, str]:
    if not method.supports_tables and teacher.is_table:
        return "no", "for images only; the teacher takes rows of a table"
    if method.needs_gradient and not examination.gradients:
        return "no", "no gradient reaches the images"
    if isinstance(method, Objective) and method.record is not None:
        return "with data", "needs statistics: kdx compute-stats"
    if getattr(method, "matches_batch_norm", False) and not examination.batch_norm:
        return "with data", "no batch norm; needs statistics: kdx compute-stats"
    if isinstance(method, Objective) and method.needs_student:
        return "yes", "needs a student: --student"
    return "yes", ""


CHECK_TEACHER = Command(CheckTeacherConfig, check_teacher, print_check, refuse_unfit)
