"""`--precision bf16` and `--compile`: equal results except for rounding, in every stage and method that has them."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import kdx, rounding
from helpers import classifier

from kdextract import api
from kdextract.errors import ConfigError
from kdextract.methods import live_method, live_names, objective, objective_names
from kdextract.models.classifier import Classifier, load_classifier
from kdextract.models.hooks import record_batch_statistics
from kdextract.options.declare import option_fields
from kdextract.stages.running import torch_settings
from kdextract.storage.artifacts import read_manifest
from kdextract.training.supervised import predict

CPU = torch.device("cpu")


def pixels(network: Classifier, count: int = 16) -> torch.Tensor:
    return torch.rand((count, *network.input_shape), generator=torch.Generator().manual_seed(0))


def test_bfloat16_rounds_and_returns_float32() -> None:
    network = classifier().frozen()
    x = pixels(network)
    with torch.no_grad():
        exact = network(x)
        rounded = network.placed(CPU, torch.bfloat16)(x)
    assert rounded.dtype == torch.float32
    assert not torch.equal(exact, rounded)
    assert torch.allclose(exact, rounded, atol=0.05 * float(exact.abs().max()))
    assert all(weight.dtype == torch.float32 for weight in network.parameters())
    with torch.no_grad():
        assert torch.equal(network.placed(CPU)(x), exact)


@pytest.mark.parametrize("name", live_names())
@pytest.mark.slow
def test_live_methods_run_in_bfloat16(name: str, finished_run: Path, tmp_path: Path) -> None:
    run = shutil.copytree(finished_run, tmp_path / "run")
    small = {"pool": 400, "fresh": 4, "pool_batch": 16, "period": 2, "pixel_steps": 3}
    known = [declared.name for declared in option_fields(live_method(name).config)]
    options: dict[str, Any] = {option: value for option, value in small.items() if option in known}
    options |= {"run": run, "method": name, "steps": 4, "batch_size": 8, "threads": 1}
    rounded = api.distill(**options, name="rounded", precision="bf16")
    assert rounded.manifest.config["precision"] == "bf16"
    assert np.isfinite(rounded.manifest.metrics["loss"])
    if name != "deep_dream":
        return
    exact = api.distill(**options, name="exact")
    again = api.distill(**options, name="again", precision="fp32")
    assert exact.manifest.identity == again.manifest.identity != rounded.manifest.identity


@pytest.mark.parametrize("name", [n for n in objective_names() if not objective(n).needs_student])
def test_objectives_run_in_bfloat16(name: str, finished_run: Path, tmp_path: Path) -> None:
    run = shutil.copytree(finished_run, tmp_path / "run")
    few = {} if objective(name).gradient_free else {"steps": 2}
    options: dict[str, Any] = {"run": run, "objective": name, "images_per_class": 2, "threads": 1, **few}
    rounded = api.optimize_dataset(**options, name="rounded", precision="bf16")
    targets = np.load(rounded.directory / "targets.npy")
    assert np.isfinite(targets).all()
    teacher = load_classifier(run / "teacher" / "model.safetensors").frozen()
    exact = predict(teacher, torch.from_numpy(np.load(rounded.directory / "images.npy"))).numpy()
    assert not np.array_equal(targets, exact)
    assert targets == pytest.approx(exact, abs=0.05 * float(np.abs(exact).max()))


@pytest.fixture
def compiles(monkeypatch: pytest.MonkeyPatch) -> None:
    """Trace with Dynamo but do not compile with a C++ compiler: seconds instead of a minute."""
    compile_ = torch.nn.Module.compile
    monkeypatch.setattr(torch.nn.Module, "compile", lambda self: compile_(self, backend="aot_eager"))
    torch._dynamo.reset()


@pytest.mark.usefixtures("compiles")
def test_a_compiled_network_returns_equal_logits_and_calls_its_hooks() -> None:
    network, plain = classifier().frozen(), classifier().frozen()
    x = pixels(network).requires_grad_(True)
    network.placed(CPU, compiled=True)
    expected = plain(x)
    assert torch.allclose(network(x), expected, rtol=0, atol=rounding(expected))
    for _ in range(2):
        sums = []
        for one in (network, plain):
            with record_batch_statistics(one.network) as recorded:
                one(x)
            assert len(recorded) == 2
            (gradient,) = torch.autograd.grad(torch.stack([s.variance.sum() for s in recorded.values()]).sum(), x)
            sums.append(gradient)
        assert torch.allclose(*sums, rtol=0, atol=rounding(sums[1]))
    assert network.state_dict().keys() == plain.state_dict().keys()
    assert torch.allclose(network.copy()(x), expected, rtol=0, atol=rounding(expected))


@pytest.mark.usefixtures("compiles")
def test_stages_compile(finished_run: Path, tmp_path: Path) -> None:
    run = shutil.copytree(finished_run, tmp_path / "run")
    options: dict[str, Any] = {"run": run, "data": "all_layers", "steps": 6, "threads": 1}
    compiled = api.distill(**options, name="compiled", compile=True)
    plain = api.distill(**options, name="plain")
    assert compiled.manifest.config["compile"] is True
    ours, theirs = (load_classifier(made.directory / "model.safetensors") for made in (compiled, plain))
    with torch.no_grad():
        x = pixels(ours)
        assert torch.allclose(ours(x), theirs(x), rtol=1e-2, atol=1e-2)


def test_a_missing_compiler_is_named_in_the_error(run_copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch_settings, "COMPILERS", ("no-such-compiler",))
    with pytest.raises(ConfigError, match="--compile needs a C\\+\\+ compiler"):
        api.distill(run=run_copy, data="all_layers", name="x", steps=2, compile=True, threads=1)


def test_earlier_artifacts_stay_valid(run_copy: Path) -> None:
    kept = read_manifest(run_copy / "teacher").config
    assert kept["precision"] is None
    done = kdx("train", "--run", run_copy, "--epochs", "3", "--threads", "1", cwd=run_copy.parent)
    assert done.returncode == 0, done.stderr
    done = kdx("train", "--run", run_copy, "--epochs", "3", "--threads", "1", "--precision", "fp64", cwd=run_copy)
    assert done.returncode == 2
    assert "unknown value 'fp64' of --precision" in done.stderr
