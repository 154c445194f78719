"""Tensor files: what is written is read again, and every malformed file is refused with one error."""

from __future__ import annotations

import io
import math
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import soon
from corpus import BAD_SAFETENSORS, GOOD_TENSOR, damaged, safetensors
from helpers import repeatable
from hypothesis import given, settings
from hypothesis import strategies as st

from kdextract.errors import ArtifactError
from kdextract.storage.tensor_files import (
    encode_npy,
    encode_safetensors,
    read_npy,
    read_safetensors,
    read_safetensors_metadata,
)

TENSOR_TYPES = [
    torch.float64,
    torch.float32,
    torch.float16,
    torch.bfloat16,
    torch.int64,
    torch.int32,
    torch.uint8,
    torch.bool,
]
ARRAY_TYPES = ["uint8", "int64", "float32", "float64"]

shapes = st.lists(st.integers(0, 4), max_size=4).map(tuple)
names = st.text("abcXYZ019._-", min_size=1, max_size=12)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**60), 2**60) | st.floats(allow_nan=False) | st.text(max_size=6),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=8,
)


def random_tensor(shape: tuple[int, ...], dtype: torch.dtype, seed: int) -> torch.Tensor:
    rng = torch.Generator().manual_seed(seed)
    return torch.randint(0, 200, shape, generator=rng).to(dtype)


tensors_by_name = st.dictionaries(
    names, st.builds(random_tensor, shapes, st.sampled_from(TENSOR_TYPES), st.integers(0, 99)), max_size=5
)


# ---- round trips -----------------------------------------------------------------------------------------------


@repeatable
@given(tensors=tensors_by_name, metadata=st.dictionaries(st.text(max_size=6), json_values, max_size=4))
def test_safetensors_come_back_as_they_were(
    tensors: dict[str, torch.Tensor], metadata: dict[str, Any], tmp_path: Path
) -> None:
    path = tmp_path / "a.safetensors"
    path.write_bytes(encode_safetensors(tensors, metadata))
    again, described = read_safetensors(path)
    assert described == metadata == read_safetensors_metadata(path)
    assert again.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert (again[name].dtype, again[name].shape) == (tensor.dtype, tensor.shape)
        assert torch.equal(again[name], tensor)


@repeatable
@given(tensors=tensors_by_name, metadata=st.dictionaries(st.text(max_size=6), json_values, max_size=4))
def test_equal_tensors_give_equal_bytes_in_any_order(
    tensors: dict[str, torch.Tensor], metadata: dict[str, Any]
) -> None:
    once = encode_safetensors(tensors, metadata)
    backwards = {name: tensors[name].clone() for name in reversed(list(tensors))}
    described = {name: metadata[name] for name in reversed(list(metadata))}
    assert encode_safetensors(backwards, described) == once


def test_other_tensors_or_metadata_give_other_bytes() -> None:
    tensors = {"a": torch.zeros(3)}
    once = encode_safetensors(tensors, {"seed": 0})
    assert encode_safetensors(tensors, {"seed": 1}) != once
    assert encode_safetensors({"a": torch.ones(3)}, {"seed": 0}) != once


def test_views_are_stored_by_their_values(tmp_path: Path) -> None:
    whole = torch.arange(24.0).reshape(2, 3, 4)
    tensors = {
        "transposed": whole.transpose(0, 2),
        "sliced": whole[:, 1:],
        "expanded": torch.ones(1).expand(5),
        "with_gradient": torch.ones(2, requires_grad=True),
        "channels_last": torch.rand(2, 3, 4, 5).contiguous(memory_format=torch.channels_last),
    }
    path = tmp_path / "a.safetensors"
    path.write_bytes(encode_safetensors(tensors, {}))
    again, _ = read_safetensors(path)
    for name, tensor in tensors.items():
        assert torch.equal(again[name], tensor.detach()), name


@repeatable
@given(shape=shapes, dtype=st.sampled_from(ARRAY_TYPES), seed=st.integers(0, 99), fortran=st.booleans())
def test_npy_comes_back_as_it_was(shape: tuple[int, ...], dtype: str, seed: int, fortran: bool, tmp_path: Path) -> None:
    array = np.random.default_rng(seed).integers(0, 200, shape).astype(dtype)
    path = tmp_path / "a.npy"
    content = encode_npy(np.asarray(array, order="F" if fortran else "C"))
    assert content == encode_npy(array.copy())
    path.write_bytes(content)
    again = read_npy(path)
    assert (again.dtype, again.shape) == (array.dtype, array.shape)
    assert np.array_equal(again, array)
    assert np.array_equal(np.load(path, allow_pickle=False), array)


@pytest.mark.parametrize("version", [(1, 0), (2, 0)])
@pytest.mark.parametrize("order", ["C", "F"])
def test_npy_written_by_numpy_is_read(version: tuple[int, int], order: Any, tmp_path: Path) -> None:
    array = np.arange(24, dtype=np.float32).reshape(2, 3, 4).copy(order=order)
    buffer = io.BytesIO()
    np.lib.format.write_array(buffer, array, version=version)
    path = tmp_path / "a.npy"
    path.write_bytes(buffer.getvalue())
    again = read_npy(path)
    assert np.array_equal(again, array)
    again[0, 0, 0] = 7  # what was read may be changed


