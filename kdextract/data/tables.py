"""Tables and points of the plane as arrays of numbers: their scale, and distributions from formulas.

A row of D features is kept like an image of shape (1, 1, D), at 256 levels. A point of the plane is a row of two.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

FORMULAS_VERSION = 1
"""Part of the fingerprint of a distribution of the plane; to be raised when one of them changes."""
TRAIN_POINTS, TEST_POINTS = 10_240, 2_560
TRAIN_SEED, TEST_SEED = 1, 2
TAILS = (0.005, 0.995)
"""Points beyond these quantiles of a coordinate are drawn again: some of the distributions have very long tails."""

Range = tuple[np.ndarray, np.ndarray]
"""Lowest and highest value of each column, float [D]."""


def range_of(rows: np.ndarray) -> Range:
    """Return the lowest and the highest value of each column of real numbers [N, D], N being at least 1."""
    return rows.min(0).astype(np.float64), rows.max(0).astype(np.float64)


def to_levels(rows: np.ndarray, columns: Range) -> np.ndarray:
    """Return rows of real numbers [N, D], all of them finite, as uint8 [N, 1, 1, D].

    A column's range becomes 0 to 255, what is outside is clipped, and a column whose range is a single value becomes 0.
    """
    lowest, highest = (bound / 2 for bound in columns)  # half of it, as a difference may be more than a float can hold
    spread = highest - lowest
    above = np.clip(rows.astype(np.float64) / 2, lowest, highest) - lowest
    shares = np.divide(above, spread, out=np.zeros_like(above), where=spread > 0)
    return np.rint(shares * 255).astype(np.uint8)[:, None, None, :]


def is_table(shape: tuple[int, ...]) -> bool:
    """Say whether images of this shape (channels, height, width) are rows of a table."""
    return tuple(shape[:2]) == (1, 1)


Plane = Callable[[int, np.random.RandomState], tuple[np.ndarray, np.ndarray]]
"""Draws so many points of each of two classes, [count, 2] each."""


def _columns(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return np.stack([x, y], axis=1)


def _around(radius: np.ndarray, angle: np.ndarray) -> np.ndarray:
    return _columns(radius * np.cos(angle), radius * np.sin(angle))


def _moon1(count: int, random: np.random.RandomState) -> tuple[np.ndarray, np.ndarray]:
    """Two half-filled bowls, back to back."""
    a, b = random.normal(0, 1, (2, count))
    height = a**2 + b**2
    return _columns(a + 2, height + 4), _columns(b - 2, -height - 4)


def _moon2(count: int, random: np.random.RandomState) -> tuple[np.ndarray, np.ndarray]:
    """Two thin parabolas, one upside down, each with its ends towards the other."""
    a, b = random.normal(0, 3, (2, count))
    rise, fall = random.normal(0.3 * a**2, 1), random.normal(-0.3 * b**2, 1)
    return _columns(a - 10, rise - 40), _columns(b + 10, fall + 40)


def _mixed(count: int, random: np.random.RandomState) -> tuple[np.ndarray, np.ndarray]:
    """Two blurred parabolas that overlap."""
    a, b = random.normal(-1, 2, count), random.normal(1, 2, count)
    return _columns(a - 1, (a + 0.2 * b) ** 2), _columns(b + 1, (b + 0.2 * a) ** 2)


def _circle(count: int, random: np.random.RandomState) -> tuple[np.ndarray, np.ndarray]:
    """A disc and the ring around it."""
    squares = random.normal(0, 2, count) ** 2
    first, second = random.uniform(0, 2 * np.pi, (2, count))
    return _around(5 - squares, first), _around(6 + squares, second)


def _pizza(count: int, random: np.random.RandomState) -> tuple[np.ndarray, np.ndarray]:
    """Four slices, of the two classes in turn; a slice opposite another has its class."""
    radius = 3 - random.normal(0, 1, count) ** 2
    first, second = random.uniform(0, np.pi / 2, (2, count)) + np.pi * random.randint(0, 2, (2, count))
    return _around(radius, first + np.pi / 2), _around(radius, second)


def _moons(count: int, random: np.random.RandomState) -> tuple[np.ndarray, np.ndarray]:
    """Two interleaved half circles, those of scikit-learn's `make_moons`, with noise of 0.1."""
    first, second = random.uniform(0, np.pi, (2, count))
    noise = random.normal(0, 0.1, (2, count, 2))
    one = np.ones(count)
    return _around(one, first) + noise[0], np.array([1, 0.5]) - _around(one, second) + noise[1]


def _circles(count: int, random: np.random.RandomState) -> tuple[np.ndarray, np.ndarray]:
    """Two circles with the same centre, those of scikit-learn's `make_circles`, with noise of 0.05."""
    first, second = random.uniform(0, 2 * np.pi, (2, count))
    noise = random.normal(0, 0.05, (2, count, 2))
    one = np.ones(count)
    return _around(one, first) + noise[0], _around(0.8 * one, second) + noise[1]


PLANES: dict[str, Plane] = {
    "moon1": _moon1,
    "moon2": _moon2,
    "mixed": _mixed,
    "circle": _circle,
    "pizza": _pizza,
    "moons": _moons,
    "circles": _circles,
}
"""Distributions of two classes in the plane: the first five are those of the simulation of BDNF (KeFlow)."""


def plane_points(name: str, train: bool) -> tuple[np.ndarray, np.ndarray]:
    """Return the training or the test points of a distribution, always the same ones.

    Scaled by the quantiles `TAILS` of the training points; none is outside.

    Args:
        name: a key of `PLANES`.

    Returns:
        Points, uint8 [N, 1, 1, 2], and their classes, int64 [N], as many of one class as of the other.
    """
    draw = PLANES[name]
    # RandomState, not a Generator: its numbers are the same in every version of numpy.
    usual = np.concatenate(draw(TRAIN_POINTS // 2, np.random.RandomState(TRAIN_SEED)))
    lowest, highest = np.quantile(usual, TAILS, axis=0)
    count = (TRAIN_POINTS if train else TEST_POINTS) // 2
    random = np.random.RandomState(TRAIN_SEED if train else TEST_SEED)
    kept = [np.empty((0, 2)), np.empty((0, 2))]
    while min(map(len, kept)) < count:
        for label, points in enumerate(draw(count, random)):
            inside = ((points >= lowest) & (points <= highest)).all(1)
            kept[label] = np.concatenate([kept[label], points[inside]])[:count]
    return to_levels(np.concatenate(kept), (lowest, highest)), np.repeat(np.arange(2), count)
