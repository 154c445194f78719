"""Read and write `.safetensors` and `.npy` files, which may come from untrusted sources.

The header is checked against the size of the file before memory is allocated (see `headers`), and nothing is
unpickled.
"""

from __future__ import annotations

import io
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load as parse_safetensors
from safetensors.torch import save as serialize_safetensors

from ..errors import ArtifactError, KdxError
from .npy import read_array
from .safetensors_header import (
    ARTIFACT_TYPES,
    METADATA_KEY,
    Json,
    check_safetensors,
    check_safetensors_file,
    own_metadata,
)

_ARRAY_TYPES = frozenset(map(np.dtype, ("|u1", "<i8", "<f4", "<f8")))


def encode_safetensors(tensors: dict[str, torch.Tensor], metadata: Json) -> bytes:
    """Return the bytes of a safetensors file; equal arguments give equal bytes.

    Args:
        tensors: name -> tensor of any shape; copied to the CPU and made contiguous.
        metadata: a JSON object, stored under the key `METADATA_KEY`.
    """
    contiguous = {name: tensors[name].detach().cpu().contiguous() for name in sorted(tensors)}
    return serialize_safetensors(contiguous, {METADATA_KEY: json.dumps(metadata, sort_keys=True)})


def read_safetensors(path: Path) -> tuple[dict[str, torch.Tensor], Json]:
    """Return (tensors, metadata) of a safetensors file.

    Raises:
        ArtifactError: the file is missing, or its header is malformed, oversized or does not fit the file.
    """
    content = _read_bytes(path)
    metadata = own_metadata(path, check_safetensors(path, content, len(content))[1])
    try:
        return parse_safetensors(content), metadata
    except (SafetensorError, ValueError, RuntimeError, KeyError, TypeError) as error:
        raise ArtifactError(f"{path} is not a sound safetensors file: {error}") from error


def read_safetensors_metadata(path: Path) -> Json:
    """Return the metadata of a safetensors file after the same checks, from its header alone."""
    return own_metadata(path, check_safetensors_file(path, ARTIFACT_TYPES)[1])


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
            array = read_array(stream, os.fstat(stream.fileno()).st_size, str(path), ArtifactError)
    except FileNotFoundError as error:
        raise ArtifactError(f"{path} does not exist") from error
    except IsADirectoryError as error:
        raise ArtifactError(f"{path} is a directory, not a file") from error
    if array.dtype not in _ARRAY_TYPES:
        raise ArtifactError(f"{path} holds elements of type {array.dtype}, which no artifact has")
    return array


def _read_bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError as error:
        raise ArtifactError(f"{path} does not exist") from error
    except IsADirectoryError as error:
        raise ArtifactError(f"{path} is a directory, not a file") from error


@contextmanager
def rebuilding(path: str | Path, what: str) -> Iterator[None]:
    """Raise `ArtifactError` for any error while a network is built from the tensors and metadata of a file.

    Args:
        what: `classifier` or `generator`, for the error message.
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
