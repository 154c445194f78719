"""Data sets of the Hugging Face hub, and local directories of the same form, read with the library `datasets`.

Without `--download` only files on this machine are read, and no connection is opened. Code of a data set is never run.
Its images are decoded by `image_files`, with the same limits as all others.
"""

from __future__ import annotations

import importlib.metadata
import os
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..errors import ConfigError, DataError, KdxError
from .decoded import NamedImage
from .image_files import IMAGE_SUFFIXES, read_images
from .real_data import MAX_CLASSES, RealData, Split, first_line, split_rows

OLDEST = 4
"""Oldest major version of `datasets` that is accepted: earlier ones run scripts of a data set."""
CARD = "README.md"
_ABOUT = (CARD, "dataset_infos.json", "metadata.csv", "metadata.jsonl", "metadata.parquet")
_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")
_READERS = ("parquet", "imagefolder")
_IMAGE_COLUMNS = ("image", "img")
_LABEL_COLUMNS = ("label", "labels", "fine_label")
_TEST_SPLITS = ("test", "validation")


@dataclass(frozen=True)
class HubSet:
    """The parts of `hf:NAME[@CONFIG]`. `name` is a directory if one exists, otherwise a name of the hub."""

    spec: str
    name: str
    config: str | None

    @property
    def is_local(self) -> bool:
        """Whether the name is a directory."""
        return bool(self.name) and Path(self.name).is_dir()


def parse_hub(spec: str) -> HubSet:
    """Parse `hf:NAME[@CONFIG]`. CONFIG follows the last @, unless a directory of the whole name exists."""
    whole = spec.removeprefix("hf:")
    name, at, config = whole.rpartition("@")
    if not at or Path(whole).is_dir():
        return HubSet(spec, whole, None)
    return HubSet(spec, name, config or None)


def hub_files(spec: str, download: bool = False) -> tuple[Path, list[Path]]:
    """Return the directory of a data set on this machine, and the files of it that are read, sorted.

    Args:
        download: download missing files.

    Raises:
        ConfigError: the library `datasets` is not installed.
        DataError: the data set is not on this machine and `download` is false, the download fails, or it has no parquet
            files and no images.
    """
    require_datasets(spec)
    asked = parse_hub(spec)
    root = Path(asked.name) if asked.is_local else _snapshot(asked, download)
    named = {path for path in root.rglob("*") if not any(part.startswith(".") for part in path.relative_to(root).parts)}
    files = sorted(path for path in named if _is_read(path) and path.is_file())
    if not any(_is_content(path) for path in files):
        raise DataError(f"{spec} has no parquet files and no images in {root}")
    return root, files


def load_hub(spec: str, split: Split, download: bool = False) -> RealData:
    """Read one split: its first column of images, and its first column of class labels.

    If there is no split `test`, `validation` is used. If there is only one split, every fifth image of each class is a
    test image.

    Raises:
        ConfigError: the library `datasets` is not installed.
        DataError: see `hub_files`; or columns or splits are missing, labels are not in [0, K), or a file is damaged.
    """
    root, _ = hub_files(spec, download)
    with tempfile.TemporaryDirectory() as cache, _reading(spec):
        builder = _builder(parse_hub(spec), root, cache)
        trained, tested = _splits(spec, list(map(str, builder.config.data_files)))
        features = builder.as_streaming_dataset(split=trained).features
        image_column, label_column = _image_and_label_columns(spec, features or {})
        wanted = trained if split == "train" or tested is None else tested
        images, labels = _rows(builder, wanted, image_column, label_column, root, spec)
        names = list(getattr(features[label_column], "names", None) or [])
        if not names:
            others = [part for part in (trained, tested) if part not in (wanted, None)]
            every = [labels, *(_labels(builder, str(part), label_column, spec) for part in others)]
            highest = max(int(array.max(initial=0)) for array in every)
            names = [str(number) for number in range(1 + min(MAX_CLASSES, highest))]
    if labels.min(initial=0) < 0 or labels.max(initial=0) >= len(names):
        raise DataError(
            f"{spec} has labels from {labels.min()} to {labels.max()} in {wanted}, for {len(names)} classes"
        )
    if tested is None:
        rows = split_rows(labels, split)
        images, labels = [images[row] for row in rows], labels[rows]
    if not images:
        raise DataError(f"{spec} has no {split} images")
    pixels, kept_in = read_images(images)
    return RealData(pixels, torch.from_numpy(labels).long(), tuple(map(str, names)), kept_in)


