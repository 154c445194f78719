"""The command line: every exit code, the contents of stdout and stderr, and the list of commands and options."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import Here, environment, error_of, kdx, kdx_from_scratch, sha256s, teacher_only
from typer.main import get_command

import kdextract
from kdextract import api
from kdextract.cli import app as cli
from kdextract.cli import commands
from kdextract.models.classifier import Classifier, ClassifierSpec, encode_classifier
from kdextract.stages import STAGES
from kdextract.storage.run_dir import RunDir

ONE = ("--threads", "1")
DISTILL = ("distill", "--student", "lenet_half", *ONE)
OPTIMIZE = ("optimize-dataset", "--objective", "all_layers", *ONE)
AS_FINISHED = {  # what the finished run was made with
    "train": ("train", "--epochs", "3", *ONE),
    "compute-stats": ("compute-stats", "--covariance-rank", "16", "--spectral-max", "8", *ONE),
    "optimize-dataset": (*OPTIMIZE, "--images-per-class", "4", "--batch-size", "20", "--steps", "3"),
    "distill": (*DISTILL, "--steps", "20"),
    "evaluate": ("evaluate", *ONE),
}
RUN_STAGE = commands.run_stage


def tree(root: Path) -> dict[str, tuple[int, bytes]]:
    """Return every file below `root` with its time and content, and every directory."""
    return {
        str(path.relative_to(root)): (path.stat().st_mtime_ns, path.read_bytes() if path.is_file() else b"")
        for path in sorted(root.rglob("*"))
    }


def write_classifier(path: Path, architecture: str, shape: tuple[int, int, int], num_classes: int) -> Path:
    names = tuple(f"class {i}" for i in range(num_classes))
    ones = (0.5,) * shape[0]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(encode_classifier(Classifier(ClassifierSpec(architecture, shape, names, ones, ones))))
    return path


# ---- 0: done -------------------------------------------------------------------------------------------------------


def test_0_done_then_cached(run_copy: Path, tmp_path: Path) -> None:
    command = (*DISTILL, "--steps", "2", "--name", "tiny", "--run", run_copy)
    made = kdx_from_scratch(*command, cwd=tmp_path)
    assert made.returncode == 0, made.stderr
    assert str(run_copy / "students" / "tiny") in made.stdout
    assert made.stdout.split()[1] != "cached"
    before = tree(run_copy / "students")
    again = kdx(*command, cwd=tmp_path)
    assert again.returncode == 0
    assert again.stdout.split()[:2] == ["distill", "cached"]
    assert tree(run_copy / "students") == before


@pytest.mark.parametrize("stage", AS_FINISHED)
def test_0_every_finished_stage_is_cached(here: Here, run_copy: Path, stage: str) -> None:
    before = {name: entry for name, entry in tree(run_copy).items() if name != ".lock"}
    done = here(*AS_FINISHED[stage], "--run", run_copy, "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["status"] == "cached"
    assert {name: entry for name, entry in tree(run_copy).items() if name != ".lock"} == before


def test_0_without_arguments_help_is_shown(tmp_path: Path) -> None:
    done = kdx_from_scratch(cwd=tmp_path)
    assert done.returncode == 0
    assert "Usage: kdx" in done.stdout
    assert done.stderr == ""


# ---- 1: a bug ------------------------------------------------------------------------------------------------------


def test_1_a_bug_shows_its_traceback(here: Here, run_copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*arguments: Any) -> None:
        raise ZeroDivisionError("oops")

    monkeypatch.setattr(commands, "run_stage", broken)
    done = here(*DISTILL, "--run", run_copy)
    assert done.returncode == 1
    assert "Traceback" in done.stderr
    assert done.stderr.splitlines()[-1].startswith("kdx: error: ZeroDivisionError: oops (a bug")


# ---- 2: usage ------------------------------------------------------------------------------------------------------


USAGE = {
    "unknown option": (("train", "--epoch", "3"), "--epochs"),
    "unknown command": (("trian",), "Did you mean 'train'"),
    "unknown objective": ((*OPTIMIZE[:2], "spectral_al_layers"), "Did you mean 'spectral_all_layers'"),
    "unknown model": (("train", "--model", "lenett"), "Did you mean 'lenet'"),
    "unknown student": (("distill", "--student", "lenet-half"), "Did you mean 'lenet_half'"),
    "unknown data": (("train", "--data", "mnits"), "Did you mean 'mnist'"),
    "unknown source": (("distill", "--data", "noise:norml"), "Did you mean 'noise:normal'"),
    "unknown transfer set": (("distill", "--data", "all_layer"), "Did you mean 'all_layers'"),
    "unknown loss": (("distill", "--loss", "kll"), "Did you mean 'kl'"),
    "unknown artifact": (("show", "students/lenet-half"), "Did you mean 'students/lenet_half'"),
    "unknown classifier": (("evaluate", "students/lenet-half"), "Did you mean 'students/lenet_half'"),
    "unknown device": ((*DISTILL, "--device", "tpu", "--name", "a"), "use auto, cpu, cuda"),
    "unsupported device": ((*DISTILL, "--device", "meta", "--name", "a"), "not supported"),
    "not a number": (("train", "--epochs", "abc"), "--epochs"),
    "value is missing": (("train", "--lr"), "--lr"),
    "one argument too many": (("show", "a", "b"), "b"),
    "below the least": (("train", "--epochs", "0"), "--epochs must be at least 1, got 0"),
    "negative seed": (("train", "--seed", "-1"), "--seed must be at least 0, got -1"),
    "above the most": (("evaluate", "--min-accuracy", "1.01"), "--min-accuracy must be at most 1, got 1.01"),
    "zero rate": (("train", "--lr", "0"), "--lr must be above 0, got 0"),
    "rate is nan": (("train", "--lr", "nan"), "--lr is not a number"),
    "rate is infinite": (("distill", "--lr", "inf", "--steps", "1", "--name", "a", *ONE), "--lr"),
    "temperature is infinite": (("distill", "--temperature", "inf", "--steps", "1", "--name", "a", *ONE), "--temp"),
    "malformed size": (("train", "--input-size", "32"), "such as 3x32x32"),
    "unsafe name": ((*DISTILL, "--name", "../x"), "is not a name for an artifact"),
    "option of another method": (("optimize-dataset", "--objective", "top_layer", "--keep-input", "0.5"), "no effect"),
    "option of another loss": (("distill", "--loss", "mse", "--temperature", "2"), "no effect"),
}


@pytest.mark.parametrize(("arguments", "says"), USAGE.values(), ids=USAGE.keys())
def test_2_usage(here: Here, run_copy: Path, arguments: tuple[str, ...], says: str) -> None:
    takes_run = arguments[0] != "trian"
    done = here(*arguments, *(("--run", run_copy) if takes_run else ()))
    assert says in error_of(done, 2)
    assert done.stdout == ""
    assert not (run_copy / "students" / "a").exists()


def test_2_usage_in_a_process_of_its_own(tmp_path: Path) -> None:
    done = kdx_from_scratch("optimize-dataset", "--objective", "top_laier", cwd=tmp_path)
    assert "Did you mean 'top_layer'?" in error_of(done, 2)
    assert done.stderr.count("\n") == 1
    assert list(tmp_path.iterdir()) == [], "what is refused leaves nothing behind"


# ---- 3: does not fit the run ---------------------------------------------------------------------------------------


def test_3_another_config_shows_the_difference(run_copy: Path, tmp_path: Path) -> None:
    before = sha256s(run_copy / "transfer-sets" / "all_layers")
    command = [*AS_FINISHED["optimize-dataset"], "--run", run_copy, "--seed", "5"]
    command[command.index("--steps") + 1] = "4"
    line = error_of(kdx(*command, cwd=tmp_path), 3)
    assert "--steps: 3 -> 4" in line
    assert "--seed: 0 -> 5" in line
    assert "--lr" not in line
    assert "--force" in line
    assert sha256s(run_copy / "transfer-sets" / "all_layers") == before


@pytest.mark.parametrize("way", ["--force", "--name"])
def test_0_force_or_another_name_resolve_the_conflict(here: Here, run_copy: Path, way: str) -> None:
    old = sha256s(run_copy / "transfer-sets" / "all_layers")
    command = [
        *AS_FINISHED["optimize-dataset"],
        "--run",
        run_copy,
        "--seed",
        "5",
        *(["--name", "b"] * (way == "--name")),
    ]
    done = here(*command, *(["--force"] * (way == "--force")))
    assert done.returncode == 0, done.stderr
    new = sha256s(run_copy / "transfer-sets" / ("b" if way == "--name" else "all_layers"))
    assert new["images.npy"] != old["images.npy"]
    if way == "--name":
        assert sha256s(run_copy / "transfer-sets" / "all_layers") == old


def test_3_a_spectral_objective_without_its_record(here: Here, run_copy: Path) -> None:
    api.compute_stats(run=run_copy, spectral=False, covariance_rank=2, force=True, threads=1)
    for objective in ("spectral_all_layers", "spectral_layer_pairs"):
        line = error_of(here("optimize-dataset", "--objective", objective, "--run", run_copy), 3)
        assert objective in line
        assert "kdx compute-stats --spectral --force" in line


@pytest.mark.parametrize(
    ("shape", "num_classes", "says"),
    [((1, 32, 32), 3, "classes: 3, the teacher 10"), ((3, 32, 32), 10, "(3, 32, 32), the teacher (1, 32, 32)")],
)
def test_3_a_student_file_that_does_not_fit(
    here: Here, run_copy: Path, tmp_path: Path, shape: tuple[int, int, int], num_classes: int, says: str
) -> None:
    file = write_classifier(tmp_path / "other" / "model.safetensors", "lenet_half", shape, num_classes)
    assert says in error_of(here("distill", "--student", file, "--run", run_copy, *ONE), 3)
    assert not (run_copy / "students" / "other").exists()


MISSING = {
    "no teacher": (("compute-stats",), "make one with: kdx train"),
    "no teacher to distil": (("distill",), "make one with: kdx train"),
    "no student": (("evaluate",), "make one with: kdx distill"),
}


@pytest.mark.parametrize(("arguments", "says"), MISSING.values(), ids=MISSING.keys())
def test_3_a_missing_input(here: Here, tmp_path: Path, arguments: tuple[str, ...], says: str) -> None:
    assert says in error_of(here(*arguments, "--run", tmp_path / "fresh"), 3)


def test_3_several_candidates_are_listed(here: Here, run_copy: Path) -> None:
    assert here(*AS_FINISHED["optimize-dataset"], "--run", run_copy, "--name", "b").returncode == 0
    line = error_of(here(*DISTILL, "--run", run_copy), 3)
    assert "transfer-sets/all_layers, transfer-sets/b" in line
    api.distill(run=run_copy, data="b", steps=2, name="second", threads=1)
    line = error_of(here("evaluate", "--run", run_copy), 3)
    assert "students/lenet_half, students/second" in line


def test_3_a_directory_of_something_else(here: Here, tmp_path: Path) -> None:
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "thesis.tex").write_text("precious")
    assert "not a run directory" in error_of(here("train", "--run", tmp_path / "thesis"), 3)
    assert [p.name for p in (tmp_path / "thesis").iterdir()] == ["thesis.tex"]


def test_3_a_class_of_too_few_images(here: Here, run_copy: Path) -> None:
    done = here(*AS_FINISHED["compute-stats"], "--run", run_copy, "--min-count", "10000", "--force")
    assert "--min-count 10000" in error_of(done, 3)
    assert kdextract.load_classifier(run_copy / "teacher" / "model.safetensors").num_classes == 10
    assert (run_copy / "statistics" / "manifest.json").exists(), "what was there stays"


# ---- 4: artifacts and data -----------------------------------------------------------------------------------------


def test_4_a_missing_data_set(here: Here, tmp_path: Path) -> None:
    done = here("train", "--data", "mnist", "--data-dir", tmp_path / "nothing")
    line = error_of(done, 4)
    assert "mnist is not in" in line
    assert "--download" in line
    assert "KDX_DATA_DIR" in line


def test_4_a_teacher_that_was_changed(run_copy: Path, tmp_path: Path) -> None:
    file = run_copy / "teacher" / "model.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(bytes(content))
    line = error_of(kdx(*DISTILL, "--name", "a", "--run", run_copy, cwd=tmp_path), 4)
    assert str(file) in line
    assert "sha256 differs" in line
    assert not (run_copy / "students" / "a").exists()


def corrupt(path: Path) -> None:
    path.write_bytes(b"\xff" * 64)


DAMAGE: dict[str, tuple[Callable[[Path], Any], tuple[str, ...], str]] = {
    "npz is missing": (lambda run: None, ("train", "--force", "--data", "npz:none.npz"), "npz:none.npz"),
    "folder is missing": (lambda run: None, ("train", "--force", "--data", "folder:none"), "folder:none"),
    "student file is missing": (lambda run: None, ("distill", "--student", "no/model.safetensors"), "does not exist"),
    "classifier is missing": (lambda run: None, ("evaluate", "no/model.safetensors"), "does not exist"),
    "teacher file is gone": (
        lambda run: (run / "teacher" / "model.safetensors").unlink(),
        (*DISTILL, "--name", "a"),
        "is missing",
    ),
    "manifest is gone": (
        lambda run: (run / "teacher" / "manifest.json").unlink(),
        (*DISTILL, "--name", "a"),
        "is not an artifact",
    ),
    "manifest is no JSON": (
        lambda run: (run / "statistics" / "manifest.json").write_text("{"),
        (*OPTIMIZE, "--name", "a"),
        "not valid JSON",
    ),
    "statistics are truncated": (
        lambda run: os.truncate(run / "statistics" / "statistics.safetensors", 1000),
        (*OPTIMIZE, "--name", "a"),
        "truncated",
    ),
    "transfer set was changed": (
        lambda run: corrupt(run / "transfer-sets" / "all_layers" / "targets.npy"),
        (*DISTILL, "--name", "a"),
        "targets.npy",
    ),
    "student is damaged": (
        lambda run: corrupt(run / "students" / "lenet_half" / "model.safetensors"),
        ("evaluate", "lenet_half"),
        "model.safetensors",
    ),
    "student was renamed": (
        lambda run: (run / "students" / "lenet_half").rename(run / "students" / "other"),
        ("evaluate", "other"),
        "renamed or moved",
    ),
    "run file is of a newer version": (
        lambda run: (run / "run.json").write_text('{"format_version": 99}'),
        (*DISTILL, "--name", "a"),
        "upgrade",
    ),
    "no run at all": (lambda run: shutil.rmtree(run), ("show",), "is not a run directory"),
    "a file that verify finds": (
        lambda run: corrupt(run / "teacher" / "metrics.jsonl"),
        ("verify",),
        "metrics.jsonl",
    ),
}


@pytest.mark.parametrize(("damage", "arguments", "says"), DAMAGE.values(), ids=DAMAGE.keys())
def test_4_what_is_missing_or_damaged(
    here: Here, run_copy: Path, damage: Callable[[Path], Any], arguments: tuple[str, ...], says: str
) -> None:
    damage(run_copy)
    assert says in error_of(here(*arguments, "--run", run_copy), 4)


def test_4_a_file_that_is_no_classifier(here: Here, run_copy: Path, tmp_path: Path) -> None:
    (tmp_path / "bad").mkdir()
    for content in (
        b"",
        b"\x80\x02c__builtin__\neval\n.",
        (run_copy / "statistics" / "statistics.safetensors").read_bytes(),
    ):
        (tmp_path / "bad" / "model.safetensors").write_bytes(content)
        for command in (("distill", "--student"), ("evaluate",)):
            done = here(*command, tmp_path / "bad" / "model.safetensors", "--run", run_copy, *ONE)
            assert "model.safetensors" in error_of(done, 4)


def test_4_verify_lists_every_error(here: Here, run_copy: Path) -> None:
    sound = here("verify", "--run", run_copy)
    assert sound.returncode == 0
    assert [line.split()[0] for line in sound.stdout.splitlines()] == ["ok"] * 5
    corrupt(run_copy / "teacher" / "model.safetensors")
    (run_copy / "statistics" / "manifest.json").write_text("[]")
    done = here("verify", "--run", run_copy)
    assert "(and 1 more)" in error_of(done, 4)
    assert [line.split()[0] for line in done.stdout.splitlines()] == ["DAMAGED"] * 2 + ["ok"] * 3


def test_4_verify_detects_a_replaced_input(here: Here, run_copy: Path) -> None:
    api.optimize_dataset(
        run=run_copy, objective="all_layers", images_per_class=4, batch_size=20, steps=2, force=True, threads=1
    )
    line = error_of(here("verify", "--run", run_copy), 4)
    assert "students/lenet_half was made from an earlier transfer-sets/all_layers, which was replaced since" in line


# ---- 5: gates ------------------------------------------------------------------------------------------------------


def test_5_a_gate_that_is_not_met(run_copy: Path, tmp_path: Path) -> None:
    done = kdx("evaluate", "--min-agreement", "1", "--run", run_copy, *ONE, cwd=tmp_path)
    assert "is below --min-agreement 1" in error_of(done, 5)
    assert "accuracy" in done.stdout, "the scores are shown all the same"


def test_5_gates_apply_to_new_and_to_cached_scores(here: Here, run_copy: Path) -> None:
    scores = json.loads((run_copy / "evaluations" / "lenet_half" / "scores.json").read_text())
    shutil.rmtree(run_copy / "evaluations")
    accuracy, agreement = scores["accuracy"], scores["agreement"]
    assert 0 < accuracy < 1
    command = ("evaluate", *ONE, "--run", run_copy)
    assert "accuracy" in error_of(here(*command, "--min-accuracy", str(accuracy + 1e-4)), 5)
    assert "accuracy" in error_of(here(*command, "--min-accuracy", str(accuracy + 1e-4)), 5)
    assert here(*command, "--min-accuracy", str(accuracy), "--min-agreement", str(agreement)).returncode == 0
    assert "agreement" in error_of(here(*command, "--min-accuracy", "0", "--min-agreement", str(agreement + 1e-4)), 5)


def test_5_a_gate_prints_one_json_document(here: Here, run_copy: Path) -> None:
    done = here("evaluate", *ONE, "--min-accuracy", "1", "--json", "--run", run_copy)
    error_of(done, 5)
    document = json.loads(done.stdout)
    assert document["error"]["exit_code"] == 5
    assert document["error"]["type"] == "GateError"


# ---- 6: diverged, 7: memory ----------------------------------------------------------------------------------------


def test_6_diverged(run_copy: Path, tmp_path: Path) -> None:
    command = (*DISTILL, "--steps", "9", "--lr", "1e30", "--name", "a", "--run", run_copy)
    done = kdx(*command, cwd=tmp_path)
    line = error_of(done, 6)
    assert "not finite" in line
    assert "--lr" in line
    assert done.stdout == ""
    assert not (run_copy / "students" / "a").exists()


def test_6_a_diverged_teacher_replaces_nothing(here: Here, run_copy: Path) -> None:
    teacher = sha256s(run_copy / "teacher")
    error_of(here("train", "--epochs", "3", "--force", *ONE, "--lr", "1e30", "--run", run_copy), 6)
    assert sha256s(run_copy / "teacher") == teacher


def test_7_out_of_memory(run_copy: Path, tmp_path: Path) -> None:
    limit = "import resource; resource.setrlimit(resource.RLIMIT_AS, (64 * 2**30, 64 * 2**30))"
    batch = str(10**9)  # 4 TB of noise
    command = (*DISTILL, "--data", "noise:uniform", "--steps", "2", "--batch-size", batch, "--name", "a")
    line = error_of(kdx(*command, "--run", run_copy, cwd=tmp_path, first=limit), 7)
    assert "--batch-size" in line


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("CUDA out of memory. Tried to allocate 20 GiB")])
def test_7_out_of_memory_errors_of_every_library(
    here: Here, run_copy: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    def exhaust(*arguments: Any) -> None:
        raise error

    stage = dataclasses.replace(STAGES["distill"], execute=exhaust)
    monkeypatch.setattr(commands, "run_stage", lambda _, *rest: RUN_STAGE(stage, *rest))
    assert "out of memory" in error_of(here(*DISTILL, "--name", "a", "--run", run_copy), 7)


@pytest.mark.parametrize("name", list(STAGES))
def test_7_names_only_options_that_the_command_has(
    name: str, here: Here, run_copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def exhaust(*arguments: Any) -> None:
        raise MemoryError

    required = {"optimize-dataset": ("--objective", "deep_inversion"), "train-generator": ("kegnet",),
                "generate": ("kegnet",), "extend": ("--data", "digits"),
                "import-model": ("model.py:build",)}.get(name, ())  # fmt: skip
    stage = dataclasses.replace(STAGES[name], plan=exhaust, before=lambda *arguments: None)
    monkeypatch.setattr(commands, "run_stage", lambda _, *rest: RUN_STAGE(stage, *rest))
    line = error_of(here(name, *required, "--run", run_copy), 7)
    named = set(re.findall(r"--[a-z-]+", line))
    shown = here(name, "--help", *(required[:1] if name == "train-generator" else ()))
    assert named <= set(re.findall(r"--[a-z-]+", shown.stdout)), line
    if name in (
        "train",
        "distill",
        "extend",
        "optimize-dataset",
        "generate",
        "train-generator",
        "compute-stats",
        "evaluate",
    ):
        assert "--batch-size" in named
    if name == "compute-stats":
        assert {"--max-units", "--covariance-rank"} <= named


# ---- 8: storage ----------------------------------------------------------------------------------------------------


NOISE_STUDENT = (*DISTILL, "--data", "noise:uniform", "--steps", "2", "--batch-size", "4", "--name", "a")


def test_8_a_file_that_cannot_be_written_whole(run_copy: Path, tmp_path: Path) -> None:
    limit = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))"
    before = set(tree(run_copy / "students"))
    error_of(kdx(*NOISE_STUDENT, "--run", run_copy, cwd=tmp_path, first=limit), 8)
    assert {n for n in tree(run_copy / "students") if ".a.partial" not in n} == before, "no half artifact is left"


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of one megabyte."""
    place = tmp_path / "disk"
    place.mkdir()
    mount = shutil.which("mount")
    if mount is None:
        pytest.skip("no mount command")
    done = subprocess.run([mount, "-t", "tmpfs", "-o", "size=1m", "tmpfs", place], capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"cannot mount a file system: {done.stderr.strip()}")
    try:
        yield place
    finally:
        subprocess.run(["umount", "-l", place], check=True)


