"""Scores of a classifier whose classes came in several steps: a row per step, a column per group of classes."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...errors import ArtifactError
from ...storage.run_dir import InputFile

if TYPE_CHECKING:
    import torch

    from ...models.classifier import Classifier

SCORES_FILE, SCORES_PICTURE = "scores.json", "scores.png"
HELD_OUT_IMAGES = "held-out images"
"""What is measured without test data: see `TaskScores`."""

Json = dict[str, Any]


@dataclass(frozen=True)
class Answers:
    """The expected and the predicted classes of images, int64 [N] each, on the CPU."""

    expected: torch.Tensor
    predicted: torch.Tensor

    @classmethod
    def of(cls, classifier: Classifier, images: torch.Tensor, expected: torch.Tensor) -> Answers:
        """Return the answers of a classifier for images, uint8 [N, channels, height, width]."""
        from ...training.supervised import predict

        return cls(expected.cpu(), predict(classifier, images).argmax(1))

    def right(self, first: int, end: int) -> float | None:
        """Return the share, in [0, 1], of right answers for expected classes in [first, end); None without images."""
        members = (self.expected >= first) & (self.expected < end)
        if not members.any():
            return None
        return round(float((self.predicted[members] == self.expected[members]).float().mean()), 6)

    def followed_by(self, others: Answers) -> Answers:
        """Return these answers and others."""
        import torch

        return Answers(torch.cat([self.expected, others.expected]), torch.cat([self.predicted, others.predicted]))


@dataclass(frozen=True)
class Task:
    """Classes that came together: those of the first classifier, or those of one extension.

    Attributes:
        stage: label of the classifier with which they came, such as `teacher` or `extended/birds`.
        classes: their names.
    """

    stage: str
    classes: tuple[str, ...]


@dataclass(frozen=True)
class ScoreRow:
    """Scores of the classifier after one step.

    Attributes:
        stage: its label.
        measured_on: a data set, whose test images it was measured on; or `HELD_OUT_IMAGES`.
        tasks: per task, a share in [0, 1]; None where nothing was measured, as for tasks of later steps.
        all: the share over all classes so far; None where nothing was measured.
    """

    stage: str
    measured_on: str
    tasks: tuple[float | None, ...]
    all: float | None


@dataclass(frozen=True)
class TaskScores:
    """The tasks in the order in which they came, and the scores after each step.

    On test images, a score is the accuracy, where the classifier may answer with every class that it has. On held-out
    images, it is for new classes the same on new images that were set aside; for old ones it is the share of held-out
    synthetic images for which the classifier gives the answer of the one that was extended.
    """

    tasks: tuple[Task, ...]
    rows: tuple[ScoreRow, ...] = ()

    @classmethod
    def read(cls, file: InputFile) -> TaskScores:
        """Return the content of a `scores.json` file.

        Raises:
            ArtifactError: it is malformed, or was changed or removed since it was hashed.
        """
        content = file.read(_content)
        try:
            record = json.loads(content)
            tasks = tuple(Task(str(t["stage"]), tuple(map(str, t["classes"]))) for t in record["tasks"])
            return cls(tasks, tuple(_row(entry, len(tasks)) for entry in record["rows"]))
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise ArtifactError(f"{file.path} is malformed: {error}") from error

    def with_task(self, task: Task) -> TaskScores:
        """Return the scores with one more task, which no row has a score for."""
        rows = tuple(replace(row, tasks=(*row.tasks, None)) for row in self.rows)
        return TaskScores((*self.tasks, task), rows)

    def with_row(self, stage: str, measured_on: str, answers: Answers) -> TaskScores:
        """Return the scores with one more row: the share of right answers, per task and, on test images, over all.

        Args:
            answers: classes are numbered in the order of the tasks.
        """
        shares: list[float | None] = []
        first = 0
        for task in self.tasks:
            end = first + len(task.classes)
            shares.append(answers.right(first, end))
            first = end
        overall = None if measured_on == HELD_OUT_IMAGES else answers.right(0, first)
        return replace(self, rows=(*self.rows, ScoreRow(stage, measured_on, tuple(shares), overall)))

    def encode(self) -> bytes:
        """Return the bytes of a `scores.json` file."""
        record = {
            "tasks": [{"stage": task.stage, "classes": list(task.classes)} for task in self.tasks],
            "rows": [
                {"stage": row.stage, "measured_on": row.measured_on, "tasks": list(row.tasks), "all": row.all}
                for row in self.rows
            ],
        }
        return (json.dumps(record, indent=2) + "\n").encode()

    def picture(self) -> bytes:
        """Return a PNG picture of the rows: one column per task and, at the right, one for all classes."""
        from .pictures import share_matrix

        columns = [*(_span(task.classes) for task in self.tasks), "all"]
        names = [f"{row.stage.rpartition('/')[2]}\n{row.measured_on}" for row in self.rows]
        note = "rows: after each extension, columns: classes; %"
        return share_matrix([[*row.tasks, row.all] for row in self.rows], names, columns, note)


def _content(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError as error:
        raise ArtifactError(f"{path} does not exist") from error


def _row(entry: Json, num_tasks: int) -> ScoreRow:
    shares = tuple(None if share is None else float(share) for share in entry["tasks"])
    if len(shares) != num_tasks:
        raise ValueError(f"a row has {len(shares)} scores for {num_tasks} tasks")
    overall = None if entry["all"] is None else float(entry["all"])
    return ScoreRow(str(entry["stage"]), str(entry["measured_on"]), shares, overall)


def _span(classes: tuple[str, ...]) -> str:
    return classes[0] if len(classes) == 1 else f"{classes[0]}\nto {classes[-1]}"
