"""Data-free stages open no real data: their results do not change when the data is replaced by random bytes."""

from __future__ import annotations

import ast
import json
import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import sha256s

import kdextract
from kdextract import api
from kdextract.errors import ConfigError, DataError
from kdextract.methods import generator_names, live_method, live_names
from kdextract.options.declare import option_fields
from kdextract.storage.artifacts import read_manifest

PACKAGE = Path(kdextract.__file__).parent

_watched: list[tuple[Path, list[str]]] = []


def _note(event: str, arguments: tuple[Any, ...]) -> None:
    if event == "open" and _watched and isinstance(arguments[0], str | bytes | os.PathLike):
        path, seen = _watched[-1]
        if os.fsdecode(arguments[0]) == str(path):
            seen.append(event)


sys.addaudithook(_note)  # a hook cannot be removed; without a watched path it does nothing


@contextmanager
def openings_of(path: Path) -> Iterator[list[str]]:
    """Give a list of every opening of the file by Python code inside the block."""
    _watched.append((path, []))
    try:
        yield _watched[-1][1]
    finally:
        _watched.pop()


@pytest.fixture(scope="module")
def npz_run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """(run, data file): a teacher and its statistics from an `npz:` file of small real digits."""
    from sklearn.datasets import load_digits

    folder = tmp_path_factory.mktemp("honest")
    file, run = folder / "real.npz", folder / "run"
    digits = load_digits()
    images = np.rint(digits.images * (255 / 16)).astype(np.uint8)
    np.savez(file, images=images, labels=digits.target)
    api.train(run=run, data=f"npz:{file}", epochs=1, threads=1)
    api.compute_stats(run=run, covariance_rank=4, spectral_max=4, threads=1)
    return run, file


def data_free_stages(run: Path) -> None:
    for objective in ("top_layer", "all_layers", "spectral_all_layers"):
        api.optimize_dataset(run=run, objective=objective, images_per_class=2, batch_size=10, steps=2, threads=1)
        api.distill(run=run, data=objective, name=f"from_{objective}", steps=5, batch_size=8, threads=1)
    api.distill(run=run, data="noise:normal", name="floor", steps=5, batch_size=8, threads=1)
    for name in live_names():
        small = {"pool": 400, "fresh": 4, "trials": 6, "pool_batch": 16, "period": 2, "pixel_steps": 3, "warmup": 2}
        known = [declared.name for declared in option_fields(live_method(name).config)]
        small = {option: value for option, value in small.items() if option in known}
        api.distill(run=run, method=name, name=f"live_{name}", steps=5, batch_size=8, threads=1, **small)
    for name in generator_names():
        api.train_generator(run=run, method=name, generators=1, steps=2, batch_size=8, width=4, threads=1)
        api.distill(run=run, data=f"generators/{name}", name=f"made_{name}", steps=5, batch_size=8, threads=1)
    api.generate(run=run, generator="kegnet,dafl", images_per_class=2, threads=1)


def results(run: Path) -> dict[str, dict[str, str]]:
    return {
        f"{kind}/{place.name}": sha256s(place)
        for kind in ("transfer-sets", "generators", "students")
        for place in sorted((run / kind).iterdir())
    }


@pytest.fixture(scope="module")
def without_data(npz_run: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, str]]:
    """The results of the stages when the data is gone; they do not even try to open it."""
    run, file = npz_run
    copy = shutil.copytree(run, tmp_path_factory.mktemp("without_data") / "run")
    content = file.read_bytes()
    file.unlink()
    with openings_of(file) as seen:
        data_free_stages(copy)
    file.write_bytes(content)
    assert seen == [], "the data file was to be opened"
    made = results(copy)
    assert len(made) == 8 + len(live_names()) + 2 * len(generator_names())
    assert len({files["model.safetensors"] for place, files in made.items() if "students" in place}) == 4 + len(
        [*live_names(), *generator_names()]
    )
    return made


@pytest.fixture
def data_file(npz_run: tuple[Path, Path]) -> Iterator[Path]:
    """The data file, which the test may change; put back at the end."""
    content = npz_run[1].read_bytes()
    yield npz_run[1]
    npz_run[1].write_bytes(content)


def test_students_are_made_when_the_data_is_gone(without_data: dict[str, dict[str, str]]) -> None:
    assert all("model.safetensors" in files for place, files in without_data.items() if place.startswith("students"))


@pytest.mark.slow
@pytest.mark.parametrize("other", [False, True])
def test_students_are_the_same_with_the_data_and_with_other_data(
    npz_run: tuple[Path, Path], data_file: Path, without_data: dict[str, dict[str, str]], tmp_path: Path, other: bool
) -> None:
    run = shutil.copytree(npz_run[0], tmp_path / "run")
    if other:
        data_file.write_bytes(np.random.default_rng(0).bytes(data_file.stat().st_size))
    with openings_of(data_file) as seen:
        data_free_stages(run)
    assert seen == []
    assert results(run) == without_data


