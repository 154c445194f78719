"""The only door to real data.

Nothing else in the package opens a data set. `load_data` returns images as they are stored; the caller fits them to a
classifier. A row of a table is an image of one channel and one row of pixels, scaled per column to what the training
rows span. `fingerprint` hashes the files without decoding them, so that a cached stage need not read them.
"""

from __future__ import annotations

import hashlib
import importlib.util
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from .errors import DataError, UsageError, did_you_mean
from .tables import FORMULAS_VERSION, PLANES, plane_points, range_of, to_levels

Split = Literal["train", "test"]
TEST_SHARE = 5  # where a source has no split of its own, every fifth image of each class is a test image
MAX_IMAGE_PIXELS = 64 * 2**20
MAX_ARCHIVE_BYTES = 4 * 2**30
_ARCHIVE_ERRORS = (OSError, ValueError, zipfile.BadZipFile, zlib.error, MemoryError, EOFError, SyntaxError,
                   NotImplementedError, RuntimeError, KeyError)  # fmt: skip
MAX_CLASSES = 100_000
IMAGE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".webp"})
_GREY_MODES = ("1", "L", "I;16")
_DIGIT_NAMES = tuple(str(digit) for digit in range(10))
_SKLEARN_FILES = {
    "digits": "digits.csv.gz",
    "iris": "iris.csv",
    "wine": "wine_data.csv",
    "breast_cancer": "breast_cancer.csv",
}


@dataclass(frozen=True)
class RealData:
    """Labelled images of one split.

    `images` is uint8 [N, channels, height, width], for a table of D columns [N, 1, 1, D]; `labels` int64 [N] in [0, K),
    `class_names` has K entries.
    """

    images: torch.Tensor
    labels: torch.Tensor
    class_names: tuple[str, ...]


@dataclass(frozen=True)
class _TorchvisionSet:
    """A data set that torchvision reads: its class, its files below the data directory, its split argument."""

    reader: str
    files: dict[Split, tuple[str, ...]]
    size: tuple[int, int] | None = None
    split_argument: Callable[[Split], dict[str, Any]] = lambda split: {"train": split == "train"}
    flip: bool = False
    class_names: tuple[str, ...] | None = None


def _idx_files(folder: str) -> dict[Split, tuple[str, ...]]:
    def pair(prefix: str) -> tuple[str, ...]:
        return (f"{folder}/raw/{prefix}-images-idx3-ubyte", f"{folder}/raw/{prefix}-labels-idx1-ubyte")

    return {"train": pair("train"), "test": pair("t10k")}


_TORCHVISION: dict[str, _TorchvisionSet] = {
    "mnist": _TorchvisionSet("MNIST", _idx_files("MNIST"), class_names=_DIGIT_NAMES),
    "mnist_conv": _TorchvisionSet("MNIST", _idx_files("MNIST"), size=(32, 32), class_names=_DIGIT_NAMES),
    "fashion_mnist": _TorchvisionSet("FashionMNIST", _idx_files("FashionMNIST"), flip=True),
    "kmnist": _TorchvisionSet("KMNIST", _idx_files("KMNIST")),
    "svhn": _TorchvisionSet(
        "SVHN",
        {"train": ("train_32x32.mat",), "test": ("test_32x32.mat",)},
        split_argument=lambda split: {"split": split},
        class_names=_DIGIT_NAMES,
    ),
    "cifar10": _TorchvisionSet(
        "CIFAR10",
        {
            "train": tuple(f"cifar-10-batches-py/data_batch_{i}" for i in range(1, 6)),
            "test": ("cifar-10-batches-py/test_batch",),
        },
        flip=True,
    ),
    "cifar100": _TorchvisionSet(
        "CIFAR100",
        {"train": ("cifar-100-python/train",), "test": ("cifar-100-python/test",)},
        flip=True,
    ),
}
_PREFIXES = ("folder:DIR", "npz:FILE")
_PLANES = {f"2d:{name}": name for name in PLANES}


def data_names() -> list[str]:
    """Return every spelling of `--data` that names real data."""
    return [*_SKLEARN_FILES, *_TORCHVISION, *_PLANES, *_PREFIXES]


def is_real_data(spec: str) -> bool:
    """Say whether `spec` names real data (as opposed to an artifact, a path or noise)."""
    return spec in data_names() or spec.startswith(("folder:", "npz:"))


def check_spec(spec: str) -> None:
    """Raise `UsageError`, with the near name, unless `spec` names real data."""
    if not is_real_data(spec):
        raise UsageError(f"unknown data set {spec!r}.{did_you_mean(spec, data_names())}")


