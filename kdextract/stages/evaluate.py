"""`kdx evaluate`: score a classifier on real test data, which its manifest records."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..errors import GateError, UsageError
from ..models.queries import EVALUATION
from ..options.declare import DataAccess, NamedStageConfig, TeacherConfig, option
from ..storage.run_dir import RunDir
from .inputs.class_selection import data_of_names
from .inputs.classifiers import ChosenClassifier, find_classifier
from .inputs.real_data import as_name, images_for, images_per_pass, open_real_data, real_data_input, teacher_data
from .running.runner import Outcome, Plan, Stage, StageContext

if TYPE_CHECKING:
    import torch

    from ..models.classifier import Classifier

_SNAPSHOT = re.compile(r"snapshot-(\d+)\.safetensors")


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig(NamedStageConfig, TeacherConfig, DataAccess):
    """Score a classifier on real test images.

    The scores are accuracy, agreement with the teacher, confusion matrix and cost. If the classifier has more classes
    than the teacher (kdx extend), agreement is measured on images of the teacher's classes. Snapshots of a student are
    scored as well, for a curve over its training; the result is that of the last weights. With --min-accuracy or
    --min-agreement, the exit code is 5 if the score is lower.

    Examples:

      kdx evaluate
      kdx evaluate teacher
      kdx evaluate students/lenet_half --min-agreement 0.95 --json
    """

    artifact: str | None = option(
        None,
        "Classifier of the run (student, teacher, compressed, pruned, extended, quantized), or its file; default: the "
        "only student.",
        positional=True,
    )
    data: str | None = option(
        None, "Real data.", metavar="SPEC", panel="Source", otherwise="the teacher's training data"
    )
    batch_size: int | None = images_per_pass()
    min_accuracy: float | None = option(
        None,
        "Exit with code 5 if the accuracy is below N, in [0, 1].",
        minimum=0,
        maximum=1,
        recorded=False,
        panel="Output",
    )
    min_agreement: float | None = option(
        None,
        "Exit with code 5 if the agreement with the teacher is below N, in [0, 1].",
        minimum=0,
        maximum=1,
        recorded=False,
        panel="Output",
    )


@dataclass(frozen=True)
class EvaluateInputs:
    """The classifier to score, and the name of the real data."""

    classifier: ChosenClassifier
    data: str


def plan(config: EvaluateConfig, run: RunDir) -> Plan[EvaluateInputs]:
    """Plan: reads one classifier, the teacher, and real test data."""
    chosen = find_classifier(config.artifact, run, quantized=True)
    if chosen.is_extended and config.data is None:
        raise UsageError(f"{chosen.input.path} has classes that the teacher's data has not; name data with --data")
    spec = teacher_data(config.data, run)
    name = config.name or (chosen.name if config.data is None else f"{chosen.name}-{as_name(spec)}")
    teacher = run.artifact(run.teacher()).input("teacher")
    inputs = (chosen.input, teacher, real_data_input(config, spec, "test"))
    return Plan(run.place("evaluation", name), inputs, "", EvaluateInputs(chosen, spec))


def execute(config: EvaluateConfig, resolved: EvaluateInputs, context: StageContext) -> dict[str, Any]:
    """Predict the classes, compute the scores, and write `scores.json` and `confusion.png`."""
    import torch

    from ..training.supervised import predict
    from .outputs.pictures import confusion_picture

    chosen, spec = resolved.classifier, resolved.data
    classifier = context.classifier(chosen.file)
    teacher = context.teacher(EVALUATION)
    data = open_real_data(config, spec, "test", "evaluation", context)
    names, teachers_names = classifier.spec.class_names, teacher.spec.class_names
    if chosen.is_extended:
        data = data_of_names(data, names, spec)
    with context.phase("evaluation"):
        images = images_for(classifier.input_shape, names, data, spec, context)
        teachers_images = images
        begins = names[: len(teachers_names)] == teachers_names  # the teacher's classes have the same numbers
        if teacher.input_shape != classifier.input_shape or not begins:
            teachers_images = images_for(teacher.input_shape, None if begins else teachers_names, data, spec, context)
        known = data.labels < teacher.num_classes
        answers = predict(classifier, images, config.batch_size).argmax(1)
        teacher_answers = predict(teacher, teachers_images, config.batch_size).argmax(1)
    with context.phase("snapshots"):
        curve = _score_snapshots(chosen, images, data.labels, teacher_answers, config.batch_size, context)
    confusion = torch.bincount(data.labels * len(names) + answers, minlength=len(names) ** 2)
    confusion = confusion.view(len(names), len(names))
    per_class = confusion.diagonal() / confusion.sum(1).clamp_min(1)
    scores = {
        "artifact": chosen.input.path,
        "data": spec,
        "num_images": len(answers),
        "accuracy": round(float((answers == data.labels).float().mean()), 6),
        "agreement": round(float((answers == teacher_answers)[known].float().mean()), 6),
        "teacher_accuracy": round(float((teacher_answers == data.labels)[known].float().mean()), 6),
        "num_parameters": classifier.num_parameters,
        "multiply_adds": _multiply_adds(classifier),
        "per_class_accuracy": {name: round(float(v), 6) for name, v in zip(names, per_class, strict=True)},
        "confusion_matrix": confusion.tolist(),
    }
    if curve:
        scores["curve"] = curve
    context.write("scores.json", (json.dumps(scores, indent=2) + "\n").encode())
    context.write("confusion.png", confusion_picture(confusion.numpy(), names))
    return scores


def _multiply_adds(classifier: Classifier) -> int:
    """Return the number of multiply-adds of the network for one image."""
    from ..models.hooks import count_multiply_adds
    from ..models.onnx_network import OnnxNetwork

    if isinstance(classifier.network, OnnxNetwork):
        return classifier.network.facts.multiply_adds
    return count_multiply_adds(classifier.network, classifier.blank(1))


def _score_snapshots(
    chosen: ChosenClassifier,
    images: torch.Tensor,
    labels: torch.Tensor,
    teacher_answers: torch.Tensor,
    batch_size: int | None,
    context: StageContext,
) -> list[dict[str, float]]:
    """Return {step, accuracy, agreement} of each snapshot of a student of the run, by step; [] for other classifiers.

    Args:
        images: the test images at the student's input size, uint8 [N, channels, height, width].
        labels, teacher_answers: true classes and the teacher's predictions, int64 [N].
        batch_size: images per forward pass; see `training.supervised.predict`.
    """
    from ..training.supervised import predict

    if chosen.artifact is None or chosen.artifact.kind != "student":
        return []
    files = {int(m[1]): file for name, file in chosen.artifact.files.items() if (m := _SNAPSHOT.fullmatch(name))}
    if not files:
        return []
    curve: list[dict[str, float]] = []
    with context.reporter.task("evaluate snapshots", len(files)) as task:
        for step in sorted(files):
            answers = predict(context.classifier(files[step]), images, batch_size).argmax(1)
            accuracy = float((answers == labels).float().mean())
            agreement = float((answers == teacher_answers).float().mean())
            curve.append({"step": step, "accuracy": round(accuracy, 6), "agreement": round(agreement, 6)})
            task.advance()
    return curve


def check_gates(config: EvaluateConfig, outcome: Outcome) -> None:
    """Raise `GateError` if accuracy or agreement is below the minimum that the options set."""
    if outcome.manifest is None:
        return
    for figure, gate in (("accuracy", config.min_accuracy), ("agreement", config.min_agreement)):
        value = outcome.manifest.metrics[figure]
        if gate is not None and value < gate:
            raise GateError(f"{figure} {value:.4f} is below --min-{figure} {gate:g}")


STAGE = Stage("evaluate", EvaluateConfig, plan, execute, replaces_stale=True, check=check_gates)
