"""Watches a student while it learns: agreement on held-out synthetic images, when to stop, snapshots."""

from __future__ import annotations

import time
from dataclasses import astuple, dataclass

import torch

from ..models.classifier import Classifier, encode_classifier
from ..models.hooks import evaluation_mode
from ..models.pixels import to_pixels, to_uint8
from .augmentation import warp
from .budget import Replan, Timetable
from .sources import State
from .supervised import predict

NUM_EVALUATIONS = 40
"""How often a student is looked at on its way."""
HELD_OUT_IMAGES = 1000
DISTORTION = 0.1
"""Of the images that `Probe.stability` is measured on; see `images.warp`."""
IMPROVEMENT = 0.5
"""A smaller gain of agreement does not count as one, in held-out images: a source may have fewer than asked for."""


@dataclass(frozen=True)
class Probe:
    """Images that no student learns from, and the teacher's answers to them.

    `images` are uint8 [N, channels, height, width], in random order; `answers` are the teacher's classes, int64 [N];
    `stability` is the share of images whose answer stays the same when they are distorted a little, how easy they are;
    None for rows of a table, which have no neighbours to be moved to.
    """

    images: torch.Tensor
    answers: torch.Tensor
    stability: float | None

    @classmethod
    def of(cls, teacher: Classifier, images: torch.Tensor) -> Probe:
        """Ask the teacher about images, uint8 [N, channels, height, width], as they are and slightly distorted."""
        rng = torch.Generator().manual_seed(0)
        answers = predict(teacher, images).argmax(1)
        if teacher.is_table:
            return cls(images, answers, None)
        distorted = torch.cat([to_uint8(warp(to_pixels(part), DISTORTION, rng)) for part in images.split(500)])
        stable = predict(teacher, distorted).argmax(1) == answers
        return cls(images, answers, float(stable.float().mean()))

    def agreement(self, student: Classifier) -> float:
        """Return the share of the images that the student, too, gives to the teacher's class.

        Every module of the student is left in the mode, training or evaluation, that it was in.
        """
        with evaluation_mode(student), torch.inference_mode():
            equal = [
                student(to_pixels(chunk.to(student.device))).argmax(1) == expected.to(student.device)
                for chunk, expected in zip(self.images.split(500), self.answers.split(500), strict=True)
            ]
        return float(torch.cat(equal).float().mean())


@dataclass(frozen=True)
class Snapshot:
    """A student after `step` steps, as the bytes of a classifier file, `seconds` after the loop began."""

    step: int
    seconds: float
    content: bytes

    @property
    def file_name(self) -> str:
        """Name of its file in the student's artifact."""
        return f"snapshot-{self.step:06d}.safetensors"


class Observer:
    """A `training.Monitor` of students.

    Args:
        probe: held-out images.
        steps: number of steps that are planned.
        patience: land when the agreement has not grown at this many looks in a row; None: never.
        num_snapshots: so many snapshots, evenly spaced, none of them at the end.
        timetable: says whether the rest of the schedule has to be spread over fewer or more steps; None: never.
    """

    def __init__(
        self,
        probe: Probe,
        steps: int,
        patience: int | None,
        num_snapshots: int,
        timetable: Timetable | None = None,
    ) -> None:
        self._probe, self._patience = probe, patience
        self._steps, self._timetable = steps, timetable
        self._every = max(1, steps // NUM_EVALUATIONS)
        self._snapshot_steps = [round(steps * (i + 1) / (num_snapshots + 1)) for i in range(num_snapshots)]
        self._next_evaluation = self._every
        self._best, self._evaluations_since_best = -1.0, 0
        self._cooldown_start: int | None = None
        self._replan: Replan | None = None
        self._started, self._earlier_seconds = time.monotonic(), 0.0
        self.snapshots: list[Snapshot] = []

    @property
    def cooldown_start(self) -> int | None:
        """The step at which the patience ran out."""
        return self._cooldown_start

    @property
    def replan(self) -> Replan | None:
        """How the rest of the schedule is spread to end in time, if it is not as planned."""
        return self._replan

    @property
    def seconds(self) -> float:
        """Seconds since the loop began, those before an interruption included."""
        return self._earlier_seconds + time.monotonic() - self._started

    def on_step(self, student: Classifier, step: int) -> dict[str, float]:
        """Take a snapshot and measure agreement, each when it is due; see whether the steps end in time."""
        if len(self.snapshots) < len(self._snapshot_steps) and step >= self._snapshot_steps[len(self.snapshots)]:
            self.snapshots.append(Snapshot(step, round(self.seconds, 3), encode_classifier(student)))
        if self._timetable is not None and self._cooldown_start is None:
            self._keep_to(self._timetable, step)
        if step < self._next_evaluation:
            return {}
        self._next_evaluation = step + self._every
        agreement = self._probe.agreement(student)
        improved = agreement > self._best + IMPROVEMENT / len(self._probe.images)
        self._evaluations_since_best = 0 if improved else self._evaluations_since_best + 1
        self._best = max(self._best, agreement)
        out_of_patience = self._patience is not None and self._evaluations_since_best >= self._patience
        if self._cooldown_start is None and out_of_patience:
            self._cooldown_start = step
        return {"agreement": round(agreement, 6)}

    def _keep_to(self, timetable: Timetable, step: int) -> None:
        planned = self._steps if self._replan is None else self._replan.last
        last = timetable.last_step(step, planned)
        if last != planned:
            progress = step / self._steps if self._replan is None else self._replan.progress_at(step)
            self._replan = Replan(step, progress, last)

    def state(self) -> State:
        """All of it but the probe."""
        numbers = [
            self._next_evaluation,
            self._best,
            self._evaluations_since_best,
            -1 if self._cooldown_start is None else self._cooldown_start,
        ]
        state = {"numbers": torch.tensor([*numbers, self.seconds], dtype=torch.float64)}
        if self._replan is not None:
            state["replan"] = torch.tensor(astuple(self._replan), dtype=torch.float64)
        for snapshot in self.snapshots:
            content = torch.frombuffer(bytearray(snapshot.content), dtype=torch.uint8)
            state[f"snapshot.{snapshot.step}.{snapshot.seconds}"] = content
        return state

    def restore(self, state: State) -> None:
        """Continue from `state`."""
        next_look, self._best, since, cooldown_start, self._earlier_seconds = state["numbers"].tolist()
        self._next_evaluation, self._evaluations_since_best = int(next_look), int(since)
        self._cooldown_start = None if cooldown_start < 0 else int(cooldown_start)
        self._started = time.monotonic()
        self._replan = None
        if "replan" in state:
            begun, progress, last = state["replan"].tolist()
            self._replan = Replan(int(begun), progress, int(last))
        self.snapshots = []
        for name, content in state.items():
            if name.startswith("snapshot."):
                _, step, seconds = name.split(".", 2)
                self.snapshots.append(Snapshot(int(step), float(seconds), content.numpy().tobytes()))
        self.snapshots.sort(key=lambda snapshot: snapshot.step)