def test_a_big_endian_array_is_refused_or_converted(tmp_path: Path) -> None:
    path = tmp_path / "a.npy"
    path.write_bytes(
        npy("{'descr': '>f4', 'fortran_order': False, 'shape': (2,), }", np.array([1, 2], ">f4").tobytes())
    )
    try:
        array = read_npy(path)
    except ArtifactError:
        return
    assert torch.equal(torch.from_numpy(array), torch.tensor([1.0, 2.0]))


# ---- malformed files ---------------------------------------------------------------------------------------------


def npy(header: str, data: bytes = b"", version: tuple[int, int] = (1, 0), claimed: int | None = None) -> bytes:
    """Return a `.npy` file with this header text, of `claimed` length."""
    text = header.encode("latin1")
    length = (len(text) if claimed is None else claimed).to_bytes(2 if version[0] == 1 else 4, "little")
    return b"\x93NUMPY" + bytes(version) + length + text + data


def npy_of(descr: str = "<f4", shape: str = "(1,)", fortran: str = "False") -> str:
    return f"{{'descr': '{descr}', 'fortran_order': {fortran}, 'shape': {shape}, }}\n"


A_TEBIBYTE = npy(npy_of("<f8", f"({2**37},)").ljust(117) + "\n")

BAD_NPY = {
    "empty": b"",
    "magic only": b"\x93NUMPY",
    "magic and version": b"\x93NUMPY\1\0",
    "other magic": b"\x93NUMPX" + npy(npy_of(), bytes(4))[6:],
    "version 0": npy(npy_of(), bytes(4), (0, 0)),
    "version 3": npy(npy_of(), bytes(4), (3, 0)),
    "version 9": npy(npy_of(), bytes(4), (9, 0)),
    "header is cut off": npy(npy_of(), bytes(4))[:40],
    "header claims more than the file": npy(npy_of(), bytes(4), claimed=60_000),
    "header claims 4 GiB": npy(npy_of(), bytes(4), (2, 0), claimed=2**32 - 1),
    "header is empty": npy(""),
    "header is zeros": npy("\0" * 100),
    "header is not a dictionary": npy("[1, 2, 3]"),
    "header is an expression": npy("__import__('os').getcwd()"),
    "header is not closed": npy("{'descr': ("),
    "header nests deeply": npy("[" * 9000),
    "header is many signs": npy("-" * 9000 + "1"),
    "header is a long sum": npy("1" + "+1" * 4000),
    "header misses the shape": npy("{'descr': '<f4', 'fortran_order': False, }", bytes(4)),
    "header has a field more": npy(npy_of().replace("}", "'x': 1}"), bytes(4)),
    "order is a number": npy(npy_of(fortran="3"), bytes(4)),
    "Python objects": npy(npy_of("|O"), bytes(8)),
    "Python objects, pickled": npy(npy_of("|O"), b"\x80\x02c__builtin__\neval\n(S'1'\ntR."),
    "text": npy(npy_of("<U4"), bytes(16)),
    "complex numbers": npy(npy_of("<c8"), bytes(8)),
    "16-bit integers": npy(npy_of("<i2"), bytes(2)),
    "dates": npy(npy_of("<M8[s]"), bytes(8)),
    "type is unknown": npy(npy_of("<q99"), bytes(8)),
    "type is None": npy("{'descr': None, 'fortran_order': False, 'shape': (1,), }", bytes(8)),
    "type is a record": npy("{'descr': [('a', '<f4')], 'fortran_order': False, 'shape': (1,), }", bytes(4)),
    "type is an array": npy("{'descr': ('<f4', (2,)), 'fortran_order': False, 'shape': (1,), }", bytes(8)),
    "negative size": npy(npy_of(shape="(-1,)")),
    "two negative sizes": npy(npy_of(shape="(-1, -1)"), bytes(4)),
    "shape is a number": npy(npy_of(shape="4"), bytes(16)),
    "shape is a list": npy(npy_of(shape="[4]"), bytes(16)),
    "shape is true": npy(npy_of(shape="(True,)"), bytes(4)),
    "size is a fraction": npy(npy_of(shape="(1.0,)"), bytes(4)),
    "size has five thousand digits": npy(npy_of(shape="(" + "9" * 5000 + ",)"), bytes(4)),
    "a hundred dimensions": npy(npy_of(shape="(" + "1," * 100 + ")"), bytes(4)),
    "empty array of a size beyond 64 bits": npy(npy_of(shape=f"(0, {2**70})")),
    "product overflows 64 bits": npy(npy_of(shape=f"({2**40}, {2**40})"), bytes(4)),
    "a tebibyte in 128 bytes": A_TEBIBYTE,
    "data too short": npy(npy_of(shape="(3,)"), bytes(11)),
    "data too long": npy(npy_of(shape="(3,)"), bytes(13)),
    "data missing": npy(npy_of()),
}


