"""The run directory: names, search for artifacts, the lock, and when a stage is cached."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from conftest import environment, kdx

from kdextract.errors import ArtifactError, ConfigError, RunLockedError, UsageError
from kdextract.storage.artifacts import (
    FORMAT_VERSION,
    Input,
    Manifest,
    Output,
    file_sha256,
    publish,
    replaced_path,
    write_file,
)
from kdextract.storage.run_dir import LOCK_FILE, RUN_FILE, ArtifactRef, RunDir, manifest_of, verified_manifest

CONFIG = {"seed": 0, "lr": 0.002, "student": "lenet_half"}
INPUTS = (Input("teacher", "teacher", "ab" * 32), Input("transfer-set", "transfer-sets/a", "cd" * 32))


def put(ref: ArtifactRef, content: bytes = b"weights", **changes: Any) -> Manifest:
    """Publish a small artifact in its directory."""

    def build(directory: Path) -> Manifest:
        write_file(directory / "model.bin", content)
        output = Output("model.bin", file_sha256(directory / "model.bin"), len(content))
        fields: dict[str, Any] = {
            "kind": ref.kind,
            "label": ref.label,
            "stage": "distill",
            "kdx_version": "0.1.0",
            "config": CONFIG,
            "inputs": INPUTS,
            "outputs": (output,),
        }
        return Manifest(**{**fields, **changes})

    return publish(ref.directory, build)


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    return RunDir(tmp_path / "run")


# ---- names -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["a", "lenet_half", "A.b-c_9", "9", "x" * 64])
def test_a_name_becomes_a_place(run: RunDir, name: str) -> None:
    ref = run.place("student", name)
    assert ref == ArtifactRef("student", name, run.root / "students" / name)
    assert ref.label == f"students/{name}"


@pytest.mark.parametrize(
    "name",
    ["", ".", "..", ".hidden", "-x", "_x", "a/b", "../teacher", "a\\b", "a b", "a\n", "\n", "ä", "a\0", "x" * 65, None],
)
def test_an_unsafe_name_is_refused(run: RunDir, name: str | None) -> None:
    with pytest.raises(UsageError, match="is not a name for an artifact"):
        run.place("student", name)


def test_places_of_the_pipeline(run: RunDir) -> None:
    assert run.place("teacher").directory == run.root / "teacher"
    assert run.place("statistics").label == "statistics"
    assert run.place("transfer-set", "a").label == "transfer-sets/a"
    assert run.place("evaluation", "a").label == "evaluations/a"


# ---- search for artifacts ------------------------------------------------------------------------------------------


def test_artifacts_come_in_the_order_of_the_pipeline(run: RunDir) -> None:
    assert run.artifacts() == []
    for kind, name in (
        ("student", "b"),
        ("evaluation", "e"),
        ("student", "a"),
        ("teacher", None),
        ("statistics", None),
    ):
        put(run.place(kind, name))
    (run.root / "students" / ".c.staged").mkdir()
    (run.root / "students" / "notes.txt").write_text("not an artifact")
    labels = ["teacher", "statistics", "students/a", "students/b", "evaluations/e"]
    assert [ref.label for ref in run.artifacts()] == labels
    assert [ref.label for ref in run.artifacts("student", "teacher")] == ["students/a", "students/b", "teacher"]
    assert [ref.label for ref in run.artifacts("transfer-set")] == []


@pytest.mark.parametrize("spelling", ["small", "students/small", "students/small/"])
def test_an_artifact_is_found_by_name_or_label(run: RunDir, spelling: str) -> None:
    put(run.place("student", "small"))
    put(run.place("student", "large"))
    assert run.find(spelling) == run.place("student", "small")


def test_a_similar_name_is_suggested(run: RunDir) -> None:
    with pytest.raises(UsageError, match=r"no artifact 'x'\. The run has none\."):
        run.find("x")
    put(run.place("student", "lenet_half"))
    put(run.place("teacher"))
    with pytest.raises(UsageError, match=r"Did you mean 'students/lenet_half'\?.*Known: teacher, students/lenet_half"):
        run.find("students/lenet-half")
    with pytest.raises(UsageError, match=r"Known: students/lenet_half\."):
        run.find("teacher", "student")
    with pytest.raises(UsageError) as caught:
        run.find("zzz")
    assert "Did you mean" not in str(caught.value)


def test_a_name_of_several_has_to_be_spelled_out(run: RunDir) -> None:
    for kind in ("student", "evaluation"):
        put(run.place(kind, "small"))
    with pytest.raises(ConfigError, match="students/small, evaluations/small"):
        run.find("small")
    assert run.find("small", "student").kind == "student"
    assert run.find("evaluations/small").kind == "evaluation"


def test_a_full_label_wins_over_a_bare_name(run: RunDir) -> None:
    """After `kdx evaluate teacher` there are a teacher and an evaluation of that name; `teacher` is the teacher."""
    put(run.place("teacher"))
    put(run.place("evaluation", "teacher"))
    assert run.find("teacher").kind == "teacher"
    assert run.find("evaluations/teacher").kind == "evaluation"


def test_what_is_missing_names_the_command_that_makes_it(run: RunDir) -> None:
    with pytest.raises(ConfigError, match="has no teacher; make one with: kdx train"):
        run.existing("teacher", "kdx train")
    put(run.place("teacher"))
    assert run.existing("teacher", "kdx train").directory.is_dir()


def test_an_artifact_must_be_at_its_place(run: RunDir) -> None:
    put(run.place("student", "small"))
    assert verified_manifest(run.place("student", "small")).label == "students/small"
    run.place("student", "small").directory.rename(run.place("student", "renamed").directory)
    with pytest.raises(ArtifactError, match="contains the student students/small: it was renamed or moved"):
        manifest_of(run.place("student", "renamed"))
    run.place("teacher").directory.parent.mkdir(exist_ok=True)
    run.place("student", "renamed").directory.rename(run.place("teacher").directory)
    with pytest.raises(ArtifactError, match="renamed or moved"):
        verified_manifest(run.place("teacher"))


# ---- the lock ------------------------------------------------------------------------------------------------------


HOLD = """
import sys, time
from pathlib import Path
from kdextract.storage.run_dir import RunDir
sys.argv = ["kdx", "train", "--epochs", "7"]
with RunDir(Path({root!r})).lock():
    print("held", flush=True)
    time.sleep(60)
