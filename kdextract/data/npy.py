"""Untrusted arrays of images, labels and class names: checks, and conversion to `RealData`."""

from __future__ import annotations

import numpy as np
import torch

from ..errors import DataError
from .real_data import MAX_CLASSES, RealData, Split, split_rows
from .tables import range_of, to_levels

MAX_CLASS_NAME = 200


def check_pair(where: str, images: np.ndarray, labels: np.ndarray) -> None:
    """Raise `DataError` unless there is one label for each image. `where` names the source in errors."""
    if labels.ndim != 1 or images.ndim < 2 or len(labels) != len(images):
        raise DataError(f"{where} has images of shape {images.shape} and labels of shape {labels.shape}")


def class_names(where: str, every_label: list[np.ndarray], given: np.ndarray | None) -> tuple[str, ...]:
    """Return the given names of the classes, otherwise the numbers from 0 to the highest label as text.

    Raises:
        DataError: a label is not an integer or is negative, or there are too few names, or a name is not text, longer
            than `MAX_CLASS_NAME` or used twice.
    """
    if not all(np.issubdtype(array.dtype, np.integer) and array.min(initial=0) >= 0 for array in every_label):
        raise DataError(f"{where} needs labels that are integers, at least 0")
    num_classes = 1 + max(int(array.max(initial=0)) for array in every_label)
    names = (
        _class_name_texts(where, given) if given is not None else [str(n) for n in range(min(num_classes, MAX_CLASSES))]
    )
    if len(names) < num_classes:
        raise DataError(f"{where} has labels up to {num_classes - 1}, but names for {len(names)} classes")
    return tuple(names)


def _class_name_texts(where: str, given: np.ndarray) -> list[str]:
    sound = given.ndim == 1 and len(given) <= MAX_CLASSES and given.dtype.kind in "USiu"
    try:
        names = [item.decode() if isinstance(item, bytes) else str(item) for item in given.tolist()] if sound else []
    except UnicodeDecodeError:
        names = []
    if not names or len(set(names)) < len(names) or any(not 0 < len(name) <= MAX_CLASS_NAME for name in names):
        raise DataError(f"{where} needs class_names as an array [K] of different texts, one per class")
    return names


def split_arrays(
    where: str, images: np.ndarray, labels: np.ndarray, names: np.ndarray | None, split: Split
) -> RealData:
    """Return one split of images and labels without splits: every fifth image of each class is a test image.

    Args:
        images: see `to_real_data`.
        labels: integers [N], at least 0.
        names: of the classes, [K]; None for their numbers.
    """
    check_pair(where, images, labels)
    all_names = class_names(where, [labels], names)
    rows, training_rows = split_rows(labels, split), images[split_rows(labels, "train")]
    return to_real_data(where, images[rows], labels[rows], all_names, training_rows, split)


def to_real_data(
    where: str,
    images: np.ndarray,
    labels: np.ndarray,
    names: tuple[str, ...],
    training_rows: np.ndarray | None,
    split: Split,
) -> RealData:
    """Return arrays of one split as real data.

    Args:
        images: [N, H, W], [N, H, W, c] or [N, c, H, W], of uint8, or floats in [0, 1]; or a table, [N, D], of
            any finite real numbers.
        labels: integers [N], at least 0.
        names: of the classes, [K].
        training_rows: of a table, [M, D]; their range scales it. Not used for images.

    Raises:
        DataError: the arrays have another shape or data type, or are empty.
    """
    if not images.size:
        raise DataError(f"{where} has no {split} images")
    stored = _stored_images(where, images) if images.ndim > 2 else _stored_table(where, images, training_rows)
    return RealData(stored, torch.from_numpy(labels.astype(np.int64)), names)


def _stored_table(where: str, rows: np.ndarray, training_rows: np.ndarray | None) -> torch.Tensor:
    """Return rows [N, D] of real numbers as uint8 [N, 1, 1, D], scaled by the range of the training rows."""
    if training_rows is None or training_rows.shape[1:] != rows.shape[1:] or not training_rows.size:
        raise DataError(f"{where} has a table of {rows.shape[1]} columns, but x_train has no such rows to scale it")
    for array in (rows, training_rows):
        if array.dtype.kind not in "biuf" or not np.isfinite(array.astype(np.float64)).all():
            raise DataError(f"{where} has a table with values that are not finite real numbers")
    return torch.from_numpy(to_levels(rows, range_of(training_rows)))


def _stored_images(where: str, images: np.ndarray) -> torch.Tensor:
    """Return [N, H, W], [N, H, W, c] or [N, c, H, W] images of uint8, or floats in [0, 1], as uint8 [N, c, H, W]."""
    if images.ndim == 3:
        images = images[:, None]
    elif images.ndim == 4 and images.shape[1] not in (1, 3) and images.shape[3] in (1, 3):
        images = np.moveaxis(images, 3, 1)
    if images.ndim != 4 or images.shape[1] not in (1, 3):
        raise DataError(f"{where} needs images of 1 or 3 channels, got an array of shape {images.shape}")
    if images.dtype != np.uint8:
        if not np.issubdtype(images.dtype, np.floating) or not (images.min() >= 0 and images.max() <= 1):
            raise DataError(f"{where} needs pixels as uint8, or as floats in [0, 1]")
        images = np.rint(images * 255).astype(np.uint8)
    return torch.from_numpy(np.ascontiguousarray(images))