def test_openings_of_the_data_are_recorded(npz_run: tuple[Path, Path], data_file: Path, tmp_path: Path) -> None:
    run = shutil.copytree(npz_run[0], tmp_path / "run")
    api.distill(run=run, data="noise:normal", name="floor", steps=1, batch_size=8, threads=1)
    data_file.write_bytes(np.random.default_rng(0).bytes(data_file.stat().st_size))
    with openings_of(data_file) as seen, pytest.raises(DataError):
        api.evaluate(run=run, artifact="floor", threads=1)
    assert seen
    with pytest.raises(ConfigError, match="data: npz:"):
        api.compute_stats(run=run, covariance_rank=4, spectral_max=4, threads=1)


def test_manifests_record_which_stage_opened_real_data(finished_run: Path) -> None:
    opened = {
        str(path.parent.relative_to(finished_run)): read_manifest(path.parent).real_data
        for path in sorted(finished_run.rglob("manifest.json"))
    }
    assert opened == {
        "teacher": ({"spec": "digits", "split": "train", "purpose": "training"},),
        "statistics": ({"spec": "digits", "split": "train", "purpose": "statistics"},),
        "transfer-sets/all_layers": (),
        "students/lenet_half": (),
        "evaluations/lenet_half": ({"spec": "digits", "split": "test", "purpose": "evaluation"},),
    }


def test_manifests_record_what_a_result_needs(finished_run: Path) -> None:
    needs = {path.parent.name: read_manifest(path.parent).needs for path in finished_run.rglob("manifest.json")}
    assert needs["all_layers"] == "teacher+statistics"
    assert read_manifest(finished_run / "students" / "lenet_half").needs == "teacher+statistics"
    assert needs["teacher"] == needs["statistics"] == ""


def test_the_manifest_of_a_student_of_real_data_records_it(run_copy: Path) -> None:
    api.distill(run=run_copy, data="digits", name="ceiling", steps=2, threads=1)
    api.distill(run=run_copy, data="noise:uniform", name="floor", steps=2, batch_size=4, threads=1)
    ceiling = read_manifest(run_copy / "students" / "ceiling")
    assert ceiling.real_data == ({"spec": "digits", "split": "train", "purpose": "distillation"},)
    assert ceiling.needs == "teacher+data"
    assert [entry.role for entry in ceiling.inputs] == ["teacher", "data"]
    floor = read_manifest(run_copy / "students" / "floor")
    assert floor.real_data == ()
    assert floor.needs == "teacher"
    assert [entry.role for entry in floor.inputs] == ["teacher"]


def test_the_test_images_are_opened_by_evaluate_alone(finished_run: Path) -> None:
    splits = {
        str(path.parent.relative_to(finished_run)): [entry["split"] for entry in read_manifest(path.parent).real_data]
        for path in finished_run.rglob("manifest.json")
    }
    assert [name for name, opened in splits.items() if "test" in opened] == ["evaluations/lenet_half"]


def test_later_stages_do_not_change_the_teacher(run_copy: Path) -> None:
    before = {path.name: path.read_bytes() for path in (run_copy / "teacher").iterdir()}
    times = {path.name: path.stat().st_mtime_ns for path in (run_copy / "teacher").iterdir()}
    api.compute_stats(run=run_copy, covariance_rank=4, spectral=False, force=True, threads=1)
    for objective in ("top_layer", "all_layers", "all_layers_dropout"):
        api.optimize_dataset(
            run=run_copy, objective=objective, images_per_class=2, batch_size=10, steps=2, force=True, threads=1
        )
    api.distill(run=run_copy, data="top_layer", name="a", steps=3, threads=1)
    api.distill(run=run_copy, data="top_layer", student=str(run_copy / "teacher" / "model.safetensors"),
                      name="b", steps=3, threads=1)  # fmt: skip
    api.evaluate(run=run_copy, artifact="a", threads=1)
    api.evaluate(run=run_copy, artifact="students/b", threads=1)
    assert {path.name: path.read_bytes() for path in (run_copy / "teacher").iterdir()} == before
    assert {path.name: path.stat().st_mtime_ns for path in (run_copy / "teacher").iterdir()} == times


def test_budgets_are_counted(finished_run: Path) -> None:
    images = json.loads((finished_run / "transfer-sets" / "all_layers" / "manifest.json").read_text())["budget"]
    assert images["images"] == 40
    assert images["teacher_queries"] == 40 * (3 + 1) + 1
    assert images["teacher_queries_by_purpose"] == {"synthesis": 40 * 3, "targets": 40, "blank": 1}
    student = json.loads((finished_run / "students" / "lenet_half" / "manifest.json").read_text())
    assert student["budget"]["student_steps"] == 20
    batch_size = student["metrics"]["settings"]["batch_size"]
    learned, held_out = 20 * batch_size, 2  # shifted images are new ones; one of 20 is held out
    by_purpose = student["budget"]["teacher_queries_by_purpose"]
    assert by_purpose == {"probe": 2 * held_out, "targets": learned, "blank": 1}, "held-out images: distorted as well"
    assert student["budget"]["teacher_queries"] == sum(by_purpose.values())
    assert student["budget"]["attempts"] == 1


