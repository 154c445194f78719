"""The result of one cell: done with its figures, failed, or not run."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from ..storage.artifacts import Manifest
from .cells import Cell, Run
from .run_records import RunRecords

DONE, FAILED, NOT_RUN = "done", "failed", "not run"

Json = dict[str, Any]


@dataclass(frozen=True)
class CellSeconds:
    """Seconds of a cell: of its stages by kind, and wall-clock seconds of all its processes, None if unknown."""

    synthesis: float
    distillation: float
    evaluation: float
    end_to_end: float | None


@dataclass(frozen=True)
class CellFigures:
    """The figures of a finished cell.

    Accuracies and agreements are in [0, 1], of the last weights, on real test images. `gap` is the teacher's accuracy
    minus the student's. `best_snapshot_on_test_data` is {step, accuracy}, None without snapshots. `num_images` is the
    number of different images that the student could see. Memory is in MB (10^6 bytes). `curve` has
    {step, seconds, accuracy, agreement} of the snapshots and of the last weights.
    """

    accuracy: float
    agreement: float
    teacher_accuracy: float
    gap: float
    best_snapshot_on_test_data: Json | None
    estimated_accuracy: float | None
    estimated_accuracy_error: float | None
    estimate_off_by: float | None
    num_parameters: int
    teacher_parameters: int
    num_images: int
    teacher_queries: int
    student_steps: int | None
    needs: str
    seconds: CellSeconds
    peak_memory_mb: int
    peak_gpu_memory_mb: int | None
    curve: list[Json]


@dataclass(frozen=True)
class CellFailure:
    """The stage at which a cell failed, with the exit code and the message of its command."""

    failed_at: str
    exit_code: int
    message: str


@dataclass(frozen=True)
class CellResult:
    """The result of a cell: `figures` if it is done, `failure` if a command failed, neither if it was not run.

    `commands` are the lines of its commands, as they were run or would be run.
    """

    teacher: str
    student: str
    budget: str
    method: str
    anchor: bool
    seed: int
    commands: list[str]
    figures: CellFigures | None = None
    failure: CellFailure | None = None

    @property
    def status(self) -> str:
        """`DONE`, `FAILED` or `NOT_RUN`."""
        if self.figures is not None:
            return DONE
        return NOT_RUN if self.failure is None else FAILED

    def record(self) -> Json:
        """Return the entry of the cell in `results.json`."""
        details = self.figures or self.failure
        return {
            "teacher": self.teacher,
            "student": self.student,
            "budget": self.budget,
            "method": self.method,
            "anchor": self.anchor,
            "seed": self.seed,
            "status": self.status,
            **({} if details is None else asdict(details)),
            "commands": self.commands,
        }


def cell_result(cell: Cell, run: Run, records: RunRecords) -> CellResult:
    """Return the result of a cell."""
    commands = (run.train, run.evaluate, *cell.commands)
    figures = failure = None
    unfinished = next((command for command in commands if records.manifest(command) is None), None)
    if unfinished is None:
        figures = _figures(cell, records)
    elif (entry := records.failure(unfinished)) is not None:
        failure = CellFailure(unfinished.stage, entry.exit_code, entry.message)
    return CellResult(
        teacher=cell.teacher.name,
        student=cell.student.name,
        budget=cell.budget.name,
        method=cell.method.name,
        anchor=cell.method.anchor,
        seed=cell.seed,
        commands=[records.line(command) for command in cell.commands],
        figures=figures,
        failure=failure,
    )


def _figures(cell: Cell, records: RunRecords) -> CellFigures:
    before = [_present(records.manifest(command)) for command in cell.before]
    student, scored = _present(records.manifest(cell.distill)), _present(records.manifest(cell.evaluate))
    scores, metrics = scored.metrics, student.metrics
    preparation = sum(m.budget["seconds"]["total"] for m in before)
    curve = _accuracy_curve(student, scored, preparation)
    best = max(curve, key=lambda point: float(point["accuracy"])) if len(curve) > 1 else None
    estimate = metrics.get("estimated_accuracy")
    return CellFigures(
        accuracy=scores["accuracy"],
        agreement=scores["agreement"],
        teacher_accuracy=scores["teacher_accuracy"],
        gap=round(scores["teacher_accuracy"] - scores["accuracy"], 6),
        best_snapshot_on_test_data=best and {name: best[name] for name in ("step", "accuracy")},
        estimated_accuracy=estimate,
        estimated_accuracy_error=metrics.get("estimated_accuracy_error"),
        estimate_off_by=None if estimate is None else round(abs(estimate - scores["accuracy"]), 6),
        num_parameters=metrics["num_parameters"],
        teacher_parameters=metrics["teacher_parameters"],
        num_images=metrics["num_images"],
        teacher_queries=sum(m.budget.get("teacher_queries", 0) for m in (*before, student)),
        student_steps=student.budget.get("student_steps"),
        needs=student.needs,
        seconds=_seconds(preparation, student, scored, [records.seconds(command) for command in cell.commands]),
        peak_memory_mb=max(m.budget["peak_memory_mb"] for m in (*before, student)),
        peak_gpu_memory_mb=max(m.budget.get("peak_gpu_memory_mb") or 0 for m in (*before, student)) or None,
        curve=curve,
    )


def _seconds(preparation: float, student: Manifest, scored: Manifest, processes: list[float | None]) -> CellSeconds:
    """Return the seconds of a cell.

    Args:
        preparation: seconds of the stages before distillation.
        processes: wall-clock seconds of each command, None if unknown.
    """
    seconds = student.budget["seconds"]
    live_synthesis = seconds.get("synthesis", 0.0)
    known = [wall_clock for wall_clock in processes if wall_clock is not None]
    return CellSeconds(
        synthesis=round(preparation + live_synthesis, 2),
        distillation=round(seconds["total"] - live_synthesis, 2),
        evaluation=scored.budget["seconds"].get("evaluation", scored.budget["seconds"]["total"]),
        end_to_end=round(sum(known), 2) if len(known) == len(processes) else None,
    )


def _present(manifest: Manifest | None) -> Manifest:
    assert manifest is not None, "a finished cell has every manifest"
    return manifest


def _accuracy_curve(student: Manifest, scored: Manifest, offset: float) -> list[Json]:
    """Return {step, seconds, accuracy, agreement} of the snapshots in order, then of the last weights.

    Seconds count from the first stage after the teacher: `offset` seconds of the stages before distillation, then those
    of distillation. The seconds of snapshots in the manifest count from the start of the loop.
    """
    seconds = student.budget["seconds"]
    lead = offset + max(0.0, seconds["total"] - seconds.get("distillation", seconds["total"]))
    clock = {entry["step"]: lead + entry["seconds"] for entry in student.budget.get("snapshots", [])}
    last = {
        "step": student.budget.get("student_steps"),
        "seconds": round(offset + seconds["total"], 2),
        "accuracy": scored.metrics["accuracy"],
        "agreement": scored.metrics["agreement"],
    }
    points = [point for point in scored.metrics.get("curve", []) if point["step"] in clock]
    snapshots = [{**point, "seconds": round(clock[point["step"]], 2)} for point in points]
    return [*[point for point in snapshots if point["step"] != last["step"]], last]
