"""What only a machine with a GPU can show; the other tests use the GPU there too, since `--device` is `auto`."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import Crash, error_of, kdx, sha256s
from helpers import SMALL

from kdextract import api
from kdextract.methods import generator_names, live_method, live_names, objective, objective_names
from kdextract.models.classifier import load_classifier
from kdextract.options.declare import option_fields
from kdextract.storage.artifacts import read_manifest
from kdextract.storage.tensor_files import read_safetensors
from kdextract.synthesis.generators.generator import load_generator

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="this machine has no GPU")

DEVICES = ("cpu", "cuda")
LIMIT_MEMORY = "import torch; torch.cuda.set_per_process_memory_fraction(0.01)"


@pytest.fixture(scope="module")
def runs(finished_run: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Copies of one run, for each device one."""
    folder = tmp_path_factory.mktemp("devices")
    return {device: shutil.copytree(finished_run, folder / device) for device in DEVICES}


def is_unique(name: str) -> bool:
    """Whether a tensor of statistics is the only right one: eigenvectors may have the other sign."""
    return not any(part in name for part in ("factor", "basis", "spectral"))


def known_options(name: str, **options: Any) -> dict[str, Any]:
    """Return `options` and `SMALL`, those of them that this live method has."""
    known = {declared.name for declared in option_fields(live_method(name).config)}
    return {option: value for option, value in (SMALL | options).items() if option in known}


def test_a_gpu_is_taken_if_there_is_one(finished_run: Path) -> None:
    for artifact in ("teacher", "students/lenet_half"):
        manifest = read_manifest(finished_run / artifact)
        assert manifest.environment["device"] == torch.cuda.get_device_name()
        assert manifest.budget["peak_gpu_memory_mb"] > 0


def test_statistics_and_accuracy_are_those_of_the_cpu(finished_run: Path, tmp_path: Path) -> None:
    runs = {device: shutil.copytree(finished_run, tmp_path / device) for device in DEVICES}
    accuracies = []
    for device, run in runs.items():
        api.compute_stats(run=run, covariance_rank=16, spectral_max=8, device=device, force=True, threads=1)
        evaluated = api.evaluate("students/lenet_half", run=run, device=device, force=True, threads=1)
        accuracies.append(evaluated.manifest.metrics["accuracy"])
    assert accuracies[0] == pytest.approx(accuracies[1], abs=0.005)
    on_cpu, on_gpu = (read_safetensors(run / "statistics" / "statistics.safetensors")[0] for run in runs.values())
    assert on_cpu.keys() == on_gpu.keys()
    compared = [name for name, tensor in on_cpu.items() if tensor.is_floating_point() and is_unique(name)]
    assert len(compared) > 5
    for name in compared:
        tolerance = 1e-3 * float(on_cpu[name].abs().max())
        assert torch.allclose(on_gpu[name], on_cpu[name], rtol=1e-3, atol=tolerance), name


@pytest.mark.parametrize("name", [name for name in objective_names() if not objective(name).needs_student])
def test_images_are_those_of_the_cpu(name: str, runs: dict[str, Path]) -> None:
    few: dict[str, Any] = {} if objective(name).gradient_free else {"steps": 3}
    if name == "natural_noise":  # a mixture that is fitted depends on the last bits of the teacher's statistics
        few["mixture"] = "equal"
    made = {
        device: api.optimize_dataset(
            run=run, objective=name, images_per_class=2, name=f"of-{name}", device=device, threads=1, **few
        ).directory
        for device, run in runs.items()
    }
    on_cpu, on_gpu = (np.load(made[device] / "images.npy").astype(int) for device in DEVICES)
    assert on_cpu.std() > 1
    assert np.abs(on_cpu - on_gpu).mean() < 0.05 * on_cpu.std()


@pytest.mark.parametrize("name", live_names())
def test_a_student_after_an_interruption_has_the_same_bytes(
    name: str, runs: dict[str, Path], saves_until_crash: Callable[[], list[int]]
) -> None:
    options: dict[str, Any] = {
        "run": runs["cuda"], "method": name, "steps": 24, "batch_size": 8, "student": "lenet_half", "threads": 1,
        "precision": "bf16", "device": "cuda", **known_options(name, pool=400, period=8, pool_batch=16, pixel_steps=3),
    }  # fmt: skip
    straight = sha256s(api.distill(**options, name="made", force=True).directory)
    shutil.rmtree(runs["cuda"] / "students" / "made")
    left = saves_until_crash()
    left[0] = 13
    with pytest.raises(Crash):
        api.distill(**options, name="made")
    left[0] = 10_000
    assert sha256s(api.distill(**options, name="made").directory) == straight


@pytest.mark.parametrize("name", generator_names())
def test_generators_are_those_of_the_cpu(name: str, runs: dict[str, Path]) -> None:
    quick: dict[str, Any] = {"method": name, "steps": 3, "batch_size": 6, "width": 4, "generators": 1, "threads": 1}
    made = {device: api.train_generator(run=run, device=device, **quick).directory for device, run in runs.items()}
    images = []
    for directory in made.values():
        generator = load_generator(directory / "generator-0.safetensors")
        noise, labels = generator.draw(5, torch.Generator().manual_seed(0)), torch.arange(5)
        with torch.no_grad():
            images.append(generator(noise, labels))
    assert float((images[0] - images[1]).abs().mean()) < 0.05 * float(images[0].std())


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("g++"), reason="torch.compile needs a C++ compiler")
def test_compiled_networks_learn(runs: dict[str, Path]) -> None:
    trained = api.train(run=runs["cuda"].parent / "compiled", epochs=2, compile=True, precision="bf16", threads=1)
    assert trained.manifest.metrics["train_accuracy"] > 0.5
    student = api.distill(
        run=runs["cuda"].parent / "compiled", method="dfq", steps=20, compile=True, precision="bf16", threads=1
    )
    assert np.isfinite(student.manifest.metrics["loss"])


