"""The format of a file of weights, and checks of its zip members and sizes before it is read. No code of it is run."""

from __future__ import annotations

import os
import re
import struct
import zipfile
from collections.abc import Mapping
from io import BytesIO
from pathlib import Path
from typing import BinaryIO

from ...errors import ArtifactError
from ...storage.safetensors_header import (
    MAX_HEADER_BYTES,
    MAX_TENSORS,
    check_safetensors_file,
    is_safetensors,
    open_file,
)
from .pickles import PickleCheck, PickleRefused, Storage, why_not_read

MAX_PICKLE_BYTES = 32 * 2**20


_MAGIC_NUMBER = 0x1950A86A20F9469CFC6C  # the first value in files of torch.save before it wrote zip archives


_PROTOCOL_VERSION = 1001


_LEGACY = b"\x80\x02\x8a\x0a"


_ZIP = b"PK\x03\x04"


_OTHER_FORMATS = {
    b"version https://git-lfs": "is a git-lfs pointer, not the file itself; download the file with: git lfs pull",
    b"PK\x05\x06": "is an empty zip archive",
    b"\x1f\x8b": "is compressed with gzip; unpack it first",
    b"7z\xbc\xaf\x27\x1c": "is a 7z archive; unpack it first",
    b"\xfd7zXZ": "is compressed with xz; unpack it first",
    b"\x89HDF": "is an HDF5 file (Keras); kdx reads weights of PyTorch",
    b"\x93NUMPY": "is a numpy array, not a mapping of names to tensors",
    b"\x89PNG": "is a picture",
    b"\xff\xd8\xff": "is a picture",
}


_HTML = re.compile(rb"(\xef\xbb\xbf)?\s*<(!doctype|html|head|\?xml)", re.IGNORECASE)


def check_weights_file(path: Path) -> str:
    """Check a file of weights and return its format: `safetensors`, `zip` or `legacy`.

    Raises:
        ArtifactError: it is missing, in another format, malformed, or would run code when it is unpickled.
    """
    with open_file(path) as stream:
        start = stream.read(512)
    if not is_safetensors(start):
        _refuse_other_formats(path, start)
        if path.suffix != ".safetensors" or start.startswith((_ZIP, _LEGACY)):
            return check_pickle_file(path)
    check_safetensors_file(path)
    return "safetensors"


def check_pickle_file(path: Path) -> str:
    """Check that a file of `torch.save` holds only tensors and plain values; return its format, `zip` or `legacy`.

    The instructions of its pickle are read, never run; every size in it is compared with the contents of the file.

    Raises:
        ArtifactError: it is missing, in another format, malformed, or would run code when it is unpickled.
    """
    with open_file(path) as stream:
        start = stream.read(512)
        if is_safetensors(start):
            raise ArtifactError(f"{path} is a safetensors file, not one of torch.save")
        _refuse_other_formats(path, start)
        stream.seek(0)
        try:
            if start.startswith(_ZIP):
                _check_archive(stream)
                return "zip"
            if start.startswith(_LEGACY):
                _check_legacy(stream)
                return "legacy"
            raise PickleRefused(why_not_read(stream.read(MAX_PICKLE_BYTES)))
        except PickleRefused as error:
            raise ArtifactError(f"{path} {error}") from error


def _refuse_other_formats(path: Path, start: bytes) -> None:
    if not start.strip():
        raise ArtifactError(f"{path} is empty" if not start else f"{path} holds only white space")
    for magic, sentence in _OTHER_FORMATS.items():
        if start.startswith(magic):
            raise ArtifactError(f"{path} {sentence}")
    if _HTML.match(start):
        raise ArtifactError(f"{path} is a web page, not weights: the download failed, or needs a login")
    if start[257:262] == b"ustar":
        raise ArtifactError(f"{path} is a tar archive, which PyTorch has not written since 2017; unpack it first")


def _check_archive(stream: BinaryIO) -> None:
    """Check an archive of torch.save: uncompressed members with distinct names, and a pickle that matches them."""
    members = _members(stream)
    folder = next(iter(members)).partition("/")[0] + "/"
    names = {name.removeprefix(folder): info for name, info in members.items()}
    if "constants.pkl" in names or any(name.startswith("code/") for name in names):
        raise PickleRefused(
            "is a TorchScript archive, which is code; export the network with torch.export, or save its state_dict() "
            "and name its class"
        )
    if "archive_format" in names or any("exported_program" in name for name in names):
        raise PickleRefused("is a program of torch.export, not weights; name it as MODEL")
    if "data.pkl" not in names or not all(name.startswith(folder) for name in members):
        raise PickleRefused("is a zip archive, but not one of torch.save")
    _check_stored(members)
    if names["data.pkl"].file_size > MAX_PICKLE_BYTES:
        raise PickleRefused(f"has a pickle of more than {MAX_PICKLE_BYTES} bytes")

    def check(storage: Storage) -> None:
        info = names.get(f"data/{storage.key}")
        if info is None:
            raise PickleRefused("refers to a storage that is not in the archive")
        if info.file_size != storage.numel * storage.item_bytes:
            raise PickleRefused(
                f"claims {storage.numel * storage.item_bytes} bytes for a storage of {info.file_size} bytes"
            )

    pickle = BytesIO(_stored(stream, names["data.pkl"]))
    PickleCheck(check, storage_fields=5).check(pickle)
    if pickle.read(1):
        raise PickleRefused("has data after the end of its pickle")


