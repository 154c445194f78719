"""Cuts and distillation in turn: channels of a classifier are cut in rounds, and between two cuts it learns the outputs
of its teacher (iterative pruning, Han et al. 2015, arXiv 1506.02626, section 3.4)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass

from ..models.classifier import Classifier
from ..models.pruning.cut import Channels, Cut, Select, Sizing
from ..models.pruning.groups import Group
from ..models.pruning.rounds import Json, Rounds
from .batch_norm import estimate_batch_norm
from .distill import DistillationOptions, distill
from .loop import CheckpointSaver, Row
from .observer import Probe
from .progress import Reporter
from .sources import Source, State, Tensors

Choose = Callable[[int, Channels, Mapping[Group, Group]], tuple[Sizing, Select]]
"""(number of the round, `Rounds.channels()`) -> how many channels of each group stay, and which ones."""
Phase = Callable[[str], AbstractContextManager[None]]
"""Name of a phase -> a context manager that measures its time."""


@dataclass(frozen=True)
class RoundOptions:
    """How a classifier is cut and trained.

    Attributes:
        rounds: number of cuts. It is trained after each but the last.
        distillation: of each training; None: there is one cut.
        batch_norm_batch: images per batch of the estimate of batch normalization after a cut; None: no estimate.
    """

    rounds: int
    distillation: DistillationOptions | None
    batch_norm_batch: int | None

    @property
    def steps(self) -> int:
        """Steps of each training."""
        return 0 if self.distillation is None else self.distillation.schedule.steps


class RoundCheckpoints:
    """Checkpoints of the present round's training, with what was cut until then: a `CheckpointSaver`."""

    def __init__(self, checkpoints: CheckpointSaver) -> None:
        self._checkpoints = checkpoints
        self._saved = checkpoints.load()
        self._now: Json = {}

    @property
    def saved(self) -> Json | None:
        """What was saved last: `number` of the round, `cuts` (of `Rounds.state`), `rows`; None without a checkpoint."""
        return None if self._saved is None else self._saved[1]["round"]

    def begin(self, number: int, cuts: Json, rows: list[Row]) -> None:
        """Begin the training of a round."""
        if self.saved is not None and self.saved["number"] != number:
            self._saved = None
        self._now = {"number": number, "cuts": cuts, "rows": rows}

    def load(self) -> State | None:
        """Return the state that was saved last in this round's training; None at its start."""
        return None if self._saved is None else (self._saved[0], self._saved[1]["loop"])

    def offer(self, state: Callable[[], State]) -> None:
        """Save the state of the training, with what was cut."""

        def whole() -> tuple[Tensors, Json]:
            tensors, values = state()
            return tensors, {"loop": values, "round": self._now}

        self._checkpoints.offer(whole)


@dataclass(frozen=True)
class CutsInRounds:
    """A classifier that is cut in rounds, and trained between them.

    Attributes:
        rounds: of the whole classifier.
        source: supplies the images that it is trained on, and those for batch normalization.
        probe: held-out images, on which each round's classifier is measured.
        place: moves a classifier to its device, in place, and returns it.
    """

    rounds: Rounds
    choose: Choose
    options: RoundOptions
    teacher: Classifier
    source: Source
    probe: Probe
    place: Callable[[Classifier], Classifier]
    reporter: Reporter
    phase: Phase

    def run(self, checkpoints: CheckpointSaver) -> tuple[Cut, list[Row]]:
        """Cut and train; go on from the last checkpoint if there is one.

        Returns:
            The last cut, and metric rows: {round, step, loss, lr} of the trainings, and after each cut and each
            training {round, step, agreement}, with `multiply_adds` after a cut. Steps are counted over all rounds.

        Raises:
            ConfigError: no channel can be cut, or not as many as required.
            DivergedError: the loss or a weight is not finite.
        """
        saver = RoundCheckpoints(checkpoints)
        rows: list[Row] = []
        first = 1
        if saver.saved is not None:
            first, rows = saver.saved["number"], saver.saved["rows"]
            self.place(self.rounds.restore(saver.saved["cuts"]).classifier)
            rows = self._train(first, rows, saver)
            first += 1
        for number in range(first, self.options.rounds):
            rows = self._train(number, [*rows, self._cut(number)[1]], saver)
        made, row = self._cut(self.options.rounds)
        return made, [*rows, row]

    def _cut(self, number: int) -> tuple[Cut, Row]:
        """Cut the classifier of the round before; return it with its metric row."""
        with self.phase("pruning"):
            channels, origins = self.rounds.channels()
            made = self.rounds.cut(*self.choose(number, channels, origins), channels, origins)
        student = self.place(made.classifier)
        if self.options.batch_norm_batch is not None:
            with self.phase("batch normalization"):
                estimate_batch_norm(student, self.source, self.options.batch_norm_batch)
        row = {"round": number, "step": self.options.steps * (number - 1), "multiply_adds": student.multiply_adds()}
        return made, row | {"agreement": round(self.probe.agreement(student), 6)}

    def _train(self, number: int, rows: list[Row], saver: RoundCheckpoints) -> list[Row]:
        """Train the present classifier, in place; return the rows with those of the training."""
        assert self.options.distillation is not None
        saver.begin(number, self.rounds.state(), rows)
        student, before = self.rounds.classifier, self.options.steps * (number - 1)
        with self.phase("distillation"):
            trained = distill(
                self.teacher,
                student,
                self.source,
                self.options.distillation,
                saver,
                self.reporter,
                in_source=lambda: self.phase("synthesis"),
            )
        after = round(self.probe.agreement(student), 6)
        self.reporter.line(
            f"round {number} of {self.options.rounds}: held-out agreement {100 * rows[-1]['agreement']:.2f} % after "
            f"the cut, {100 * after:.2f} % after {self.options.steps} steps"
        )
        rows = [*rows, *({**row, "round": number, "step": before + row["step"]} for row in trained)]
        return [*rows, {"round": number, "step": before + self.options.steps, "agreement": after}]
