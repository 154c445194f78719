"""Read and write `.safetensors` and `.npy` files that may come from strangers.

Everything that a header claims is checked against the size of the file before memory is taken, and nothing is ever
unpickled. Checks that the libraries leave out are made here: duplicate keys, header size, number of tensors, tensor
names and element types.
"""

from __future__ import annotations

import io
import json
import math
import os
import tokenize
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load as parse_safetensors
from safetensors.torch import save as serialize_safetensors

from .errors import ArtifactError, KdxError

MAX_HEADER_BYTES = 8 * 2**20
MAX_TENSORS = 20_000
MAX_NAME_LENGTH = 200
MAX_DIMENSIONS = 64
METADATA_KEY = "kdx"  # the only key: the format does not keep the order of several, and equal inputs give equal bytes

_ITEM_BYTES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "U8": 1, "BOOL": 1}
_ARRAY_TYPES = frozenset(map(np.dtype, ("|u1", "<i8", "<f4", "<f8")))

Json = dict[str, Any]

# what numpy's header parser raises, besides ValueError, on hostile text (it calls ast and tokenize)
_UNSOUND = (ValueError, EOFError, SyntaxError, TypeError, OverflowError, RecursionError, MemoryError,
            tokenize.TokenError)  # fmt: skip


def encode_safetensors(tensors: dict[str, torch.Tensor], metadata: Json) -> bytes:
    """Return the bytes of a safetensors file; equal arguments give equal bytes.

    Args:
        tensors: name -> tensor of any shape; copied to the CPU and made contiguous.
        metadata: anything JSON can hold, kept under the one metadata key.
    """
    contiguous = {name: tensors[name].detach().cpu().contiguous() for name in sorted(tensors)}
    return serialize_safetensors(contiguous, {METADATA_KEY: json.dumps(metadata, sort_keys=True)})


def read_safetensors(path: Path) -> tuple[dict[str, torch.Tensor], Json]:
    """Return (tensors, metadata) of a safetensors file.

    Raises:
        ArtifactError: the file is missing, or its header is malformed, oversized or does not fit the file.
    """
    content = _read_bytes(path)
    metadata = _check_safetensors(path, content)
    try:
        return parse_safetensors(content), metadata
    except (SafetensorError, ValueError, RuntimeError, KeyError, TypeError) as error:
        raise ArtifactError(f"{path} is not a sound safetensors file: {error}") from error


def read_safetensors_metadata(path: Path) -> Json:
    """Return the metadata of a safetensors file after the same checks, without building its tensors."""
    return _check_safetensors(path, _read_bytes(path))


def encode_npy(array: np.ndarray) -> bytes:
    """Return the bytes of a `.npy` file (format 1.0, C order, little-endian)."""
    buffer = io.BytesIO()
    np.lib.format.write_array(buffer, np.asarray(array, order="C"), version=(1, 0), allow_pickle=False)
    return buffer.getvalue()


def read_npy(path: Path) -> np.ndarray:
    """Return the array of a `.npy` file.

    Raises:
        ArtifactError: the file is missing, holds Python objects, or is longer or shorter than its header says.
    """
    try:
        with path.open("rb") as stream:
            shape, fortran_order, dtype = _read_npy_header(stream)
            expected = math.prod(shape) * dtype.itemsize
            present = os.fstat(stream.fileno()).st_size - stream.tell()
            if dtype not in _ARRAY_TYPES:
                raise ArtifactError(f"{path} holds elements of type {dtype}, which no artifact has")
            if expected != present:
                raise ArtifactError(f"{path} declares {expected} bytes of data and holds {present}")
            flat = np.frombuffer(bytearray(stream.read(expected)), dtype=dtype)
        return flat.reshape(shape, order="F" if fortran_order else "C")
    except FileNotFoundError as error:
        raise ArtifactError(f"{path} does not exist") from error
    except IsADirectoryError as error:
        raise ArtifactError(f"{path} is a directory, not a file") from error
    except _UNSOUND as error:
        raise ArtifactError(f"{path} is not a sound .npy file: {error}") from error


