"""Decoded images of large data sets, kept in a cache, so that thousands of JPEG files are decoded once.

The cache is a folder of the user, not a part of a run: a run may be passed on to someone who must not have the images.
Its files may be deleted at any time.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

import torch

from ..errors import ArtifactError
from ..storage.artifacts import write_file
from ..storage.tensor_files import encode_safetensors, read_safetensors

FEWEST_FILES = 2000
"""Smaller sets are decoded each time, which takes about a second."""
MOST_BYTES = 2 * 2**30
"""Of all sets in the cache; the ones that were not used for longest are deleted first."""
DECODING_VERSION = 1
"""Changes with the conversion of files to pixels, so that sets of an older version are not used."""

NamedImage = tuple[str, "Path | bytes"]
"""The name of an encoded image for errors, and its file or its content."""


def decoded_once(
    files: Sequence[NamedImage], decode: Callable[[Sequence[NamedImage]], torch.Tensor]
) -> tuple[torch.Tensor, Path | None]:
    """Return `decode(files)` or, if the content of the files was decoded before, what it returned then.

    A cache that cannot be read or written, or that is damaged, changes only how long it takes.

    Returns:
        uint8 [N, channels, height, width], and the file of the cache if it was written now.
    """
    folder = cache_folder()
    if folder is None or len(files) < FEWEST_FILES:
        return decode(files), None
    kept = folder / f"{_key(files)}.safetensors"
    images = _read(kept, len(files))
    if images is not None:
        return images, None
    images = decode(files)
    return images, kept if _keep(kept, images) else None


def cache_folder() -> Path | None:
    """Return `KDX_CACHE_DIR`, or else kdx's folder in `XDG_CACHE_HOME` or in ~/.cache; None if the first is empty."""
    own = os.environ.get("KDX_CACHE_DIR")
    if own is not None:
        return Path(own) if own else None
    parent = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    return Path(parent) / "kdx" / "images"


def _key(files: Sequence[NamedImage]) -> str:
    """Return the sha256 of the content of all files, in order, and of what else the pixels depend on."""
    from PIL import __version__, features

    versions = DECODING_VERSION, __version__, *map(features.version, ("jpg", "libjpeg_turbo", "webp"))
    digest = hashlib.sha256(repr(versions).encode())
    for _, source in files:
        with suppress(OSError):  # `decode` will say which file cannot be read
            content = source if isinstance(source, bytes) else source.read_bytes()
            digest.update(hashlib.sha256(content).digest())
    return digest.hexdigest()


def _read(kept: Path, count: int) -> torch.Tensor | None:
    try:
        tensors, facts = read_safetensors(kept)
        os.utime(kept)
    except (ArtifactError, OSError):
        return None
    images = tensors.get("images")
    if images is None or images.ndim != 4 or len(images) != count or images.dtype != torch.uint8:
        return None
    return images if _sha256(images) == facts.get("sha256") else None


def _keep(kept: Path, images: torch.Tensor) -> bool:
    """Write a set, readable by the user alone, and delete those that the cache has no room for."""
    size = images.numel()
    if size > MOST_BYTES:
        return False
    try:
        kept.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        others = sorted(kept.parent.glob("*.safetensors"), key=lambda path: -path.stat().st_mtime)
        for other in others:
            size += other.stat().st_size
            if size > MOST_BYTES:
                other.unlink()
        write_file(kept, encode_safetensors({"images": images}, {"sha256": _sha256(images)}))
        kept.chmod(0o600)
    except OSError:
        return False
    return True


def _sha256(images: torch.Tensor) -> str:
    return hashlib.sha256(images.contiguous().numpy().data).hexdigest()
