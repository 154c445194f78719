"""Collects what a benchmark's runs hold into one document, and condenses cells over seeds."""

from __future__ import annotations

import statistics
from collections.abc import Iterable
from typing import Any

from ..storage.artifacts import Manifest
from ..storage.run_dir import RunDir
from ..storage.version import __version__
from .cells import Cell, PlannedCommand, Run
from .ledger import Ledger, LedgerEntry, shell_line, without_paths
from .runner import Setting
from .suite import Suite

SCHEMA_VERSION = 1
DONE, FAILED, NOT_RUN = "done", "failed", "not run"
VERSIONS = ("python", "torch", "torchvision", "numpy", "safetensors", "platform", "device", "threads")

Json = dict[str, Any]


def collect(suite: Suite, runs: list[Run], setting: Setting) -> Json:
    """Return the results of everything that is finished; what failed or was not run is listed as such.

    Accuracies and agreements are in [0, 1], seconds are wall clock, memory is in MB (10^6 bytes). The figures of a
    row are {mean, sd, n} over the seeds that are done; `sd` is the sample standard deviation, None for one seed.
    """
    teachers, cells, entries, manifests = [], [], [], []
    several: list[tuple[bool, int | None]] = []
    for run in runs:
        ledger = _RunRecords(run, setting)
        teachers.append(_teacher(run, ledger))
        cells += [_cell(cell, run, ledger) for cell in run.cells]
        entries += ledger.used
        manifests += ledger.manifests
        several += ledger.attempts
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
        "counts": {status: sum(c["status"] == status for c in cells) for status in (DONE, FAILED, NOT_RUN)},
        "teachers": _teacher_rows(teachers),
        "rows": condense(cells),
        "published": [
            {"student": p.student, "accuracy": p.accuracy, "text": p.text, "source": p.source} for p in suite.published
        ],
        "cells": cells,
    }


class _RunRecords:
    """What one run and its ledger say about commands; remembers what was asked for."""

    def __init__(self, run: Run, setting: Setting) -> None:
        self._place = RunDir(setting.work / run.name)
        self._ledger = Ledger(setting.work, run.name)
        self._setting, self._run = setting, run
        self._manifests: dict[str, Manifest | None] = {}
        self.used: list[LedgerEntry] = []

    @property
    def manifests(self) -> list[Manifest]:
        """Every finished result that was asked for."""
        return [manifest for manifest in self._manifests.values() if manifest is not None]

    @property
    def attempts(self) -> list[tuple[bool, int | None]]:
        """Whether each result was interrupted as the ledger know, and in how many attempts as its manifest says."""
        results = []
        for label, manifest in self._manifests.items():
            if manifest is not None:
                entry = self._ledger.entry(label)
                known = entry is not None and entry.identity == manifest.identity and entry.resumed
                results.append((known, manifest.budget.get("attempts")))
        return results

    def manifest(self, command: PlannedCommand) -> Manifest | None:
        """Return the manifest of a command's finished result."""
        if command.label not in self._manifests:
            self._manifests[command.label] = command.finished(self._place)
            if self._manifests[command.label] is not None and (entry := self._entry(command)) is not None:
                self.used.append(entry)
        return self._manifests[command.label]

    def _entry(self, command: PlannedCommand) -> LedgerEntry | None:
        """Return the entry of the process that made the finished result, if that is known."""
        entry, manifest = self._ledger.entry(command.label), self._manifests[command.label]
        return entry if entry is not None and manifest is not None and entry.identity == manifest.identity else None

    def seconds(self, command: PlannedCommand) -> float | None:
        """Return the wall clock of the process that made the result, with the seconds of attempts that were cut short.

        None where another way made it.
        """
        manifest, entry = self.manifest(command), self._entry(command)
        if manifest is None or entry is None:
            return None
        return entry.seconds + float(manifest.budget["seconds"].get("earlier_attempts", 0.0))

    def failure(self, command: PlannedCommand) -> LedgerEntry | None:
        """Return how this very command failed, if it did when it was last run."""
        entry = self._ledger.entry(command.label)
        return entry if entry is not None and entry.exit_code and self._same(entry, command) else None

    def line(self, command: PlannedCommand) -> str:
        """Return the command as it was run, or would be."""
        manifest, entry = self.manifest(command), self._ledger.entry(command.label)
        if entry is not None and self._same(entry, command):
            return entry.command
        threads = self._setting.threads_each if manifest is None else manifest.config.get("threads")
        return self._spelled(command.line(threads, self._setting.device))

    def _same(self, entry: LedgerEntry, command: PlannedCommand) -> bool:
        """Say whether an entry is about this command, with any number of threads and on any device."""
        return f"{entry.command} ".startswith(self._spelled(command.line(None, None)) + " ")

    def _spelled(self, words: list[str]) -> str:
        return shell_line(["kdx", *words], self._setting.places(self._run))


