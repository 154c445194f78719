"""Fixtures that do not need PyTorch: runs to copy, `kdx` in this and in other processes, crashes at checkpoints."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from forked import Kdx

from kdextract import api
from kdextract.cli import app as cli
from kdextract.stages.running import checkpoints
from kdextract.stages.running.checkpoints import Checkpoints

if TYPE_CHECKING:
    import torch

os.environ.setdefault("OMP_NUM_THREADS", "1")  # of each of the processes that share the tests; before torch comes
os.environ["XDG_STATE_HOME"] = tempfile.mkdtemp(prefix="kdx-state-")  # whose code may run is not written into the home
os.environ["KDX_CACHE_DIR"] = tempfile.mkdtemp(prefix="kdx-cache-")  # and decoded images are not, either
HANGS_AFTER = 600.0  # seconds: against a process that never ends, and no measure of how fast the machine is
ROOT = Path(__file__).parent.parent
"""Where this copy of the project is."""
IN_MEMORY = Path("/dev/shm")
if os.access(IN_MEMORY, os.W_OK) and shutil.disk_usage(IN_MEMORY).free > 6e9:
    # Artifacts are flushed to the disk, for which the tests would wait a fifth of their time.
    os.environ.setdefault("PYTEST_DEBUG_TEMPROOT", str(IN_MEMORY))
SPEAKS_OF_THE_MACHINE = ("KDX_RUN", "KDX_DATA_DIR", "KDX_TRUST_CODE")

Done = subprocess.CompletedProcess[str]
Here = Callable[..., Done]


@pytest.fixture(scope="session", autouse=True)
def few_held_out_images() -> Iterator[None]:
    """Hold out fewer images of a source, which take most of the time of a student of a few steps."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("kdextract.training.observer.HELD_OUT_IMAGES", 200)
        yield


@pytest.fixture(scope="session")
def one_table_of_onnx_operators() -> Iterator[None]:
    """Keep PyTorch's table of ONNX operators, which takes half of an export's time and is made again for each."""
    from torch.onnx._internal.exporter._registration import ONNXRegistry

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ONNXRegistry, "from_torchlib", staticmethod(cache(ONNXRegistry.from_torchlib)))
        yield


def environment(extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """Return this process's environment with one thread and without kdx's own variables, plus `extra`."""
    kept = {name: value for name, value in os.environ.items() if name not in SPEAKS_OF_THE_MACHINE}
    return {**kept, "OMP_NUM_THREADS": "1", "COLUMNS": "200", "NO_COLOR": "1", **(extra or {})}


def kdx(
    *arguments: str | Path,
    cwd: Path,
    env: Mapping[str, str] | None = None,
    first: str = "",
    timeout: float = HANGS_AFTER,
) -> subprocess.CompletedProcess[str]:
    """Run `kdx` in `cwd` as a process that has imported everything, after the Python code `first`, and wait for it."""
    return Kdx([*map(str, arguments)], cwd, environment(env), first).wait(timeout)


def kdx_from_scratch(*arguments: str | Path, cwd: Path, **options: Any) -> subprocess.CompletedProcess[str]:
    """Run `python -m kdextract` in `cwd` as a user would, and wait for it."""
    command = [sys.executable, "-m", "kdextract", *map(str, arguments)]
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "timeout": HANGS_AFTER, **options}
    return subprocess.run(command, cwd=cwd, env=environment(), text=True, check=False, **options)


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], tmp_path: Path) -> Here:
    """`kdx` inside this process, in an empty directory: for tests that need no other process."""
    nowhere = tmp_path / "cwd"
    nowhere.mkdir()

    def run(*arguments: str | Path) -> Done:
        monkeypatch.chdir(nowhere)
        for name in ("KDX_RUN", "KDX_DATA_DIR"):
            monkeypatch.delenv(name, raising=False)
        monkeypatch.setattr(sys, "argv", ["kdx", *map(str, arguments)])
        capfd.readouterr()
        with pytest.raises(SystemExit) as stopped:
            cli.main()
        out, err = capfd.readouterr()
        return Done(sys.argv, int(stopped.value.code or 0), out, err)

    return run