def test_8_disk_full_and_then_freed(finished_run: Path, small_disk: Path, tmp_path: Path) -> None:
    run = teacher_only(finished_run, small_disk / "run")
    space = os.statvfs(small_disk)
    (small_disk / "filler").write_bytes(bytes(space.f_bavail * space.f_frsize - 80_000))
    line = error_of(kdx(*NOISE_STUDENT, "--run", run, cwd=tmp_path), 8)
    assert "disk is full" in line
    assert not (run / "students" / "a").exists()
    (small_disk / "filler").unlink()
    done = kdx(*NOISE_STUDENT, "--run", run, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert kdx("verify", "--run", run, cwd=tmp_path).returncode == 0


def test_8_read_only(finished_run: Path, small_disk: Path, tmp_path: Path) -> None:
    run = teacher_only(finished_run, small_disk / "run")
    remount = subprocess.run(["mount", "-o", "remount,ro", small_disk], capture_output=True, text=True)
    if remount.returncode:
        pytest.skip(f"cannot make it read-only: {remount.stderr.strip()}")
    for target in (run, small_disk / "new"):
        line = error_of(kdx("train", "--run", target, cwd=tmp_path), 8)
        assert str(target) in line
    for command in ("show", "verify"):
        assert kdx(command, "--run", run, cwd=tmp_path).returncode == 0, "readers write nothing"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
@pytest.mark.parametrize("arguments", [("methods",), ("methods", "--json")])
def test_8_stdout_is_full(tmp_path: Path, arguments: tuple[str, ...]) -> None:
    with Path("/dev/full").open("w") as full:
        error_of(kdx_from_scratch(*arguments, cwd=tmp_path, stdout=full), 8)


# ---- 9: locked, 141: a closed pipe ---------------------------------------------------------------------------------


def test_9_locked(here: Here, run_copy: Path) -> None:
    with RunDir(run_copy).lock():
        for stage in AS_FINISHED:
            done = here(*AS_FINISHED[stage], "--run", run_copy, "--json")
            assert str(os.getpid()) in error_of(done, 9)
            assert json.loads(done.stdout)["error"]["type"] == "RunLockedError"
    assert here(*AS_FINISHED["optimize-dataset"], "--run", run_copy).returncode == 0


@pytest.mark.parametrize("arguments", [["methods"], ["methods", "--json"]])
def test_141_a_closed_pipe(tmp_path: Path, arguments: list[str]) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    try:
        done = kdx_from_scratch(*arguments, cwd=tmp_path, stdout=writer)
    finally:
        os.close(writer)
    assert (done.returncode, done.stderr) == (141, "")


# ---- output --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stage", AS_FINISHED)
def test_json_is_one_document_for_every_stage(here: Here, run_copy: Path, stage: str) -> None:
    made = here(*AS_FINISHED[stage], "--run", run_copy, "--json", "--force")
    assert made.returncode == 0, made.stderr
    document = json.loads(made.stdout)
    assert document["command"] == stage
    assert document["status"] == "made"
    assert Path(document["directory"]).is_dir()
    manifest = json.loads((Path(document["directory"]) / "manifest.json").read_text())
    assert document["inputs"] == manifest["inputs"]
    assert document["budget"] == manifest["budget"]
    planned = here(*AS_FINISHED[stage], "--run", run_copy, "--json", "--dry-run", "--force")
    assert json.loads(planned.stdout)["status"] == "planned"


def test_json_scores_hold_what_a_script_needs(here: Here, run_copy: Path) -> None:
    scores = json.loads(here("evaluate", *ONE, "--run", run_copy, "--json").stdout)
    assert scores["artifact"] == "students/lenet_half"
    assert scores["data"] == "digits"
    assert scores["num_images"] == 355
    assert 0 <= scores["accuracy"] <= 1
    assert 0 <= scores["agreement"] <= 1
    assert scores["num_parameters"] == 35820


LOOKING: dict[str, tuple[tuple[str, ...], set[str]]] = {
    "a run": (("show",), {"run", "artifacts"}),
    "an artifact": (("show", "students/lenet_half"), {"kind", "identity", "config", "inputs", "outputs", "budget"}),
    "runs": (("runs",), {"runs"}),
    "verify": (("verify",), {"run", "artifacts"}),
    "models": (("models",), {"models"}),
    "methods": (("methods",), {"methods"}),
}


@pytest.mark.parametrize(("arguments", "keys"), LOOKING.values(), ids=LOOKING.keys())
def test_json_is_one_document_for_every_other_command(
    here: Here, run_copy: Path, arguments: tuple[str, ...], keys: set[str]
) -> None:
    where = {"show": ("--run", run_copy), "verify": ("--run", run_copy), "runs": (run_copy.parent,)}
    before = tree(run_copy)
    done = here(*arguments, *where.get(arguments[0], ()), "--json")
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    document = json.loads(done.stdout)
    assert keys <= document.keys()
    assert all(document[key] for key in keys), "nothing of it is empty"
    assert tree(run_copy) == before, "looking changes nothing"


@pytest.mark.parametrize(
    "arguments", [("train", "--nope"), ("nope",), ("show", "--run", "nowhere"), ("train", "--lr", "0")]
)
def test_json_contains_errors_too(here: Here, arguments: tuple[str, ...]) -> None:
    done = here(*arguments, "--json")
    assert done.returncode in (2, 4)
    document = json.loads(done.stdout)["error"]
    assert document["exit_code"] == done.returncode
    assert document["type"]
    assert " ".join(document["message"].split()) in error_of(done, done.returncode)


def test_quiet_prints_only_the_path(here: Here, run_copy: Path) -> None:
    for arguments in ((*DISTILL, "--steps", "2", "--name", "tiny"), AS_FINISHED["optimize-dataset"]):
        for flag in ("-q", "--quiet"):
            done = here(*arguments, flag, "--run", run_copy)
            assert done.returncode == 0
            place = "students/tiny" if arguments[0] == "distill" else "transfer-sets/all_layers"
            assert done.stdout == f"{run_copy / place}\n"
            assert done.stderr == ""


def test_quiet_errors_are_one_line(here: Here, run_copy: Path) -> None:
    done = here(*DISTILL, "--steps", "9", "--lr", "1e30", "--name", "a", "-q", "--run", run_copy)
    error_of(done, 6)
    assert done.stderr.count("\n") == 1
    assert done.stdout == ""


@pytest.mark.parametrize(
    "arguments", [("show",), ("show", "teacher"), ("runs",), ("verify",), ("models",), ("methods",)]
)
def test_quiet_has_an_effect_everywhere(here: Here, run_copy: Path, arguments: tuple[str, ...]) -> None:
    where = {"show": ("--run", run_copy), "verify": ("--run", run_copy), "runs": (run_copy.parent,)}
    command = (*arguments, *where.get(arguments[0], ()))
    loud, quiet = here(*command), here(*command, "-q")
    assert quiet.returncode == 0
    assert len(quiet.stdout) < len(loud.stdout)


def test_verbose_shows_where_an_error_comes_from(here: Here, tmp_path: Path) -> None:
    for flag in ("-v", "--verbose"):
        done = here("show", "--run", tmp_path, flag)
        assert done.returncode == 4
        assert "Traceback" in done.stderr
        assert done.stderr.splitlines()[-1].startswith("kdx: error: ")


@pytest.mark.parametrize("stage", AS_FINISHED)
def test_dry_run_writes_nothing(here: Here, run_copy: Path, stage: str) -> None:
    before = tree(run_copy)
    done = here(*AS_FINISHED[stage], "--run", run_copy, "--dry-run", "--force")
    assert done.returncode == 0, done.stderr
    assert f"{stage} would write" in done.stdout
    if stage != "train":
        assert "teacher" in done.stdout
    assert tree(run_copy) == before


def test_dry_run_makes_no_directory(here: Here, tmp_path: Path) -> None:
    done = here("train", "--run", tmp_path / "new", "--dry-run")
    assert done.returncode == 0
    assert "digits (train)" in done.stdout
    assert not (tmp_path / "new").exists()


def test_dry_run_finds_the_same_mistakes(here: Here, tmp_path: Path) -> None:
    error_of(here("distill", "--dry-run", "--run", tmp_path / "new"), 3)
    error_of(here("train", "--dry-run", "--model", "lenett", "--run", tmp_path / "new"), 2)
    error_of(here("train", "--dry-run", "--data", "npz:none.npz", "--run", tmp_path / "new"), 4)
    assert not (tmp_path / "new").exists()


def test_the_module_is_the_command(tmp_path: Path) -> None:
    script = Path(sys.executable).with_name("kdx")
    if not script.exists():
        pytest.skip("the package is not installed with its script")
    for arguments in (["methods", "--json"], ["train", "--nope"]):
        direct = subprocess.run(
            [script, *arguments], cwd=tmp_path, env=environment(), capture_output=True, text=True, check=False
        )
        module = kdx_from_scratch(*arguments, cwd=tmp_path)
        assert (direct.returncode, direct.stdout, direct.stderr) == (module.returncode, module.stdout, module.stderr)


def test_the_run_may_come_from_the_environment(run_copy: Path, tmp_path: Path) -> None:
    env = {"KDX_RUN": str(run_copy)}
    shown = kdx("show", "--json", cwd=tmp_path, env=env)
    assert json.loads(shown.stdout)["run"] == str(run_copy)
    planned = kdx("optimize-dataset", "--objective", "all_layers", "--dry-run", "--json", cwd=tmp_path, env=env)
    assert json.loads(planned.stdout)["directory"] == str(run_copy / "transfer-sets" / "all_layers")
    other = kdx("show", "--run", tmp_path / "other", cwd=tmp_path, env=env)
    assert str(tmp_path / "other") in error_of(other, 4), "--run wins"


def test_the_default_run_is_below_the_working_directory(here: Here, tmp_path: Path) -> None:
    document = json.loads(here("train", "--dry-run", "--json").stdout)
    assert document["directory"] == str(Path("runs") / "default" / "teacher")


# ---- help, and the list of commands --------------------------------------------------------------------------------


HELP = """
import json, sys
from typer.main import get_command
from typer.testing import CliRunner
from kdextract.cli.app import app
names = list(get_command(app).commands)
texts = {name: CliRunner().invoke(app, [name, "--help"]).output for name in names}
texts[""] = CliRunner().invoke(app, ["--help"]).output
assert set(CliRunner().invoke(app, ["-h"]).output) == set(texts[""])
print(json.dumps({"texts": texts, "modules": sorted(sys.modules)}))
"""


@pytest.fixture(scope="module")
def helps() -> dict[str, Any]:
    """The help of every command, and the modules that were imported to build it."""
    done = subprocess.run([sys.executable, "-c", HELP], env=environment(), capture_output=True, text=True, check=True)
    result = json.loads(done.stdout)
    assert isinstance(result, dict)
    return result


@pytest.mark.parametrize("command", get_command(cli.app).commands)  # type: ignore[attr-defined]
def test_help_gives_an_example(helps: dict[str, Any], command: str) -> None:
    text = helps["texts"][command]
    assert f"Usage: kdx {command}" in text or f" {command} [OPTIONS]" in text
    assert "Examples:" in text
    assert f"kdx {command}" in text.split("Examples:")[1]


def test_help_imports_nothing_heavy(helps: dict[str, Any]) -> None:
    heavy = {"torch", "torchvision", "sklearn", "skimage", "scipy", "PIL", "safetensors", "matplotlib", "jinja2"}
    assert heavy & set(helps["modules"]) == set()


def test_help_names_every_command_and_exit_code(helps: dict[str, Any]) -> None:
    text = helps["texts"][""]
    for command in COMMANDS:
        assert f" {command} " in text
    assert "5 gate not met" in " ".join(text.replace("│", " ").split())


@pytest.mark.parametrize("arguments", [["--version"], ["methods"], ["show"], ["runs"], ["verify"], ["show", "teacher"]])
def test_commands_that_only_read_do_not_import_torch(finished_run: Path, tmp_path: Path, arguments: list[str]) -> None:
    script = (
        "import sys\nfrom kdextract.cli.app import main\n"
        f"sys.argv = ['kdx', *{arguments!r}]\n"
        "try:\n    main()\nexcept SystemExit as stopped:\n    assert not stopped.code, stopped.code\n"
        "assert 'torch' not in sys.modules"
    )
    env = environment({"KDX_RUN": str(finished_run)})
    done = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout


COMMANDS = {
    "train": "--data-dir --download --run --seed --device --threads --force --dry-run --model --data --input-size "
    "--recipe --epochs --batch-size --lr --weight-decay --shift --warp --flip/--no-flip --validation --shots --augment "
    "--augment-share --augment-labels --precision --compile/--no-compile --json --quiet/-q --verbose/-v",
    "import-model": "MODEL --run --seed --device --threads --force --dry-run --data --weights --input-size "
    "--num-classes --class-names --mean --std --feature-layer --download --trust-code --json --quiet/-q --verbose/-v",
    "compute-stats": "--data-dir --download --run --seed --device --threads --force --dry-run --data --min-count "
    "--batch-size --max-units --covariance-rank --spectral/--no-spectral --spectral-fraction --spectral-max "
    "--teacher --weights --json --quiet/-q --verbose/-v",
    "optimize-dataset": "--run --seed --device --threads --force --dry-run --name --objective --images-per-class "
    "--batch-size --steps --lr --init --blur-every --tv --keep-input --keep-hidden --candidates --mixture --trials "
    "--student --preset --warmup --jitter --flip/--no-flip --ce --bn "
    "--compete --verifier --precision --compile/--no-compile --teacher --weights --json "
    "--quiet/-q --verbose/-v",
    "train-generator": "METHOD --data-dir --download --run --seed --device --threads --force --dry-run --name "
    "--samples --data --generators --steps --batch-size --lr --preset --network --width --alpha --beta "
    "--decoder-layers --oh --act --ie --flow --noise-scale --widen --spread --bn --aided --teacher --weights --json "
    "--quiet/-q --verbose/-v",
    "generate": "GENERATOR --run --seed --device --threads --force --dry-run --name --images-per-class --batch-size "
    "--noise-scale --verifier --teacher --weights --json --quiet/-q --verbose/-v",
    "compress": "--run --seed --device --threads --force --dry-run --name --tucker --tucker-ratio --tucker-ranks "
    "--layers --preset --teacher --weights --json --quiet/-q --verbose/-v",
    "prune": "ARTIFACT --data-dir --download --run --seed --device --threads --force --dry-run --name --macs --params "
    "--channels --latency --rounds --round-steps --criterion --data --method --pool --fresh --mixture "
    "--trials --start --generator-lr --generator-batch "
    "--generator-width --replay --student-steps --repeat --bn --oh --adv --bal --act --ie "
    "--preset --warmup --jitter --ce --tv "
    "--compete --from-noise --adapt-steps --init "
    "--pixel-steps --pixel-lr --pixel-flip/--no-pixel-flip --pool-batch --period "
    "--teacher --weights --json --quiet/-q --verbose/-v",
    "distill": "--data-dir --download --run --seed --device --threads --force --dry-run --name --student --data "
    "--mixture --trials --match-blocks --method --budget --patience --snapshots --optimizer --pool "
    "--fresh --start --generator-lr --generator-batch "
    "--generator-width --replay --student-steps --repeat --bn --oh --adv --bal --act --ie "
    "--preset --warmup --jitter --ce --tv "
    "--compete --from-noise --adapt-steps --init --verifier --precision --compile/--no-compile "
    "--pixel-steps --pixel-lr --pixel-flip/--no-pixel-flip --pool-batch --period "
    "--steps --batch-size --lr --loss --temperature "
    "--shift --warp --flip/--no-flip --splice/--no-splice --redraw/--no-redraw "
    "--inherit/--no-inherit --batch-norm --teacher-accuracy "
    "--teacher --weights --json --quiet/-q --verbose/-v",
    "extend": "ARTIFACT --data --classes --old-images --method --data-dir --download --teacher --weights --steps "
    "--batch-size --lr --lwf/--no-lwf --preset --init --warmup --jitter --ce --tv --bn --compete "
    "--pixel-steps --pixel-lr --pixel-flip/--no-pixel-flip --pool-batch --period --from-noise "
    "--adapt-steps --start --generator-lr --generator-batch --generator-width --replay --pool --fresh "
    "--mixture --trials --oh --act --ie --student-steps --adv --bal --repeat --test-data --run "
    "--force --dry-run --name "
    "--precision --compile/--no-compile --seed --device --threads --json --quiet/-q --verbose/-v",
    "quantize": "ARTIFACT --data-dir --download --run --seed --device --threads --force --dry-run --name --bits --data "
    "--test-data --json --quiet/-q --verbose/-v",
    "evaluate": "ARTIFACT --data-dir --download --run --seed --device --threads --force --dry-run --name --data "
    "--batch-size --min-accuracy --min-agreement --teacher --weights --json --quiet/-q --verbose/-v",
    "neighbours": "ARTIFACT --data-dir --download --run --seed --device --threads --force --dry-run --name --data "
    "--space --images --teacher --weights --json --quiet/-q --verbose/-v",
    "export": "ARTIFACT --run --seed --device --threads --force --dry-run --name --format --atol "
    "--json --quiet/-q --verbose/-v",
    "demo": "--run --seed --device --threads --force --json --quiet/-q --verbose/-v",
    "benchmark": "SUITE --data-dir --download --work --out --only --jobs --force --dry-run --report-only "
    "--json --quiet/-q --verbose/-v",
    "show": "ARTIFACT --run --json --quiet/-q --verbose/-v",
    "runs": "FOLDER --json --quiet/-q --verbose/-v",
    "verify": "--run --json --quiet/-q --verbose/-v",
    "check-teacher": "MODEL --run --data --images --data-dir --weights --input-size --num-classes "
    "--class-names --mean --std --feature-layer --download --trust-code --json --quiet/-q --verbose/-v",
    "models": "--json --quiet/-q --verbose/-v",
    "methods": "METHOD --run --json --quiet/-q --verbose/-v",
}


def test_commands_and_options_are_these() -> None:
    """A change of this list concerns users: the changelog has to mention it."""
    found = {}
    for name, command in get_command(cli.app).commands.items():  # type: ignore[attr-defined]
        found[name] = {
            "/".join([*parameter.opts, *parameter.secondary_opts])
            if parameter.param_type_name == "option"
            else parameter.name.upper()
            for parameter in command.params
        }
    assert list(found) == list(COMMANDS)
    for name, options in COMMANDS.items():
        assert found[name] == set(options.split()), name


def test_the_python_functions_take_the_same_options(tmp_path: Path) -> None:
    for name in STAGES:
        function = getattr(api, name.replace("-", "_"))
        planned = {"run": tmp_path / "new", "dry_run": True}
        with pytest.raises(kdextract.errors.UsageError, match=r"nonsense"):
            function(nonsense=1, **planned, **({"method": "kegnet"} if name == "train-generator" else {}))
    assert api.train(run=str(tmp_path / "new"), dry_run=True).directory == tmp_path / "new" / "teacher"
    with pytest.raises(AttributeError, match="nonsense"):
        _ = kdextract.nonsense
