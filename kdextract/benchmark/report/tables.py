"""The text and figures of a benchmark's report: one table for each teacher, student and budget."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

Json = dict[str, Any]
BEST = "best snapshot % (picked on test data, not a result)"
BEST_NOTE = (
    f"The column '{BEST}' is there only because most papers report it. It needs the real test set to be picked, which "
    "whoever distils without data does not have. Do not compare methods by it."
)
NOTES = (
    "Accuracy and agreement are those of the **last** weights. Nothing was selected on real data in these runs: "
    "neither a step nor a seed.",
    "Figures are mean +- sample standard deviation over the seeds. With every seed the teacher, its statistics, the "
    "images and the student are made anew.",
    "`ceiling` and `floor` are the same student with the same budget on real images and on noise: a method that does "
    "not beat the floor has learned nothing from the teacher, and none can be expected to beat the ceiling.",
    "Seconds of synthesis are those of everything between teacher and student, statistics included, as if each method "
    "had to do it for itself. 'End to end' is the wall clock of all processes from the statistics to the score, "
    "imports and the scoring of snapshots included; the teacher's training is not part of it.",
    "Images are the different images that a student could see. Teacher queries count every image that the teacher was "
    "shown after its training. Peak memory is the most that one process of the method held.",
    "Rows in italics are published figures, with their source. They come from other teachers, often other students, "
    "and usually from the best epoch on the test set.",
)


@dataclass(frozen=True)
class TableLine:
    """One row of a table: its cells as text, and whether it is an anchor or a published figure."""

    cells: list[str]
    kind: str = "method"


@dataclass(frozen=True)
class Section:
    """One teacher, student and budget. `rows` are those of the results that the table shows.

    For narrow pages the columns are split in two tables: `reached` and `costs` are the column numbers of each.
    """

    title: str
    facts: str
    columns: list[str]
    lines: list[TableLine]
    rows: list[Json]
    teacher: Json

    @property
    def costs(self) -> list[int]:
        """The columns of costs, after the method's name."""
        names = [name for name, _ in COSTS]
        return [0, *[number for number, name in enumerate(self.columns) if name in names]]

    @property
    def reached(self) -> list[int]:
        """The columns of results, after the method's name."""
        return [0, *[number for number in range(len(self.columns)) if number not in self.costs]]


def percent(figure: Json | None) -> str:
    """Return a share as percent: `98.53 +- 0.05`, without a spread for one seed."""
    return _mean_and_spread(figure, 100, 2)


def amount(figure: Json | None, digits: int = 0) -> str:
    """Return the mean of seconds or counts, with commas."""
    return "-" if figure is None else f"{figure['mean']:,.{digits}f}"


def _mean_and_spread(figure: Json | None, factor: float, digits: int) -> str:
    if figure is None:
        return "-"
    text = f"{factor * figure['mean']:.{digits}f}"
    return text if figure["sd"] is None else f"{text} +- {factor * figure['sd']:.{digits}f}"


def _mean_seconds(name: str) -> Callable[[Json], str]:
    return lambda row: amount(row["seconds"][name], 1 if (row["seconds"][name] or {"mean": 10})["mean"] < 10 else 0)


def _accuracy_text(row: Json) -> str:
    """Return the accuracy, or the reason why there is none."""
    if row["status"]["failed"] and not row["status"]["done"]:
        return f"failed ({', '.join(map(str, row['exit_codes']))})"
    return percent(row["accuracy"]) if row["status"]["done"] else "not run"


def _seeds_text(row: Json) -> str:
    """Return the number of seeds of the figures, and of failed and missing ones."""
    status = row["status"]
    total = sum(status.values())
    if status["done"] == total:
        return str(total)
    failed = f"{status['failed']} failed ({', '.join(map(str, row['exit_codes']))})" if status["failed"] else ""
    absent = f"{status['not run']} not run" if status["not run"] else ""
    return f"{status['done']} of {total}: {' and '.join(filter(None, [failed, absent]))}"


COLUMNS: list[tuple[str, Callable[[Json], str]]] = [
    ("accuracy %", _accuracy_text),
    ("agreement %", lambda row: percent(row["agreement"])),
    ("points below teacher", lambda row: percent(row["gap"])),
    ("seeds", _seeds_text),
]
COSTS: list[tuple[str, Callable[[Json], str]]] = [
    ("images", lambda row: amount(row["num_images"])),
    ("teacher queries", lambda row: amount(row["teacher_queries"])),
    ("s synthesis", _mean_seconds("synthesis")),
    ("s distillation", _mean_seconds("distillation")),
    ("s evaluation", _mean_seconds("evaluation")),
    ("s end to end", _mean_seconds("end_to_end")),
    ("peak MB", lambda row: "-" if row["peak_memory_mb"] is None else f"{row['peak_memory_mb']:,}"),
]
GPU_COSTS: list[tuple[str, Callable[[Json], str]]] = [
    ("peak GPU MB", lambda row: f"{row['peak_gpu_memory_mb']:,}" if row.get("peak_gpu_memory_mb") else "-"),
]
ESTIMATES: list[tuple[str, Callable[[Json], str]]] = [
    ("estimate without data %", lambda row: percent(row["estimated_accuracy"])),
    ("its stated error", lambda row: percent(row["estimated_accuracy_error"])),
    ("it is off by (mean)", lambda row: "-" if row["estimate_off_by"] is None
     else f"{100 * row['estimate_off_by']['mean']:.2f}"),
]  # fmt: skip


