"""The plan of a suite: runs, cells, and the commands of each."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..errors import ArtifactError, UsageError
from ..options.declare import DataAccess, NamedStageConfig, difference, to_record
from ..stages import STAGES
from ..storage.artifacts import Manifest, read_manifest
from ..storage.run_dir import PLACES, ArtifactRef, RunDir
from .suite import Budget, Student, Suite, SuiteMethod, Teacher
from .suite_options import Options, arguments, stage_config

RUN, DATA = "RUN", "DIR"  # stand for the run directory and the data directory in recorded commands
NOT_COMPARED = ("threads", "device")  # they change the rounding and the time of a result only
ARTIFACT_KINDS = {
    "train": "teacher",
    "compute-stats": "statistics",
    "optimize-dataset": "transfer-set",
    "train-generator": "generator",
    "generate": "transfer-set",
    "compress": "compressed",
    "distill": "student",
    "evaluate": "evaluation",
}


@dataclass(frozen=True)
class PlannedCommand:
    """One command of a benchmark, and the artifact that it makes in its run.

    `words` are its arguments without run directory, data directory, threads and device; `config` has its options.
    """

    stage: str
    name: str | None
    words: tuple[str, ...]
    config: Any = field(compare=False)

    @property
    def label(self) -> str:
        """Name of the command in its run, in messages and in the ledger: `distill lenet_half.all_layers.4k`."""
        return f"{self.stage} {self.name}" if self.name else self.stage

    def line(self, threads: int | None, device: str | None) -> list[str]:
        """Return every word after `kdx`, with `RUN` and `DIR` for the run and the data directory."""
        words = [self.stage, *self.words, "--run", RUN]
        if issubclass(STAGES[self.stage].config, DataAccess):
            words += ["--data-dir", DATA]
        words += ["--threads", str(threads)] if threads is not None else []
        return words + (["--device", device] if device is not None else [])

    def place(self, run: RunDir) -> ArtifactRef:
        """Return the place of its artifact."""
        return run.place(ARTIFACT_KINDS[self.stage], self.name)

    def finished(self, run: RunDir) -> Manifest | None:
        """Return the manifest of its artifact if it exists and was made with these options from the present inputs.

        Reads manifests and the sizes of files, not their content: a stage checks the sha256 of what it reads, and `kdx
        verify` that of all files. Returns None for a missing or damaged artifact: the command itself reports the error.
        """
        directory = self.place(run).directory
        try:
            manifest = read_manifest(directory)
            whole = all((directory / o.file).stat().st_size == o.bytes for o in manifest.outputs)
            identities = {entry.path: _identity(run.root / entry.path) for entry in manifest.inputs}
        except (ArtifactError, OSError):
            return None
        lineage = all(identities[entry.path] in (None, entry.sha256) for entry in manifest.inputs)
        return (
            manifest
            if whole and lineage and not difference(_comparable(manifest.config), _comparable(to_record(self.config)))
            else None
        )


def _identity(directory: Path) -> str | None:
    """Return the identity of an artifact of the run; None for any other input, such as a data set."""
    return read_manifest(directory).identity if directory.is_dir() else None


def _comparable(record: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in record.items() if name not in NOT_COMPARED}


@dataclass(frozen=True)
class Cell:
    """One student of one method, with one budget, from one teacher and seed."""

    teacher: Teacher
    seed: int
    student: Student
    method: SuiteMethod
    budget: Budget
    before: tuple[PlannedCommand, ...]
    distill: PlannedCommand
    evaluate: PlannedCommand

    @property
    def commands(self) -> tuple[PlannedCommand, ...]:
        """Its commands in the order in which they run, after the teacher's."""
        return (*self.before, self.distill, self.evaluate)

    @property
    def title(self) -> str:
        """Its name in messages."""
        names = (self.student.name, self.method.name, self.budget.name)
        return f"{self.teacher.name} seed {self.seed}: {' '.join(names)}"