def mirrors_make_sense(spec: str) -> bool:
    """Say whether a mirrored image of this data set still shows its class (digits and letters: no)."""
    return spec in _TORCHVISION and _TORCHVISION[spec].flip


def fingerprint(spec: str, split: Split, data_dir: Path) -> str:
    """Return the sha256 of the files that this split is read from, or of the formula that it is drawn from.

    Raises:
        UsageError: unknown data set.
        DataError: its files are not there.
    """
    check_spec(spec)
    digest = hashlib.sha256()
    if spec in _PLANES:
        digest.update(f"{spec} {split} {FORMULAS_VERSION}".encode())
        return digest.hexdigest()
    for path in _files(spec, split, data_dir):
        digest.update(path.name.encode())
        digest.update(path.parent.name.encode())
        try:
            with path.open("rb") as stream:
                digest.update(hashlib.file_digest(stream, "sha256").digest())
        except OSError as error:
            raise _missing(spec, data_dir, path) from error
    return digest.hexdigest()


def load_data(spec: str, split: Split, data_dir: Path, download: bool = False) -> RealData:
    """Open one split of a real data set.

    Args:
        spec: one of scikit-learn's or torchvision's names, `2d:NAME`, `folder:DIR` or `npz:FILE`.
        data_dir: where torchvision's files are.
        download: let torchvision fetch what is missing.

    Raises:
        UsageError: unknown data set.
        DataError: it is not there, or cannot be read.
    """
    check_spec(spec)
    if spec == "digits":
        return _load_digits(split)
    if spec in _SKLEARN_FILES:
        return _load_sklearn_table(spec, split)
    if spec in _PLANES:
        points, labels = plane_points(_PLANES[spec], train=split == "train")
        return RealData(torch.from_numpy(points), torch.from_numpy(labels), ("0", "1"))
    if spec.startswith("folder:"):
        return _load_folder(Path(spec.removeprefix("folder:")), split)
    if spec.startswith("npz:"):
        return _load_npz(Path(spec.removeprefix("npz:")), split)
    return _load_torchvision(spec, split, data_dir, download)


def _files(spec: str, split: Split, data_dir: Path) -> list[Path]:
    if spec in _SKLEARN_FILES:
        package = importlib.util.find_spec("sklearn")
        assert package is not None
        assert package.origin is not None
        return [Path(package.origin).parent / "datasets" / "data" / _SKLEARN_FILES[spec]]
    if spec.startswith("npz:"):
        return [Path(spec.removeprefix("npz:"))]
    if spec.startswith("folder:"):
        root = Path(spec.removeprefix("folder:"))
        return [path for _, paths in _folder_classes(root, split)[0] for path in paths]
    return [data_dir / name for name in _TORCHVISION[spec].files[split]]


def _missing(spec: str, data_dir: Path, path: Path) -> DataError:
    if spec in _TORCHVISION:
        return DataError(
            f"{spec} is not in {data_dir} (no {path.name}); name its place with --data-dir or KDX_DATA_DIR, "
            "or let it be fetched with --download"
        )
    return DataError(f"{spec}: cannot read {path}")


def _split_rows(labels: np.ndarray, split: Split) -> np.ndarray:
    """Return the rows of one split: within each class, every fifth image in order is a test image."""
    is_test = np.zeros(len(labels), dtype=bool)
    for label in np.unique(labels):
        is_test[np.flatnonzero(labels == label)[TEST_SHARE - 1 :: TEST_SHARE]] = True
    return np.flatnonzero(is_test if split == "test" else ~is_test)


def _load_digits(split: Split) -> RealData:
    from sklearn.datasets import load_digits

    digits = load_digits()
    rows = _split_rows(digits.target, split)
    images = np.rint(digits.images[rows] * (255 / 16)).astype(np.uint8)
    return RealData(torch.from_numpy(images).unsqueeze(1), torch.from_numpy(digits.target[rows]).long(), _DIGIT_NAMES)


def _load_sklearn_table(spec: str, split: Split) -> RealData:
    import sklearn.datasets

    table = getattr(sklearn.datasets, f"load_{spec}")()
    rows = _split_rows(table.target, split)
    levels = to_levels(table.data[rows], range_of(table.data[_split_rows(table.target, "train")]))
    names = tuple(str(name) for name in table.target_names)
    return RealData(torch.from_numpy(levels), torch.from_numpy(table.target[rows]).long(), names)