@pytest.fixture(scope="module")
def blocks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on the GPU whose teacher has residual blocks and batch normalization."""
    run = tmp_path_factory.mktemp("blocks") / "run"
    api.train(run=run, model="resnet14", epochs=1, threads=1, device="cuda")
    return run


@pytest.mark.parametrize("criterion", ["magnitude", "batch-norm", "taylor", "fold"])
def test_pruned_networks_are_those_of_the_cpu(criterion: str, blocks: Path, tmp_path: Path) -> None:
    of_images = {"data": "noise:normal"} if criterion == "taylor" else {}
    sizes, accuracies = [], []
    for device in DEVICES:
        run = shutil.copytree(blocks, tmp_path / device)
        made = api.prune(run=run, macs=0.5, criterion=criterion, device=device, threads=1, **of_images)
        sizes.append(made.manifest.metrics["multiply_adds"])
        accuracies.append(api.evaluate(str(made.directory), run=run, device=device).manifest.metrics["accuracy"])
    assert sizes[0] == sizes[1]
    assert accuracies[0] == pytest.approx(accuracies[1], abs=0.05)


def test_the_time_of_a_network_is_measured_on_the_gpu(blocks: Path, tmp_path: Path) -> None:
    run = shutil.copytree(blocks, tmp_path / "run")
    made = api.prune(run=run, latency=0.9, device="cuda", threads=1)
    assert made.manifest.metrics["multiply_adds"] < read_manifest(run / "teacher").metrics.get("multiply_adds", 1e12)


@pytest.mark.parametrize("options", [{}, {"precision": "bf16"}, {"method": "natural_noise", "trials": 2}])
def test_a_cut_student_after_an_interruption_has_the_same_bytes(
    options: dict[str, Any], blocks: Path, tmp_path: Path, saves_until_crash: Callable[[], list[int]]
) -> None:
    run = shutil.copytree(blocks, tmp_path / "run")
    usual: dict[str, Any] = {
        "run": run, "student": "macs:0.5", "method": "structured_noise", "pool": 400, "steps": 24, "batch_size": 8,
        "match_blocks": 30.0, "device": "cuda", "threads": 1, "name": "made", **options,
    }  # fmt: skip
    straight = sha256s(api.distill(**usual).directory)
    shutil.rmtree(run / "students" / "made")
    left = saves_until_crash()
    left[0] = 13
    with pytest.raises(Crash):
        api.distill(**usual)
    left[0] = 10_000
    assert sha256s(api.distill(**usual).directory) == straight


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_classes_are_added_on_the_gpu(precision: str, blocks: Path, tmp_path: Path) -> None:
    run = shutil.copytree(blocks, tmp_path / "run")
    images = np.random.default_rng(0).integers(0, 255, (40, 28, 28), dtype=np.uint8)
    np.savez(tmp_path / "new.npz", images=images, labels=np.arange(40) % 2, class_names=np.array(["even", "odd"]))
    made = api.extend(
        run=run, data=f"npz:{tmp_path / 'new.npz'}", method="structured_noise", pool=200, steps=5, batch_size=8,
        device="cuda", precision=precision, threads=1,
    )  # fmt: skip
    assert made.manifest.environment["device"] == torch.cuda.get_device_name()
    assert len(load_classifier(made.directory / "model.safetensors").spec.class_names) == 12


def test_int8_is_that_of_the_cpu(blocks: Path, tmp_path: Path) -> None:
    pytest.importorskip("torchao")
    agreements = []
    for device in DEVICES:
        run = shutil.copytree(blocks, tmp_path / device)
        made = api.quantize(run=run, artifact="teacher", device=device, threads=1)
        agreements.append(made.manifest.metrics["held_out_agreement"])
    assert agreements[0] == pytest.approx(agreements[1], abs=0.03)


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("g++"), reason="torch.compile needs a C++ compiler")
def test_compiled_cut_networks_learn(blocks: Path, tmp_path: Path) -> None:
    run = shutil.copytree(blocks, tmp_path / "run")
    student = api.distill(
        run=run, student="macs:0.5", method="structured_noise", pool=400, steps=20, match_blocks=30.0, compile=True,
        precision="bf16", device="cuda", threads=1,
    )  # fmt: skip
    assert np.isfinite(student.manifest.metrics["loss"])


def test_out_of_memory_is_one_line_with_advice(runs: dict[str, Path], tmp_path: Path) -> None:
    command = ("distill", "--data", "noise:uniform", "--steps", "2", "--batch-size", str(5 * 10**5), "--name", "a")
    done = kdx(*command, "--run", runs["cuda"], "--student", "lenet_half", cwd=tmp_path, first=LIMIT_MEMORY)
    assert "--batch-size" in error_of(done, 7)
    assert not (runs["cuda"] / "students" / "a").exists()


def test_a_gpu_that_is_not_there(runs: dict[str, Path], tmp_path: Path) -> None:
    count = torch.cuda.device_count()
    done = kdx("evaluate", "students/lenet_half", "--run", runs["cuda"], "--device", f"cuda:{count}", cwd=tmp_path)
    assert f"this machine has no device 'cuda:{count}'" in error_of(done, 2)
