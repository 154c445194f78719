"""Options that were renamed or removed: refused with a sentence, and read where an earlier kdx recorded them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import Here, kdx, sha256s

from kdextract import api
from kdextract.benchmark.suite_options import stage_options
from kdextract.cli.commands import COMMANDS
from kdextract.errors import ConfigError, UsageError
from kdextract.options.declare import spelling
from kdextract.options.entries import entries
from kdextract.options.former import REMOVED, RENAMED, present_record, what_became_of
from kdextract.storage.artifacts import read_manifest

FINISHED: dict[str, dict[str, Any]] = {  # what the finished run was made with
    "statistics": {"covariance_rank": 16, "spectral_max": 8},
    "transfer-sets/all_layers": {"objective": "all_layers", "images_per_class": 4, "batch_size": 20, "steps": 3},
    "students/lenet_half": {"student": "lenet_half", "steps": 20},
}
MAKE: dict[str, Callable[..., Any]] = {
    "statistics": api.compute_stats,
    "transfer-sets/all_layers": api.optimize_dataset,
    "students/lenet_half": api.distill,
}
EARLIER: dict[str, dict[str, Any]] = {
    "statistics": {"spectral_order": "energy"},
    "transfer-sets/all_layers": {"clip": True},
    "students/lenet_half": {"remix": None, "schedule": "cosine", "temperature_scaling": True},
}
"""What an earlier kdx recorded besides, where these options were not given."""


def as_earlier(directory: Path, record: dict[str, Any]) -> None:
    """Change a manifest to what an earlier kdx recorded for the same command."""
    path = directory / "manifest.json"
    manifest = json.loads(path.read_text(encoding="utf-8"))
    config = manifest["config"]
    for former, present in RENAMED.items():
        if former in record:
            config[former] = config.pop(present, None)
    config |= record
    path.write_text(json.dumps(manifest), encoding="utf-8")


@pytest.mark.parametrize("artifact", FINISHED)
def test_artifacts_of_an_earlier_kdx_with_equal_options_are_cached(run_copy: Path, artifact: str) -> None:
    as_earlier(run_copy / artifact, EARLIER[artifact])
    before = sha256s(run_copy / artifact)
    outcome = MAKE[artifact](run=run_copy, threads=1, **FINISHED[artifact])
    assert outcome.status == "cached"
    assert sha256s(run_copy / artifact) == before


@pytest.mark.parametrize(
    ("artifact", "recorded", "says"),
    [
        ("statistics", {"spectral_order": "smooth"}, "--spectral-order: smooth -> removed (eigenvectors are always"),
        ("transfer-sets/all_layers", {"clip": False}, "--clip: False -> removed (pixels are always kept in"),
        ("students/lenet_half", {"schedule": "constant"}, "--schedule: constant -> removed (the learning rate always"),
        ("students/lenet_half", {"temperature_scaling": False}, "--temperature-scaling: False -> removed"),
        ("students/lenet_half", {"remix": True}, "--redraw: True -> None"),
    ],
)
def test_other_values_make_it_stale_with_the_reason(
    run_copy: Path, artifact: str, recorded: dict[str, Any], says: str
) -> None:
    as_earlier(run_copy / artifact, EARLIER[artifact] | recorded)
    with pytest.raises(ConfigError) as raised:
        MAKE[artifact](run=run_copy, threads=1, **FINISHED[artifact])
    assert says in str(raised.value)
    manifest = read_manifest(run_copy / artifact)
    assert manifest.config["seed"] == 0, "it is still read"
    assert api.show(artifact, run=run_copy)["config"] == manifest.config


def test_a_transfer_set_made_with_a_former_name_is_cached(run_copy: Path) -> None:
    options = {"objective": "deep_dream", "images_per_class": 1, "batch_size": 10, "steps": 2, "name": "a"}
    api.optimize_dataset(run=run_copy, threads=1, preset="cifar", **options)
    decided = {name: None for name in ("beta1", "beta2", "coarse_steps", "tv_l1", "l2")}
    as_earlier(run_copy / "transfer-sets" / "a", {"course": "cifar", "clip": True, **decided})
    path = run_copy / "transfer-sets" / "a" / "manifest.json"
    record = json.loads(path.read_text(encoding="utf-8"))
    record["config"]["course"] = "cifar"
    path.write_text(json.dumps(record), encoding="utf-8")
    assert api.optimize_dataset(run=run_copy, threads=1, preset="cifar", **options).status == "cached"
    with pytest.raises(ConfigError, match="--preset: cifar -> small"):
        api.optimize_dataset(run=run_copy, threads=1, preset="small", **options)
    record["config"]["l2"] = 0.5
    path.write_text(json.dumps(record), encoding="utf-8")
    with pytest.raises(ConfigError, match=r"--l2: 0.5 -> removed \(--preset decides it\)"):
        api.optimize_dataset(run=run_copy, threads=1, preset="cifar", **options)


def test_no_command_has_a_former_option() -> None:
    present = {entry.name for command in COMMANDS.values() for entry in entries(command.config)}
    assert not present & (RENAMED.keys() | REMOVED.keys())
    assert set(RENAMED.values()) <= present
    assert present_record({"course": "small", "clip": True, "lr": 1.0}) == {"preset": "small", "lr": 1.0}
    assert what_became_of("--nonsense") is None


@pytest.mark.parametrize("name", [*RENAMED, *REMOVED])
def test_a_former_option_is_refused_with_one_line(name: str, here: Here, tmp_path: Path) -> None:
    said = f"is called {spelling(RENAMED[name])} now" if name in RENAMED else f"removed: {REMOVED[name].decided}"
    for command in ("distill", "compute-stats"):
        done = here(command, spelling(name), "1")
        assert done.returncode == 2
        assert done.stderr == f"kdx: error: {what_became_of(name)}\n"
        assert said in done.stderr
    with pytest.raises(UsageError, match=name.replace("_", "-")):
        api.distill(run=tmp_path / "run", **{name: 1})
    assert not (tmp_path / "run").exists()
    assert list(Path.cwd().iterdir()) == []


def test_a_negative_switch_is_refused_too(tmp_path: Path) -> None:
    done = kdx("optimize-dataset", "--no-clip", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (2, f"kdx: error: {what_became_of('clip')}\n")


def test_suites_may_name_renamed_options_as_before() -> None:
    found = stage_options("optimize-dataset", {"objective": "deep_dream", "course": "small"}, "[methods.a]")
    assert found == {"objective": "deep_dream", "preset": "small"}
    assert stage_options("distill", {"remix": True}, "") == {"redraw": True}
    with pytest.raises(UsageError, match=r"\[methods.a\]: --beta1 was removed: --preset decides it"):
        stage_options("optimize-dataset", {"objective": "deep_dream", "beta1": 0.5}, "[methods.a]")