def sections(results: Json) -> list[Section]:
    """Return every table of a results document, in its order."""
    groups: dict[tuple[str, str, str], list[Json]] = {}
    for row in results["rows"]:
        groups.setdefault((row["teacher"], row["student"], row["budget"]), []).append(row)
    teachers = {teacher["teacher"]: teacher for teacher in results["teachers"]}
    return [_section(results, rows, teachers[key[0]]) for key, rows in groups.items()]


def _section(results: Json, rows: list[Json], teacher: Json) -> Section:
    student, budget = rows[0]["student"], rows[0]["budget"]
    estimates = ESTIMATES if any(row["estimated_accuracy"] for row in rows) else []
    on_gpu = GPU_COSTS if any(row.get("peak_gpu_memory_mb") for row in rows) else []
    columns = [*COLUMNS, *estimates, *COSTS, *on_gpu]
    if any(row["best_snapshot_on_test_data"] for row in rows):
        columns.append((BEST, lambda row: percent(row["best_snapshot_on_test_data"])))
    lines = [
        TableLine([row["method"], *[text(row) for _, text in columns]], "anchor" if row["anchor"] else "method")
        for row in rows
    ]
    for entry in results["published"]:
        if entry["student"] == student:
            words = f"published: {entry['text']}; source: {entry['source']}"
            lines.append(TableLine([words, f"{entry['accuracy']:.2f}", *[""] * (len(columns) - 1)], "published"))
    size = next((row["num_parameters"] for row in rows if row["num_parameters"]), None)
    facts = [f"teacher {percent(teacher['accuracy'])} %", _sizes_text(teacher["num_parameters"], size)]
    facts.append(f"teacher trained in {amount(teacher['seconds'])} s" if teacher["seconds"] else "")
    title = f"{teacher['teacher']} -> {student}, budget {budget}"
    return Section(title, ", ".join(filter(None, facts)), ["method", *[n for n, _ in columns]], lines, rows, teacher)


def _sizes_text(teacher: int | None, student: int | None) -> str:
    if teacher is None or student is None:
        return ""
    return f"{teacher:,} parameters -> {student:,} ({teacher / student:.1f}x fewer)"


def notes(results: Json) -> list[str]:
    """Return the notes below the tables, with **emphasis** and `code` as in Markdown."""
    has_best = any(row["best_snapshot_on_test_data"] for row in results["rows"])
    return [*NOTES, *([BEST_NOTE] if has_best else [])]


def header(results: Json) -> list[tuple[str, str]]:
    """Return the lines above the tables, as (name, text)."""
    suite, counts = results["suite"], results["counts"]
    entries = [
        ("data", suite["data"]),
        ("seeds", ", ".join(map(str, suite["seeds"]))),
        ("cells", ", ".join(f"{count} {status}" for status, count in counts.items() if count or status == "done")),
        ("measured", " to ".join(results["measured"])),
    ]
    for machine in results["machines"]:
        entries.append(("machine", ", ".join(filter(None, [f"{machine['cpus']} CPUs", machine["cpu"]]))))
    for environment in results["environments"]:
        versions = [f"{name} {environment[name]}" for name in ("kdx", "python", "torch", "numpy")]
        threads = f"{environment['threads']} thread{'s' * (environment['threads'] != 1)}"
        where = f"{environment['device']}, {threads}, {environment['platform']}"
        entries.append(("made with", f"{where}; {', '.join(versions)}"))
    if results["side_by_side"] > 1:
        entries.append(("times", f"taken with up to {results['side_by_side']} commands side by side: upper bounds"))
    if results["resumed"]:
        entries.append(
            ("resumed", f"{results['resumed']} of the commands; the seconds before the interruption are missing")
        )
    if results.get("several_attempts"):
        entries.append(
            ("attempts", f"{results['several_attempts']} of the commands took several; their seconds are the sum")
        )
    if results.get("partly_counted"):
        entries.append(
            (
                "teacher queries",
                f"of {results['partly_counted']} students without held-out images, their probe, trials and the "
                "estimate: an earlier version made them, which did not count these",
            )
        )
    return [(name, text) for name, text in entries if text]


def commands(results: Json) -> list[tuple[str, list[str]]]:
    """Return (title, command lines) of every teacher and cell; a shared command is listed with the first cell."""
    groups = [(row["teacher"], f"teacher {row['teacher']}", row["commands"]) for row in results["teachers"]]
    groups += [(cell["teacher"], cell_title(cell), cell["commands"]) for cell in results["cells"]]
    seen: set[tuple[str, str]] = set()
    found = []
    for teacher, title, lines in groups:
        found.append((title, [line for line in lines if (teacher, line) not in seen]))
        seen |= {(teacher, line) for line in lines}
    return found


def cell_title(cell: Json) -> str:
    """Return the title of a cell of a results document."""
    return f"{cell['teacher']} -> {cell['student']}, budget {cell['budget']}, {cell['method']}, seed {cell['seed']}"


def failures(results: Json) -> list[str]:
    """Return one sentence per cell that failed."""
    return [
        f"{cell_title(cell)}: {cell['failed_at']} ended with exit code {cell['exit_code']}: {cell['message']}"
        for cell in results["cells"]
        if cell["status"] == "failed"
    ]