def _read_npy_header(stream: Any) -> tuple[tuple[int, ...], bool, np.dtype]:
    version = np.lib.format.read_magic(stream)
    if version == (1, 0):
        shape, fortran_order, dtype = np.lib.format.read_array_header_1_0(stream)
    elif version == (2, 0):
        shape, fortran_order, dtype = np.lib.format.read_array_header_2_0(stream)
    else:
        raise ValueError(f"unknown .npy version {version}")
    if any(size < 0 for size in shape):
        raise ValueError(f"negative size in {shape}")
    return shape, fortran_order, dtype


def _read_bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError as error:
        raise ArtifactError(f"{path} does not exist") from error
    except IsADirectoryError as error:
        raise ArtifactError(f"{path} is a directory, not a file") from error


def _check_safetensors(path: Path, content: bytes) -> Json:
    """Check the header against the whole file and return our metadata ({} when there is none)."""

    def refuse(reason: str) -> ArtifactError:
        return ArtifactError(f"{path} is not a sound safetensors file: {reason}")

    if len(content) < 10:
        raise refuse(f"it holds only {len(content)} bytes")
    header_bytes = int.from_bytes(content[:8], "little")
    if header_bytes > MAX_HEADER_BYTES:
        raise refuse(f"its header claims {header_bytes} bytes, the limit is {MAX_HEADER_BYTES}")
    if 8 + header_bytes > len(content):
        raise refuse(f"its header claims {header_bytes} bytes, the file holds {len(content)}")
    try:
        header = json.loads(content[8 : 8 + header_bytes].decode(), object_pairs_hook=_unique)
        text = header.pop("__metadata__", {}).get(METADATA_KEY, "{}")
        metadata = json.loads(text)
    except (ValueError, AttributeError, TypeError, RecursionError) as error:
        raise refuse(f"its header is not valid JSON ({error})") from error
    if len(header) > MAX_TENSORS:
        raise refuse(f"it declares {len(header)} tensors, the limit is {MAX_TENSORS}")
    end = _check_tensors(header, refuse)
    if end != len(content) - 8 - header_bytes:
        raise refuse(f"its tensors take {end} bytes, the file has {len(content) - 8 - header_bytes} for them")
    if not isinstance(metadata, dict):
        raise refuse("its metadata is not an object")
    return metadata


def _check_tensors(header: Json, refuse: Any) -> int:
    """Check names, types, shapes and offsets of every declared tensor; return where the last one ends."""
    spans = []
    for name, entry in header.items():
        if not name or len(name) > MAX_NAME_LENGTH or not all(c.isalnum() or c in "._-" for c in name):
            raise refuse(f"tensor name {name[:40]!r} is not allowed")
        try:
            item_bytes, shape, (begin, end) = _ITEM_BYTES[entry["dtype"]], entry["shape"], entry["data_offsets"]
            sound = isinstance(shape, list) and len(shape) <= MAX_DIMENSIONS
            sound = sound and all(type(n) is int and n >= 0 for n in (*shape, begin, end))
            sound = sound and end - begin == math.prod(shape) * item_bytes
        except (KeyError, TypeError, ValueError):
            sound = False
        if not sound:
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


@contextmanager
def rebuilding(path: str | Path, what: str) -> Iterator[None]:
    """Turn whatever goes wrong while a network is rebuilt from a file's tensors and metadata into `ArtifactError`.

    Args:
        what: `classifier` or `generator`, for the sentence.
    """
    try:
        yield
    except KdxError as error:
        raise ArtifactError(f"{path} cannot be rebuilt: {error}") from error
    except KeyError as error:
        raise ArtifactError(f"{path} is a safetensors file, but not a {what} of kdx") from error
    except (TypeError, ValueError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        raise ArtifactError(f"{path} does not fit the {what} that it describes: {reason}") from error
