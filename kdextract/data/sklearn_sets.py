"""The data sets in scikit-learn's wheel: digits of 8x8 pixels, and tables."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import torch

from .real_data import RealData, Split, split_rows
from .tables import range_of, to_levels

SKLEARN_FILES = {
    "digits": "digits.csv.gz",
    "iris": "iris.csv",
    "wine": "wine_data.csv",
    "breast_cancer": "breast_cancer.csv",
}
"""Name -> file below `sklearn/datasets/data`."""


def sklearn_file(name: str) -> Path:
    """Return the file of one of `SKLEARN_FILES`."""
    package = importlib.util.find_spec("sklearn")
    assert package is not None
    assert package.origin is not None
    return Path(package.origin).parent / "datasets" / "data" / SKLEARN_FILES[name]


def load_sklearn(name: str, split: Split) -> RealData:
    """Return one split of one of `SKLEARN_FILES`. A table is scaled by the range of its training rows."""
    import sklearn.datasets

    table = getattr(sklearn.datasets, f"load_{name}")()
    rows = split_rows(table.target, split)
    names = tuple(str(class_name) for class_name in table.target_names)
    if name == "digits":
        stored = np.rint(table.images[rows] * (255 / 16)).astype(np.uint8)[:, None]
    else:
        stored = to_levels(table.data[rows], range_of(table.data[split_rows(table.target, "train")]))
    return RealData(torch.from_numpy(stored), torch.from_numpy(table.target[rows]).long(), names)
