"""Block matching: the loss between block outputs of a student and those of its teacher.

Intermediate outputs as targets are those of FitNets (Romero et al. 2015, arXiv 1412.6550, equation 3). Students that
are cut from their teacher have blocks of the same shape, so that no regressor is needed.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from ..models.blocks import BlockPair
from ..models.classifier import Classifier
from ..models.hooks import hand_over_activations

FLOOR = 0.01
"""Smallest variance of a channel that a difference is divided by, as a share of the mean variance of the channels."""


@dataclass(frozen=True)
class BlockOptions:
    """The blocks that are compared, at least one, and the weight of the mean of their losses, above 0."""

    pairs: tuple[BlockPair, ...]
    weight: float


class BlockLoss:
    """The mean over blocks of the scaled squared difference of outputs, times the weight.

    For each block: the mean over images, channels and positions of (student - teacher)^2 / variance, with the variance
    of the teacher's channel over the images and positions of the batch, and at least `FLOOR` of the mean variance of
    the block's channels. It does not depend on the scale of the outputs. Everything is computed inside of hooks, before
    a later layer can change an output in place.

    Args:
        device: of both networks.
    """

    def __init__(self, options: BlockOptions, device: torch.device) -> None:
        self._weight = options.weight
        self._of_teacher = {pair.teacher: pair for pair in options.pairs}
        self._of_student = {pair.student: pair for pair in options.pairs}
        self._channels = {
            pair.teacher: torch.tensor(pair.channels, device=device)
            for pair in options.pairs
            if pair.channels is not None
        }
        self._active = False
        self._targets: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}
        self._losses: dict[str, torch.Tensor] = {}

    @contextmanager
    def attached(self, teacher: Classifier, student: Classifier) -> Iterator[None]:
        """Hook both networks in the block. They are not watched outside of `watching`."""
        with (
            hand_over_activations(teacher.network, list(self._of_teacher), self._note_teacher),
            hand_over_activations(student.network, list(self._of_student), self._note_student),
        ):
            yield

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Compare the blocks in the next forward passes: one of the teacher, then one of the student."""
        self._targets.clear()
        self._losses.clear()
        self._active = True
        try:
            yield
        finally:
            self._active = False

    def value(self) -> torch.Tensor:
        """Return the loss of the last passes, a scalar, and forget them."""
        losses = list(self._losses.values())
        assert len(losses) == len(self._of_student)
        self._targets.clear()
        self._losses.clear()
        return self._weight * torch.stack(losses).mean()

    def _note_teacher(self, call: str, output: torch.Tensor) -> None:
        if self._active:
            pair = self._of_teacher[call]
            if pair.channels is not None:
                output = output.index_select(pair.axis, self._channels[call])
            scale = channel_scale(output, pair.axis)
            self._targets[call] = output * scale, scale

    def _note_student(self, call: str, output: torch.Tensor) -> None:
        if self._active:
            target, scale = self._targets[self._of_student[call].teacher]
            self._losses[call] = F.mse_loss(output * scale, target)


def channel_scale(values: torch.Tensor, axis: int) -> torch.Tensor:
    """Return one over the standard deviation of each channel, with 1 in all dimensions except `axis`.

    Variances are at least `FLOOR` of their mean over the channels; if all are 0, the scale is 1.
    """
    others = [dimension for dimension in range(values.dim()) if dimension != axis]
    # In two passes, which is much faster on a CPU than `var` over these dimensions.
    variance = (values - values.mean(others, keepdim=True)).square().mean(others, keepdim=True)
    variance = torch.maximum(variance, FLOOR * variance.mean())
    return torch.where(variance > 0, variance, 1.0).rsqrt()


def describe(pairs: Sequence[BlockPair]) -> str:
    """Return the number of blocks and their names, of which those in the middle are left out if there are many."""
    names = [pair.teacher for pair in pairs]
    shown = names if len(names) <= 4 else [*names[:2], "...", *names[-2:]]
    return f"{len(names)} block{'s' * (len(names) != 1)} ({', '.join(shown)})"