def _teacher(run: Run, ledger: _RunRecords) -> Json:
    made, scored = ledger.manifest(run.train), ledger.manifest(run.evaluate)
    return {
        "teacher": run.teacher.name,
        "seed": run.seed,
        "model": made.metrics.get("model") if made else run.train.config.model,
        "num_parameters": made.metrics.get("num_parameters") if made else None,
        "accuracy": scored.metrics["accuracy"] if scored else None,
        "seconds": made.budget["seconds"]["total"] if made else None,
        "commands": [ledger.line(command) for command in (run.train, run.evaluate)],
    }


def _cell(cell: Cell, run: Run, ledger: _RunRecords) -> Json:
    commands = (run.train, run.evaluate, *cell.commands)
    result: Json = {
        "teacher": cell.teacher.name,
        "student": cell.student.name,
        "budget": cell.budget.name,
        "method": cell.method.name,
        "anchor": cell.method.anchor,
        "seed": cell.seed,
        "status": DONE,
    }
    unfinished = next((command for command in commands if ledger.manifest(command) is None), None)
    if unfinished is not None:
        failure = ledger.failure(unfinished)
        result["status"] = NOT_RUN if failure is None else FAILED
        if failure is not None:
            result |= {"failed_at": unfinished.stage, "exit_code": failure.exit_code, "message": failure.message}
    else:
        result |= _figures(cell, ledger)
    return result | {"commands": [ledger.line(command) for command in cell.commands]}


def _figures(cell: Cell, ledger: _RunRecords) -> Json:
    """Return the figures of a finished cell."""
    before = [_present(ledger.manifest(command)) for command in cell.before]
    student, scored = _present(ledger.manifest(cell.distill)), _present(ledger.manifest(cell.evaluate))
    scores, metrics = scored.metrics, student.metrics
    seconds = student.budget["seconds"]
    synthesis = round(sum(m.budget["seconds"]["total"] for m in before) + seconds.get("synthesis", 0.0), 2)
    walls = [ledger.seconds(command) for command in cell.commands]
    curve = _curve(student, scored, sum(m.budget["seconds"]["total"] for m in before))
    best = max(curve, key=lambda point: float(point["accuracy"])) if len(curve) > 1 else None
    estimate = metrics.get("estimated_accuracy")
    return {
        "accuracy": scores["accuracy"],
        "agreement": scores["agreement"],
        "teacher_accuracy": scores["teacher_accuracy"],
        "gap": round(scores["teacher_accuracy"] - scores["accuracy"], 6),
        "best_snapshot_on_test_data": best and {name: best[name] for name in ("step", "accuracy")},
        "estimated_accuracy": estimate,
        "estimated_accuracy_error": metrics.get("estimated_accuracy_error"),
        "estimate_off_by": None if estimate is None else round(abs(estimate - scores["accuracy"]), 6),
        "num_parameters": metrics["num_parameters"],
        "teacher_parameters": metrics["teacher_parameters"],
        "num_images": metrics["num_images"],
        "teacher_queries": sum(m.budget.get("teacher_queries", 0) for m in (*before, student)),
        "student_steps": student.budget.get("student_steps"),
        "needs": student.needs,
        "seconds": {
            "synthesis": synthesis,
            "distillation": round(seconds["total"] - seconds.get("synthesis", 0.0), 2),
            "evaluation": scored.budget["seconds"].get("evaluation", scored.budget["seconds"]["total"]),
            "end_to_end": None if None in walls else round(sum(wall for wall in walls if wall), 2),
        },
        "peak_memory_mb": max(m.budget["peak_memory_mb"] for m in (*before, student)),
        "peak_gpu_memory_mb": max(m.budget.get("peak_gpu_memory_mb") or 0 for m in (*before, student)) or None,
        "curve": curve,
    }