def error_of(done: Done, code: int) -> str:
    """Return the only error line of a command; the command must have failed with `code`, without a traceback."""
    assert done.returncode == code, done.stderr
    lines = done.stderr.splitlines()
    assert [line.startswith("kdx: error: ") for line in lines] == [False] * (len(lines) - 1) + [True], done.stderr
    assert "Traceback" not in done.stderr
    return lines[-1]


def sha256s(directory: Path) -> dict[str, str]:
    """Return file -> sha256 of an artifact's payload: all files except the manifest, which contains times."""
    return {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(directory.iterdir())
        if path.name != "manifest.json"
    }


def errors_of_one_answer(labels: torch.Tensor) -> float:
    """Return the share of errors of a classifier that predicts the most frequent of these labels for every image.

    Errors of a trained classifier are compared with it, because their share differs between processors.
    """
    return 1 - float(labels.bincount().max()) / len(labels)


def rounding(expected: torch.Tensor) -> float:
    """Return how far from `expected` a network's output may be that differs by the order of floating-point sums alone.

    A thousand roundings of the largest value, 1.2e-4 of it in single precision: far more than processors, layouts in
    memory and sizes of batches differ by, and far less than what another operation would change.
    """
    import torch

    return 1000 * torch.finfo(expected.dtype).eps * float(expected.detach().abs().max())


@cache
def soon() -> float:
    """Return the CPU seconds within which a hostile file is refused: 150 times those of counting to a million.

    A refusal that reads a million operations takes less than 20 times as long as counting; an attack that
    succeeds takes minutes.
    """
    started = time.process_time()
    for _ in range(10**6):
        pass
    return 150 * (time.process_time() - started)


@pytest.fixture(scope="session")
def finished_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small, complete run. Tests only read it; tests that change files use `run_copy`."""
    run = tmp_path_factory.mktemp("finished") / "run"
    api.train(run=run, epochs=3, threads=1)
    api.compute_stats(run=run, covariance_rank=16, spectral_max=8, threads=1)
    api.optimize_dataset(run=run, objective="all_layers", images_per_class=4, batch_size=20, steps=3, threads=1)
    api.distill(run=run, steps=20, student="lenet_half", threads=1)
    api.evaluate(run=run, threads=1)
    return run


@pytest.fixture
def run_copy(finished_run: Path, tmp_path: Path) -> Path:
    """A copy of the finished run that the test may change."""
    return shutil.copytree(finished_run, tmp_path / "run")


def teacher_only(run: Path, target: Path) -> Path:
    """Make the directory `target` a run that has only the teacher of `run`."""
    target.mkdir()
    shutil.copytree(run / "teacher", target / "teacher")
    shutil.copy(run / "run.json", target)
    return target


@pytest.fixture
def teacher_run(finished_run: Path, tmp_path: Path) -> Path:
    """A run that has only a teacher."""
    return teacher_only(finished_run, tmp_path / "alone")


class Crash(Exception):
    """Stops a stage directly after a checkpoint was written."""


def save_until_crash(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Save a checkpoint at every opportunity; the one that reduces the returned count to 0 raises `Crash`."""
    monkeypatch.setattr(checkpoints, "CHECKPOINT_SECONDS", 0.0)
    real, left = Checkpoints.offer, [0]

    def offer(self: Checkpoints, state: Any) -> None:
        real(self, state)
        left[0] -= 1
        if not left[0]:
            raise Crash

    monkeypatch.setattr(Checkpoints, "offer", offer)
    return left


@pytest.fixture
def saves_until_crash(monkeypatch: pytest.MonkeyPatch) -> Callable[[], list[int]]:
    """`save_until_crash`, until the end of the test."""
    return lambda: save_until_crash(monkeypatch)


@pytest.fixture
def known_checksums(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make torchvision accept files of the right format instead of the published ones."""
    import torchvision.datasets

    monkeypatch.setattr("torchvision.datasets.cifar.check_integrity", lambda *arguments: True)
    monkeypatch.setattr(torchvision.datasets.SVHN, "_check_integrity", lambda self: True)


@pytest.fixture
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty directory in which kdx stores the permissions to run code during the test."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.delenv("KDX_TRUST_CODE", raising=False)
    return tmp_path / "state"
