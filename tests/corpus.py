"""Files that every reader has to refuse: malformed safetensors, hostile pickles, damaged checkpoints."""

from __future__ import annotations

import functools
import importlib
import io
import json
import operator
import os
import pickle
import runpy
import struct
import subprocess
import tarfile
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from kdextract.storage.safetensors_header import MAX_HEADER_BYTES, MAX_NAME_LENGTH, MAX_TENSORS

# ---- safetensors ---------------------------------------------------------------------------------------------------


def safetensors(header: Any, data: bytes = b"") -> bytes:
    """Return a file with this header, given as JSON or as bytes."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


def one_tensor(**changes: Any) -> dict[str, Any]:
    """Return the header of a single float, with some of its entries changed or (None) left out."""
    entry = {"dtype": "F32", "shape": [1], "data_offsets": [0, 4], **changes}
    return {"a": {key: value for key, value in entry.items() if value is not None}}


GOOD_TENSOR = safetensors(one_tensor(), b"\0" * 4)
TWO = {"a": {"dtype": "U8", "shape": [4], "data_offsets": [0, 4]}}

BAD_SAFETENSORS = {
    "empty": b"",
    "nine bytes": b"\2\0\0\0\0\0\0\0{",
    "truncated in the header": GOOD_TENSOR[:20],
    "truncated in the data": GOOD_TENSOR[:-1],
    "trailing byte": GOOD_TENSOR + b"\0",
    "header claims more than the file": (1000).to_bytes(8, "little") + GOOD_TENSOR[8:],
    "header claims more than is allowed": (MAX_HEADER_BYTES + 1).to_bytes(8, "little") + GOOD_TENSOR[8:],
    "header claims 2^64 - 1 bytes": b"\xff" * 8 + GOOD_TENSOR[8:],
    "header claims nothing": b"\0" * 8 + GOOD_TENSOR[8:],
    "header length one too small": (len(GOOD_TENSOR) - 13).to_bytes(8, "little") + GOOD_TENSOR[8:],
    "header length one too large": (len(GOOD_TENSOR) - 11).to_bytes(8, "little") + GOOD_TENSOR[8:],
    "a picture": b"\x89PNG\r\n\x1a\n" + bytes(100),
    "a pickle": b"\x80\x02c__builtin__\neval\n(S'1'\ntR." + bytes(20),
    "a zip": b"PK\x03\x04" + bytes(100),
    "header is not JSON": safetensors(b"not json at all"),
    "header is not UTF-8": safetensors(b'{"\xff\xfe": 1}'),
    "header is UTF-16": safetensors(json.dumps(one_tensor()).encode("utf-16"), b"\0" * 4),
    "header is a list": safetensors([1, 2]),
    "header is a number": safetensors(b"12345678"),
    "header is null": safetensors(b"null    "),
    "header nests deeply": safetensors(b'{"a":' + b"[" * 100_000),
    "header nests deeply and closes": safetensors(b'{"a":' + b"[" * 50_000 + b"]" * 50_000 + b"}"),
    "duplicate tensor": safetensors(
        b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}',
        b"\0" * 4,
    ),
    "duplicate field": safetensors(b'{"a":{"dtype":"F32","shape":[1],"shape":[1],"data_offsets":[0,4]}}', b"\0" * 4),
    "duplicate metadata": safetensors(b'{"__metadata__":{"kdx":"{}","kdx":"{}"}}'),
    "overlap": safetensors({**TWO, "b": {"dtype": "U8", "shape": [4], "data_offsets": [2, 6]}}, bytes(6)),
    "same bytes twice": safetensors({**TWO, "b": {"dtype": "U8", "shape": [4], "data_offsets": [0, 4]}}, bytes(4)),
    "gap": safetensors({**TWO, "b": {"dtype": "U8", "shape": [4], "data_offsets": [5, 9]}}, bytes(9)),
    "first tensor starts late": safetensors(one_tensor(data_offsets=[1, 5]), bytes(5)),
    "offsets backwards": safetensors(one_tensor(data_offsets=[4, 0]), bytes(4)),
    "offsets negative": safetensors(one_tensor(data_offsets=[-4, 0]), bytes(4)),
    "offsets are three": safetensors(one_tensor(data_offsets=[0, 4, 4]), bytes(4)),
    "offsets are text": safetensors(one_tensor(data_offsets=["0", "4"]), bytes(4)),
    "offsets are fractions": safetensors(one_tensor(data_offsets=[0.0, 4.0]), bytes(4)),
    "offsets are missing": safetensors(one_tensor(data_offsets=None), bytes(4)),
    "offsets beyond the file": safetensors(one_tensor(shape=[2**30], data_offsets=[0, 2**32]), bytes(4)),
    "unknown type": safetensors(one_tensor(dtype="F31"), bytes(4)),
    "type that no artifact has": safetensors(one_tensor(dtype="F8_E4M3", shape=[4]), bytes(4)),
    "type is a list": safetensors(one_tensor(dtype=["F32"]), bytes(4)),
    "type is missing": safetensors(one_tensor(dtype=None), bytes(4)),
    "negative size": safetensors(one_tensor(shape=[-1]), bytes(4)),
    "two negative sizes": safetensors(one_tensor(shape=[-1, -1]), bytes(4)),
    "huge size": safetensors(one_tensor(shape=[2**62]), bytes(4)),
    "product overflows 64 bits": safetensors(one_tensor(shape=[2**32, 2**32, 1]), bytes(4)),
    "empty tensor of a size beyond 63 bits": safetensors(one_tensor(shape=[0, 2**63], data_offsets=[0, 0])),
    "empty tensor whose strides overflow": safetensors(one_tensor(shape=[2**40, 2**40, 0], data_offsets=[0, 0])),
    "half a million dimensions": safetensors(
        b'{"a":{"dtype":"F32","shape":[' + b"9," * 499_999 + b'9],"data_offsets":[0,4]}}'
    ),
    "shape does not fit": safetensors(one_tensor(shape=[2]), bytes(4)),
    "shape is a number": safetensors(one_tensor(shape=1), bytes(4)),
    "shape is true": safetensors(one_tensor(shape=[True]), bytes(4)),
    "shape is not a number": safetensors(b'{"a":{"dtype":"F32","shape":[NaN],"data_offsets":[0,4]}}', bytes(4)),
    "shape is missing": safetensors(one_tensor(shape=None), bytes(4)),
    "shape is an object": safetensors(one_tensor(shape={}), bytes(4)),
    "tensor is null": safetensors({"a": None}),
    "tensor is a list": safetensors({"a": [1]}),
    "name is empty": safetensors({"": one_tensor()["a"]}, bytes(4)),
    "name is a path": safetensors({"../../etc/passwd": one_tensor()["a"]}, bytes(4)),
    "name is an absolute path": safetensors({"/tmp/a": one_tensor()["a"]}, bytes(4)),
    "name is a path of another system": safetensors({"..\\a": one_tensor()["a"]}, bytes(4)),
    "name holds a zero byte": safetensors({"a\0b": one_tensor()["a"]}, bytes(4)),
    "name holds a line feed": safetensors({"a\nb": one_tensor()["a"]}, bytes(4)),
    "name holds an escape": safetensors({"a\x1b[31m": one_tensor()["a"]}, bytes(4)),
    "name is half a surrogate": safetensors(b'{"\\ud800":{"dtype":"U8","shape":[4],"data_offsets":[0,4]}}', bytes(4)),
    "name is too long": safetensors({"a" * (MAX_NAME_LENGTH + 1): one_tensor()["a"]}, bytes(4)),
    "too many tensors": safetensors(
        {f"t{i}": {"dtype": "U8", "shape": [0], "data_offsets": [0, 0]} for i in range(MAX_TENSORS + 1)}
    ),
    "metadata is a list": safetensors({"__metadata__": []}),
    "metadata is null": safetensors({"__metadata__": None}),
    "metadata of ours is no JSON": safetensors({"__metadata__": {"kdx": "{"}}),
    "metadata of ours is a list": safetensors({"__metadata__": {"kdx": "[]"}}),
    "metadata of ours is a number": safetensors({"__metadata__": {"kdx": 5}}),
    "metadata of ours nests deeply": safetensors({"__metadata__": {"kdx": "[" * 100_000}}),
    "metadata of others is a number": safetensors({"__metadata__": {"format": 5}}),
}

ONLY_OURS = {
    "type that no artifact has",
    "metadata of ours is no JSON",
    "metadata of ours is a list",
    "metadata of ours nests deeply",
}
"""What is refused in an artifact, and sound in a file of somebody else."""

# ---- checkpoints, composed byte by byte ------------------------------------------------------------------------------


def number(value: int) -> bytes:
    return pickle.dumps(value, 2)[2:-1]


def text(value: str) -> bytes:
    return b"X" + struct.pack("<I", len(value.encode())) + value.encode()


def name_of(module: str, name: str) -> bytes:
    return f"c{module}\n{name}\n".encode()


def sizes(*values: int) -> bytes:
    return b"(" + b"".join(map(number, values)) + b"t"


ORDERED_DICT = name_of("collections", "OrderedDict") + b")R"
REBUILD = name_of("torch._utils", "_rebuild_tensor_v2")


def storage(
    elements: int = 4, key: str = "0", kind: bytes = name_of("torch", "FloatStorage"), end: bytes = b""
) -> bytes:
    """Return the instructions that refer to a storage; `end` is the sixth field of the older format."""
    return b"(" + text("storage") + kind + text(key) + text("cpu") + number(elements) + end + b"tQ"


def tensor(
    size: bytes = sizes(4),
    stride: bytes = sizes(1),
    offset: int = 0,
    of: bytes = storage(),
    hooks: bytes = ORDERED_DICT,
    more: bytes = b"",
) -> bytes:
    """Return the instructions that rebuild a tensor."""
    return REBUILD + b"(" + of + number(offset) + size + stride + b"\x89" + hooks + more + b"tR"


def named(value: bytes, name: str = "a") -> bytes:
    """Return a whole pickle of a dictionary with one entry."""
    return b"\x80\x02}" + text(name) + value + b"s."


FOUR_FLOATS = np.arange(4, dtype="<f4").tobytes()


def archive(pickled: bytes, records: dict[str, bytes] | None = None, folder: str = "a/", method: int = 0) -> bytes:
    """Return a zip archive as torch.save writes it, with one storage of four floats unless `records` says otherwise."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as file:
        kept = {"data/0": FOUR_FLOATS} if records is None else records
        for name, content in {"data.pkl": pickled, **kept, "version": b"3\n"}.items():
            file.writestr(folder + name, content)
    return buffer.getvalue()


