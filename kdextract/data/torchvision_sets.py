"""The data sets that torchvision reads, and downloads if asked."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..errors import DataError
from .real_data import RealData, Split, first_line

_DIGIT_NAMES = tuple(str(digit) for digit in range(10))


@dataclass(frozen=True)
class TorchvisionSet:
    """A data set that torchvision reads: its class, its files below the data directory, its split argument.

    `size` is (height, width) to which images are resized, None to keep them; `flip` says whether a mirrored image keeps
    its class; `class_names` is None if torchvision has them.
    """

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


TORCHVISION: dict[str, TorchvisionSet] = {
    "mnist": TorchvisionSet("MNIST", _idx_files("MNIST"), class_names=_DIGIT_NAMES),
    "mnist_conv": TorchvisionSet("MNIST", _idx_files("MNIST"), size=(32, 32), class_names=_DIGIT_NAMES),
    "fashion_mnist": TorchvisionSet("FashionMNIST", _idx_files("FashionMNIST"), flip=True),
    "kmnist": TorchvisionSet("KMNIST", _idx_files("KMNIST")),
    "svhn": TorchvisionSet(
        "SVHN",
        {"train": ("train_32x32.mat",), "test": ("test_32x32.mat",)},
        split_argument=lambda split: {"split": split},
        class_names=_DIGIT_NAMES,
    ),
    "cifar10": TorchvisionSet(
        "CIFAR10",
        {
            "train": tuple(f"cifar-10-batches-py/data_batch_{i}" for i in range(1, 6)),
            "test": ("cifar-10-batches-py/test_batch",),
        },
        flip=True,
    ),
    "cifar100": TorchvisionSet(
        "CIFAR100",
        {"train": ("cifar-100-python/train",), "test": ("cifar-100-python/test",)},
        flip=True,
    ),
}


def torchvision_missing(name: str, data_dir: Path, path: Path) -> DataError:
    """Return the error for a missing file of a data set."""
    return DataError(
        f"{name} is not in {data_dir} (no {path.name}); give its directory with --data-dir or KDX_DATA_DIR, "
        "or download it with --download"
    )


def load_torchvision(name: str, split: Split, data_dir: Path, download: bool) -> RealData:
    """Return one split of one of `TORCHVISION`.

    Raises:
        DataError: a file is missing in `data_dir` and `download` is false, or is not the published one.
    """
    import torchvision.datasets

    entry = TORCHVISION[name]
    if not download:
        for file in entry.files[split]:
            if not (data_dir / file).is_file():
                raise torchvision_missing(name, data_dir, data_dir / file)
    try:
        reader = getattr(torchvision.datasets, entry.reader)
        dataset = reader(str(data_dir), download=download, **entry.split_argument(split))
    except (RuntimeError, ValueError, OSError, EOFError, LookupError, ImportError, AssertionError) as error:
        raise DataError(f"{name} in {data_dir} cannot be read: {first_line(error)}") from error
    images = torch.as_tensor(np.asarray(dataset.data))
    if images.ndim == 3:
        images = images.unsqueeze(1)
    elif images.shape[-1] == 3:
        images = images.permute(0, 3, 1, 2)
    if entry.size is not None:
        from ..models.pixels import fit_images

        images = fit_images(images, (images.shape[1], *entry.size))
    labels = torch.as_tensor(np.asarray(dataset.labels if name == "svhn" else dataset.targets)).long()
    names = entry.class_names or tuple(str(class_name) for class_name in dataset.classes)
    return RealData(images.contiguous(), labels, names)
