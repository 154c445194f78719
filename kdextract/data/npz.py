"""Files of arrays: `.npz` archives and pairs of `.npy` files. Their headers are checked before memory is allocated."""

from __future__ import annotations

import re
import struct
import tokenize
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..errors import DataError
from ..storage.npy import ArrayHeader, read_array, read_npy_header
from .npy import check_pair, class_names, split_arrays, to_real_data
from .real_data import RealData, Split, first_line

MAX_ARCHIVE_BYTES = 4 * 2**30
MAX_RATIO = 200
"""Largest allowed ratio of unpacked size and size on disk; that of MNIST is 5."""
MAX_MEMBERS = 1000
_MEMBER = re.compile(r"[A-Za-z0-9_.-]{1,100}\.npy")
_ARCHIVE_ERRORS = (
    OSError, ValueError, zipfile.BadZipFile, zlib.error, struct.error, MemoryError, EOFError, SyntaxError,
    NotImplementedError, RuntimeError, LookupError, TypeError, OverflowError, tokenize.TokenError,
)  # fmt: skip


def load_npz(path: Path, split: Split) -> RealData:
    """Read x_train, y_train, x_test, y_test, or images and labels, and class_names if it exists.

    Every member must be a valid array of numbers or text; those of other names are ignored.

    Raises:
        DataError: the file is missing or damaged, unpacks to more than the limits, or has no such arrays.
    """
    where = f"npz:{path}"
    with _open_archive(path, where) as archive:
        names = archive.read("class_names") if "class_names" in archive.headers else None
        if not {f"x_{split}", f"y_{split}"} <= archive.headers.keys():
            if not {"images", "labels"} <= archive.headers.keys():
                raise DataError(f"{where} needs the arrays x_train, y_train, x_test, y_test, or images and labels")
            return split_arrays(where, archive.read("images"), archive.read("labels"), names, split)
        images = archive.read(f"x_{split}")
        label_names = [name for name in ("y_train", "y_test") if name in archive.headers]
        every_label: dict[str, np.ndarray] = {name: archive.read(name) for name in label_names}
        is_table = images.ndim == 2 and "x_train" in archive.headers
        training_rows = archive.read("x_train") if is_table else None
    labels = every_label[f"y_{split}"]
    check_pair(where, images, labels)
    all_names = class_names(where, list(every_label.values()), names)
    return to_real_data(where, images, labels, all_names, training_rows, split)


def npy_files(pair: str) -> tuple[Path, Path]:
    """Return the two files of `IMAGES.npy,LABELS.npy`. The last comma separates them."""
    images, _, labels = pair.rpartition(",")
    return Path(images), Path(labels)


def load_npy(pair: str, split: Split) -> RealData:
    """Read `IMAGES.npy,LABELS.npy`, which correspond to the arrays images and labels of an `.npz` file.

    Raises:
        DataError: a file is missing, has other content, or is longer or shorter than its header says.
    """
    images, labels = (_read_npy(path) for path in npy_files(pair))
    return split_arrays(f"npy:{pair}", images, labels, None, split)


def _read_npy(path: Path) -> np.ndarray:
    if not path.is_file():
        raise DataError(f"npy:{path} is not a file")
    try:
        with path.open("rb") as stream:
            return read_array(stream, path.stat().st_size, f"npy:{path}")
    except (OSError, MemoryError) as error:
        raise DataError(f"npy:{path} cannot be read: {first_line(error)}") from error


@dataclass(frozen=True)
class _Archive:
    """An open archive. The headers of all its members have been checked."""

    where: str
    archive: zipfile.ZipFile
    headers: dict[str, ArrayHeader]

    def read(self, name: str) -> np.ndarray:
        """Return one of its arrays."""
        member = self.archive.getinfo(f"{name}.npy")
        with self.archive.open(member) as stream:
            return read_array(stream, member.file_size, f"{self.where}, {member.filename},")


@contextmanager
def _open_archive(path: Path, where: str) -> Iterator[_Archive]:
    """Open an archive and check the headers of all its members before one is unpacked."""
    if not path.is_file():
        raise DataError(f"{where} is not a file")
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
            _check_sizes(members, path.stat().st_size, where)
            headers = {}
            for member in members:
                name = _checked_name(member, where)
                if name in headers:
                    raise DataError(f"{where} has two members {member.filename}")
                with archive.open(member) as stream:
                    headers[name], _ = read_npy_header(stream, member.file_size, f"{where}, {member.filename},")
            yield _Archive(where, archive, headers)
    except _ARCHIVE_ERRORS as error:
        raise DataError(f"{where} cannot be read: {first_line(error)}") from error


def _check_sizes(members: list[zipfile.ZipInfo], size_on_disk: int, where: str) -> None:
    size = sum(member.file_size for member in members)
    if len(members) > MAX_MEMBERS:
        raise DataError(f"{where} has {len(members)} members, the limit is {MAX_MEMBERS}")
    if size > MAX_ARCHIVE_BYTES:
        raise DataError(f"{where} unpacks to {size} bytes, the limit is {MAX_ARCHIVE_BYTES}")
    if size > MAX_RATIO * size_on_disk:
        raise DataError(f"{where} unpacks to {size} bytes, more than {MAX_RATIO} times its {size_on_disk} bytes")


def _checked_name(member: zipfile.ZipInfo, where: str) -> str:
    """Return the name of a member's array."""
    if not _MEMBER.fullmatch(member.filename):
        raise DataError(f"{where} has a member {member.filename[:100]!r}, which is not an array such as images.npy")
    if member.flag_bits & 1 or member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise DataError(f"{where} has a member {member.filename} that is encrypted, or compressed unlike numpy does it")
    return member.filename.removesuffix(".npy")
