"""The width of a generator whose cost is limited by that of a classifier."""

from __future__ import annotations

from collections.abc import Callable


def largest_width(cost: Callable[[int], int], affordable: int, narrowest: int, widest: int) -> int:
    """Return the largest width within the bounds whose cost is at most `affordable`; the smallest if there is none.

    Args:
        cost: width -> multiply-adds; it must increase with the width.
    """
    low, high = narrowest, widest
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if cost(middle) <= affordable else (low, middle - 1)
    return low
