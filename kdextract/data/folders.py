"""Folders of image files: DIR/CLASS/FILE, or DIR/train/CLASS/FILE and DIR/test/CLASS/FILE."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from ..errors import DataError
from .image_files import IMAGE_SUFFIXES, read_images
from .real_data import TEST_SHARE, RealData, Split, split_rows


def folder_files(root: Path, split: Split) -> list[Path]:
    """Return the image files that determine one split. Raises `DataError` if `root` has fewer than two classes."""
    return [path for _, paths in _folder_classes(root, split)[0] for path in paths]


def load_folder(root: Path, split: Split) -> RealData:
    """Read one split. Without folders `train` and `test`, every fifth image of each class is a test image.

    Raises:
        DataError: there are fewer than two classes, no images of this split, or an image cannot be read.
    """
    classes, has_split = _folder_classes(root, split)
    paths = [path for _, files in classes for path in files]
    labels = np.concatenate([np.full(len(files), index) for index, (_, files) in enumerate(classes)])
    if not has_split:
        rows = split_rows(labels, split)
        paths, labels = [paths[row] for row in rows], labels[rows]
    if not paths:
        raise DataError(f"folder:{root} has no {split} images; one test image needs {TEST_SHARE} images of a class")
    images, kept_in = read_images([(str(path), path) for path in paths])
    return RealData(images, torch.from_numpy(labels).long(), tuple(name for name, _ in classes), kept_in)


def _folder_classes(root: Path, split: Split) -> tuple[list[tuple[str, list[Path]]], bool]:
    """Return [(class name, image files)] of one split of DIR/[train|test]/CLASS/FILE, and whether DIR has a split."""
    has_split = (root / "train").is_dir() and (root / "test").is_dir()
    bases = {name: root / name if has_split else root for name in ("train", "test")}
    if not root.is_dir():
        raise DataError(f"folder:{root} is not a directory")
    names = sorted({path.parent.name for base in bases.values() for path in _images_below(base)})
    if len(names) < 2:
        raise DataError(f"folder:{root} needs one folder of images per class (two or more), such as {root}/cat/1.png")
    members: dict[str, list[Path]] = {name: [] for name in names}
    for path in _images_below(bases[split]):
        members[path.parent.name].append(path)
    return list(members.items()), has_split


def _images_below(base: Path) -> list[Path]:
    """Return the image files of BASE/CLASS/FILE."""
    return sorted(path for path in base.glob("*/*") if path.suffix.lower() in IMAGE_SUFFIXES)