def refusal(path: Path, reader: Any) -> str:
    """Return the error of `reader` for a file that it must refuse within the time of `soon`."""
    started = time.process_time()
    with pytest.raises(ArtifactError) as caught:
        reader(path)
    assert time.process_time() - started < soon()
    assert str(path) in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("content", BAD_SAFETENSORS.values(), ids=BAD_SAFETENSORS.keys())
def test_malformed_safetensors_are_refused(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "bad.safetensors"
    path.write_bytes(content)
    refusal(path, read_safetensors)


@pytest.mark.parametrize("content", BAD_NPY.values(), ids=BAD_NPY.keys())
def test_malformed_npy_is_refused(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "bad.npy"
    path.write_bytes(content)
    refusal(path, read_npy)


def test_the_corpus_contains_the_defects_that_it_names(tmp_path: Path) -> None:
    """The unchanged files are read, so each other file is refused because of its change."""
    path = tmp_path / "good"
    path.write_bytes(GOOD_TENSOR)
    assert torch.equal(read_safetensors(path)[0]["a"], torch.zeros(1))
    path.write_bytes(npy(npy_of(), np.float32(3).tobytes()))
    assert read_npy(path).tolist() == [3.0]
    assert len(A_TEBIBYTE) == 128
    assert math.prod((2**37, 8)) == 2**40
    assert len(BAD_SAFETENSORS) + len(BAD_NPY) >= 100


def test_metadata_is_read_with_the_same_checks(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    for change in ("trailing byte", "overlap", "duplicate tensor", "name is a path"):
        path.write_bytes(BAD_SAFETENSORS[change])
        refusal(path, read_safetensors_metadata)


@pytest.mark.parametrize("reader", [read_safetensors, read_npy])
def test_what_is_not_a_file_is_refused(reader: Any, tmp_path: Path) -> None:
    assert "does not exist" in refusal(tmp_path / "missing", reader)
    (tmp_path / "directory").mkdir()
    refusal(tmp_path / "directory", reader)


# ---- random damage -------------------------------------------------------------------------------------------------


changes_of_bytes = st.lists(st.tuples(st.integers(0, 400), st.integers(0, 255)), max_size=6)
MANY = settings(repeatable, max_examples=300)
SOUND_TENSORS = encode_safetensors(
    {"weight": torch.arange(6.0).reshape(2, 3), "bias": torch.zeros(2, dtype=torch.int64), "empty": torch.zeros(0, 3)},
    {"classifier": {"architecture": "lenet", "input_shape": [1, 32, 32]}},
)
SOUND_ARRAY = encode_npy(np.arange(12, dtype=np.float32).reshape(3, 4))


@MANY
@given(changes=changes_of_bytes, cut=st.integers(0, 3), tail=st.binary(max_size=3))
def test_damaged_safetensors_are_read_or_refused(
    changes: list[tuple[int, int]], cut: int, tail: bytes, tmp_path: Path
) -> None:
    path = tmp_path / "a.safetensors"
    path.write_bytes(damaged(SOUND_TENSORS, changes, cut, tail))
    try:
        tensors, _ = read_safetensors(path)
    except ArtifactError:
        return
    assert sum(t.numel() * t.element_size() for t in tensors.values()) <= len(SOUND_TENSORS)


@MANY
@given(changes=changes_of_bytes, cut=st.integers(0, 3), tail=st.binary(max_size=3))
@pytest.mark.filterwarnings("ignore:Reading `.npy`:UserWarning")
def test_damaged_npy_is_read_or_refused(changes: list[tuple[int, int]], cut: int, tail: bytes, tmp_path: Path) -> None:
    path = tmp_path / "a.npy"
    path.write_bytes(damaged(SOUND_ARRAY, changes, cut, tail))
    try:
        array = read_npy(path)
    except ArtifactError:
        return
    assert array.nbytes <= len(SOUND_ARRAY)


@MANY
@given(header=st.text("{}[]()'\",:<f4diu8TrueFalse0123456789.-+\\\n ", max_size=80), data=st.binary(max_size=16))
@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::SyntaxWarning", "ignore::DeprecationWarning")
def test_any_npy_header_is_read_or_refused(header: str, data: bytes, tmp_path: Path) -> None:
    path = tmp_path / "a.npy"
    path.write_bytes(npy(header, data))
    try:
        array = read_npy(path)
    except ArtifactError:
        return
    assert array.nbytes == len(data)


@MANY
@given(
    entry=st.dictionaries(
        st.sampled_from(["dtype", "shape", "data_offsets", "extra"]),
        json_values
        | st.sampled_from(["F32", "U8", "BOOL"])
        | st.lists(st.sampled_from([0, 1, 4, 2**31, 2**62, 2**63, 2**64, -1, True, 1.0]), max_size=3),
        max_size=4,
    ),
    data=st.binary(max_size=8),
)
def test_any_tensor_description_is_read_or_refused(entry: dict[str, Any], data: bytes, tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    path.write_bytes(safetensors({"a": {"dtype": "U8", "shape": [0], "data_offsets": [0, 0], **entry}}, data))
    try:
        tensors, _ = read_safetensors(path)
    except ArtifactError:
        return
    assert tensors["a"].numel() * tensors["a"].element_size() == len(data)