def _load_torchvision(spec: str, split: Split, data_dir: Path, download: bool) -> RealData:
    import torchvision.datasets

    entry = _TORCHVISION[spec]
    if not download:
        for name in entry.files[split]:
            if not (data_dir / name).is_file():
                raise _missing(spec, data_dir, data_dir / name)
    try:
        reader = getattr(torchvision.datasets, entry.reader)
        dataset = reader(str(data_dir), download=download, **entry.split_argument(split))
    except (RuntimeError, ValueError, OSError, EOFError, LookupError, ImportError, AssertionError) as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise DataError(f"{spec} in {data_dir} cannot be read: {reason}") from error
    images = torch.as_tensor(np.asarray(dataset.data))
    if images.ndim == 3:
        images = images.unsqueeze(1)
    elif images.shape[-1] == 3:
        images = images.permute(0, 3, 1, 2)
    if entry.size is not None:
        from .images import fit_images

        images = fit_images(images, (images.shape[1], *entry.size))
    labels = torch.as_tensor(np.asarray(dataset.labels if spec == "svhn" else dataset.targets)).long()
    names = entry.class_names or tuple(str(name) for name in dataset.classes)
    return RealData(images.contiguous(), labels, names)


def _folder_classes(root: Path, split: Split) -> tuple[list[tuple[str, list[Path]]], bool]:
    """Return [(class name, image files)] of one split of DIR/[train|test]/CLASS/FILE, and whether DIR has a split."""
    has_split = (root / "train").is_dir() and (root / "test").is_dir()
    bases = {name: root / name if has_split else root for name in ("train", "test")}
    if not root.is_dir():
        raise DataError(f"folder:{root} is not a directory")
    names = sorted({path.parent.name for base in bases.values() for path in _images_below(base)})
    if len(names) < 2:
        raise DataError(f"folder:{root} needs one folder of images per class (two or more), as in {root}/cat/1.png")
    members: dict[str, list[Path]] = {name: [] for name in names}
    for path in _images_below(bases[split]):
        members[path.parent.name].append(path)
    return list(members.items()), has_split


def _images_below(base: Path) -> list[Path]:
    """Return the image files of BASE/CLASS/FILE."""
    return sorted(path for path in base.glob("*/*") if path.suffix.lower() in IMAGE_SUFFIXES)


def _load_folder(root: Path, split: Split) -> RealData:
    classes, has_split = _folder_classes(root, split)
    paths = [path for _, files in classes for path in files]
    labels = np.concatenate([np.full(len(files), index) for index, (_, files) in enumerate(classes)])
    if not has_split:
        rows = _split_rows(labels, split)
        paths, labels = [paths[row] for row in rows], labels[rows]
    if not paths:
        raise DataError(f"folder:{root} has no {split} images; a class needs {TEST_SHARE} images to give one to test")
    images = _read_images(paths)
    return RealData(images, torch.from_numpy(labels).long(), tuple(name for name, _ in classes))


def _open_image(path: Path) -> Any:
    from PIL import Image, UnidentifiedImageError

    try:
        image = Image.open(path, formats=["PNG", "JPEG", "BMP", "WEBP"])
    except (OSError, UnidentifiedImageError, ValueError, Image.DecompressionBombError) as error:
        raise DataError(f"{path} is not an image that can be read: {error}") from error
    if image.width * image.height > MAX_IMAGE_PIXELS:
        raise DataError(f"{path} has {image.width}x{image.height} pixels, the limit is {MAX_IMAGE_PIXELS}")
    return image


def _read_images(paths: list[Path]) -> torch.Tensor:
    """Read images, all brought to the first one's size, and to colour if any is in colour."""
    from .images import fit_images

    channels = 1 if all(_open_image(path).mode in _GREY_MODES for path in paths) else 3
    _, height, width = _read_image(paths[0]).shape
    return torch.cat([fit_images(_read_image(path).unsqueeze(0), (channels, height, width)) for path in paths])


def _read_image(path: Path) -> torch.Tensor:
    """Return one image as uint8 [channels, height, width]: one channel if the file is grey, otherwise three."""
    image = _open_image(path)
    try:
        if image.mode == "I;16":
            pixels = (np.array(image) >> 8).astype(np.uint8)
        else:
            pixels = np.array(image.convert("L" if image.mode in _GREY_MODES else "RGB"))
    except (OSError, ValueError, SyntaxError) as error:
        raise DataError(f"{path} is truncated or damaged: {error}") from error
    return torch.from_numpy(pixels).unsqueeze(0) if pixels.ndim == 2 else torch.from_numpy(pixels).permute(2, 0, 1)


