"""A picture of the terms of a loss over steps; equal rows give equal bytes."""

from __future__ import annotations

import io
from typing import Any

Json = dict[str, Any]
COLOURS = ["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#7a5195", "#6b8e23"]
INK, FAINT = "#333a44", "#d5dae1"
STYLE: Any = {
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "font.size": 10,
    "axes.edgecolor": FAINT,
    "axes.labelcolor": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "text.color": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
}


def term_curves(rows: list[dict[str, float]], along: str = "step") -> bytes:
    """Return a PNG picture of the terms of a loss, mean over rows of the same step; equal rows give equal bytes.

    Args:
        rows: {batch or generator, step, loss, term ...}, each with the same terms.
        along: `step`, or another column of `rows` to go along.
    """
    import matplotlib
    from matplotlib.figure import Figure

    names = sorted(name for name in rows[0] if name not in ("batch", "generator", "step", along))
    by_step: dict[float, list[dict[str, float]]] = {}
    for row in rows:
        by_step.setdefault(row[along], []).append(row)
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(6.4, 3.6), layout="constrained", dpi=100)
        axes = figure.add_subplot()
        for index, name in enumerate(names):
            means = [sum(row[name] for row in same) / len(same) for same in by_step.values()]
            style = {"color": INK, "linewidth": 2} if name == "loss" else {"color": COLOURS[index % len(COLOURS)]}
            axes.plot(list(by_step), means, label=name, **style)
        axes.set_xlabel(along)
        axes.set_ylabel("weighted term")
        axes.set_yscale("symlog", linthresh=1e-3)
        axes.grid(color=FAINT, linewidth=0.5)
        axes.legend(frameon=False, fontsize=9)
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", metadata={"Software": None})
    return buffer.getvalue()
