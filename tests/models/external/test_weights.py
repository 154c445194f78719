"""Weights of external models: found in their wrappers, fitted to a network, or refused without running code."""

from __future__ import annotations

import argparse
import copyreg
import datetime
import os
import pickle
import subprocess
import sys
import time
from collections import Counter, OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import environment, soon
from corpus import (
    BAD_CHECKPOINTS,
    BAD_PICKLES,
    BAD_SAFETENSORS,
    FOUR_FLOATS,
    GOOD_ARCHIVE,
    GOOD_LEGACY,
    GOOD_TENSOR,
    HOSTILE,
    LEGACY_START,
    ONLY_OURS,
    archive,
    damaged,
    legacy,
    name_of,
    named,
    number,
    safetensors,
    sizes,
    storage,
    tensor,
    text,
)
from helpers import repeatable
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import nn

from kdextract.errors import ArtifactError, ConfigError
from kdextract.models.external.pickles import IGNORED_GLOBALS
from kdextract.models.external.weight_files import check_pickle_file, check_weights_file
from kdextract.models.external.weights import WRAPPERS, StateDict, fit_weights, read_weights
from kdextract.storage.artifacts import read_safetensors_header
from kdextract.storage.safetensors_header import check_safetensors_file

MANY = settings(repeatable, max_examples=300)


class Small(nn.Module):
    """A convolution, a normalization and a linear layer."""

    def __init__(self, classes: int = 3) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 2, 3)
        self.bn = nn.BatchNorm2d(2)
        self.fc = nn.Linear(2, classes)


def small(seed: int = 0, classes: int = 3) -> Small:
    torch.manual_seed(seed)
    network = Small(classes)
    network.bn.running_mean.uniform_()
    return network


def saved(path: Path, content: Any, **options: Any) -> Path:
    torch.save(content, path, **options)
    return path


def equal(network: nn.Module, other: nn.Module) -> bool:
    theirs = other.state_dict()
    return all(torch.equal(value, theirs[name]) for name, value in network.state_dict().items())


def under(wrappers: list[str], content: Any) -> Any:
    for wrapper in reversed(wrappers):
        content = {"epoch": 3, wrapper: content}
    return content


def nested(prefix: str, network: nn.Module) -> nn.Module:
    """Return a network whose parameter names are those of `network` after a dotted prefix."""
    for name in reversed(prefix.split(".")[:-1]):
        outer = nn.Module()
        outer.add_module(name, network)
        network = outer
    return network


# ---- wrappers and prefixes -------------------------------------------------------------------------------------------

words = st.sampled_from(["module", "_orig_mod", "model", "net", "backbone", "0", "conv", "fc", "x1"])
prefixes = st.lists(words, max_size=3).map(lambda parts: "".join(f"{part}." for part in parts))


@repeatable
@given(
    wrappers=st.lists(st.sampled_from(WRAPPERS) | st.sampled_from(["checkpoint", "G"]), max_size=3),
    theirs=prefixes,
    own=prefixes,
    form=st.sampled_from(["zip", "legacy"]),
)
def test_weights_are_found_under_any_wrapper_and_prefix(
    wrappers: list[str], theirs: str, own: str, form: str, tmp_path: Path
) -> None:
    source, target = small(1), small(2)
    state = {theirs + name: value for name, value in source.state_dict().items()}
    path = saved(tmp_path / "a.pth", under(wrappers, state), _use_new_zipfile_serialization=form == "zip")
    assert check_pickle_file(path) == check_weights_file(path) == form
    weights = read_weights(path)
    assert weights.tensors.keys() == state.keys()
    found = " ".join(weights.found)
    assert (" > ".join(map(repr, wrappers)) in found) if wrappers else not found
    said = fit_weights(nested(own, target), weights, "a.pth")
    assert equal(source, target)
    if theirs != own:
        assert any(line.startswith("prefix ") for line in said)


