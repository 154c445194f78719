"""Distributions of two classes in the plane, as formulas: small data sets for flows and for the method `keflow`.

A point is stored like a row of a table with two columns.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from .tables import to_levels

FORMULAS_VERSION = 1
"""Part of the fingerprint of a distribution of the plane. Increase it when a formula changes."""
TRAIN_POINTS, TEST_POINTS = 10_240, 2_560
"""Number of points of each split, of both classes together."""
TRAIN_SEED, TEST_SEED = 1, 2
TAILS = (0.005, 0.995)
"""Points outside of these quantiles of a coordinate are drawn again: some distributions have very long tails."""

Plane = Callable[[int, np.random.RandomState], tuple[np.ndarray, np.ndarray]]
"""`(count, rng) -> (points of class 0, points of class 1)`, float64 [count, 2] each."""


def _points(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return np.stack([x, y], axis=1)


def _around(radius: np.ndarray, angle: np.ndarray) -> np.ndarray:
    return _points(radius * np.cos(angle), radius * np.sin(angle))


def _moon1(count: int, rng: np.random.RandomState) -> tuple[np.ndarray, np.ndarray]:
    """Two paraboloid-shaped clouds that open in opposite directions."""
    a, b = rng.normal(0, 1, (2, count))
    height = a**2 + b**2
    return _points(a + 2, height + 4), _points(b - 2, -height - 4)


def _moon2(count: int, rng: np.random.RandomState) -> tuple[np.ndarray, np.ndarray]:
    """Two thin parabolas, one upside down; the open side of each faces the other."""
    a, b = rng.normal(0, 3, (2, count))
    rise, fall = rng.normal(0.3 * a**2, 1), rng.normal(-0.3 * b**2, 1)
    return _points(a - 10, rise - 40), _points(b + 10, fall + 40)


def _mixed(count: int, rng: np.random.RandomState) -> tuple[np.ndarray, np.ndarray]:
    """Two parabolas with noise, which overlap."""
    a, b = rng.normal(-1, 2, count), rng.normal(1, 2, count)
    return _points(a - 1, (a + 0.2 * b) ** 2), _points(b + 1, (b + 0.2 * a) ** 2)


def _circle(count: int, rng: np.random.RandomState) -> tuple[np.ndarray, np.ndarray]:
    """A disc and the ring around it."""
    squares = rng.normal(0, 2, count) ** 2
    first, second = rng.uniform(0, 2 * np.pi, (2, count))
    return _around(5 - squares, first), _around(6 + squares, second)


def _pizza(count: int, rng: np.random.RandomState) -> tuple[np.ndarray, np.ndarray]:
    """The four quadrants of a disc; opposite quadrants belong to the same class."""
    radius = 3 - rng.normal(0, 1, count) ** 2
    first, second = rng.uniform(0, np.pi / 2, (2, count)) + np.pi * rng.randint(0, 2, (2, count))
    return _around(radius, first + np.pi / 2), _around(radius, second)


def _moons(count: int, rng: np.random.RandomState) -> tuple[np.ndarray, np.ndarray]:
    """Two interleaved half circles as in scikit-learn's `make_moons`, with normal noise of standard deviation 0.1."""
    first, second = rng.uniform(0, np.pi, (2, count))
    noise = rng.normal(0, 0.1, (2, count, 2))
    one = np.ones(count)
    return _around(one, first) + noise[0], np.array([1, 0.5]) - _around(one, second) + noise[1]


def _circles(count: int, rng: np.random.RandomState) -> tuple[np.ndarray, np.ndarray]:
    """Two concentric circles as in scikit-learn's `make_circles`, with normal noise of standard deviation 0.05."""
    first, second = rng.uniform(0, 2 * np.pi, (2, count))
    noise = rng.normal(0, 0.05, (2, count, 2))
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
"""Name -> distribution of two classes in the plane. The first five are from the simulations of BDNF (KeFlow)."""


def plane_points(name: str, train: bool) -> tuple[np.ndarray, np.ndarray]:
    """Return the training points or the test points of a distribution. They are the same in every call.

    Points are scaled so that the quantiles `TAILS` of the training points become 0 and 255. A point outside of these
    quantiles is dropped, and another one is drawn instead.

    Args:
        name: a key of `PLANES`.

    Returns:
        Points, uint8 [N, 1, 1, 2], and their classes, int64 [N]. Both classes have N / 2 points.
    """
    draw = PLANES[name]
    # RandomState instead of Generator: it gives the same numbers in every version of numpy.
    usual = np.concatenate(draw(TRAIN_POINTS // 2, np.random.RandomState(TRAIN_SEED)))
    lowest, highest = np.quantile(usual, TAILS, axis=0)
    count = (TRAIN_POINTS if train else TEST_POINTS) // 2
    rng = np.random.RandomState(TRAIN_SEED if train else TEST_SEED)
    kept = [np.empty((0, 2)), np.empty((0, 2))]
    while min(map(len, kept)) < count:
        for label, points in enumerate(draw(count, rng)):
            inside = ((points >= lowest) & (points <= highest)).all(1)
            kept[label] = np.concatenate([kept[label], points[inside]])[:count]
    return to_levels(np.concatenate(kept), (lowest, highest)), np.repeat(np.arange(2), count)