def require_datasets(spec: str) -> None:
    """Raise `ConfigError` unless the library `datasets` is installed in a version that runs no code of a data set."""
    try:
        version = importlib.metadata.version("datasets")
    except importlib.metadata.PackageNotFoundError as error:
        raise ConfigError(f"{spec} needs the library datasets: pip install 'kdextract[hf]'") from error
    if int(version.split(".")[0]) < OLDEST:
        raise ConfigError(f"{spec} needs datasets {OLDEST} or later, got {version}: pip install 'kdextract[hf]'")


def _is_content(path: Path) -> bool:
    return path.suffix.lower() in IMAGE_SUFFIXES | {".parquet"}


def _is_read(path: Path) -> bool:
    return _is_content(path) or path.name in _ABOUT


def _snapshot(asked: HubSet, download: bool) -> Path:
    """Return the directory with the files of a data set of the hub; `download` downloads missing ones."""
    if not _HUB_NAME.fullmatch(asked.name):
        raise DataError(f"{asked.spec} is neither a directory nor a name of the hub, such as hf:ylecun/mnist")
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    suffixes = [form for suffix in (".parquet", *sorted(IMAGE_SUFFIXES)) for form in (suffix, suffix.upper())]
    patterns = [*_ABOUT, *(f"*/{name}" for name in _ABOUT), *(f"*{suffix}" for suffix in suffixes)]
    try:
        found = snapshot_download(
            asked.name, repo_type="dataset", allow_patterns=patterns, local_files_only=not download
        )
    except (KdxError, MemoryError):
        raise
    except Exception as error:  # the exception for a lost connection depends on the version of the library
        if not download and isinstance(error, LocalEntryNotFoundError):
            raise DataError(f"{asked.spec} is not on this machine; download it with --download") from error
        raise DataError(f"{asked.spec} cannot be downloaded: {first_line(error)}") from error
    return Path(found)


def _builder(asked: HubSet, root: Path, cache: str) -> Any:
    """Return the reader of `datasets` for a directory. It opens only image and parquet files of that directory."""
    import datasets

    datasets.disable_progress_bars()
    datasets.logging.set_verbosity(datasets.logging.CRITICAL)
    _check_card(asked.spec, root)
    builder = datasets.load_dataset_builder(str(root), asked.config, cache_dir=cache)
    if builder.name not in _READERS:
        raise DataError(f"{asked.spec} is a data set of kind {builder.name}, not one of {' or '.join(_READERS)} files")
    inside = root.resolve()
    for files in builder.config.data_files.values():
        for file in files:
            _check_inside(asked.spec, str(file), inside)
    return builder


def _check_card(spec: str, root: Path) -> None:
    """Raise `DataError` if the description of a data set names files outside of its directory."""
    from huggingface_hub import metadata_load

    if (root / ".huggingface.yaml").exists():
        raise DataError(f"{spec} has a file .huggingface.yaml, which is not read; move its content to {CARD}")
    card = metadata_load(root / CARD) if (root / CARD).is_file() else None
    for text in _texts((card or {}).get("configs")):
        if "::" in text or "://" in text or text.startswith(("/", "~")) or ".." in text.split("/"):
            raise DataError(f"{spec} names files outside of its directory in {CARD}: {text[:100]}")