LEGACY_START = (
    pickle.dumps(0x1950A86A20F9469CFC6C, 2),
    pickle.dumps(1001, 2),
    pickle.dumps({"little_endian": True}, 2),
)
FLOATS_OF_LEGACY = (4).to_bytes(8, "little") + FOUR_FLOATS


def legacy(pickled: bytes, keys: Any = ("0",), storages: bytes = FLOATS_OF_LEGACY, start: Any = LEGACY_START) -> bytes:
    """Return a file as torch.save wrote it before its version 1.6."""
    return b"".join(start) + pickled + pickle.dumps(list(keys), 2) + storages


GOOD_ARCHIVE = archive(named(tensor()))
GOOD_LEGACY = legacy(named(tensor(of=storage(end=b"N"))))

# ---- pickles that call functions -------------------------------------------------------------------------------------


class Call:
    """An object whose pickle calls a function."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> Any:
        return self.call

    def __call__(self) -> None:
        """Only makes the object callable, which pickle requires of a function to call."""


def _system(sentinel: str) -> Call:
    return Call(os.system, f"touch {sentinel}")


def _dumped(build: Callable[[str], Any], protocol: int = 2) -> Callable[[str], bytes]:
    return lambda sentinel: pickle.dumps(build(sentinel), protocol)


def _chain(sentinel: str) -> Call:
    return Call(Call(getattr, Call(importlib.import_module, "os"), "system"), f"touch {sentinel}")


def _extension(sentinel: str) -> bytes:
    return b"\x80\x02\x82\xf0" + text(f"touch {sentinel}") + b"\x85R."


def _objects(sentinel: str) -> np.ndarray:
    array = np.empty(1, dtype=object)
    array[0] = _system(sentinel)
    return array


HOSTILE: dict[str, Callable[[str], bytes]] = {
    "os.system": _dumped(_system),
    "posix.system as text": lambda s: f"cposix\nsystem\n(S'touch {s}'\ntR.".encode(),
    "eval": _dumped(lambda s: Call(eval, f"open({s!r}, 'w').close()")),
    "exec": _dumped(lambda s: Call(exec, f"open({s!r}, 'w').close()")),
    "subprocess": _dumped(lambda s: Call(subprocess.check_call, ["touch", s])),
    "getattr chain": _dumped(_chain),
    "deep in a state dict": _dumped(lambda s: {"state_dict": OrderedDict(a=[1, ({"b": _system(s)},)])}),
    "torch.load inside": _dumped(
        lambda s: Call(torch.storage._load_from_bytes, legacy(pickle.dumps(_system(s), 2), (), b""))
    ),
    "protocol 4": _dumped(_system, 4),
    "protocol 5": _dumped(_system, 5),
    "INST": lambda s: f"(S'touch {s}'\niposix\nsystem\n.".encode(),
    "OBJ": lambda s: f"(cposix\nsystem\nS'touch {s}'\no.".encode(),
    "extension registry": _extension,
    "partial": _dumped(lambda s: Call(functools.partial(os.system, f"touch {s}"))),
    "methodcaller": _dumped(
        lambda s: Call(operator.methodcaller("system", f"touch {s}"), Call(importlib.import_module, "os"))
    ),
    "numpy objects": _dumped(_objects),
    "runpy": _dumped(lambda s: Call(runpy._run_code, f"open({s!r}, 'w').close()", {})),
    "behind a tensor": lambda s: named(tensor())[:-1] + text("b") + pickle.dumps(_system(s), 2)[2:-1] + b"s.",
}
"""Pickles that make the file they are given when they are run."""

# ---- pickles that refer to missing objects ---------------------------------------------------------------------------

_NINES = b"".join(text("a") + b"K\1\x86" for _ in range(9000))
_PAIRS = b"](" + _NINES + b"eq\0"
_TWICE = (b"q%ch%c\x86" % (i, i) for i in range(60))
_DEEP = b"K\1" + b"".join(_TWICE)  # a pair of pairs of pairs ..., which takes 2^60 steps to hash or to print
_PARAMETER = name_of("torch.nn.parameter", "Parameter")

BAD_PICKLES = {
    "empty": b"",
    "no end": named(tensor())[:-1],
    "cut in a number": named(tensor())[:-30],
    "something behind the end": named(tensor()) + b"N.",
    "takes from an empty stack": b"\x80\x02\x86.",
    "ends with an empty stack": b"\x80\x02.",
    "tuple without a mark": b"\x80\x02Nt.",
    "memo that was never filled": b"\x80\x02h\7.",
    "dictionary of three": b"\x80\x02}(NNNu.",
    "entry of a number": b"\x80\x02K\1K\2K\3s.",
    "item of a dictionary": b"\x80\x02}K\3a.",
    "key is a list": b"\x80\x02}]Ns.",
    "key of 2^61": b"\x80\x02}" + number(2**61) + b"Ns.",
    "key that takes years to hash": b"\x80\x02}" + _DEEP + b"Ns.",
    "key of a pair that takes years to hash": named(
        name_of("collections", "OrderedDict") + b"]" + _DEEP + b"N\x86a\x85R"
    ),
    "function that takes years to print": b"\x80\x02" + _DEEP + b")R.",
    "storage that takes years to print": named(
        b"(" + text("storage") + name_of("torch", "FloatStorage") + _DEEP + text("cpu") + b"K\4tQ"
    ),
    "count of what a tensor holds": named(name_of("collections", "Counter") + tensor() + b"\x85R"),
    "text claims 4 GiB": b"\x80\x02X\xff\xff\xff\xff.",
    "text claims 2^63 bytes": b"\x80\x04\x8d" + (2**63 - 1).to_bytes(8, "little") + b".",
    "number claims 2 GiB": b"\x80\x02\x8b\xff\xff\xff\x7f.",
    "frame claims 2^60 bytes": b"\x80\x04\x95" + (2**60).to_bytes(8, "little") + b"N.",
    "bytearray claims 2^60 bytes": b"\x80\x05\x96" + (2**60).to_bytes(8, "little") + b".",
    "a million marks": b"\x80\x02" + b"(" * 1_000_000 + b".",
    "a million tuples in each other": b"\x80\x02N" + b"\x85" * 1_000_000 + b".",
    "many copies of a long dictionary": b"\x80\x02"
    + _PAIRS
    + (name_of("collections", "OrderedDict") + b"h\0\x85R") * 5000
    + b".",
    "tensor beyond its storage": named(tensor(sizes(5))),
    "tensor of a tebibyte": named(tensor(sizes(2**38))),
    "tensor of a tebibyte without strides": named(tensor(sizes(2**38), sizes(0))),
    "strides beyond the storage": named(tensor(sizes(2), sizes(4))),
    "offset beyond the storage": named(tensor(offset=1)),
    "negative offset": named(tensor(offset=-1)),
    "negative size": named(tensor(sizes(-4))),
    "two negative sizes": named(tensor(sizes(-2, -2), sizes(1, 1))),
    "negative stride": named(tensor(sizes(2), sizes(-1), 1)),
    "more sizes than strides": named(tensor(sizes(2, 2))),
    "size is text": named(tensor(b"(" + text("4") + b"t")),
    "size is true": named(tensor(b"(\x88t")),
    "sizes are a list": named(tensor(b"](K\4e")),
    "a hundred dimensions": named(tensor(sizes(*[1] * 100), sizes(*[1] * 100))),
    "empty tensor of a size beyond 63 bits": named(tensor(sizes(0, 2**63), sizes(1, 1))),
    "storage that is missing": named(tensor(of=storage(key="7"))),
    "storage that is a path": named(tensor(of=storage(key="../data.pkl"))),
    "storage larger than its record": named(tensor(of=storage(5))),
    "storage smaller than its record": named(tensor(sizes(3), of=storage(3))),
    "storage of wider elements": named(tensor(of=storage(kind=name_of("torch", "DoubleStorage")))),
    "storage of a tebibyte": named(tensor(of=storage(2**38))),
    "storage of a negative size": named(tensor(of=storage(-4))),
    "storage of an unknown type": named(tensor(of=storage(kind=name_of("collections", "OrderedDict")))),
    "storage described twice": named(b"(" + storage() + storage(2, kind=name_of("torch", "LongStorage")) + b"t"),
    "storage named by text": named(b"Pevil\n"),
    "storage named by a number": named(b"K\1Q"),
    "module in place of a storage": named(b"(" + text("module") + b"NNNt" + b"Q"),
    "tensor without a storage": named(tensor(of=b"N")),
    "tensor with hooks": named(tensor(hooks=b"}" + text("h") + name_of("torch", "Size") + b"s")),
    "tensor with metadata": named(tensor(more=b"}" + text("conj") + b"\x88s")),
    "state dict whose items are replaced": named(ORDERED_DICT + b"}" + text("items") + b"Nsb"),
    "dictionary with attributes": named(b"}}" + text("_metadata") + b"}sb"),
    "parameter set to another storage": named(
        _PARAMETER + b"(" + tensor() + b"t\x81(" + storage() + b"K\0" + sizes(2**38) + sizes(1) + b"tb"
    ),
    "storage made by a call": named(name_of("torch", "FloatStorage") + sizes(2**40) + b"R"),
    "tensor made by a call": named(name_of("torch", "Tensor") + sizes(2**40) + b"R"),
    "text packed by a call": named(name_of("_codecs", "encode") + b"(" + text("a") + text("zip") + b"tR"),
    "OrderedDict made by NEWOBJ": named(name_of("collections", "OrderedDict") + b")\x81"),
    "whole type called": named(name_of("torch._tensor", "_rebuild_from_type_v2") + b")R"),
    "network": pickle.dumps(torch.nn.Linear(1, 1), 2),
    "reconstructor": pickle.dumps(Call(__import__("copyreg")._reconstructor, object, object, None), 2),
    "numpy array": pickle.dumps({"best": np.zeros(3)}, 2),
    "call of what is left out": named(name_of("argparse", "Namespace") + b"N\x81"),
    "name with a line feed": b"\x80\x02c\n\n.",
    "name that is no name": b"\x80\x02cos system\nx y\n.",
}
"""Pickles that are refused, each in an archive with one storage of four floats."""


def _patched(content: bytes, old: bytes, new: bytes, last: bool = False) -> bytes:
    """Replace the first or the last occurrence of `old`."""
    place = content.rfind(old) if last else content.find(old)
    assert place >= 0
    assert len(old) == len(new)
    return content[:place] + new + content[place + len(old) :]


def _twice(first: str, second: str) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        for name in (first, second, "a/data/0"):
            file.writestr(name, named(tensor()) if name.endswith("pkl") else FOUR_FLOATS)
    return buffer.getvalue()


def _overlapping() -> bytes:
    """Return an archive with two directory entries for the same bytes."""
    content = archive(named(tensor()), {"data/0": FOUR_FLOATS, "data/1": FOUR_FLOATS})
    first, second = (content.find(b"a/data/" + digit) - 30 for digit in (b"0", b"1"))
    return _patched(content, struct.pack("<I", second), struct.pack("<I", first), last=True)


def _renamed(old: bytes, new: bytes) -> bytes:
    return GOOD_ARCHIVE.replace(old, new)


def _tar() -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as file:
        file.addfile(tarfile.TarInfo("storages"))
    return buffer.getvalue()


_DIRECTORY = GOOD_ARCHIVE.rfind(b"PK\5\6")
_LEGACY_PICKLE = named(tensor(of=storage(end=b"N")))

BAD_CHECKPOINTS = {
    "nothing": b"",
    "blanks": b" \n" * 50,
    "a page": b"<!DOCTYPE html><html><body>404</body></html>",
    "a page after blanks": b"\n\n  <html>" + bytes(100),
    "git-lfs pointer": b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 46827520\n",
    "text": b"class labels\nare not weights\n",
    "JSON": b'{"a": [1, 2]}',
    "a picture": b"\x89PNG\r\n\x1a\n" + bytes(100),
    "gzip": b"\x1f\x8b\x08" + bytes(100),
    "HDF5": b"\x89HDF\r\n\x1a\n" + bytes(100),
    "numpy array": b"\x93NUMPY\1\0" + bytes(100),
    "tar": _tar(),
    "zeros": bytes(1000),
    "random": bytes(range(256)) * 4,
    "zip, first four bytes": b"PK\3\4",
    "zip, empty": b"PK\5\6" + bytes(18),
    "zip, cut in a member": GOOD_ARCHIVE[:60],
    "zip, cut in the directory": GOOD_ARCHIVE[: _DIRECTORY - 20],
    "zip, one byte short": GOOD_ARCHIVE[:-1],
    "zip, one byte more": GOOD_ARCHIVE + b"\0",
    "zip, with a comment": GOOD_ARCHIVE[:-2] + b"\4\0" + b"hush",
    "zip, behind something": b"PK\3\4" + bytes(100) + GOOD_ARCHIVE,
    "zip, directory claims 4 GiB": GOOD_ARCHIVE[: _DIRECTORY + 12] + b"\xff" * 4 + GOOD_ARCHIVE[_DIRECTORY + 16 :],
    "zip, directory of 65535": GOOD_ARCHIVE[: _DIRECTORY + 8] + b"\xff" * 4 + GOOD_ARCHIVE[_DIRECTORY + 12 :],
    "zip, directory elsewhere": GOOD_ARCHIVE[: _DIRECTORY + 16] + b"\7\0\0\0" + GOOD_ARCHIVE[_DIRECTORY + 20 :],
    "zip, directory without an end": GOOD_ARCHIVE[: _DIRECTORY - 5] + GOOD_ARCHIVE[_DIRECTORY:],
    "zip, compressed": archive(named(tensor()), method=zipfile.ZIP_DEFLATED),
    "zip, a bomb": archive(named(tensor()), {"data/0": bytes(50_000_000)}, method=zipfile.ZIP_DEFLATED),
    "zip, encrypted": _patched(GOOD_ARCHIVE, b"PK\1\2\x14\3\x14\0\0\0", b"PK\1\2\x14\3\x14\0\1\0"),
    "zip, data.pkl twice": _twice("a/data.pkl", "a/date.pkl").replace(b"a/date.pkl", b"a/data.pkl"),
    "zip, data.pkl in two spellings": _twice("a/data.pkl", "a/DATA.pkl"),
    "zip, two folders": _twice("a/data.pkl", "b/data.pkl"),
    "zip, members overlap": _overlapping(),
    "zip, name with a zero": _renamed(b"a/data/0", b"a/data\x000"),
    "zip, name with a line feed": _renamed(b"a/data/0", b"a/data\n0"),
    "zip, member is not there": _patched(GOOD_ARCHIVE, b"\0\0\0\0a/data.pkl", b"\7\0\0\0a/data.pkl", last=True),
    "zip, no data.pkl": _renamed(b"data.pkl", b"date.pkl"),
    "zip, no folder": archive(named(tensor()), folder=""),
    "zip, numpy arrays": archive(b"\x93NUMPY", {"b.npy": b""}, folder=""),
    "zip, TorchScript": archive(named(tensor()), {"constants.pkl": b"\x80\x02).", "code/a.py": b"op_version = 1"}),
    "zip, program": archive(named(tensor()), {"archive_format": b"pt2", "models/model.json": b"{}"}),
    "legacy, magic number only": LEGACY_START[0],
    "legacy, other version": legacy(_LEGACY_PICKLE, start=(LEGACY_START[0], pickle.dumps(1002, 2), LEGACY_START[2])),
    "legacy, other number": legacy(_LEGACY_PICKLE, start=(b"\x80\x02\x8a\x0a" + bytes(10) + b".", *LEGACY_START[1:])),
    "legacy, no system": legacy(_LEGACY_PICKLE, start=LEGACY_START[:2]),
    "legacy, one byte short": GOOD_LEGACY[:-1],
    "legacy, one byte more": GOOD_LEGACY + b"\0",
    "legacy, storages are missing": legacy(_LEGACY_PICKLE, storages=b""),
    "legacy, storage of another size": legacy(_LEGACY_PICKLE, storages=(3).to_bytes(8, "little") + FOUR_FLOATS),
    "legacy, storage is not listed": legacy(_LEGACY_PICKLE, keys=()),
    "legacy, storage is listed twice": legacy(_LEGACY_PICKLE, keys="00", storages=FLOATS_OF_LEGACY * 2),
    "legacy, unknown storage is listed": legacy(_LEGACY_PICKLE, keys="01", storages=FLOATS_OF_LEGACY * 2),
    "legacy, list is a number": legacy(_LEGACY_PICKLE)[: -len(FLOATS_OF_LEGACY)].replace(
        pickle.dumps(["0"], 2), b"\x80\x02K\1."
    ),
    "legacy, list of numbers": legacy(_LEGACY_PICKLE, keys=(0,)),
    "legacy, storage of a tebibyte": legacy(named(tensor(of=storage(2**38, end=b"N")))),
    "legacy, tensor of a tebibyte": legacy(named(tensor(sizes(2**38), of=storage(end=b"N")))),
    "legacy, tensor set to a tebibyte": legacy(
        named(tensor(of=storage(end=b"N")) + b"(" + storage(end=b"N") + b"K\0" + sizes(2**38) + sizes(1) + b"tb")
    ),
    "legacy, storage is a view": legacy(named(tensor(of=storage(end=b"(" + text("1") + b"K\0K\4t")))),
    "legacy, reference of the other format": legacy(named(tensor())),
    "zip, reference of the other format": archive(_LEGACY_PICKLE),
}
"""Whole files that are refused: damaged, or something else."""


def damaged(content: bytes, changes: list[tuple[int, int]], cut: int, tail: bytes) -> bytes:
    """Replace bytes (place, value), drop `cut` bytes from the end, add `tail`."""
    result = bytearray(content)
    for place, value in changes:
        result[place % len(result)] = value
    return bytes(result[: max(0, len(result) - cut)]) + tail
