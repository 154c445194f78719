"""Accuracy against seconds, as SVG; equal results give equal bytes."""

from __future__ import annotations

import io
import re
from typing import TYPE_CHECKING

from ...stages.outputs.curves import COLOURS, FAINT, INK, STYLE, Json
from .tables import Section

if TYPE_CHECKING:
    from matplotlib.axes import Axes


TICKS = [1, 5, 10, 20, 50, 80, 90, 95, 98, 99, 99.5, 99.9]


def accuracy_curves(section: Section) -> str:
    """Return an `<svg>` element: one curve per method over its snapshots, ending in the last weights.

    The band is the standard deviation over seeds. Teacher and anchors are horizontal lines. The accuracy axis is a
    logit scale, on which 98 to 99 % takes the same space as 1 to 2 %. Returns '' without any result.
    """
    methods = [row for row in section.rows if row["curve"] and not row["anchor"]]
    anchors = [row for row in section.rows if row["accuracy"] and row["anchor"]]
    if not methods and not anchors:
        return ""
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context(STYLE | {"svg.hashsalt": section.title}):
        figure = Figure(figsize=(9.2, 3.9), layout="constrained")
        axes = figure.add_subplot()
        levels = _draw_horizontal_lines(axes, section.teacher, anchors)
        for index, row in enumerate(methods):
            levels += _draw_curve(axes, row, COLOURS[index % len(COLOURS)], MARKS[index % len(MARKS)])
        _format_axes(axes, levels)
        axes.legend(loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False, fontsize=9)
        buffer = io.StringIO()
        nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
        figure.savefig(buffer, format="svg", metadata=nothing)
    return _svg_element(buffer.getvalue(), f"accuracy against seconds: {section.title}")


def _draw_curve(axes: Axes, row: Json, colour: str, mark: str) -> list[float]:
    """Draw one method and return its mean accuracies."""
    seconds = [point["seconds"] for point in row["curve"]]
    means = [_clipped(point["accuracy"]["mean"]) for point in row["curve"]]
    spreads = [point["accuracy"]["sd"] or 0.0 for point in row["curve"]]
    low = [_clipped(mean - spread) for mean, spread in zip(means, spreads, strict=True)]
    high = [_clipped(mean + spread) for mean, spread in zip(means, spreads, strict=True)]
    axes.fill_between(seconds, low, high, color=colour, alpha=0.15, linewidth=0)
    axes.plot(seconds, means, color=colour, linewidth=1.6, marker=mark, markersize=3, label=row["method"])
    last = ([means[-1] - low[-1]], [high[-1] - means[-1]])
    axes.errorbar(seconds[-1:], means[-1:], last, color=colour, marker=mark, markersize=7, capsize=3, linewidth=1.2)
    return means


def _draw_horizontal_lines(axes: Axes, teacher: Json, anchors: list[Json]) -> list[float]:
    """Draw teacher and anchors, and return their mean accuracies."""
    levels = []
    if teacher["accuracy"]:
        levels.append(_clipped(teacher["accuracy"]["mean"]))
        axes.axhline(levels[-1], color=INK, linewidth=1.2, label="teacher")
    for row, dashes in zip(anchors, ["--", ":", "-."] * len(anchors), strict=False):
        levels.append(_clipped(row["accuracy"]["mean"]))
        axes.axhline(levels[-1], color="#7b8492", linewidth=1.2, linestyle=dashes, label=row["method"])
    return levels


def _format_axes(axes: Axes, levels: list[float]) -> None:
    axes.set_yscale("logit")
    ticks = [tick / 100 for tick in TICKS]
    lowest = max([tick for tick in ticks if tick < min(levels)], default=LEAST / 2)
    highest = min([tick for tick in ticks if tick > max(levels)], default=1 - (1 - MOST) / 2)
    axes.set_ylim(lowest, highest)
    axes.set_yticks(ticks, [f"{tick:g}" for tick in TICKS])
    axes.set_yticks([], minor=True)
    axes.set_ylim(lowest, highest)
    axes.set_xlim(left=0)
    axes.grid(axis="y", color=FAINT, linewidth=0.6)
    axes.set_axisbelow(True)
    axes.set_xlabel("seconds after the teacher: statistics, synthesis, distillation")
    axes.set_ylabel("accuracy on real test images, %")


def _clipped(accuracy: float) -> float:
    return min(max(accuracy, LEAST), MOST)


def _svg_element(document: str, title: str) -> str:
    """Return the `<svg>` element alone, scaled to the page, with a title for screen readers."""
    element = document[document.index("<svg") :]
    element = re.sub(r"<metadata>.*?</metadata>", "", element, flags=re.DOTALL)
    element = re.sub(r' (width|height)="[\d.]+pt"', "", element, count=2)
    label = title.replace("&", "&amp;").replace('"', "&quot;").replace("<", "&lt;")
    return element.replace("<svg", f'<svg role="img" aria-label="{label}"', 1).strip()


MARKS = ["o", "s", "^", "D", "v", "P", "X", "*"]


LEAST, MOST = 0.005, 0.9995  # limits of the logit axis, on which 0 and 1 are at infinity
