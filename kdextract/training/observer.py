"""Measures a student in training: agreement on held-out synthetic images, an early end, snapshots."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass

import torch

from ..models.classifier import Classifier, encode_classifier
from ..models.hooks import evaluation_mode
from ..models.pixels import to_pixels, to_uint8
from .augmentation import warp
from .budget import Replan, Timetable
from .sources import State
from .supervised import predict

NUM_EVALUATIONS = 40
"""Largest number of evaluations of a student during its training."""
FEWEST_EVALUATIONS, EVALUATION_SHARE = 8, 0.1
"""Of few steps there are fewer: their images are at most this share of the images that are trained on, each of which
costs `TRAINING_COST` times as much; but not fewer than the first number."""
TRAINING_COST = 3
"""Cost of a training step per image, in forward passes: one forward, and a backward pass that costs two."""
HELD_OUT_IMAGES = 1000
"""Number of held-out images; a source may have fewer."""
DISTORTION = 0.1
"""Strength of the distortion for `Probe.stability`, `amount` of `augmentation.warp`."""
IMPROVEMENT = 0.5
"""Number of held-out images by which agreement must grow to count as improved."""


@dataclass(frozen=True)
class Probe:
    """Images that no student is trained on, with the teacher's predictions.

    Attributes:
        images: uint8 [N, channels, height, width].
        answers: the classes that the teacher predicts, int64 [N].
        stability: share of the images, in [0, 1], for which the teacher predicts the same class after a small random
            distortion; it is high for easy images. None for rows of a table, which cannot be distorted.
    """

    images: torch.Tensor
    answers: torch.Tensor
    stability: float | None

    @classmethod
    def of(cls, teacher: Classifier, images: torch.Tensor) -> Probe:
        """Return images, uint8 [N, channels, height, width], with the teacher's predictions and their stability."""
        rng = torch.Generator().manual_seed(0)
        answers = predict(teacher, images).argmax(1)
        if teacher.is_table:
            return cls(images, answers, None)
        distorted = torch.cat([to_uint8(warp(to_pixels(part), DISTORTION, rng)) for part in images.split(500)])
        stable = predict(teacher, distorted).argmax(1) == answers
        return cls(images, answers, float(stable.float().mean()))

    def agreement(self, student: Classifier) -> float:
        """Return the share of the images, in [0, 1], for which the student predicts the teacher's class.

        The training or evaluation mode of each module of the student is not changed.
        """
        with evaluation_mode(student), torch.inference_mode():
            equal = [
                student(to_pixels(chunk.to(student.device))).argmax(1) == expected.to(student.device)
                for chunk, expected in zip(self.images.split(500), self.answers.split(500), strict=True)
            ]
        return float(torch.cat(equal).float().mean())


def evaluations_within(steps: int, batch_size: int, held_out: int) -> int:
    """Return how often a student is evaluated on `held_out` images during so many steps of `batch_size` images.

    It depends on these numbers alone, so that a time budget gives the same files as the number of steps that it became.
    """
    affordable = int(EVALUATION_SHARE * TRAINING_COST * steps * batch_size / held_out)
    return min(NUM_EVALUATIONS, max(FEWEST_EVALUATIONS, affordable))


@dataclass(frozen=True)
class Snapshot:
    """A student after `step` steps, `seconds` after the start of the loop; `content` are the bytes of its file."""

    step: int
    seconds: float
    content: bytes

    @property
    def file_name(self) -> str:
        """Name of the file in the student's artifact."""
        return f"snapshot-{self.step:06d}.safetensors"


class Observer:
    """A `loop.Monitor` that evaluates a student, takes snapshots, and changes the end of the schedule.

    Args:
        probe: held-out images.
        steps: number of steps that are planned.
        patience: the cooldown starts after this number of evaluations in a row without improvement; None: never.
        num_snapshots: number of snapshots, evenly spaced, none of them at the end.
        timetable: computes another last step where the loop would not end in time; None: the plan is kept.
        num_evaluations: number of evaluations, evenly spaced.
    """

    def __init__(
        self,
        probe: Probe,
        steps: int,
        patience: int | None,
        num_snapshots: int,
        timetable: Timetable | None = None,
        num_evaluations: int = NUM_EVALUATIONS,
    ) -> None:
        self._probe, self._patience = probe, patience
        self._steps, self._timetable = steps, timetable
        self._every = max(1, steps // num_evaluations)
        self._snapshot_steps = [round(steps * (i + 1) / (num_snapshots + 1)) for i in range(num_snapshots)]
        self._next_evaluation = self._every
        self._best, self._evaluations_since_best = -1.0, 0
        self._cooldown_start: int | None = None
        self._replan: Replan | None = None
        self._started, self._earlier_seconds = time.monotonic(), 0.0
        self.snapshots: list[Snapshot] = []

    @property
    def cooldown_start(self) -> int | None:
        """The step at which the cooldown starts, once it is decided."""
        return self._cooldown_start

    @property
    def replan(self) -> Replan | None:
        """The change of the schedule that makes the loop end in time; None: as planned."""
        return self._replan

    @property
    def seconds(self) -> float:
        """Seconds in the loop, those before an interruption included."""
        return self._earlier_seconds + time.monotonic() - self._started

    def on_step(self, student: Classifier, step: int) -> dict[str, float]:
        """Take a snapshot and measure agreement where these are due; change the last step where it is necessary."""
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
        """Return the counters, the changes of the schedule, and the snapshots, but not the probe."""
        snapshots = {
            f"snapshot.{snapshot.step}": torch.frombuffer(bytearray(snapshot.content), dtype=torch.uint8)
            for snapshot in self.snapshots
        }
        values = {
            "next_evaluation": self._next_evaluation,
            "best_agreement": self._best,
            "evaluations_since_best": self._evaluations_since_best,
            "cooldown_start": self._cooldown_start,
            "replan": None if self._replan is None else asdict(self._replan),
            "seconds": self.seconds,
            "snapshots": [{"step": snapshot.step, "seconds": snapshot.seconds} for snapshot in self.snapshots],
        }
        return snapshots, values

    def restore(self, state: State) -> None:
        """Continue from `state`."""
        tensors, values = state
        self._next_evaluation, self._best = values["next_evaluation"], values["best_agreement"]
        self._evaluations_since_best = values["evaluations_since_best"]
        self._cooldown_start = values["cooldown_start"]
        self._replan = None if values["replan"] is None else Replan(**values["replan"])
        self._started, self._earlier_seconds = time.monotonic(), values["seconds"]
        self.snapshots = [
            Snapshot(taken["step"], taken["seconds"], tensors[f"snapshot.{taken['step']}"].numpy().tobytes())
            for taken in values["snapshots"]
        ]
