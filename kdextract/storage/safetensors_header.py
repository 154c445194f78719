"""Checks of safetensors files from untrusted sources, by header and size, before their tensors are read.

This module needs neither PyTorch nor numpy, unpickles nothing, and reads only the header of a file. The library
safetensors checks shapes and offsets, too, but needs PyTorch or numpy, and it accepts duplicate names, names that are
paths or contain control characters, and any number of tensors.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, BinaryIO

from ..errors import ArtifactError

MAX_HEADER_BYTES = 8 * 2**20
MAX_TENSORS = 20_000
MAX_NAME_LENGTH = 200
METADATA_KEY = "kdx"  # one key only: several keys have no fixed order, so equal inputs could give different bytes

ARTIFACT_TYPES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "U8": 1, "BOOL": 1}
"""Element types that kdx writes -> bytes per element."""

FOREIGN_TYPES = {**ARTIFACT_TYPES, "I16": 2, "I8": 1, "U64": 8, "U32": 4, "U16": 2, "F8_E4M3": 1, "F8_E5M2": 1}
"""Element types that are accepted in imported files -> bytes per element."""

Json = dict[str, Any]
TensorHeaders = dict[str, tuple[str, tuple[int, ...]]]


def check_safetensors_file(
    path: Path, types: Mapping[str, int] = FOREIGN_TYPES
) -> tuple[TensorHeaders, dict[str, str]]:
    """Return (name -> (element type, shape), metadata) of a safetensors file, from its header and size alone.

    Args:
        types: element types that are allowed, with their bytes.

    Raises:
        ArtifactError: the file is missing, or its header is malformed, oversized or does not fit the file.
    """
    with open_file(path) as stream:
        size = os.fstat(stream.fileno()).st_size
        start = stream.read(8)
        claimed = int.from_bytes(start, "little")
        return check_safetensors(path, start + stream.read(min(claimed, MAX_HEADER_BYTES)), size, types)


def check_safetensors(
    path: Path, start: bytes, size: int, types: Mapping[str, int] = ARTIFACT_TYPES
) -> tuple[TensorHeaders, dict[str, str]]:
    """Check a file of `size` bytes that begins with `start`; `start` contains at least the header."""

    def refuse(reason: str) -> ArtifactError:
        return ArtifactError(f"{path} is not a sound safetensors file: {reason}")

    if size < 10:
        raise refuse(f"it holds only {size} bytes")
    header_bytes = int.from_bytes(start[:8], "little")
    if header_bytes > MAX_HEADER_BYTES:
        raise refuse(f"its header claims {header_bytes} bytes, the limit is {MAX_HEADER_BYTES}")
    if 8 + header_bytes > min(size, len(start)):
        raise refuse(f"its header claims {header_bytes} bytes, the file holds {size}")
    try:
        header = json.loads(start[8 : 8 + header_bytes].decode(), object_pairs_hook=_unique)
        metadata = header.pop("__metadata__", {})
        if not all(isinstance(text, str) for text in metadata.values()):
            raise ValueError("metadata is more than text")
    except (ValueError, AttributeError, TypeError, RecursionError) as error:
        raise refuse(f"its header is not valid JSON ({error})") from error
    if len(header) > MAX_TENSORS:
        raise refuse(f"it declares {len(header)} tensors, the limit is {MAX_TENSORS}")
    end = _check_tensors(header, types, refuse)
    if end != size - 8 - header_bytes:
        raise refuse(f"its tensors take {end} bytes, the file has {size - 8 - header_bytes} for them")
    return {name: (entry["dtype"], tuple(entry["shape"])) for name, entry in header.items()}, metadata


def own_metadata(path: Path, metadata: dict[str, str]) -> Json:
    """Return the metadata that kdx wrote into a safetensors file, {} if there is none. Raises `ArtifactError`."""
    try:
        record = json.loads(metadata.get(METADATA_KEY, "{}"))
    except (ValueError, RecursionError) as error:
        raise ArtifactError(
            f"{path} is not a sound safetensors file: its metadata is not valid JSON ({error})"
        ) from error
    if not isinstance(record, dict):
        raise ArtifactError(f"{path} is not a sound safetensors file: its metadata is not an object")
    return record


def open_file(path: Path) -> BinaryIO:
    try:
        if path.exists() and not path.is_file():
            raise ArtifactError(f"{path} is a {'directory' if path.is_dir() else 'device'}, not a file")
        return path.open("rb")
    except FileNotFoundError as error:
        raise ArtifactError(f"{path} does not exist") from error
    except (OSError, ValueError) as error:
        raise ArtifactError(f"{str(path)!r} cannot be read: {getattr(error, 'strerror', None) or error}") from error


def is_safetensors(start: bytes) -> bool:
    """Return whether a file begins like safetensors: the length of a header below 4 GiB, then an opening brace."""
    return start[4:9] == b"\0\0\0\0{"


def _check_tensors(header: Json, types: Mapping[str, int], refuse: Callable[[str], ArtifactError]) -> int:
    """Check names, types, shapes and offsets of every declared tensor; return where the last one ends."""
    spans = []
    for name, entry in header.items():
        if not name or len(name) > MAX_NAME_LENGTH or not all(c.isalnum() or c in "._-" for c in name):
            raise refuse(f"tensor name {name[:40]!r} is not allowed")
        try:
            item_bytes, shape, (begin, end) = types[entry["dtype"]], entry["shape"], entry["data_offsets"]
            valid = isinstance(shape, list) and len(shape) <= MAX_DIMENSIONS
            valid = valid and all(type(n) is int and n >= 0 for n in (*shape, begin, end))
            valid = (
                valid and math.prod(max(n, 1) for n in shape) < MAX_ELEMENTS
            )  # max: an empty tensor has strides, too
            valid = valid and end - begin == math.prod(shape) * item_bytes
        except (KeyError, TypeError, ValueError):
            valid = False
        if not valid:
            raise refuse(f"tensor {name!r} has an unknown type or a shape that does not fit its offsets")
        spans.append((begin, end))
    position = 0
    for begin, end in sorted(spans):
        if begin != position:
            raise refuse("its tensors overlap or leave a gap")
        position = end
    return position


def _unique(pairs: list[tuple[str, Any]]) -> Json:
    result: Json = {}
    for key, value in pairs:
        if key in result:
            raise ValueError(f"key {key!r} appears twice")
        result[key] = value
    return result


MAX_DIMENSIONS = 64


MAX_ELEMENTS = 2**60
