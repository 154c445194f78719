"""An interrupted stage resumes and ends with the same bytes; equal seeds give equal bytes, other seeds others."""

from __future__ import annotations

import json
import os
import shutil
import signal
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from conftest import HANGS_AFTER, Crash, environment, save_until_crash, sha256s
from forked import Kdx

from kdextract import api
from kdextract.errors import ArtifactError
from kdextract.options.declare import spelling
from kdextract.stages.running import checkpoints
from kdextract.stages.running.checkpoints import CHECKPOINT_FILE, CHECKPOINT_FORMAT, Checkpoints
from kdextract.stages.running.runner import KEY_FILE
from kdextract.storage.artifacts import partial_path
from kdextract.storage.tensor_files import encode_safetensors, read_safetensors_metadata

CHECKPOINT_AT_EVERY_OFFER = "from kdextract.stages.running import checkpoints; checkpoints.CHECKPOINT_SECONDS = 0.0"
PLACES = {"train": "teacher", "optimize-dataset": "transfer-sets/made", "distill": "students/made"}
LONG: dict[str, dict[str, Any]] = {  # some seconds of work
    "train": {"epochs": 2, "batch_size": 24, "threads": 1, "seed": 3},
    "optimize-dataset": {
        "objective": "all_layers",
        "images_per_class": 16,
        "batch_size": 10,
        "steps": 20,
        "name": "made",
        "threads": 1,
        "seed": 3,
    },
    "distill": {"data": "all_layers", "steps": 100, "batch_size": 24, "name": "made", "threads": 1, "seed": 3},
}
SHORT: dict[str, dict[str, Any]] = {  # a few checkpoints
    "train": {"epochs": 2, "batch_size": 450, "threads": 1, "seed": 3},
    "optimize-dataset": {**LONG["optimize-dataset"], "images_per_class": 5, "steps": 2},
    "distill": {**LONG["distill"], "steps": 6},
}


def function_of(stage: str) -> Callable[..., Any]:
    function = getattr(api, stage.replace("-", "_"))
    assert callable(function)
    return function


def start_over(run: Path, stage: str) -> Path:
    """Remove the artifact of the stage from a copy of the finished run, and return its directory."""
    if stage == "train":
        shutil.rmtree(run)
    return run / PLACES[stage]


@pytest.fixture(scope="module")
def uninterrupted(finished_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., dict[str, str]]:
    """A function that returns the sha256 of the files of an uninterrupted stage, which runs only once."""

    @cache
    def made(stage: str, long: bool = False) -> dict[str, str]:
        run = shutil.copytree(finished_run, tmp_path_factory.mktemp("straight") / "run")
        target = start_over(run, stage)
        function_of(stage)(run=run, **(LONG if long else SHORT)[stage])
        return sha256s(target)

    return made


# ---- killed by another process -------------------------------------------------------------------------------------


class Process:
    """`kdx` as a process that saves a checkpoint at every opportunity."""

    def __init__(self, stage: str, run: Path) -> None:
        arguments = [text for name, value in LONG[stage].items() for text in (spelling(name), str(value))]
        self._checkpoint = partial_path(run / PLACES[stage]) / CHECKPOINT_FILE
        words = [stage, "--run", str(run), *arguments]
        self._process = Kdx(words, run.parent, environment(), CHECKPOINT_AT_EVERY_OFFER)

    def rows(self) -> int:
        """Number of metric rows in the checkpoint."""
        try:
            return len(read_safetensors_metadata(self._checkpoint)["rows"])
        except ArtifactError:
            return 0

    def stop_after(self, rows: int, number: signal.Signals) -> tuple[int, str]:
        """Send a signal when the checkpoint has N rows; return exit code and stderr."""
        deadline = time.monotonic() + HANGS_AFTER
        while self.rows() < rows:
            assert not self._process.ended(), "it ended before it could be stopped"
            assert time.monotonic() < deadline
            time.sleep(0.002)
        os.kill(self._process.pid, number)
        return self.wait()

    def wait(self) -> tuple[int, str]:
        """Return exit code and stderr."""
        done = self._process.wait(HANGS_AFTER)
        return done.returncode, done.stderr


INTERRUPTIONS = {
    "train": [(2, signal.SIGKILL), (40, signal.SIGTERM), (80, signal.SIGKILL)],
    "optimize-dataset": [(1, signal.SIGKILL), (5, signal.SIGINT), (10, signal.SIGKILL)],
    "distill": [(2, signal.SIGKILL), (25, signal.SIGTERM), (45, signal.SIGKILL), (70, signal.SIGINT)],
}
EXIT_CODES = {signal.SIGKILL: -9, signal.SIGTERM: 143, signal.SIGINT: 130}