def _members(stream: BinaryIO) -> dict[str, zipfile.ZipInfo]:
    """Return the members of a zip archive by name, in the order of the file. Raises `PickleRefused`."""
    _check_directory(stream)
    try:
        members = sorted(zipfile.ZipFile(stream).infolist(), key=lambda info: info.header_offset)
    except (zipfile.BadZipFile, ValueError, struct.error, NotImplementedError, OSError, MemoryError) as error:
        raise PickleRefused(f"is a damaged zip archive: {error}") from error
    names = {info.filename: info for info in members}
    if not names or len({name.casefold() for name in names}) != len(members):
        raise PickleRefused("is a zip archive that has no members, or two members of one name")
    return names


def _check_directory(stream: BinaryIO) -> None:
    """Check the directory of the archive: its size, and that it is at the only position where all readers find it."""
    size = os.fstat(stream.fileno()).st_size
    stream.seek(max(0, size - 98))
    tail = stream.read(98)
    end, locator, record = tail[-22:], tail[-42:-22], tail[:-42]
    if len(end) < 22 or end[:4] != b"PK\x05\x06" or end[20:] != b"\0\0":
        raise PickleRefused("is a zip archive that is truncated, or has data after its end")
    entries, directory_bytes, begin = struct.unpack("<HII", end[10:20])
    finish = size - 22
    if locator[:4] == b"PK\x06\x07":  # the form with 64-bit numbers
        finish = size - 98
        if record[:4] != b"PK\x06\x06" or len(record) != 56 or int.from_bytes(locator[8:16], "little") != finish:
            raise PickleRefused("is a damaged zip archive: its directory is not where it should be")
        entries, directory_bytes, begin = struct.unpack("<QQQ", record[32:56])
    if entries > 2 * MAX_TENSORS or directory_bytes > MAX_HEADER_BYTES:
        raise PickleRefused(f"is a zip archive of more than {2 * MAX_TENSORS} members")
    if begin + directory_bytes != finish:
        raise PickleRefused("is a damaged zip archive: its directory is not where it should be")


def _check_stored(members: Mapping[str, zipfile.ZipInfo]) -> None:
    """Raise `PickleRefused` if members are compressed or encrypted, overlap, or have unprintable names."""
    position = 0
    for info in members.values():
        if info.compress_type != zipfile.ZIP_STORED or info.flag_bits & 1 or info.compress_size != info.file_size:
            raise PickleRefused(
                "is a zip archive with compressed or encrypted members, which torch.save does not write"
            )
        if info.header_offset < position or not info.filename.isprintable() or info.filename != info.orig_filename:
            raise PickleRefused("is a zip archive whose members overlap or have unprintable names")
        position = info.header_offset + 30 + info.file_size


def _stored(stream: BinaryIO, info: zipfile.ZipInfo) -> bytes:
    """Return the bytes of a member that is not compressed."""
    stream.seek(info.header_offset)
    header = stream.read(30)
    if len(header) < 30 or header[:4] != b"PK\x03\x04":
        raise PickleRefused("is a damaged zip archive: a member is not where its directory says")
    name_bytes, extra_bytes = struct.unpack("<HH", header[26:30])
    stream.seek(name_bytes + extra_bytes, os.SEEK_CUR)
    content = stream.read(info.file_size)
    if len(content) != info.file_size:
        raise PickleRefused("is a damaged zip archive: a member is truncated")
    return content


def _check_legacy(stream: BinaryIO) -> None:
    """Check the format of torch.save before 1.6: five pickles, then each storage after its number of elements."""
    size = os.fstat(stream.fileno()).st_size
    pickles = BytesIO(stream.read(MAX_PICKLE_BYTES))

    def check(storage: Storage) -> None:
        if storage.numel * storage.item_bytes > size:
            raise PickleRefused(f"claims {storage.numel * storage.item_bytes} bytes for a storage, but has {size}")

    checked = PickleCheck(check, storage_fields=6)
    if checked.check(pickles) != _MAGIC_NUMBER or checked.check(pickles) != _PROTOCOL_VERSION:
        raise PickleRefused("is a pickle, but not one of torch.save")
    checked.check(pickles)
    checked.check(pickles)
    keys = checked.check(pickles)
    if not isinstance(keys, list) or not all(isinstance(key, str) for key in keys):
        raise PickleRefused("is damaged: it has no list of its storages")
    if sorted(keys) != sorted(checked.storages):
        raise PickleRefused("does not hold the storages that its pickle refers to")
    position = pickles.tell()
    for key in keys:
        storage = checked.storages[key]
        stream.seek(position)
        if int.from_bytes(stream.read(8), "little") != storage.numel:
            raise PickleRefused("holds a storage of another size than its pickle says, or is truncated")
        position += 8 + storage.numel * storage.item_bytes
    if position != size:
        raise PickleRefused(f"holds {size} bytes where its pickle describes {position}: truncated, or with extra data")
