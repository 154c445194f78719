"""`RealData`, which all readers return, and the split into training and test images where a source has none."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch

Split = Literal["train", "test"]
TEST_SHARE = 5
"""If a source has no splits, every fifth image of each class is a test image."""
MAX_CLASSES = 100_000


@dataclass(frozen=True)
class RealData:
    """Labelled images of one split.

    `images` is uint8 [N, channels, height, width], for a table of D columns [N, 1, 1, D]; `labels` is int64 [N] in
    [0, K); `class_names` has K entries; `kept_in` is the file of a cache that was written with the decoded images.
    """

    images: torch.Tensor
    labels: torch.Tensor
    class_names: tuple[str, ...]
    kept_in: Path | None = None


def split_rows(labels: np.ndarray, split: Split) -> np.ndarray:
    """Return the rows of one split: within each class, every fifth image in order is a test image.

    Args:
        labels: integers [N].
    """
    is_test = np.zeros(len(labels), dtype=bool)
    for label in np.unique(labels):
        is_test[np.flatnonzero(labels == label)[TEST_SHARE - 1 :: TEST_SHARE]] = True
    return np.flatnonzero(is_test if split == "test" else ~is_test)


def first_line(error: Exception) -> str:
    """Return the first line of the message of an exception, or the name of its type if the message is empty."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]