# ---- only one package opens real data ------------------------------------------------------------------------------


DOORS = {  # what opens a data set or an image file
    "torchvision.datasets",
    "sklearn.datasets",
    "PIL.Image.open",
    "numpy.load",
    "numpy.loadtxt",
    "numpy.genfromtxt",
    "numpy.fromfile",
    "numpy.memmap",
    "skimage.io",
    "skimage.data",
    "torchvision.io",
    "torch.utils.data",
    "zipfile",
    "datasets",
    "huggingface_hub",
    "pyarrow",
}
NO_DATA = {  # what opens other files of these kinds
    "models/external/weight_files.py": {"zipfile"},  # weights that torch has saved
    "stages/running/outcome.py": {"PIL.Image.open"},  # an artifact's own picture
}


def names_used(tree: ast.Module) -> set[str]:
    """Return every dotted name that a module imports or looks up, with import aliases resolved."""
    aliases: dict[str, str] = {}
    used: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                used.add(alias.name)
                aliases[alias.asname or alias.name.split(".")[0]] = (
                    alias.name if alias.asname else alias.name.split(".")[0]
                )
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            for alias in node.names:
                used.add(f"{node.module}.{alias.name}")
                aliases[alias.asname or alias.name] = f"{node.module}.{alias.name}"
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            parts = [node.attr]
            inner: ast.expr = node.value
            while isinstance(inner, ast.Attribute):
                parts.append(inner.attr)
                inner = inner.value
            if isinstance(inner, ast.Name):
                parts.append(aliases.get(inner.id, inner.id))
                used.add(".".join(reversed(parts)))
    return used


def doors_used(source: str) -> set[str]:
    used = names_used(ast.parse(source))
    return {door for door in DOORS if any(name == door or name.startswith(door + ".") for name in used)}


def test_the_scan_finds_every_way_to_open_data() -> None:
    for source, door in (
        ("import torchvision.datasets", "torchvision.datasets"),
        ("from torchvision import datasets", "torchvision.datasets"),
        ("import torchvision as tv\ntv.datasets.MNIST()", "torchvision.datasets"),
        ("def f():\n    from sklearn.datasets import load_digits", "sklearn.datasets"),
        ("from PIL import Image\nImage.open(x)", "PIL.Image.open"),
        ("import PIL.Image\nPIL.Image.open(x)", "PIL.Image.open"),
        ("import numpy as np\nnp.load(x)", "numpy.load"),
        ("from numpy import load as l", "numpy.load"),
        ("def f():\n    import datasets", "datasets"),
        ("from datasets import load_dataset", "datasets"),
        ("from huggingface_hub import snapshot_download", "huggingface_hub"),
    ):
        assert doors_used(source) == {door}, source
    assert doors_used("from PIL import Image\nImage.fromarray(x)\nimport numpy as np\nnp.frombuffer(x)") == set()


def test_only_one_package_opens_data_sets() -> None:
    found = {
        str(path.relative_to(PACKAGE)): doors_used(path.read_text(encoding="utf-8"))
        for path in sorted(PACKAGE.rglob("*.py"))
    }
    assert {name: doors for name, doors in found.items() if doors - NO_DATA.get(name, set())} == {
        "data/npz.py": {"zipfile"},
        "data/hub.py": {"datasets", "huggingface_hub"},
        "data/image_files.py": {"PIL.Image.open"},
        "data/sklearn_sets.py": {"sklearn.datasets"},
        "data/torchvision_sets.py": {"torchvision.datasets"},
    }


def test_only_the_stages_that_may_reach_that_module() -> None:
    """Loading goes through one function of `stages/inputs/real_data.py`, which also writes it into the manifest.

    `check-teacher` writes nothing, so it has no manifest.
    """
    callers = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        names = {alias.name for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) for alias in node.names}
        callers[str(path.relative_to(PACKAGE))] = names
    assert [name for name, names in callers.items() if "load_data" in names] == [
        "cli/check_teacher.py",
        "stages/inputs/real_data.py",
    ]
    assert sorted(name for name, names in callers.items() if "open_real_data" in names) == [
        "stages/compute_stats.py",
        "stages/evaluate.py",
        "stages/extend.py",
        "stages/inputs/image_source.py",
        "stages/neighbours.py",
        "stages/quantize.py",
        "stages/train.py",
        "stages/train_generator.py",
    ]
