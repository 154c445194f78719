"""Untrusted image files (PNG, JPEG, BMP, WebP): their headers are checked before they are decoded."""

from __future__ import annotations

import io
import struct
import warnings
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..errors import DataError
from .decoded import NamedImage, decoded_once
from .real_data import first_line

MAX_IMAGE_PIXELS = 64 * 2**20
MAX_SET_BYTES = 16 * 2**30
IMAGE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".webp"})
_IMAGE_FORMATS = ("PNG", "JPEG", "BMP", "WEBP")
_GREY_MODES = ("1", "L", "I;16")
_DECODING_ERRORS = (OSError, ValueError, SyntaxError, TypeError, LookupError, ArithmeticError, RuntimeError, EOFError,
            MemoryError, struct.error, zlib.error)  # fmt: skip


def read_images(files: Sequence[NamedImage]) -> tuple[torch.Tensor, Path | None]:
    """Read images; all are resized to the size of the first one, and converted to colour if any is in colour.

    Args:
        files: at least one; if there are many, their decoded pixels are kept in a cache (`decoded.decoded_once`).

    Returns:
        uint8 [N, channels, height, width], and the file of the cache if it was written now.

    Raises:
        DataError: a file is not an image, is damaged or has more than `MAX_IMAGE_PIXELS`, or all images take more than
            `MAX_SET_BYTES`.
    """
    return decoded_once(files, _decoded)


def _decoded(files: Sequence[NamedImage]) -> torch.Tensor:
    from ..models.pixels import fit_images

    channels = 1 if all([_is_grey(*file) for file in files]) else 3  # a list: all headers are checked first
    first = _read_image(*files[0])
    _, height, width = first.shape
    total = len(files) * channels * height * width
    if total > MAX_SET_BYTES:
        raise DataError(
            f"{len(files)} images of the size of the first one, {files[0][0]} of {width}x{height} pixels, take "
            f"{total} bytes, the limit is {MAX_SET_BYTES}; resize them first"
        )
    images = torch.empty((len(files), channels, height, width), dtype=torch.uint8)
    for row, file in enumerate(files):
        image = first if row == 0 else _read_image(*file)
        images[row] = fit_images(image.unsqueeze(0), (channels, height, width))[0]
    return images


@contextmanager
def _open_image(name: str, source: Path | bytes) -> Iterator[Any]:
    """Open an image without decoding its pixels; yield a `PIL.Image.Image` of at most `MAX_IMAGE_PIXELS` pixels."""
    from PIL import Image, UnidentifiedImageError

    if isinstance(source, Path) and not source.is_file():
        raise DataError(f"{name} is not a file")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            image = Image.open(source if isinstance(source, Path) else io.BytesIO(source), formats=_IMAGE_FORMATS)
    except Image.DecompressionBombError as error:
        raise DataError(f"{name} has too many pixels, the limit is {MAX_IMAGE_PIXELS}: {first_line(error)}") from error
    except _DECODING_ERRORS as error:
        reason = "" if isinstance(error, UnidentifiedImageError) else f": {first_line(error)}"
        raise DataError(f"{name} is not an image that can be read ({', '.join(_IMAGE_FORMATS)}){reason}") from error
    with image:
        if image.width * image.height > MAX_IMAGE_PIXELS:
            raise DataError(f"{name} has {image.width}x{image.height} pixels, the limit is {MAX_IMAGE_PIXELS}")
        yield image


def _is_grey(name: str, source: Path | bytes) -> bool:
    with _open_image(name, source) as image:
        return image.mode in _GREY_MODES


def _read_image(name: str, source: Path | bytes) -> torch.Tensor:
    """Return one image as uint8 [channels, height, width]: one channel if the file is grey, otherwise three."""
    with _open_image(name, source) as image:
        try:
            if image.mode == "I;16":
                pixels = (np.array(image) >> 8).astype(np.uint8)
            else:
                pixels = np.array(image.convert("L" if image.mode in _GREY_MODES else "RGB"))
        except _DECODING_ERRORS as error:
            raise DataError(f"{name} is truncated or damaged: {first_line(error)}") from error
    if not pixels.size:
        raise DataError(f"{name} has no pixels")
    return torch.from_numpy(pixels).unsqueeze(0) if pixels.ndim == 2 else torch.from_numpy(pixels).permute(2, 0, 1)
