"""Real data sets by name.

`load_data` returns images as they are stored; the caller resizes them for a classifier. A row of a table is an image of
one channel and height 1, scaled per column by the range of the training rows. `fingerprint` hashes the files without
decoding them, so that a stage whose result is cached need not read the data.
"""

from __future__ import annotations

import difflib
import hashlib
from pathlib import Path

import torch

from ..errors import DataError, UsageError, did_you_mean
from .folders import folder_files, load_folder
from .hub import hub_files, load_hub, parse_hub
from .npz import load_npy, load_npz, npy_files
from .planes import FORMULAS_VERSION, PLANES, plane_points
from .real_data import RealData, Split
from .sklearn_sets import SKLEARN_FILES, load_sklearn, sklearn_file
from .torchvision_sets import TORCHVISION, load_torchvision, torchvision_missing

_PREFIXES = ("folder:", "npz:", "npy:", "hf:")
_SPELLINGS = ("folder:DIR", "npz:FILE", "npy:IMAGES,LABELS", "hf:NAME[@CONFIG]")
_PLANES = {f"2d:{name}": name for name in PLANES}


def data_names() -> list[str]:
    """Return every form of `--data` that names real data."""
    return [*SKLEARN_FILES, *TORCHVISION, *_PLANES, *_SPELLINGS]


def is_real_data(spec: str) -> bool:
    """Return whether `spec` names real data (and not an artifact, a path or noise)."""
    return spec in data_names() or spec.startswith(_PREFIXES)


def check_spec(spec: str) -> None:
    """Raise `UsageError`, with a suggestion, unless `spec` names real data."""
    prefix, _, rest = spec.partition(":")
    if not is_real_data(spec):
        near = difflib.get_close_matches(f"{prefix}:", _PREFIXES, n=1) if rest else []
        typed = _SPELLINGS[_PREFIXES.index(near[0])] if near else spec
        raise UsageError(f"unknown data set {spec!r}.{did_you_mean(typed, data_names())}")
    if not rest and f"{prefix}:" in _PREFIXES:
        raise UsageError(f"{spec!r} is incomplete; write {_SPELLINGS[_PREFIXES.index(f'{prefix}:')]}")
    if prefix == "npy" and not all(part.strip() for part in rest.rpartition(",")):
        raise UsageError(f"npy: needs two files, npy:IMAGES.npy,LABELS.npy, got {spec!r}")


def mirrors_make_sense(spec: str) -> bool:
    """Return whether a mirrored image of this data set keeps its class (not true for digits and letters)."""
    return spec in TORCHVISION and TORCHVISION[spec].flip


def fingerprint(spec: str, split: Split, data_dir: Path) -> str:
    """Return the sha256 of the files of this split; for points of the plane, of their name and formula version.

    Raises:
        UsageError: unknown data set.
        ConfigError: a library that it needs is not installed.
        DataError: a file is missing.
    """
    check_spec(spec)
    digest = hashlib.sha256()
    if spec in _PLANES:
        digest.update(f"{spec} {split} {FORMULAS_VERSION}".encode())
        return digest.hexdigest()
    if spec.startswith("hf:"):
        digest.update(str(parse_hub(spec).config).encode())
    for name, path in _files(spec, split, data_dir):
        digest.update(name.encode())
        try:
            if not path.is_file():
                raise FileNotFoundError(path)
            with path.open("rb") as stream:
                digest.update(hashlib.file_digest(stream, "sha256").digest())
        except OSError as error:
            raise _missing(spec, data_dir, path) from error
    return digest.hexdigest()


def load_data(spec: str, split: Split, data_dir: Path, download: bool = False) -> RealData:
    """Open one split of a real data set.

    Args:
        spec: one of scikit-learn's or torchvision's names, `2d:NAME`, `folder:DIR`, `npz:FILE`, `npy:IMAGES,LABELS` or
            `hf:NAME[@CONFIG]`.
        data_dir: the directory of torchvision's files.
        download: whether missing files of torchvision or of the Hugging Face hub are downloaded.

    Raises:
        UsageError: unknown data set.
        ConfigError: a library that it needs is not installed.
        DataError: its files are missing or cannot be read.
    """
    check_spec(spec)
    if spec in SKLEARN_FILES:
        return load_sklearn(spec, split)
    if spec in _PLANES:
        points, labels = plane_points(_PLANES[spec], train=split == "train")
        return RealData(torch.from_numpy(points), torch.from_numpy(labels), ("0", "1"))
    if spec in TORCHVISION:
        return load_torchvision(spec, split, data_dir, download)
    prefix, _, rest = spec.partition(":")
    if prefix == "folder":
        return load_folder(Path(rest), split)
    if prefix == "hf":
        return load_hub(spec, split, download)
    return load_npz(Path(rest), split) if prefix == "npz" else load_npy(rest, split)


def _files(spec: str, split: Split, data_dir: Path) -> list[tuple[str, Path]]:
    """Return (name, file) for all files that determine one split. The name does not depend on the data directory."""
    prefix, _, rest = spec.partition(":")
    if prefix == "hf":
        root, read = hub_files(spec)
        return [(path.relative_to(root).as_posix(), path) for path in read]
    if spec in SKLEARN_FILES:
        paths = [sklearn_file(spec)]
    elif spec in TORCHVISION:
        paths = [data_dir / name for name in TORCHVISION[spec].files[split]]
    elif prefix == "folder":
        paths = folder_files(Path(rest), split)
    else:
        paths = [Path(rest)] if prefix == "npz" else list(npy_files(rest))
    return [(path.name + path.parent.name, path) for path in paths]


def _missing(spec: str, data_dir: Path, path: Path) -> DataError:
    if spec in TORCHVISION:
        return torchvision_missing(spec, data_dir, path)
    return DataError(f"{spec}: cannot read {path}")