def _load_npz(path: Path, split: Split) -> RealData:
    """Read x_train, y_train, x_test, y_test, or images and labels, and class_names if there are any."""
    arrays = _read_archive(path)
    has_split = {f"x_{split}", f"y_{split}"} <= arrays.keys()
    if not has_split and not {"images", "labels"} <= arrays.keys():
        raise DataError(f"npz:{path} needs the arrays x_train, y_train, x_test, y_test, or images and labels")
    images, labels = (arrays[f"{axis}_{split}"] for axis in "xy") if has_split else (arrays["images"], arrays["labels"])
    every_label = [array for name, array in arrays.items() if name in ("y_train", "y_test")] if has_split else [labels]
    if labels.ndim != 1 or images.ndim < 2 or len(labels) != len(images):
        raise DataError(f"npz:{path} has images of shape {images.shape} and labels of shape {labels.shape}")
    names = _npz_class_names(path, arrays, every_label)
    trained_on = arrays.get("x_train")
    if not has_split:
        rows, trained_on = _split_rows(labels, split), images[_split_rows(labels, "train")]
        images, labels = images[rows], labels[rows]
    if not images.size:
        raise DataError(f"npz:{path} has no {split} images")
    stored = _npz_images(path, images) if images.ndim > 2 else _npz_table(path, images, trained_on)
    return RealData(stored, torch.from_numpy(labels.astype(np.int64)), names)


def _read_archive(path: Path) -> dict[str, np.ndarray]:
    try:
        with zipfile.ZipFile(path) as archive:
            size = sum(member.file_size for member in archive.infolist())
        if size > MAX_ARCHIVE_BYTES:
            raise DataError(f"npz:{path} unpacks to {size} bytes, the limit is {MAX_ARCHIVE_BYTES}")
        with np.load(path, allow_pickle=False) as archive:
            return {name: archive[name] for name in archive.files}
    except _ARCHIVE_ERRORS as error:
        raise DataError(f"npz:{path} cannot be read: {error}") from error


def _npz_class_names(path: Path, arrays: dict[str, np.ndarray], every_label: list[np.ndarray]) -> tuple[str, ...]:
    if not all(np.issubdtype(array.dtype, np.integer) and array.min(initial=0) >= 0 for array in every_label):
        raise DataError(f"npz:{path} needs labels that are integers from 0 up")
    num_classes = 1 + max(int(array.max(initial=0)) for array in every_label)
    names = tuple(str(name) for name in arrays.get("class_names", range(min(num_classes, MAX_CLASSES))))
    if len(names) < num_classes:
        raise DataError(f"npz:{path} has labels up to {num_classes - 1}, and names for {len(names)} classes")
    return names


def _npz_table(path: Path, rows: np.ndarray, trained_on: np.ndarray | None) -> torch.Tensor:
    """Return rows [N, D] of real numbers, scaled by the training rows, as uint8 [N, 1, 1, D]."""
    if trained_on is None or trained_on.shape[1:] != rows.shape[1:] or not trained_on.size:
        raise DataError(f"npz:{path} has a table of {rows.shape[1]} columns, and in x_train no rows to scale it by")
    for array in (rows, trained_on):
        if array.dtype.kind not in "biuf" or not np.isfinite(array.astype(np.float64)).all():
            raise DataError(f"npz:{path} has a table, which needs to hold real numbers, all of them finite")
    return torch.from_numpy(to_levels(rows, range_of(trained_on)))


def _npz_images(path: Path, images: np.ndarray) -> torch.Tensor:
    """Return [N, H, W], [N, H, W, c] or [N, c, H, W] images of uint8, or floats in [0, 1], as uint8 [N, c, H, W]."""
    if images.ndim == 3:
        images = images[:, None]
    elif images.ndim == 4 and images.shape[1] not in (1, 3) and images.shape[3] in (1, 3):
        images = np.moveaxis(images, 3, 1)
    if images.ndim != 4 or images.shape[1] not in (1, 3):
        raise DataError(f"npz:{path} needs images of 1 or 3 channels, got an array of shape {images.shape}")
    if images.dtype != np.uint8:
        if not np.issubdtype(images.dtype, np.floating) or not (images.min() >= 0 and images.max() <= 1):
            raise DataError(f"npz:{path} needs pixels as uint8, or as floats in [0, 1]")
        images = np.rint(images * 255).astype(np.uint8)
    return torch.from_numpy(np.ascontiguousarray(images))
