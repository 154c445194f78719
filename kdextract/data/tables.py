"""Tables of real numbers as 8-bit values: each column is scaled by the range of its training rows.

A row of D features is stored as an image of shape (1, 1, D): one channel, one line, D values of 256 levels.
"""

from __future__ import annotations

import numpy as np

Range = tuple[np.ndarray, np.ndarray]
"""Lowest and highest value of each column, float [D]."""


def range_of(rows: np.ndarray) -> Range:
    """Return the lowest and the highest value of each column of real numbers [N, D], N being at least 1."""
    return rows.min(0).astype(np.float64), rows.max(0).astype(np.float64)


def to_levels(rows: np.ndarray, columns: Range) -> np.ndarray:
    """Return rows of real numbers [N, D], all of them finite, as uint8 [N, 1, 1, D].

    The range of a column becomes 0 to 255, values outside are clipped, and a column with a single value becomes 0.
    """
    lowest, highest = (bound / 2 for bound in columns)  # halves, because the difference may overflow
    spread = highest - lowest
    above = np.clip(rows.astype(np.float64) / 2, lowest, highest) - lowest
    shares = np.divide(above, spread, out=np.zeros_like(above), where=spread > 0)
    return np.rint(shares * 255).astype(np.uint8)[:, None, None, :]


def is_table(shape: tuple[int, ...]) -> bool:
    """Return whether images of this shape (channels, height, width) are rows of a table: 1 channel, height 1."""
    return tuple(shape[:2]) == (1, 1)