@pytest.mark.parametrize(
    "stage", ["distill", *(pytest.param(stage, marks=pytest.mark.slow) for stage in ("train", "optimize-dataset"))]
)
def test_killed_again_and_again_it_ends_with_the_same_bytes(
    run_copy: Path, uninterrupted: Callable[..., dict[str, str]], stage: str
) -> None:
    target = start_over(run_copy, stage)
    reached = 0
    for rows, number in INTERRUPTIONS[stage]:
        process = Process(stage, run_copy)
        code, err = process.stop_after(rows, number)
        assert code == EXIT_CODES[number], err
        assert not target.exists()
        assert process.rows() >= max(rows, reached), "work that was saved is not lost"
        assert ("continues from the checkpoint" in err) == (reached > 0)
        if number != signal.SIGKILL:
            assert err.splitlines()[-1] == (
                f"kdx: error: stopped by {number.name}; run the same command again to continue"
            )
            assert "Traceback" not in err
        reached = process.rows()
    code, err = Process(stage, run_copy).wait()
    assert code == 0, err
    assert "continues from the checkpoint" in err
    assert sha256s(target) == uninterrupted(stage, long=True)
    assert not partial_path(target).exists()


# ---- interrupted at every checkpoint, inside this process ------------------------------------------------------------


def crashed(run: Path, stage: str, offers: int, **changes: Any) -> Path:
    """Start the stage, crash it after N checkpoints, and return the directory of its artifact."""
    with pytest.MonkeyPatch.context() as patch:
        save_until_crash(patch)[0] = offers
        with pytest.raises(Crash):
            function_of(stage)(run=run, **{**SHORT[stage], **changes})
    target = run / PLACES[stage]
    assert (partial_path(target) / CHECKPOINT_FILE).is_file()
    assert not target.exists()
    return target


@pytest.mark.parametrize(("stage", "offers"), [("train", 5), ("optimize-dataset", 5), ("distill", 5)])
def test_stopped_at_any_checkpoint_it_ends_with_the_same_bytes(
    finished_run: Path, tmp_path: Path, uninterrupted: Callable[..., dict[str, str]], stage: str, offers: int
) -> None:
    for k in range(1, offers + 1):
        run = shutil.copytree(finished_run, tmp_path / str(k))
        start_over(run, stage)
        target = crashed(run, stage, k)
        function_of(stage)(run=run, **SHORT[stage])
        assert sha256s(target) == uninterrupted(stage), f"after checkpoint {k}"


@pytest.mark.parametrize("stage", ["train", "optimize-dataset", "distill"])
def test_saving_checkpoints_changes_nothing(
    run_copy: Path, uninterrupted: Callable[..., dict[str, str]], monkeypatch: pytest.MonkeyPatch, stage: str
) -> None:
    straight = uninterrupted(stage)
    monkeypatch.setattr(checkpoints, "CHECKPOINT_SECONDS", 0.0)
    target = start_over(run_copy, stage)
    function_of(stage)(run=run_copy, **SHORT[stage])
    assert sha256s(target) == straight


