"""The distillation loop: a student learns a frozen teacher's answers on whatever a `Source` gives."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch

from ..models.classifier import Classifier
from ..models.hooks import batch_norm_layers
from ..models.queries import TARGETS
from .augmentation import Augmenter
from .loop import CheckpointSaver, Monitor, Row, Schedule, Stateful, take_steps
from .losses import DISTILLATION_LOSSES
from .progress import Reporter
from .sources import Source


@dataclass(frozen=True)
class DistillationLossOptions:
    """Which loss of `losses.DISTILLATION_LOSSES`, at which temperature, scaled to keep the gradient's size or not."""

    kind: str
    temperature: float
    scale: bool


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
    in_source: Callable[[], AbstractContextManager[None]] = nullcontext,
) -> list[Row]:
    """Train `student`, in place, to answer like `teacher`; its last weights are the result.

    `batch_norm` says what the student's batch normalization does: `train`; `frozen`, it normalizes with the statistics
    that it has; `frozen-affine`, it keeps its scales and shifts as well. `in_source` makes a block around what the
    source does, for books of its time.

    The teacher is frozen and in evaluation mode. Targets that the source already knows are used as they are unless
    the images are augmented; otherwise the teacher is asked about the very images that the student sees. Returns the
    metric rows of `training.take_steps`.
    """
    teacher.frozen()
    student.train().requires_grad_(True)
    if batch_norm != "train":
        for layer in batch_norm_layers(student):
            student.get_submodule(layer).eval().requires_grad_(batch_norm == "frozen")
    loss_function = DISTILLATION_LOSSES[loss_options.kind]

    def loss() -> torch.Tensor:
        with in_source():
            source.update(student)
            batch = source.sample(batch_size)
        images, targets = augmenter(batch.images), batch.targets
        if targets is None or augmenter.active:
            with torch.no_grad(), teacher.queries.purpose(TARGETS):
                targets = teacher(images)
        return loss_function(student(images), targets, loss_options.temperature, loss_options.scale)

    members: dict[str, Stateful] = {"source": source, "augmenter": augmenter}
    rows = take_steps(student, loss, schedule, members, checkpoints, reporter, "distill", monitor)
    student.eval().requires_grad_(True)
    return rows