@pytest.mark.parametrize(
    "prefix", ["module.", "_orig_mod.", "model.", "net.", "network.", "backbone.", "module.model."]
)
def test_a_prefix_is_removed_or_added_and_reported(prefix: str) -> None:
    source, target = small(1), small(2)
    count = len(source.state_dict())
    state = nested(prefix, source).state_dict()
    assert fit_weights(target, StateDict(state, ()), "a") == (f"prefix {prefix!r} removed from {count} names",)
    assert equal(source, target)
    target = small(3)
    said = fit_weights(nested(prefix, target), StateDict(source.state_dict(), ()), "a")
    assert said == (f"prefix {prefix!r} added to {count} names",)
    assert equal(source, target)


def test_a_checkpoint_of_training_is_read_without_its_optimizer(tmp_path: Path) -> None:
    network = small(1)
    optimizer = torch.optim.Adam(network.parameters())
    sum(p.sum() for p in network.parameters()).backward()
    optimizer.step()
    scheduler = torch.optim.lr_scheduler.MultiStepLR(optimizer, [3, 5])
    averaged = OrderedDict((name, value + 1) for name, value in network.state_dict().items())
    checkpoint = {
        "epoch": 90,
        "arch": "resnet18",
        "state_dict": network.state_dict(),
        "ema": averaged,
        "best_acc1": torch.tensor(0.5),
        "optimizer": optimizer.state_dict(),
        "scheduler": scheduler.state_dict(),
        "milestones": Counter([3, 5]),
        "other": [torch.device("cpu"), torch.float16, torch.Size([1, 2]), b"bytes", None, True, 2**80, (1.5, "x")],
    }
    for zipped in (True, False):
        weights = read_weights(saved(tmp_path / "a.pth.tar", checkpoint, _use_new_zipfile_serialization=zipped))
        assert weights.tensors.keys() == network.state_dict().keys()
        assert all(torch.equal(weights.tensors[name], value) for name, value in network.state_dict().items())
        assert weights.found == (
            "under 'state_dict'",
            "not read: 'ema' (9 tensors)",
            "ignored: epoch 90, arch 'resnet18', best_acc1, optimizer, scheduler, milestones and 1 more",
        )


def test_no_wrapper_is_preferred_to_the_place_with_the_most_tensors(tmp_path: Path) -> None:
    state = small().state_dict()
    noise = {"noise": torch.zeros(2), "G": state, "D": {"w": torch.zeros(1)}}
    weights = read_weights(saved(tmp_path / "a.pth", noise))
    assert weights.tensors.keys() == state.keys()
    assert weights.found == ("under 'G'", "not read: 'D' (1 tensor)", "ignored: noise")


def test_tensors_of_an_optimizer_are_not_read(tmp_path: Path) -> None:
    moments = {"state": {"a": {"exp_avg": torch.zeros(2)}}, "param_groups": []}
    for content in ({"optimizer": {"a": torch.zeros(2)}}, {"model": moments}, [torch.zeros(2)], torch.zeros(2), {}):
        with pytest.raises(ArtifactError, match="holds no mapping of names to tensors"):
            read_weights(saved(tmp_path / "a.pth", content))


def test_dictionaries_that_contain_themselves_are_read_in_finite_time(tmp_path: Path) -> None:
    inner: dict[str, Any] = {"a": torch.ones(2)}
    inner.update({f"k{i}": inner for i in range(3000)})
    started = time.process_time()
    weights = read_weights(saved(tmp_path / "a.pth", {"G": inner}))
    assert list(weights.tensors) == ["a"]
    assert time.process_time() - started < soon()


def test_parameters_views_and_all_types_are_read(tmp_path: Path) -> None:
    base = torch.arange(12.0).reshape(3, 4)
    types = [torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.int16, torch.int8]
    state = {"p": nn.Parameter(torch.ones(2)), "t": base.t(), "row": base[1], "scalar": torch.tensor(3.0)}
    state |= {str(dtype): torch.ones(2, dtype=dtype) for dtype in [*types, torch.uint8, torch.bool]}
    state |= {"empty": torch.zeros(0, 3)}
    for zipped in (True, False):
        tensors = read_weights(saved(tmp_path / "a.pth", state, _use_new_zipfile_serialization=zipped)).tensors
        assert list(tensors) == list(state)
        for name, value in state.items():
            assert torch.equal(tensors[name], value)
            assert tensors[name].dtype == value.dtype
            assert not isinstance(tensors[name], nn.Parameter)
            assert not tensors[name].requires_grad