"""


@contextmanager
def holder(root: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process that holds the run's lock, until it is killed."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD.format(root=str(root))], stdout=subprocess.PIPE, text=True, env=environment()
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        yield process
    finally:
        process.kill()
        process.wait()
        assert process.stdout is not None
        process.stdout.close()


def test_a_second_writer_stops_and_names_the_first(run: RunDir, tmp_path: Path) -> None:
    with holder(run.root) as process:
        done = kdx("train", "--run", run.root, cwd=tmp_path)
        assert done.returncode == 9
        assert done.stdout == ""
        lines = done.stderr.splitlines()
        assert len(lines) == 1
        assert lines[0].startswith("kdx: error:")
        assert f"process {process.pid} (kdx train --epochs 7)" in lines[0]
        assert not (run.root / "teacher").exists()
        with pytest.raises(RunLockedError), run.lock():
            pass
        assert str(process.pid) in (run.root / LOCK_FILE).read_text(), "the loser does not touch the holder's note"


def test_readers_need_no_lock(run_copy: Path, tmp_path: Path) -> None:
    with holder(run_copy):
        for command in (["show"], ["verify"], ["show", "students/lenet_half"]):
            assert kdx(*command, "--run", run_copy, cwd=tmp_path).returncode == 0


def test_the_lock_of_a_killed_process_is_released(run: RunDir) -> None:
    with holder(run.root) as process:
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        with run.lock():
            assert str(os.getpid()) in (run.root / LOCK_FILE).read_text()


def test_the_lock_is_free_again_after_an_error(run: RunDir) -> None:
    with pytest.raises(RuntimeError), run.lock():
        raise RuntimeError
    assert (run.root / LOCK_FILE).read_text() == ""
    with run.lock(), pytest.raises(RunLockedError), RunDir(run.root).lock():
        pass
    with run.lock():
        pass


# ---- run directories and others ------------------------------------------------------------------------------------


def test_the_first_writer_makes_the_directory_a_run(run: RunDir) -> None:
    with run.lock():
        pass
    record = json.loads((run.root / RUN_FILE).read_text())
    assert record["format_version"] == FORMAT_VERSION
    before = (run.root / RUN_FILE).stat().st_mtime_ns
    with run.lock():
        pass
    assert (run.root / RUN_FILE).stat().st_mtime_ns == before


def test_a_directory_of_something_else_is_refused_and_unchanged(run: RunDir) -> None:
    run.root.mkdir()
    (run.root / "thesis.tex").write_text("precious")
    with pytest.raises(ConfigError, match="is not a run directory: it contains thesis"), run.lock():
        pass
    assert [p.name for p in run.root.iterdir()] == ["thesis.tex"]


def test_an_empty_directory_may_become_a_run(run: RunDir) -> None:
    run.root.mkdir()
    (run.root / ".DS_Store").write_text("")
    with run.lock():
        pass
    assert (run.root / RUN_FILE).is_file()


def test_a_file_is_no_run_directory(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("precious")
    with pytest.raises(ConfigError), RunDir(tmp_path / "file").lock():
        pass
    assert (tmp_path / "file").read_text() == "precious"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (json.dumps({"format_version": FORMAT_VERSION + 1}), "upgrade"),
        (json.dumps({"format_version": "1"}), "format"),
        (json.dumps({"format_version": True}), "format"),
        (json.dumps({"format_version": 0}), "format"),
        ("{}", "malformed"),
        ("[]", "malformed"),
        ("{", "malformed"),
        ("", "malformed"),
        ("[" * 100_000, "malformed"),
    ],
    ids=["newer", "text", "true", "zero", "nothing", "a list", "no JSON", "empty", "deeply nested"],
)
def test_a_run_file_that_cannot_be_read_is_refused(run: RunDir, text: str, says: str) -> None:
    run.root.mkdir()
    (run.root / RUN_FILE).write_text(text)
    with pytest.raises(ArtifactError, match=says), run.lock():
        pass
    assert (run.root / RUN_FILE).read_text() == text


# ---- cached artifacts ----------------------------------------------------------------------------------------------


@pytest.fixture
def made(run: RunDir) -> ArtifactRef:
    ref = run.place("student", "small")
    put(ref)
    return ref


def test_nothing_is_done_at_first(run: RunDir) -> None:
    assert run.is_done(run.place("student", "small"), CONFIG, INPUTS, force=False) is False


def test_the_same_work_is_done(run: RunDir, made: ArtifactRef) -> None:
    assert run.is_done(made, dict(reversed(CONFIG.items())), INPUTS, force=False) is True
    moved = tuple(dataclasses.replace(entry, path="elsewhere") for entry in INPUTS)
    assert run.is_done(made, CONFIG, moved, force=False) is True, "what counts is the content of an input"


@pytest.mark.parametrize(
    ("config", "inputs", "says"),
    [
        ({**CONFIG, "lr": 0.01}, INPUTS, r"--lr: 0\.002 -> 0\.01"),
        ({**CONFIG, "lr": 0.01, "seed": 7}, INPUTS, r"--seed: 0 -> 7; --lr: 0\.002 -> 0\.01"),
        ({**CONFIG, "batch_size": 9}, INPUTS, "--batch-size: None -> 9"),
        ({"seed": 0, "lr": 0.002}, INPUTS, "--student: lenet_half -> None"),
        (CONFIG, (Input("teacher", "teacher", "ef" * 32), INPUTS[1]), "teacher: teacher abababab -> teacher efefefef"),
        (CONFIG, INPUTS[:1], "transfer-set: transfer-sets/a cdcdcdcd -> none"),
        (CONFIG, (*INPUTS, Input("student", "m.safetensors", "12" * 32)), "student: none -> m.safetensors 12121212"),
    ],
)
def test_other_work_is_refused_with_the_reason(
    run: RunDir, made: ArtifactRef, config: dict[str, Any], inputs: tuple[Input, ...], says: str
) -> None:
    with pytest.raises(ConfigError, match=says) as caught:
        run.is_done(made, config, inputs, force=False)
    assert "--force" in str(caught.value)
    assert "--name" in str(caught.value)
    assert run.is_done(made, config, inputs, force=True) is False


def test_an_artifact_without_a_name_is_kept_with_another_run(run: RunDir) -> None:
    put(run.place("teacher"))
    with pytest.raises(ConfigError, match="or another --run to keep both") as caught:
        run.is_done(run.place("teacher"), {}, INPUTS, force=False)
    assert "--name" not in str(caught.value)


def test_a_damaged_artifact_is_not_done(run: RunDir, made: ArtifactRef) -> None:
    (made.directory / "model.bin").write_bytes(b"wEights")
    with pytest.raises(ArtifactError, match="sha256 differs"):
        run.is_done(made, CONFIG, INPUTS, force=False)
    assert run.is_done(made, CONFIG, INPUTS, force=True) is False
    (made.directory / "manifest.json").write_text("{")
    with pytest.raises(ArtifactError, match="not valid JSON"):
        run.is_done(made, CONFIG, INPUTS, force=False)
    assert run.is_done(made, CONFIG, INPUTS, force=True) is False


def test_an_artifact_is_restored_after_an_interrupted_publication(run: RunDir, made: ArtifactRef) -> None:
    """A process killed between the two renames of a publication leaves the old artifact beside its place."""
    made.directory.rename(replaced_path(made.directory))
    assert run.is_done(made, CONFIG, INPUTS, force=False) is True
    assert made.directory.is_dir()


def test_another_artifact_at_the_place_is_not_done(run: RunDir, made: ArtifactRef) -> None:
    other = run.place("student", "other")
    made.directory.rename(other.directory)
    with pytest.raises(ArtifactError, match="renamed or moved"):
        run.is_done(other, CONFIG, INPUTS, force=False)


def test_an_option_that_is_added_later_keeps_artifacts_cached(run: RunDir, made: ArtifactRef) -> None:
    assert run.is_done(made, {**CONFIG, "new_option": None}, INPUTS, force=False) is True
    with pytest.raises(ConfigError, match="--new-option: None -> 3"):
        run.is_done(made, {**CONFIG, "new_option": 3}, INPUTS, force=False)
