"""How large a generator may be: about as costly as the classifier that it serves."""

from __future__ import annotations

from collections.abc import Callable


def largest_width(cost: Callable[[int], int], affordable: int, narrowest: int, widest: int) -> int:
    """Return the largest width within the bounds that costs at most `affordable`; the narrowest if none does.

    Args:
        cost: width -> multiply-adds, growing with the width.
    """
    low, high = narrowest, widest
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if cost(middle) <= affordable else (low, middle - 1)
    return low