def test_foreign_safetensors_are_read_whatever_their_name(tmp_path: Path) -> None:
    tensors = {"module.a": torch.ones(2, 2), "small": torch.ones(3, dtype=torch.int16)}
    path = tmp_path / "weights.bin"
    save_file(tensors, path, {"format": "pt"})
    assert check_weights_file(path) == "safetensors"
    assert check_safetensors_file(path) == ({"module.a": ("F32", (2, 2)), "small": ("I16", (3,))}, {"format": "pt"})
    assert torch.equal(read_weights(path).tensors["module.a"], tensors["module.a"])
    with pytest.raises(ArtifactError, match="not one of kdx"):
        read_safetensors_header(saved_as(tmp_path / "b.safetensors", GOOD_TENSOR))
    with pytest.raises(ArtifactError, match="is a safetensors file"):
        check_pickle_file(path)
    zipped = saved(tmp_path / "c.safetensors", {"a": torch.ones(1)})
    assert read_weights(zipped).tensors["a"].tolist() == [1.0]


def saved_as(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


def test_the_oldest_forms_are_read(tmp_path: Path) -> None:
    """Parameters before 0.4 were made by NEWOBJ and BUILD, tensors by _rebuild_tensor, dictionaries from pairs."""
    old_tensor = name_of("torch._utils", "_rebuild_tensor") + b"(" + storage(end=b"N") + b"K\0" + sizes(2, 2)
    old_tensor += sizes(2, 1) + b"tR"
    parameter = name_of("torch.nn.parameter", "Parameter") + old_tensor + b"\x85\x81(\x88\x89Ntb"
    pairs = b"]" + text("conv") + parameter + b"\x86a"
    pickled = b"\x80\x02" + name_of("collections", "OrderedDict") + pairs + b"\x85R."
    weights = read_weights(saved_as(tmp_path / "old.pth", legacy(pickled)))
    assert weights.tensors["conv"].tolist() == [[0.0, 1.0], [2.0, 3.0]]
    byte_string = b"\x80\x02}U\5conv." + old_tensor + b"s."
    assert list(read_weights(saved_as(tmp_path / "2.pth", legacy(byte_string))).tensors) == ["conv."]


# ---- fitting ---------------------------------------------------------------------------------------------------------


def test_missing_counts_of_batches_are_reported(tmp_path: Path) -> None:
    source, target = small(1), small(2)
    state = {name: value for name, value in source.state_dict().items() if "num_batches" not in name}
    target.bn.num_batches_tracked += 7
    said = fit_weights(target, StateDict(state, ()), "a")
    assert said == ("num_batches_tracked is not in the file and keeps its value (1 tensor)",)
    assert target.bn.num_batches_tracked == 7
    assert torch.equal(target.fc.weight, source.fc.weight)


def refused(state: dict[str, torch.Tensor], network: nn.Module | None = None) -> str:
    network = network or small()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    with pytest.raises(ConfigError) as caught:
        fit_weights(network, StateDict(state, ()), "a.pth")
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    sentence = str(caught.value)
    assert sentence.startswith("a.pth does not fit the network: ")
    assert "\n" not in sentence
    return sentence.removeprefix("a.pth does not fit the network: ")


def test_names_that_do_not_fit_are_named_with_their_shapes() -> None:
    state = small().state_dict()
    without = {name: value for name, value in state.items() if name != "fc.bias"}
    assert refused(without) == "the file has no fc.bias [3]"
    assert refused({**state, "a\nb": torch.zeros(2, 1)}) == "the network has no a?b [2, 1]"
    wrapped = {f"module.{name}": value for name, value in without.items()}
    assert (
        refused({**wrapped, "module.head": torch.zeros(1)})
        == "the file has no fc.bias [3]; the network has no module.head [1]"
    )
    only = refused({"other": torch.zeros(1)})
    assert only == (
        "the file has no conv.weight [2, 1, 3, 3], conv.bias [2], bn.weight [2] and 5 more; "
        "the network has no other [1]"
    )
    assert refused({}).startswith("the file has no conv.weight")


def test_the_error_for_another_number_of_classes_suggests_num_classes() -> None:
    assert refused(small(classes=100).state_dict()) == (
        "fc.weight is [100, 2] in the file and [3, 2] in the network and "
        "fc.bias is [100] in the file and [3] in the network: --num-classes 100?"
    )
    wider = {**small().state_dict(), "conv.weight": torch.zeros(4, 1, 3, 3), "conv.bias": torch.zeros(4)}
    assert "--num-classes" not in refused(wider)
    longer = {**small(classes=100).state_dict(), "conv.bias": torch.zeros(4)}
    assert "--num-classes" not in refused(longer)
    assert "--num-classes" not in refused({**small().state_dict(), "fc.weight": torch.tensor(1.0)})


def test_types_are_kept_or_converted_and_reported() -> None:
    def cast(dtype: torch.dtype) -> dict[str, torch.Tensor]:
        return {n: v.to(dtype) if v.is_floating_point() else v for n, v in small(1).state_dict().items()}

    network = small()
    assert fit_weights(network, StateDict(cast(torch.float64), ()), "a") == (
        "the network computes in float64, the data type of the file",
    )
    assert {p.dtype for p in network.parameters()} == {torch.float64}
    assert torch.equal(network.fc.weight, cast(torch.float64)["fc.weight"])
    for half in (torch.float16, torch.bfloat16):
        network = small()
        name = str(half).removeprefix("torch.")
        assert fit_weights(network, StateDict(cast(half), ()), "a") == (f"{name} converted to float32 (8 tensors)",)
        assert {p.dtype for p in network.parameters()} == {torch.float32}
    mixed = {**cast(torch.float32), "bn.running_mean": torch.ones(2, dtype=torch.float64)}
    network = small()
    assert fit_weights(network, StateDict(mixed, ()), "a") == ("float64 converted to float32 (1 tensor)",)
    assert network.bn.running_mean.tolist() == [1.0, 1.0]


def test_quantized_and_complex_weights_are_refused() -> None:
    state = small().state_dict()
    assert "fc.bias is int8 in the file, float32 in the network" in refused(
        {**state, "fc.bias": torch.ones(3, dtype=torch.int8)}
    )
    assert "complex64" in refused({**state, "fc.bias": torch.ones(3, dtype=torch.complex64)})
    assert "float8" in refused({**state, "fc.bias": torch.ones(3).to(torch.float8_e4m3fn)})


# ---- refusals --------------------------------------------------------------------------------------------------------


def refusal(path: Path, reader: Callable[[Path], Any]) -> str:
    """Return the error line of `reader` for a file that it must refuse within the time of `soon`."""
    started = time.process_time()
    with pytest.raises(ArtifactError) as caught:
        reader(path)
    assert time.process_time() - started < soon()
    sentence = str(caught.value)
    assert str(path) in sentence
    assert sentence.isprintable()
    assert caught.value.exit_code == 4
    return sentence


def test_the_corpora_contain_the_defects_that_they_name(tmp_path: Path) -> None:
    """The unchanged files are read, and the hostile pickles call their functions in an unsafe loader."""
    for content in (GOOD_ARCHIVE, GOOD_LEGACY):
        tensors = read_weights(saved_as(tmp_path / "good.pth", content)).tensors
        assert tensors["a"].tolist() == [0.0, 1.0, 2.0, 3.0]
    assert list(read_weights(saved_as(tmp_path / "good.safetensors", GOOD_TENSOR)).tensors) == ["a"]
    assert len(HOSTILE) >= 12
    assert len({*BAD_SAFETENSORS} - ONLY_OURS) + len(BAD_CHECKPOINTS) >= 40


@pytest.mark.parametrize("name", [name for name in HOSTILE if name != "behind a tensor"])
def test_hostile_pickles_run_code_in_an_unsafe_loader(name: str, tmp_path: Path) -> None:
    sentinel = tmp_path / "sentinel"
    copyreg.add_extension("posix", "system", 0xF0)
    try:
        pickle.loads(HOSTILE[name](str(sentinel)))
    finally:
        copyreg.remove_extension("posix", "system", 0xF0)
    assert sentinel.exists()


@pytest.mark.parametrize("form", ["bare", "zip", "legacy", "first", "system", "keys"])
@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_pickles_are_refused_before_anything_runs(name: str, form: str, tmp_path: Path) -> None:
    sentinel = tmp_path / "sentinel"
    payload = HOSTILE[name](str(sentinel))
    sound = named(tensor(of=storage(end=b"N")))
    content = {
        "bare": payload,
        "zip": archive(payload),
        "legacy": legacy(payload, (), b""),
        "first": legacy(sound, start=(LEGACY_START[0][:2] + payload.removeprefix(b"\x80\x02"), *LEGACY_START[1:])),
        "system": legacy(sound, start=(*LEGACY_START[:2], payload)),
        "keys": b"".join(LEGACY_START) + sound + payload + (4).to_bytes(8, "little") + FOUR_FLOATS,
    }[form]
    copyreg.add_extension("posix", "system", 0xF0)
    try:
        for path in (tmp_path / "evil.pth", tmp_path / "evil.safetensors", tmp_path / "evil.pth.tar"):
            path.write_bytes(content)
            sentences = [refusal(path, reader) for reader in (check_weights_file, read_weights, check_pickle_file)]
            assert (
                all("would run" in sentence for sentence in sentences[::2])
                or form in ("bare", "first")
                or (name == "behind a tensor")
            )
    finally:
        copyreg.remove_extension("posix", "system", 0xF0)
    assert not sentinel.exists()


@pytest.mark.parametrize(
    ("name", "ends"),
    [
        ("os.system", "evil.pth would run posix.system when unpickled; kdx reads tensors only"),
        ("eval", "would run builtins.eval when unpickled; kdx reads tensors only"),
        ("subprocess", "would run subprocess.check_call when unpickled; kdx reads tensors only"),
        ("protocol 4", "would run posix.system when unpickled; kdx reads tensors only"),
        (
            "torch.load inside",
            "would run torch.storage._load_from_bytes when unpickled; kdx reads tensors only; if you trust the "
            "file, load it yourself and save the state dict alone",
        ),
        (
            "numpy objects",
            "would run posix.system, numpy._core.multiarray._reconstruct, numpy.ndarray when unpickled; "
            "kdx reads tensors only",
        ),
        ("behind a tensor", "would run posix.system when unpickled; kdx reads tensors only"),
    ],
)
def test_an_error_names_what_would_run(name: str, ends: str, tmp_path: Path) -> None:
    path = saved_as(tmp_path / "evil.pth", archive(HOSTILE[name]("sentinel")))
    assert refusal(path, check_pickle_file).endswith(ends)


@pytest.mark.parametrize("zipped", [True, False])
def test_functions_allowed_by_other_libraries_are_not_called(zipped: bool, tmp_path: Path) -> None:
    class Noticed:
        made = 0

        def __new__(cls, *values: Any) -> Noticed:
            Noticed.made += 1
            return super().__new__(cls)

    path = saved(
        tmp_path / "a.pth",
        {"state_dict": {"w": torch.ones(2)}, "args": argparse.Namespace(), "when": datetime.datetime(2020, 1, 1)},
        _use_new_zipfile_serialization=zipped,
    )
    evil = saved(tmp_path / "evil.pth", {"w": torch.ones(2), "x": Allowed}, _use_new_zipfile_serialization=zipped)
    others: list[Any] = [(Noticed, name) for name in IGNORED_GLOBALS] + [Allowed]
    with torch.serialization.safe_globals(others):
        assert torch.load(path, weights_only=True)["state_dict"]["w"].tolist() == [1, 1]
        assert Noticed.made == 2
        assert torch.load(evil, weights_only=True)["x"] is Allowed
        assert read_weights(path).tensors["w"].tolist() == [1, 1]
        assert "would run test_weights.Allowed" in refusal(evil, read_weights)
        assert set(torch.serialization.get_safe_globals()) >= set(others)
    assert Noticed.made == 2


class Allowed:
    """A class that another library of the process has allowed PyTorch to load."""


@pytest.mark.parametrize("content", BAD_PICKLES.values(), ids=BAD_PICKLES.keys())
def test_unsound_pickles_are_refused(content: bytes, tmp_path: Path) -> None:
    path = saved_as(tmp_path / "bad.pth", archive(content))
    for reader in (check_pickle_file, check_weights_file, read_weights):
        refusal(path, reader)


@pytest.mark.parametrize("content", BAD_CHECKPOINTS.values(), ids=BAD_CHECKPOINTS.keys())
def test_malformed_checkpoints_are_refused(content: bytes, tmp_path: Path) -> None:
    path = saved_as(tmp_path / "bad.pth", content)
    for reader in (check_pickle_file, check_weights_file, read_weights):
        refusal(path, reader)


@pytest.mark.parametrize("name", [name for name in BAD_SAFETENSORS if name not in ONLY_OURS])
def test_malformed_safetensors_are_refused(name: str, tmp_path: Path) -> None:
    path = saved_as(tmp_path / "bad.safetensors", BAD_SAFETENSORS[name])
    for reader in (check_safetensors_file, check_weights_file, read_weights, read_safetensors_header):
        refusal(path, reader)
    refusal(saved_as(tmp_path / "bad.pth", BAD_SAFETENSORS[name]), read_weights)


def test_files_of_other_kinds_are_named_in_the_error(tmp_path: Path) -> None:
    def said(content: bytes, name: str = "a.pth") -> str:
        return refusal(saved_as(tmp_path / name, content), check_weights_file)

    assert "git lfs pull" in said(BAD_CHECKPOINTS["git-lfs pointer"], "a.safetensors")
    assert "web page" in said(BAD_CHECKPOINTS["a page after blanks"])
    assert "is empty" in said(b"", "a.safetensors")
    script = tmp_path / "script.pt"
    with pytest.warns(Warning, match="deprecated"):
        torch.jit.script(nn.Linear(1, 1)).save(script)
    assert "TorchScript" in refusal(script, check_pickle_file)
    assert "torch.export" in refusal(script, read_weights)
    program = tmp_path / "program.pt2"
    torch.export.save(torch.export.export(nn.Linear(1, 1), (torch.zeros(1, 1),)), program)
    assert "program of torch.export" in refusal(program, read_weights)
    for zipped in (True, False):
        whole = saved(tmp_path / "whole.pth", small(), _use_new_zipfile_serialization=zipped)
        assert "holds a whole pickled network (test_weights.Small)" in refusal(whole, check_pickle_file)
        assert "torch.save(model.state_dict()" in refusal(whole, read_weights)
    company = saved(tmp_path / "company.pth", {"state_dict": small().state_dict(), "best": np.zeros(2)})
    assert "would run numpy" in refusal(company, read_weights)
    assert "save the state dict alone" in refusal(company, read_weights)


@pytest.mark.parametrize("reader", [check_weights_file, check_pickle_file, check_safetensors_file, read_weights])
def test_what_is_not_a_file_is_refused(reader: Callable[[Path], Any], tmp_path: Path) -> None:
    assert "does not exist" in refusal(tmp_path / "missing.pth", reader)
    (tmp_path / "directory.pth").mkdir()
    assert "is a directory" in refusal(tmp_path / "directory.pth", reader)
    os.mkfifo(tmp_path / "pipe.pth")
    assert "is a device" in refusal(tmp_path / "pipe.pth", reader)
    refusal(tmp_path / ("long" * 100), reader)


def test_a_check_needs_neither_torch_nor_numpy(tmp_path: Path) -> None:
    path = saved_as(tmp_path / "evil.pth", archive(HOSTILE["os.system"](str(tmp_path / "sentinel"))))
    program = (
        "import sys\nfrom pathlib import Path\nfrom kdextract.storage.artifacts import read_safetensors_header\n"
        "from kdextract.models.external.weight_files import check_weights_file\n"
        "try:\n    check_weights_file(Path(sys.argv[1]))\nexcept Exception as error:\n    print(error)\n"
        "print([name for name in ('torch', 'numpy', 'safetensors') if name in sys.modules])\n"
    )
    answer = subprocess.run(
        [sys.executable, "-c", program, path], capture_output=True, text=True, check=True, env=environment()
    )
    assert answer.stdout.splitlines() == [f"{path} would run posix.system when unpickled; kdx reads tensors only", "[]"]
    assert not (tmp_path / "sentinel").exists()


# ---- random damage ---------------------------------------------------------------------------------------------------

SOUND_PICKLE = b"\x80\x02}q\0(" + text("a") + tensor() + text("b") + tensor(sizes(2, 1), sizes(2, 1), 1) + text("c")
SOUND_PICKLE += number(90) + b"u."
SOUND_LEGACY_PICKLE = named(tensor(of=storage(end=b"N")))
SOUND = {
    "zip": archive(SOUND_PICKLE),
    "legacy": legacy(SOUND_LEGACY_PICKLE),
    "safetensors": safetensors(
        {
            "a": {"dtype": "F32", "shape": [2, 1], "data_offsets": [0, 8]},
            "b.c": {"dtype": "I64", "shape": [], "data_offsets": [8, 16]},
            "__metadata__": {"format": "pt"},
        },
        bytes(16),
    ),
}
changes_of_bytes = st.lists(st.tuples(st.integers(0, 2000), st.integers(0, 255)), max_size=4)


def read_or_refused(path: Path, content: bytes) -> bool:
    """Return whether a file is read. Errors other than a refusal are raised."""
    path.write_bytes(content)
    try:
        tensors = read_weights(path).tensors
    except ArtifactError:
        return False
    assert all(value.numel() * value.element_size() <= len(content) for value in tensors.values())
    return True


@MANY
@given(form=st.sampled_from(sorted(SOUND)), changes=changes_of_bytes, cut=st.integers(0, 2), tail=st.binary(max_size=2))
def test_damaged_files_are_read_or_refused(
    form: str, changes: list[tuple[int, int]], cut: int, tail: bytes, tmp_path: Path
) -> None:
    is_read = read_or_refused(tmp_path / "a.pth", damaged(SOUND[form], changes, cut, tail))
    assert is_read or changes or cut or tail


@MANY
@given(zipped=st.booleans(), changes=changes_of_bytes, cut=st.integers(0, 1), tail=st.binary(max_size=1))
def test_damaged_pickles_in_sound_files_are_read_or_refused(
    zipped: bool, changes: list[tuple[int, int]], cut: int, tail: bytes, tmp_path: Path
) -> None:
    pickled = damaged(SOUND_PICKLE if zipped else SOUND_LEGACY_PICKLE, changes, cut, tail)
    read_or_refused(tmp_path / "a.pth", archive(pickled) if zipped else legacy(pickled))


@MANY
@given(
    parts=st.lists(
        st.sampled_from(
            [
                *(bytes([code]) for code in b"}])(tN\x88\x85\x86suaeRb\x81Q"), b"q\0", b"h\0", text("a"), text("0"),
                number(4), number(2**70), storage(), tensor(), sizes(4), name_of("collections", "OrderedDict"),
                name_of("torch", "FloatStorage"), name_of("torch", "Size"),
                name_of("torch._utils", "_rebuild_tensor_v2"), name_of("torch.nn.parameter", "Parameter"),
            ]
        ),
        max_size=14,
    )
)  # fmt: skip
def test_any_sequence_of_instructions_is_read_or_refused(parts: list[bytes], tmp_path: Path) -> None:
    read_or_refused(tmp_path / "a.pth", archive(b"\x80\x02}" + text("w") + tensor() + b"s" + b"".join(parts) + b"."))


@pytest.mark.parametrize("legacy", [False, True])
def test_other_contents_of_training_checkpoints_are_ignored(tmp_path: Path, legacy: bool) -> None:
    from types import SimpleNamespace

    network = nn.Linear(3, 2)
    path = tmp_path / "checkpoint.pth.tar"
    company = {
        "args": argparse.Namespace(lr=0.1, data=Path("somewhere"), nested=argparse.Namespace(x=[1])),
        "best_prec1": np.float64(91.5),
        "when": datetime.datetime(2020, 1, 1),
        "simple": SimpleNamespace(a=1),
    }
    torch.save({**company, "state_dict": network.state_dict()}, path, _use_new_zipfile_serialization=not legacy)
    assert check_weights_file(path) == ("legacy" if legacy else "zip")
    weights = read_weights(path)
    torch.testing.assert_close(weights.tensors["weight"], network.weight.data)
    assert "args" in " ".join(weights.found)
    assert "0.1" not in " ".join(weights.found), "options are not read"
