"""A picture of how many channels of each layer are left; equal numbers give equal bytes."""

from __future__ import annotations

import io

from .curves import COLOURS, FAINT, STYLE

MOST_BARS = 60
"""Of networks with more groups of channels, the first ones are shown."""


def channel_bars(channels: list[tuple[str, int, int]]) -> bytes:
    """Return a PNG picture with a bar for each group of channels: those that are left, and all.

    Args:
        channels: (name, channels that are left, all channels) of each group.
    """
    import matplotlib
    from matplotlib.figure import Figure

    shown = channels[:MOST_BARS]
    places = range(len(shown))
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(6.4, 1.0 + 0.24 * len(shown)), layout="constrained", dpi=100)
        axes = figure.add_subplot()
        axes.barh(places, [total for _, _, total in shown], color=FAINT, label="all")
        axes.barh(places, [left for _, left, _ in shown], color=COLOURS[0], label="left")
        axes.set_yticks(places, [f"{name[-28:]}  {left} of {total}" for name, left, total in shown], fontsize=8)
        axes.invert_yaxis()
        axes.set_xlabel("channels")
        figure.legend(loc="outside upper right", ncols=2, frameon=False, fontsize=9)
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", metadata={"Software": None})
    return buffer.getvalue()
