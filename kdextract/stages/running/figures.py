"""Results as text for a terminal or a pipe: plain when stdout is not a terminal."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

from rich import box
from rich.console import Console
from rich.table import Table

if TYPE_CHECKING:
    from .outcome import Outcome

_PERCENT = {"accuracy", "agreement", "teacher_accuracy", "train_accuracy", "validation_accuracy",
            "estimated_accuracy", "estimated_agreement", "teacher_agrees_with_label",
            "rarest_class_share", "mean_confidence", "explained_variance"}  # fmt: skip
_BYTES = {"bytes_handed_over", "image_bytes"}


class _Console(Console):
    """rich's own would exit with code 1 when the reader of a pipe has gone."""

    def on_broken_pipe(self) -> None:
        """Let the caller see it."""
        raise BrokenPipeError


def console() -> Console:
    """Return a console on stdout that never cuts or wraps what a pipe reads."""
    return _Console(highlight=False, soft_wrap=not sys.stdout.isatty())


def print_line(text: str) -> None:
    """Print one line of results."""
    console().print(text, markup=False)


def figure(name: str, value: Any) -> str:
    """Return a metric as a person reads it: shares as percent, bytes as MB, counts with commas."""
    if value is None:
        return "-"
    if name in _PERCENT:
        return f"{100 * value:.2f} %"
    if name in _BYTES:
        return f"{value / 1e6:.2f} MB" if value >= 1e5 else f"{value:,} bytes"
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    if isinstance(value, list | tuple):
        return ", ".join(map(str, value)) or "none"
    return str(value)


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
    """Print what a stage made: a headline, then its metrics."""
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


def shown_metrics(metrics: dict[str, Any]) -> list[tuple[str, str]]:
    """Return (name, figure) of the metrics that fit on a line, errors behind what they are about.

    Of a curve, it says how many snapshots it has; sentences have a line each.
    """
    errors = {name for name in metrics if name.endswith("_error") and name.removesuffix("_error") in metrics}
    hidden = {"confusion_matrix", *errors, *(name for name, value in metrics.items() if isinstance(value, dict))}
    shown = []
    for name, value in metrics.items():
        if name == "curve":
            shown.append(("snapshots_scored", figure(name, len(value))))
        elif f"{name}_error" in errors:
            shown.append((name, f"{figure(name, value)} +- {100 * metrics[f'{name}_error']:.2f}"))
        elif isinstance(value, list) and any(isinstance(part, str) and len(part) > 30 for part in value):
            shown += [("" if index else name, part) for index, part in enumerate(value)]
        elif name not in hidden:
            shown.append((name, figure(name, value)))
    return shown


def print_plan(stage: str, outcome: Outcome) -> None:
    """Print what a dry run found: inputs with their hashes, and where the result would go."""
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
    print_table(["class", "accuracy", *names], rows, "answers (columns) to each class's images (rows)")
