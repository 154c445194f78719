"""Collects the results of a benchmark in one document, with means and deviations over seeds."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from ..storage.artifacts import Manifest
from ..storage.version import __version__
from .cell_results import DONE, FAILED, NOT_RUN, CellFigures, CellResult, Json, cell_result
from .cells import Run
from .ledger import without_paths
from .run_records import RunRecords
from .runner import Setting
from .suite import Suite

SCHEMA_VERSION = 1
VERSIONS = ("python", "torch", "torchvision", "numpy", "safetensors", "platform", "device", "threads")


def collect(suite: Suite, runs: list[Run], setting: Setting) -> Json:
    """Return the results document: figures of finished cells, and the failed and missing ones.

    Accuracies and agreements are in [0, 1], seconds are wall clock, memory is in MB (10^6 bytes). The figures of a
    row are {mean, sd, n} over the finished seeds; `sd` is the sample standard deviation, None for one seed.
    """
    teachers, cells, entries, manifests = [], [], [], []
    several: list[tuple[bool, int | None]] = []
    for run in runs:
        records = RunRecords(run, setting)
        teachers.append(_teacher_result(run, records))
        cells += [cell_result(cell, run, records) for cell in run.cells]
        entries += records.used
        manifests += records.manifests
        several += records.attempts
    return {
        "schema_version": SCHEMA_VERSION,
        "suite": {
            "name": suite.name,
            "title": suite.title,
            "data": without_paths(suite.data, {}),
            "seeds": list(suite.seeds),
            "snapshots": suite.snapshots,
        },
        "kdx_version": __version__,
        "environments": _environments(manifests),
        "machines": _distinct({"cpus": entry.cpus, "cpu": entry.cpu} for entry in entries),
        "measured": _first_and_last([m.environment.get("made_at") for m in manifests]),
        "side_by_side": max((entry.side_by_side for entry in entries), default=1),
        "resumed": sum(resumed for resumed, attempts in several if attempts is None),
        "several_attempts": sum(attempts is not None and attempts > 1 for _, attempts in several),
        "partly_counted": sum(m.stage == "distill" and "teacher_queries_by_purpose" not in m.budget for m in manifests),
        "counts": {status: sum(cell.status == status for cell in cells) for status in (DONE, FAILED, NOT_RUN)},
        "teachers": _teacher_rows(teachers),
        "rows": condense(cells),
        "published": [
            {"student": p.student, "accuracy": p.accuracy, "text": p.text, "source": p.source} for p in suite.published
        ],
        "cells": [cell.record() for cell in cells],
    }


@dataclass(frozen=True)
class _TeacherResult:
    """A teacher of one seed; None for figures of commands that are not finished."""

    teacher: str
    model: str | None
    num_parameters: int | None
    accuracy: float | None
    seconds: float | None
    commands: list[str]


def _teacher_result(run: Run, records: RunRecords) -> _TeacherResult:
    made, scored = records.manifest(run.train), records.manifest(run.evaluate)
    return _TeacherResult(
        teacher=run.teacher.name,
        model=made.metrics.get("model") if made else run.train.config.model,
        num_parameters=made.metrics.get("num_parameters") if made else None,
        accuracy=scored.metrics["accuracy"] if scored else None,
        seconds=made.budget["seconds"]["total"] if made else None,
        commands=[records.line(command) for command in (run.train, run.evaluate)],
    )


def condense(cells: list[CellResult]) -> list[Json]:
    """Return one row per teacher, student, budget and method, over seeds, in the order of the suite."""
    groups: dict[tuple[str, ...], list[CellResult]] = {}
    for cell in cells:
        groups.setdefault((cell.teacher, cell.student, cell.budget, cell.method), []).append(cell)
    return [_condensed(members) for members in sorted(groups.values(), key=lambda members: _order(members[0], cells))]


def _order(cell: CellResult, cells: list[CellResult]) -> tuple[int, ...]:
    def position(name: str) -> int:
        return list(dict.fromkeys(getattr(cell, name) for cell in cells)).index(getattr(cell, name))

    return (position("student"), position("teacher"), position("budget"), cell.anchor, position("method"))


def _condensed(members: list[CellResult]) -> Json:
    """Return the row of the cells that differ only in the seed."""
    cell = members[0]
    done = [member.figures for member in members if member.figures is not None]

    def over_seeds(figure: Callable[[CellFigures], float | None]) -> Json | None:
        return spread([figure(figures) for figures in done])

    first = done[0] if done else None
    return {
        "teacher": cell.teacher,
        "student": cell.student,
        "budget": cell.budget,
        "method": cell.method,
        "anchor": cell.anchor,
        "seeds": [member.seed for member in members if member.status == DONE],
        "status": {status: sum(m.status == status for m in members) for status in (DONE, FAILED, NOT_RUN)},
        "exit_codes": sorted({member.failure.exit_code for member in members if member.failure is not None}),
        "accuracy": over_seeds(lambda f: f.accuracy),
        "agreement": over_seeds(lambda f: f.agreement),
        "gap": over_seeds(lambda f: f.gap),
        "best_snapshot_on_test_data": over_seeds(lambda f: (f.best_snapshot_on_test_data or {}).get("accuracy")),
        "estimated_accuracy": over_seeds(lambda f: f.estimated_accuracy),
        "estimated_accuracy_error": over_seeds(lambda f: f.estimated_accuracy_error),
        "estimate_off_by": over_seeds(lambda f: f.estimate_off_by),
        "num_parameters": first and first.num_parameters,
        "teacher_parameters": first and first.teacher_parameters,
        "num_images": over_seeds(lambda f: f.num_images),
        "teacher_queries": over_seeds(lambda f: f.teacher_queries),
        "needs": None if first is None else first.needs,
        "seconds": {
            "synthesis": over_seeds(lambda f: f.seconds.synthesis),
            "distillation": over_seeds(lambda f: f.seconds.distillation),
            "evaluation": over_seeds(lambda f: f.seconds.evaluation),
            "end_to_end": over_seeds(lambda f: f.seconds.end_to_end),
        },
        "peak_memory_mb": max((figures.peak_memory_mb for figures in done), default=None),
        "peak_gpu_memory_mb": max((figures.peak_gpu_memory_mb or 0 for figures in done), default=0) or None,
        "curve": _mean_curve([figures.curve for figures in done]),
    }


def _mean_curve(curves: list[list[Json]]) -> list[Json]:
    """Return {seconds, accuracy: {mean, sd, n}} point by point; of unequal curves, the first points and the last."""
    if not curves:
        return []
    length = min(len(curve) for curve in curves)
    aligned = [[*curve[: length - 1], curve[-1]] for curve in curves]
    return [
        {
            "seconds": round(statistics.mean(point["seconds"] for point in points), 2),
            "accuracy": spread([point["accuracy"] for point in points]),
        }
        for points in zip(*aligned, strict=True)
    ]


def _teacher_rows(teachers: list[_TeacherResult]) -> list[Json]:
    """Return one row per teacher, over seeds."""
    rows = []
    for name in dict.fromkeys(teacher.teacher for teacher in teachers):
        members = [teacher for teacher in teachers if teacher.teacher == name]
        rows.append(
            {
                "teacher": name,
                "model": members[0].model,
                "num_parameters": next((m.num_parameters for m in members if m.num_parameters), None),
                "accuracy": spread([m.accuracy for m in members]),
                "seconds": spread([m.seconds for m in members]),
                "commands": [line for m in members for line in m.commands],
            }
        )
    return rows


def spread(values: list[float | None]) -> Json | None:
    """Return {mean, sd, n} of the values that are not None; `sd` is None for one value. None without values."""
    known = [value for value in values if value is not None]
    if not known:
        return None
    deviation = round(statistics.stdev(known), 6) if len(known) > 1 else None
    return {"mean": round(statistics.mean(known), 6), "sd": deviation, "n": len(known)}


def _environments(manifests: list[Manifest]) -> list[Json]:
    return _distinct({"kdx": m.kdx_version, **{name: m.environment.get(name) for name in VERSIONS}} for m in manifests)


def _distinct(records: Iterable[Json]) -> list[Json]:
    found: list[Json] = []
    for record in records:
        if record not in found:
            found.append(record)
    return found


def _first_and_last(times: list[Any]) -> list[str]:
    known = sorted(time for time in times if isinstance(time, str))
    return list(dict.fromkeys([known[0], known[-1]])) if known else []