@dataclass(frozen=True)
class Run:
    """The run directory of one teacher and seed: the commands that make and score the teacher, then the cells."""

    teacher: Teacher
    seed: int
    train: PlannedCommand
    evaluate: PlannedCommand
    cells: tuple[Cell, ...]

    @property
    def name(self) -> str:
        """Its directory's name."""
        return f"{self.teacher.name}-{self.seed}"


def plan_runs(suite: Suite) -> list[Run]:
    """Return every run of a suite, seed by seed, with its cells in the order of the suite, anchors last.

    Raises:
        UsageError: options of a student, a method and a budget contradict each other.
    """
    runs = []
    for seed in suite.seeds:
        for teacher in suite.teachers.values():
            train = _command("train", None, {"data": suite.data} | teacher.options, seed)
            scored = _command("evaluate", "teacher", {}, seed, "teacher")
            runs.append(Run(teacher, seed, train, scored, tuple(_plan_cells(suite, teacher, seed))))
    return [run for run in runs if run.cells]


def _plan_cells(suite: Suite, teacher: Teacher, seed: int) -> Iterator[Cell]:
    methods = sorted(suite.methods.values(), key=lambda method: method.anchor)
    for student in suite.students.values():
        if teacher.name not in student.teachers:
            continue
        for budget in suite.budgets.values():
            for method in methods:
                if _is_wanted(method, student, budget, seed):
                    yield _plan_cell(suite, teacher, seed, student, method, budget)


def _is_wanted(method: SuiteMethod, student: Student, budget: Budget, seed: int) -> bool:
    limits = ((method.students, student.name), (method.budgets, budget.name), (method.seeds, seed))
    return all(allowed is None or value in allowed for allowed, value in limits)


def _plan_cell(
    suite: Suite, teacher: Teacher, seed: int, student: Student, method: SuiteMethod, budget: Budget
) -> Cell:
    name = f"{student.name}.{method.name}.{budget.name}"
    before = [_preparing_command(stage, method.name, options, seed) for stage, options in method.before]
    makes = [ARTIFACT_KINDS[command.stage] for command in before if command.name is not None]
    if student.compress is not None:
        before.append(_command("compress", student.name, student.compress, seed))
    chosen: Options = {"snapshots": suite.snapshots} | student.options | method.distill | budget.options
    if "data" not in chosen and "method" not in chosen and makes:
        both = len(set(makes)) > 1
        chosen = {"data": f"{PLACES[makes[-1]]}{method.name}" if both else method.name} | chosen
    where = f"[students.{student.name}] with [methods.{method.name}] and [budgets.{budget.name}]"
    if "data" not in chosen and "method" not in chosen:
        raise UsageError(f"{where}: the source of images is missing; give distill `data` or `method`")
    try:
        distill = _command("distill", name, chosen, seed)
    except UsageError as error:
        raise UsageError(f"{where}: {error}") from error
    evaluate = _command("evaluate", name, {}, seed, f"students/{name}")
    return Cell(teacher, seed, student, method, budget, tuple(before), distill, evaluate)


def _preparing_command(stage: str, name: str, options: Options, seed: int) -> PlannedCommand:
    """Return a command of a method that runs before distillation; `generate` takes the method's own generators."""
    if stage == "generate":
        options = {"generator": name} | options
    return _command(stage, name if issubclass(STAGES[stage].config, NamedStageConfig) else None, options, seed)


def _command(stage: str, name: str | None, options: Options, seed: int, artifact: str | None = None) -> PlannedCommand:
    """Return a command; `artifact` is the one that `evaluate` scores, after which the evaluation is named."""
    chosen = options if artifact is None else {"artifact": artifact}
    config = stage_config(stage, {**chosen, "seed": seed})
    words = arguments(config, options) if artifact is None else [artifact]
    words += ["--name", name] if name is not None and artifact is None else []
    return PlannedCommand(stage, name, (*words, "--seed", str(seed)), config)
