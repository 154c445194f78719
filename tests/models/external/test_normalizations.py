"""Teachers with batch normalization: the header of the file, the network and the commands agree."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import kdx

from kdextract import api
from kdextract.errors import ConfigError
from kdextract.models.classifier import load_classifier
from kdextract.models.external import consent
from kdextract.models.external.names import parse_name
from kdextract.models.hooks import batch_norm_layers
from kdextract.storage.artifacts import BATCH_NORM_KEY, read_safetensors_header
from kdextract.storage.tensor_files import encode_safetensors, read_safetensors

NORMS = {
    "batch": ("nn.BatchNorm2d(6)", True),
    "instance": ("nn.InstanceNorm2d(6, affine=True, track_running_stats=True)", False),
    "both": ("nn.Sequential(nn.InstanceNorm2d(6, track_running_stats=True), nn.BatchNorm2d(6))", True),
    "forgets": ("nn.BatchNorm2d(6, track_running_stats=False)", False),
    "frozen": ("FrozenBatchNorm2d(6)", True),
    "group": ("nn.GroupNorm(2, 6)", False),
}
CODE = """
from torch import nn
from torchvision.ops import FrozenBatchNorm2d


def build():
    return nn.Sequential(
        nn.Conv2d(1, 6, 3, stride=2), {norm}, nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(24, 10)
    )
"""
SMALL = {"images_per_class": 1, "batch_size": 10, "steps": 2, "threads": 1}


@pytest.fixture(params=NORMS)
def norm(request: pytest.FixtureRequest) -> str:
    return request.param


def imported(norm: str, folder: Path) -> Path:
    """Return a run whose teacher is an imported network with this normalization."""
    code = folder / "model.py"
    code.write_text(CODE.format(norm=NORMS[norm][0]))
    torch.manual_seed(0)
    scope: dict[str, Any] = {}
    exec(code.read_text(), scope)
    network = scope["build"]().train()
    network(torch.rand(16, 1, 8, 8))
    torch.save(network.state_dict(), folder / "weights.pth")
    run = folder / "run"
    api.import_model(
        model=f"{code}:build", weights=folder / "weights.pth", input_size="1x8x8", mean="0.5", std="0.5", run=run,
        threads=1,
    )  # fmt: skip
    return run


def without_the_entry(run: Path) -> None:
    """Turn the file of the teacher into one of version 0.1, and adapt the manifest."""
    from dataclasses import replace

    from kdextract.storage.artifacts import Output, file_sha256, read_manifest, write_manifest

    file = run / "teacher" / "model.safetensors"
    tensors, metadata = read_safetensors(file)
    del metadata[BATCH_NORM_KEY]
    file.write_bytes(encode_safetensors(tensors, metadata))
    manifest = read_manifest(file.parent)
    outputs = [o for o in manifest.outputs if o.file != file.name]
    outputs.append(Output(file.name, file_sha256(file), file.stat().st_size))
    write_manifest(file.parent, replace(manifest, outputs=tuple(outputs)))


def missing(run: Path) -> str:
    """Return what `kdx methods` lists as missing in a run for DeepInversion."""
    done = kdx("methods", "--run", run, "--json", cwd=run.parent)
    assert done.returncode == 0, done.stderr
    record = json.loads(done.stdout)
    rows = record["methods"] if isinstance(record, dict) else record
    found = {row["missing"] for row in rows if row["method"] == "deep_inversion"}
    assert len(found) == 1
    return found.pop()


def applies(run: Path) -> str:
    """Return whether DeepInversion applies, according to `kdx check-teacher`."""
    done = kdx("check-teacher", "--run", run, "--json", cwd=run.parent)
    rows = json.loads(done.stdout)["methods"]
    found = {row["applies"] for row in rows if row["method"] == "deep_inversion"}
    assert len(found) == 1
    return found.pop()


@pytest.mark.slow
def test_file_network_and_commands_agree_on_batch_normalization(norm: str, tmp_path: Path) -> None:
    """Instance and batch normalization have tensors of the same names, so names cannot distinguish them."""
    run, batch_norm = imported(norm, tmp_path), NORMS[norm][1]
    file = run / "teacher" / "model.safetensors"
    assert read_safetensors_header(file)[1][BATCH_NORM_KEY] is batch_norm
    assert bool(batch_norm_layers(load_classifier(file).network)) is batch_norm
    assert ("no batch normalization" in missing(run)) is not batch_norm
    if norm != "forgets":  # which cannot be a teacher for check-teacher: an image gets other logits in company
        assert applies(run) == ("yes" if batch_norm else "with data")
    if not batch_norm:
        with pytest.raises(ConfigError, match="compute-stats"):
            api.optimize_dataset(run=run, objective="deep_inversion", **SMALL)
        api.compute_stats(run=run, data="digits", threads=1, spectral=False, covariance_rank=2)
        assert missing(run) == ""
    made = api.optimize_dataset(run=run, objective="deep_inversion", **SMALL)
    assert made.manifest is not None
    assert made.manifest.needs == ("teacher" if batch_norm else "teacher+statistics")


@pytest.mark.parametrize("norm", ["instance", "both"])
def test_a_file_of_version_0_1_is_loaded_to_find_batch_normalization(norm: str, tmp_path: Path) -> None:
    run, batch_norm = imported(norm, tmp_path), NORMS[norm][1]
    without_the_entry(run)
    assert ("no batch normalization" in missing(run)) is not batch_norm


def test_the_modules_of_a_program_are_distinguished(tmp_path: Path) -> None:
    """torch.export gives all modules one type, so they are distinguished by their operations."""
    from kdextract.models.external.exported_program import Program

    for norm in ("batch", "instance", "forgets"):
        scope: dict[str, Any] = {}
        exec(CODE.format(norm=NORMS[norm][0]), scope)
        batch = {0: torch.export.Dim("batch")}
        exported = torch.export.export(scope["build"]().eval(), (torch.rand(4, 1, 8, 8),), dynamic_shapes=(batch,))
        path = tmp_path / f"{norm}.pt2"
        torch.export.save(exported, path)
        consent.allow(path.read_bytes(), parse_name(str(path)), path)
        assert bool(batch_norm_layers(Program(path.read_bytes()))) is NORMS[norm][1], norm