def _present(manifest: Manifest | None) -> Manifest:
    assert manifest is not None, "a finished cell has every manifest"
    return manifest


def _curve(student: Manifest, scored: Manifest, offset: float) -> list[Json]:
    """Return {step, seconds, accuracy, agreement} of the snapshots in order, then of the last weights.

    Seconds count from the first stage after the teacher: `offset` seconds of the stages before, then distillation,
    whose own clock of snapshots starts with its loop.
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


def condense(cells: list[Json]) -> list[Json]:
    """Return one row per teacher, student, budget and method, over seeds, in the order of the suite."""
    groups: dict[tuple[str, ...], list[Json]] = {}
    for cell in cells:
        key = tuple(cell[name] for name in ("teacher", "student", "budget", "method"))
        groups.setdefault(key, []).append(cell)
    return sorted((_row(members) for members in groups.values()), key=lambda row: _order(row, cells))


def _order(row: Json, cells: list[Json]) -> tuple[int, ...]:
    def position(name: str) -> int:
        return list(dict.fromkeys(cell[name] for cell in cells)).index(row[name])

    return (position("student"), position("teacher"), position("budget"), row["anchor"], position("method"))


def _row(members: list[Json]) -> Json:
    done = [cell for cell in members if cell["status"] == DONE]
    best = [(cell["best_snapshot_on_test_data"] or {}).get("accuracy") for cell in done]

    def over_seeds(name: str) -> Json | None:
        return spread([cell[name] for cell in done])

    def seconds(name: str) -> Json | None:
        return spread([cell["seconds"][name] for cell in done])

    first = done[0] if done else {}
    return {
        **{name: members[0][name] for name in ("teacher", "student", "budget", "method", "anchor")},
        "seeds": [cell["seed"] for cell in done],
        "status": {status: sum(c["status"] == status for c in members) for status in (DONE, FAILED, NOT_RUN)},
        "exit_codes": sorted({cell["exit_code"] for cell in members if cell["status"] == FAILED}),
        "accuracy": over_seeds("accuracy"),
        "agreement": over_seeds("agreement"),
        "gap": over_seeds("gap"),
        "best_snapshot_on_test_data": spread(best),
        "estimated_accuracy": over_seeds("estimated_accuracy"),
        "estimated_accuracy_error": over_seeds("estimated_accuracy_error"),
        "estimate_off_by": over_seeds("estimate_off_by"),
        "num_parameters": first.get("num_parameters"),
        "teacher_parameters": first.get("teacher_parameters"),
        "num_images": over_seeds("num_images"),
        "teacher_queries": over_seeds("teacher_queries"),
        "needs": first.get("needs"),
        "seconds": {name: seconds(name) for name in ("synthesis", "distillation", "evaluation", "end_to_end")},
        "peak_memory_mb": max((cell["peak_memory_mb"] for cell in done), default=None),
        "peak_gpu_memory_mb": max((cell.get("peak_gpu_memory_mb") or 0 for cell in done), default=0) or None,
        "curve": _mean_curve([cell["curve"] for cell in done]),
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


def _teacher_rows(teachers: list[Json]) -> list[Json]:
    names = dict.fromkeys(teacher["teacher"] for teacher in teachers)
    rows = []
    for name in names:
        members = [teacher for teacher in teachers if teacher["teacher"] == name]
        rows.append(
            {
                "teacher": name,
                "model": members[0]["model"],
                "num_parameters": next((m["num_parameters"] for m in members if m["num_parameters"]), None),
                "accuracy": spread([m["accuracy"] for m in members]),
                "seconds": spread([m["seconds"] for m in members]),
                "commands": [line for m in members for line in m["commands"]],
            }
        )
    return rows


def spread(values: list[float | None]) -> Json | None:
    """Return {mean, sd, n} of the values that are there; `sd` is None for one value, and all of it for none."""
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
