"""Reader of `.npy` content from untrusted sources: the header is checked before memory is allocated.

numpy's own reader allocates the memory that the header declares before it reads the data.
"""

from __future__ import annotations

import io
import math
import tokenize
from dataclasses import dataclass
from typing import IO

import numpy as np

from ..errors import DataError, KdxError

HEAD_BYTES = 10_240
"""Number of bytes that are read to find the header; numpy accepts headers of up to 10,000 bytes."""
_NUMBER_KINDS, _TEXT_KINDS = "biufc", "US"
_MAX_NUMBER_BYTES, _MAX_AXES = 16, 32
_UNSOUND = (ValueError, EOFError, SyntaxError, TypeError, OverflowError, RecursionError, MemoryError,
            tokenize.TokenError)  # fmt: skip


@dataclass(frozen=True)
class ArrayHeader:
    """The content of a `.npy` header, and its length in bytes."""

    shape: tuple[int, ...]
    fortran_order: bool
    dtype: np.dtype
    length: int

    @property
    def data_bytes(self) -> int:
        """Size of what follows the header."""
        return math.prod(self.shape) * self.dtype.itemsize


def read_npy_header(
    stream: IO[bytes], size: int, where: str, refusal: type[KdxError] = DataError
) -> tuple[ArrayHeader, bytes]:
    """Return the header of `.npy` content of `size` bytes, and the data that was read with it.

    Args:
        stream: at its beginning.
        where: the name of the content in an error message.
        refusal: the class of the error that is raised.

    Raises:
        KdxError: the header is invalid, declares elements that are neither numbers nor text, or another size.
    """
    head = stream.read(HEAD_BYTES)
    content = io.BytesIO(head)
    try:
        version = np.lib.format.read_magic(content)
        if version not in ((1, 0), (2, 0)):
            raise ValueError(f"unknown version {version}")
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        header = ArrayHeader(*read(content), length=content.tell())
    except _UNSOUND as error:
        raise refusal(f"{where} is not a sound .npy file: {_first_line(error)}") from error
    dtype = header.dtype
    valid = dtype.kind in _TEXT_KINDS or (dtype.kind in _NUMBER_KINDS and dtype.itemsize <= _MAX_NUMBER_BYTES)
    if not valid or not dtype.itemsize:
        raise refusal(f"{where} holds elements of type {dtype}, neither numbers nor text")
    if len(header.shape) > _MAX_AXES:
        raise refusal(f"{where} declares an array of {len(header.shape)} axes, the limit is {_MAX_AXES}")
    if any(length < 0 for length in header.shape) or header.length + header.data_bytes != size:
        raise refusal(
            f"{where} declares an array of shape {header.shape}, {header.data_bytes} bytes, and has "
            f"{size - header.length} bytes for it"
        )
    return header, head[header.length :]


def read_array(stream: IO[bytes], size: int, where: str, refusal: type[KdxError] = DataError) -> np.ndarray:
    """Return the array of `.npy` content of `size` bytes; memory is allocated only for what the stream contains.

    Raises:
        KdxError: as `read_npy_header`, or the stream ends early.
    """
    header, begun = read_npy_header(stream, size, where, refusal)
    content = bytearray(begun)
    content += stream.read(header.data_bytes - len(begun))
    if len(content) != header.data_bytes:
        raise refusal(f"{where} ends after {len(content)} of {header.data_bytes} bytes")
    try:
        flat = np.frombuffer(content, dtype=header.dtype)
        return flat.reshape(header.shape, order="F" if header.fortran_order else "C")
    except _UNSOUND as error:
        raise refusal(f"{where} is not a sound .npy file: {_first_line(error)}") from error


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
