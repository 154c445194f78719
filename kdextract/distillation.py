"""The distillation loop: a student learns a frozen teacher's answers on whatever a `Source` gives."""

from __future__ import annotations

import time
from dataclasses import dataclass

import torch

from .augmentation import Augmenter
from .classifier import Classifier
from .hooks import batch_norm_layers
from .losses import DISTILLATION_LOSSES
from .progress import Reporter
from .sources import Source
from .training import CheckpointSaver, Monitor, Row, Schedule, Stateful, take_steps


@dataclass(frozen=True)
class DistillationLossOptions:
    """Which loss of `losses.DISTILLATION_LOSSES`, at which temperature, scaled to keep the gradient's size or not."""

    kind: str
    temperature: float
    scale: bool


@dataclass(frozen=True)
class DistillationResult:
    """Metric rows of the loop, how many images the teacher was asked about, and the source's share of the seconds.

    `teacher_queries` leaves out what the source asked for itself.
    """

    rows: list[Row]
    teacher_queries: int
    source_seconds: float


def distill(
    teacher: Classifier,
    student: Classifier,
    source: Source,
    batch_size: int,
    schedule: Schedule,
    loss_options: DistillationLossOptions,
    augmenter: Augmenter,
    checkpoints: CheckpointSaver,
    reporter: Reporter,
    monitor: Monitor[Classifier] | None = None,
    batch_norm: str = "train",
) -> DistillationResult:
    """Train `student`, in place, to answer like `teacher`; its last weights are the result.

    `batch_norm` says what the student's batch normalization does: `train`; `frozen`, it normalizes with the statistics
    that it has; `frozen-affine`, it keeps its scales and shifts as well.

    The teacher is frozen and in evaluation mode. Targets that the source already knows are used as they are unless
    the images are augmented; otherwise the teacher is asked about the very images that the student sees.
    """
    teacher.frozen()
    student.train().requires_grad_(True)
    if batch_norm != "train":
        for layer in batch_norm_layers(student):
            student.get_submodule(layer).eval().requires_grad_(batch_norm == "frozen")
    loss_function = DISTILLATION_LOSSES[loss_options.kind]
    known_targets = False
    source_seconds = 0.0

    def loss() -> torch.Tensor:
        nonlocal known_targets, source_seconds
        started = time.perf_counter()
        source.update(student)
        batch = source.sample(batch_size)
        source_seconds += time.perf_counter() - started
        images = augmenter(batch.images)
        known_targets = batch.targets is not None and not augmenter.active
        if known_targets:
            targets = batch.targets
        else:
            with torch.no_grad():
                targets = teacher(images)
        assert targets is not None
        return loss_function(student(images), targets, loss_options.temperature, loss_options.scale)

    members: dict[str, Stateful] = {"source": source, "augmenter": augmenter}
    rows = take_steps(student, loss, schedule, members, checkpoints, reporter, "distill", monitor)
    student.eval().requires_grad_(True)
    asked = 0 if known_targets else int(rows[-1]["step"]) * batch_size
    return DistillationResult(rows, asked, source_seconds)