def _texts(value: Any) -> Iterator[str]:
    """Yield every text in nested lists and dicts."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, list | dict):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _texts(item)


def _check_inside(spec: str, file: str, root: Path) -> Path:
    path = Path(os.path.abspath(file))  # not resolved, because files of the hub are links
    if "://" in file or not path.is_relative_to(root):
        raise DataError(f"{spec} names a file outside of its directory: {file[:200]}")
    return path


def _splits(spec: str, names: list[str]) -> tuple[str, str | None]:
    """Return the names of the training split and of the test split, None if there is no test split."""
    if len(names) == 1:
        return names[0], None
    if "train" not in names:
        raise DataError(f"{spec} has no split train; its splits are {', '.join(names)}")
    return "train", next((name for name in _TEST_SPLITS if name in names), None)


def _image_and_label_columns(spec: str, features: dict[str, Any]) -> tuple[str, str]:
    """Return the columns of images and of labels: the first ones of these types, otherwise those of usual names."""
    from datasets import ClassLabel, Image

    def is_integer(name: str) -> bool:
        return str(getattr(features[name], "dtype", "")).startswith(("int", "uint"))

    images = [name for name, kind in features.items() if isinstance(kind, Image)]
    images += [name for name in _IMAGE_COLUMNS if name in features]
    labels = [name for name, kind in features.items() if isinstance(kind, ClassLabel)]
    labels += [name for name in _LABEL_COLUMNS if name in features and is_integer(name)]
    if not images or not labels:
        missing = "column of images" if not images else "column of class labels"
        raise DataError(f"{spec} has no {missing}; its columns are {', '.join(features) or 'unknown'}")
    return images[0], labels[0]


def _rows(
    builder: Any, split: str, image_column: str, label_column: str, root: Path, spec: str
) -> tuple[list[NamedImage], np.ndarray]:
    """Return the encoded images of a split, and their labels, int64 [N]."""
    from datasets import Image

    dataset = builder.as_streaming_dataset(split=split).select_columns([image_column, label_column])
    if isinstance(dataset.features[image_column], Image):
        dataset = dataset.cast_column(image_column, Image(decode=False))
    images: list[NamedImage] = []
    labels: list[Any] = []
    for number, row in enumerate(dataset):
        images.append(_encoded(row[image_column], f"image {number} of {split} of {spec}", builder.name, root, spec))
        labels.append(row[label_column])
    _check_count(builder, split, len(labels), spec)
    return images, _integers(labels, split, spec)


def _encoded(value: Any, name: str, reader: str, root: Path, spec: str) -> NamedImage:
    """Return one image: its content, or its file if the data set is a folder of images."""
    content = value.get("bytes") if isinstance(value, dict) else value
    if isinstance(content, bytes):
        return name, content
    file = value.get("path") if isinstance(value, dict) else None
    if reader == "imagefolder" and isinstance(file, str):
        path = _check_inside(spec, file, root.resolve())
        return str(path), path
    raise DataError(f"{name} is missing")


def _labels(builder: Any, split: str, column: str, spec: str) -> np.ndarray:
    """Return the labels of a split, int64 [N]."""
    dataset = builder.as_streaming_dataset(split=split).select_columns([column])
    return _integers([row[column] for row in dataset], split, spec)


def _integers(labels: list[Any], split: str, spec: str) -> np.ndarray:
    if any(label is None for label in labels):
        raise DataError(f"{spec} has images without a label in {split}")
    return np.array(labels, dtype=np.int64)


def _check_count(builder: Any, split: str, count: int, spec: str) -> None:
    """Raise `DataError` if the data set declares another number of images for a split."""
    declared = (builder.info.splits or {}).get(split)
    expected = getattr(declared, "num_examples", None)
    if expected and expected != count:
        counts = f"{count} images in {split} instead of {expected}"
        raise DataError(f"{spec} has {counts}; download it again with --download")


@contextmanager
def _reading(spec: str) -> Iterator[None]:
    """Turn all exceptions of the library on damaged files into `DataError`."""
    try:
        yield
    except (KdxError, MemoryError):
        raise
    except Exception as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
        raise DataError(f"{spec} cannot be read: {' '.join(lines[:2])}") from error
