"""Lines and tables on a terminal."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

from rich import box
from rich.console import Console
from rich.table import Table

from ..stages.running.figures import shown_metrics

if TYPE_CHECKING:
    from ..stages.running.outcome import Outcome


class _Console(Console):
    """A console that raises `BrokenPipeError` when stdout is closed; rich itself would exit with code 1."""

    def on_broken_pipe(self) -> None:
        """Raise the error for the caller."""
        raise BrokenPipeError


def console() -> Console:
    """Return a console on stdout that does not cut or wrap lines in a pipe."""
    return _Console(highlight=False, soft_wrap=not sys.stdout.isatty())


def print_line(text: str) -> None:
    """Print one line of results."""
    console().print(text, markup=False)


def print_table(columns: list[str], rows: list[list[str]], title: str | None = None) -> None:
    """Print a table; columns whose cells all start with a digit are aligned to the right."""
    table = Table(box=box.SIMPLE_HEAD, title=title, title_justify="left", pad_edge=False)
    for index, column in enumerate(columns):
        numeric = bool(rows) and all(row[index][:1].isdigit() or row[index] in ("-", "") for row in rows)
        table.add_column(column, justify="right" if numeric else "left", overflow="fold")
    for row in rows:
        table.add_row(*row)
    wide = _Console(highlight=False, markup=False, width=None if sys.stdout.isatty() else 200)
    wide.print(table)


def print_outcome(stage: str, outcome: Outcome) -> None:
    """Print the outcome of a stage: a headline, then its metrics."""
    if outcome.status == "planned":
        print_plan(stage, outcome)
        return
    assert outcome.manifest is not None
    seconds = outcome.manifest.budget.get("seconds", {}).get("total", 0.0)
    state = "cached" if outcome.status == "cached" else f"{seconds:.1f} s"
    print_line(f"{stage}  {state}  {outcome.directory}")
    for name, text in shown_metrics(outcome.manifest.metrics):
        print_line(f"  {name.replace('_', ' '):<26} {text}")
    if "per_class_accuracy" in outcome.manifest.metrics:
        _print_classes(outcome.manifest.metrics)


def print_plan(stage: str, outcome: Outcome) -> None:
    """Print the plan of a dry run: the directory of the result, and the inputs with their hashes."""
    exists = " (exists)" if outcome.directory.exists() else ""
    print_line(f"{stage} would write {outcome.directory}{exists}")
    for entry in outcome.plan.inputs:
        print_line(f"  reads {entry.role:<14} {entry.path}  sha256 {entry.sha256[:16]}")


def _print_classes(metrics: dict[str, Any]) -> None:
    names = list(metrics["per_class_accuracy"])
    if len(names) > 20:
        worst = sorted(metrics["per_class_accuracy"].items(), key=lambda item: item[1])[:10]
        print_table(["class", "accuracy (ten lowest)"], [[n, f"{100 * v:.2f} %"] for n, v in worst])
        return
    rows = []
    for name, counts in zip(names, metrics["confusion_matrix"], strict=True):
        accuracy = metrics["per_class_accuracy"][name]
        rows.append([name, f"{100 * accuracy:.2f} %", *[str(count) if count else "" for count in counts]])
    print_table(["class", "accuracy", *names], rows, "images by true class (rows) and predicted class (columns)")
