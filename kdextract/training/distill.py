"""The distillation loop: a student is trained on the logits of a frozen teacher for the images of a `Source`."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass

import torch

from ..models.classifier import Classifier
from ..models.hooks import batch_norm_layers
from ..models.queries import TARGETS
from .augmentation import Augmenter
from .blocks import BlockLoss, BlockOptions
from .loop import CheckpointSaver, Monitor, Row, Schedule, Stateful, take_steps
from .losses import DISTILLATION_LOSSES
from .progress import Reporter
from .sources import Source


@dataclass(frozen=True)
class DistillationLossOptions:
    """A loss between logits.

    Attributes:
        kind: a name in `losses.DISTILLATION_LOSSES`.
        temperature: T > 0, by which logits are divided.
        scale: whether the loss is multiplied so that the size of gradients does not depend on T.
    """

    kind: str
    temperature: float
    scale: bool


@dataclass(frozen=True)
class DistillationOptions:
    """How a student is trained.

    Attributes:
        batch_size: images per step.
        schedule: the steps, their learning rates, and the optimizer.
        loss: the loss between the logits of student and teacher.
        augmenter: changes every batch before both networks get it.
        batch_norm: mode of the student's batch normalization. `train`: it normalizes with the statistics of the batch.
            `frozen`: it normalizes with its running statistics, which do not change. `frozen-affine`: its scales and
            shifts do not change either.
        blocks: the blocks whose outputs are compared as well; None for none.
    """

    batch_size: int
    schedule: Schedule
    loss: DistillationLossOptions
    augmenter: Augmenter
    batch_norm: str = "train"
    blocks: BlockOptions | None = None


def distill(
    teacher: Classifier,
    student: Classifier,
    source: Source,
    options: DistillationOptions,
    checkpoints: CheckpointSaver,
    reporter: Reporter,
    monitor: Monitor[Classifier] | None = None,
    in_source: Callable[[], AbstractContextManager[None]] = nullcontext,
) -> list[Row]:
    """Train `student`, in place, to give the logits of `teacher`; the weights after the last step are kept.

    The teacher is frozen and in evaluation mode. Targets that the source supplies are used as they are unless the
    images are augmented; otherwise the teacher computes targets for the images that the student gets. To compare
    blocks, the teacher runs on every batch, also where its targets are not used.

    Args:
        source: supplies the images.
        monitor: measures the student between steps, and may change the end of the schedule.
        in_source: returns a context manager that is entered while the source works, to measure its time.

    Returns:
        The metric rows of `loop.take_steps`.

    Raises:
        DivergedError: the loss or a weight is not finite.
    """
    teacher.frozen()
    student.train().requires_grad_(True)
    if options.batch_norm != "train":
        for layer in batch_norm_layers(student):
            student.get_submodule(layer).eval().requires_grad_(options.batch_norm == "frozen")
    loss_function, augmenter = DISTILLATION_LOSSES[options.loss.kind], options.augmenter
    blocks = None if options.blocks is None else BlockLoss(options.blocks, teacher.device)

    def loss() -> torch.Tensor:
        with in_source():
            source.update(student)
            batch = source.sample(options.batch_size)
        images, targets = augmenter(batch.images), batch.targets
        with nullcontext() if blocks is None else blocks.watching():
            if targets is None or augmenter.active or blocks is not None:
                with torch.no_grad(), teacher.queries.purpose(TARGETS):
                    answers = teacher(images)
                targets = answers if targets is None or augmenter.active else targets
            between_logits = loss_function(student(images), targets, options.loss.temperature, options.loss.scale)
        return between_logits if blocks is None else between_logits + blocks.value()

    members: dict[str, Stateful] = {"source": source, "augmenter": augmenter}
    with ExitStack() as hooks:
        if blocks is not None:
            hooks.enter_context(blocks.attached(teacher, student))
        rows = take_steps(student, loss, options.schedule, members, checkpoints, reporter, "distill", monitor)
    student.eval().requires_grad_(True)
    return rows