def test_a_resumed_stage_starts_from_the_last_checkpoint(run_copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    crashed(run_copy, "distill", 4)
    restored = []
    real = Checkpoints.load

    def load(self: Checkpoints) -> Any:
        restored.append(real(self))
        return restored[-1]

    monkeypatch.setattr(Checkpoints, "load", load)
    function_of("distill")(run=run_copy, **SHORT["distill"])
    assert [row["step"] for row in restored[0][1]["rows"]] == [1, 2, 3, 4]


def flip_the_last_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(bytes(content))


def flip_a_weight(path: Path) -> None:
    """Change the highest byte of the first number after the header."""
    content = bytearray(path.read_bytes())
    content[8 + int.from_bytes(content[:8], "little") + 3] ^= 1
    path.write_bytes(bytes(content))


DAMAGE: dict[str, Callable[[Path], Any]] = {
    "truncated": lambda path: path.write_bytes(path.read_bytes()[:-100]),
    "empty": lambda path: path.write_bytes(b""),
    "random bytes": lambda path: path.write_bytes(bytes(range(256)) * 40),
    "missing": lambda path: path.unlink(),
    "key is missing": lambda path: (path.parent / KEY_FILE).unlink(),
    "key is damaged": lambda path: (path.parent / KEY_FILE).write_bytes(b"{"),
    "a weight was changed": flip_a_weight,
    "the last bit was changed": flip_the_last_bit,
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE.keys())
@pytest.mark.parametrize("stage", ["optimize-dataset", "distill"])
def test_a_damaged_checkpoint_is_ignored(
    run_copy: Path, uninterrupted: Callable[..., dict[str, str]], stage: str, damage: Callable[[Path], Any]
) -> None:
    target = crashed(run_copy, stage, 3)
    damage(partial_path(target) / CHECKPOINT_FILE)
    function_of(stage)(run=run_copy, **SHORT[stage])
    assert sha256s(target) == uninterrupted(stage)


def test_a_checkpoint_of_other_work_is_not_used(run_copy: Path, uninterrupted: Callable[..., dict[str, str]]) -> None:
    target = crashed(run_copy, "distill", 3, seed=4)
    function_of("distill")(run=run_copy, **SHORT["distill"])
    assert sha256s(target) == uninterrupted("distill")


def test_a_checkpoint_of_an_earlier_layout_is_not_used(
    run_copy: Path, uninterrupted: Callable[..., dict[str, str]]
) -> None:
    target = crashed(run_copy, "distill", 3)
    key = partial_path(target) / KEY_FILE
    written = json.loads(key.read_bytes())
    assert written.pop("checkpoint_format") == CHECKPOINT_FORMAT
    key.write_text(json.dumps(written, sort_keys=True))
    values: dict[str, Any] = {"rows": [{"step": 3}]}
    content = encode_safetensors({}, {**values, "sha256": checkpoints._digest({}, values)})
    (partial_path(target) / CHECKPOINT_FILE).write_bytes(content)
    function_of("distill")(run=run_copy, **SHORT["distill"])
    assert sha256s(target) == uninterrupted("distill")


def test_a_checkpoint_of_another_teacher_is_not_used(run_copy: Path, tmp_path: Path) -> None:
    target = crashed(run_copy, "distill", 3, data="noise:uniform")
    api.train(run=run_copy, epochs=1, seed=9, force=True, threads=1)
    fresh = shutil.copytree(run_copy, tmp_path / "fresh")
    shutil.rmtree(partial_path(fresh / PLACES["distill"]))
    for run in (run_copy, fresh):
        function_of("distill")(run=run, **{**SHORT["distill"], "data": "noise:uniform"})
    assert sha256s(target) == sha256s(fresh / PLACES["distill"])


# ---- seeds -----------------------------------------------------------------------------------------------------------


def payload(run: Path) -> dict[str, dict[str, str]]:
    """Return the sha256 of every file of a run's artifacts."""
    return {str(p.parent.relative_to(run)): sha256s(p.parent) for p in sorted(run.rglob("manifest.json"))}


def whole_chain(run: Path, seed: int) -> dict[str, dict[str, str]]:
    api.train(run=run, epochs=1, seed=seed, threads=1)
    api.compute_stats(run=run, covariance_rank=4, spectral=False, seed=seed, threads=1)
    for objective in ("top_layer", "all_layers_dropout"):
        api.optimize_dataset(
            run=run, objective=objective, images_per_class=2, batch_size=10, steps=2, seed=seed, threads=1
        )
    api.distill(run=run, data="top_layer", steps=3, seed=seed, threads=1)
    api.distill(run=run, data="noise:normal", steps=3, batch_size=8, seed=seed, name="floor", threads=1)
    api.evaluate(run=run, artifact="floor", seed=seed, threads=1)
    return payload(run)


def test_equal_seeds_give_equal_bytes_and_others_do_not(tmp_path: Path) -> None:
    once, again, other = (whole_chain(tmp_path / name, seed) for name, seed in (("a", 1), ("b", 1), ("c", 2)))
    assert len(once) == 7
    assert once == again
    for place in once:
        payload_file = next(name for name in once[place] if name not in ("metrics.jsonl", "labels.npy"))
        assert once[place][payload_file] != other[place][payload_file], place


@pytest.mark.slow
def test_statistics_are_the_same_every_time(finished_run: Path, run_copy: Path) -> None:
    api.compute_stats(run=run_copy, covariance_rank=16, spectral_max=8, force=True, threads=1)
    assert sha256s(run_copy / "statistics") == sha256s(finished_run / "statistics")
