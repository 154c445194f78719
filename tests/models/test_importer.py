"""Models written outside of kdx: they are imported unchanged; others are refused in one line."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import ROOT, kdx, rounding

from kdextract import api
from kdextract.errors import ArtifactError, ConfigError, KdxError, UsageError
from kdextract.models.classifier import load_classifier

HERE = ROOT / "benchmarks" / "external_models"
sys.path.insert(0, str(HERE))

import refused  # noqa: E402
import training  # noqa: E402
from catalogue import EXTERNAL_MODELS, ExternalModel  # noqa: E402

USUAL_RUN = {"resnet_tar", "timm_vit", "lazy", "thousand", "dictionary", "even_odd", "double", "program"}
"""Models that differ in weights, origin, layers, classes, output, precision and file; the others are slow tests."""
LIVE: dict[str, Any] = {"method": "structured_noise", "pool": 100, "fresh": 4}


@dataclass
class Imported:
    """An external model, its own network and the run into which kdx imported it."""

    entry: ExternalModel
    network: torch.nn.Module
    run: Path
    metrics: dict[str, Any]


@pytest.fixture(scope="module", autouse=True)
def at_home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Run in the directory of the models, and keep the allowed code out of the user's state directory."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(HERE)
        patch.setenv("XDG_STATE_HOME", str(tmp_path_factory.mktemp("state")))
        yield


def keywords(entry: ExternalModel) -> dict[str, Any]:
    """Return the options of a model as arguments of `kdextract.api.import_model`."""
    given, words = {}, list(entry.options)
    while words:
        name = words.pop(0).removeprefix("--").replace("-", "_")
        given[name] = True if name == "trust_code" else words.pop(0)
    return given | ({"num_classes": int(given["num_classes"])} if "num_classes" in given else {})


def test_the_models_of_the_usual_run_exist() -> None:
    assert {entry.name for entry in EXTERNAL_MODELS} > USUAL_RUN


EACH = [
    pytest.param(entry, id=entry.name, marks=[] if entry.name in USUAL_RUN else pytest.mark.slow)
    for entry in EXTERNAL_MODELS
]


@pytest.fixture(scope="module", params=EACH)
def imported(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Imported:
    """Each model, after two steps of training, as the teacher of a run."""
    entry: ExternalModel = replace(request.param, batch=8)
    if entry.model.startswith("timm/"):
        pytest.importorskip("timm")
    directory = tmp_path_factory.mktemp(entry.name)
    torch.manual_seed(0)
    network = entry.build()
    training.train(entry, network, training.DATA[entry.data](), seed=0, steps=2)
    files = training.save(entry, network, directory)
    model = str(directory / entry.file) if entry.form == "program" else entry.model
    weights = {"weights": files[1]} if files else {}
    outcome = api.import_model(model, run=directory / "run", threads=1, **weights, **keywords(entry))
    assert outcome.manifest is not None
    return Imported(entry, network, directory / "run", outcome.manifest.metrics)


def test_logits_are_those_of_the_models_own_network(imported: Imported) -> None:
    entry = imported.entry
    teacher = load_classifier(imported.run / "teacher" / "model.safetensors").frozen()
    assert teacher.input_shape == entry.size
    assert len(teacher.spec.class_names) == entry.classes
    images = torch.rand(3, 1, *entry.size[1:], generator=torch.Generator().manual_seed(1))
    own = training.logits_of(entry, imported.network, images)
    with torch.inference_mode():
        answer = teacher(images.expand(-1, entry.size[0], -1, -1))
    if entry.shifted:
        own, answer = own.log_softmax(1), answer.log_softmax(1)
    torch.testing.assert_close(answer, own.to(answer.dtype), rtol=0, atol=rounding(answer))


def test_batch_normalization_is_found_where_there_is_some(imported: Imported) -> None:
    assert (imported.metrics["batch_norm_layers"] > 0) == imported.entry.has_batch_norm


def test_a_student_can_be_distilled(imported: Imported, tmp_path: Path) -> None:
    entry, source = imported.entry, LIVE
    if entry.size[1] * entry.size[2] > 256 and entry.name != "bytes":  # held-out images would take seconds
        x, y = np.random.default_rng(0).random((10, *entry.size[1:]), np.float32), np.arange(10)
        np.savez(tmp_path / "few.npz", x_train=x, y_train=y, x_test=x, y_test=y)
        source = {"data": f"npz:{tmp_path / 'few.npz'}"}
    outcome = api.distill(
        run=imported.run, student="networks.py:small_cnn", steps=2, batch_size=8, threads=1, name="pupil", **source
    )
    assert outcome.manifest is not None
    assert np.isfinite(outcome.manifest.metrics["loss"])
    student = load_classifier(imported.run / "students" / "pupil" / "model.safetensors").frozen()
    with torch.inference_mode():
        assert student(torch.rand(2, *entry.size)).shape == (2, entry.classes)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Files of weights and programs, by name."""
    directory = tmp_path_factory.mktemp("files")
    plain, images = refused.Plain().eval(), torch.rand(4, 1, 8, 8)
    broken = plain.state_dict() | {"fc1.weight": torch.full((32, 64), torch.nan)}
    torch.save(plain.state_dict(), directory / "plain.pth")
    torch.save(broken, directory / "nan.pth")
    torch.save(plain, directory / "pickled.pth")
    torch.save(torch.nn.Linear(3, 3).state_dict(), directory / "other.pth")
    batch = torch.export.Dim("batch", min=1, max=64)
    torch.export.save(torch.export.export(plain, (images,)), directory / "static.pt2")
    dynamic = torch.export.export(plain, (images,), dynamic_shapes=({0: batch},))
    torch.export.save(dynamic, directory / "dynamic.pt2")
    return {path.stem: str(path) for path in directory.iterdir()}


PLAIN = {"model": "refused.py:Plain", "weights": "{plain}"}
REFUSALS: dict[str, tuple[dict[str, Any], type[KdxError], str]] = {
    "torchscript": ({"model": "refused.py:scripted"}, ConfigError, "TorchScript"),
    "segmentation": ({"model": "refused.py:Segmentation"}, ConfigError, "(3, 10, 8, 8)"),
    "autoencoder": ({"model": "refused.py:Features"}, ConfigError, "[batch, classes]"),
    "detector": ({"model": "refused.py:Detector"}, ConfigError, "has no tensor [batch, classes]"),
    "an argument is missing": ({"model": "refused.py:plain_net"}, UsageError, "plain_net(width=...)"),
    "random in eval mode": ({"model": "refused.py:Random"}, ConfigError, "different outputs for equal images"),
    "its code fails": ({"model": "refused.py:broken"}, ConfigError, "config file of my cluster"),
    "no network": ({"model": "refused.py:config"}, ConfigError, "dict"),
    "input size": (PLAIN | {"input_size": "3x8x8"}, ConfigError, "3x8x8"),
    "number of classes": (PLAIN | {"num_classes": 7}, ConfigError, "--num-classes 10?"),
    "misspelt": ({"model": "refused.py:Plian"}, UsageError, "Did you mean 'Plain'?"),
    "misspelt argument": ({"model": "refused.py:Plain(num_clases=3)"}, UsageError, "num_classes"),
    "no function named": ({"model": "refused.py"}, UsageError, "refused.py:build"),
    "no such file": ({"model": "refuse.py:Plain"}, ArtifactError, "does not exist"),
    "no such module": ({"model": "my_lab.models:Plain"}, UsageError, "my_lab.models"),
    "program not trusted": ({"model": "{dynamic}", "input_size": None}, ArtifactError, "--trust-code"),
    "static batch": ({"model": "{static}", "input_size": None, "trust_code": True}, ConfigError, "dynamic_shapes"),
    "torchvision's name": ({"model": "torchvision/resnet81"}, UsageError, "Did you mean 'resnet18'?"),
    "other weights": (PLAIN | {"weights": "{other}"}, ConfigError, "fc1.weight"),
    "pickled network": (PLAIN | {"weights": "{pickled}"}, ArtifactError, "state_dict()"),
    "not finite": (PLAIN | {"weights": "{nan}"}, ArtifactError, "fc1.weight has 2048 values that are not finite"),
    "mean of three": (PLAIN | {"mean": "0.5,0.5,0.5"}, UsageError, "--mean"),
    "class names": (PLAIN | {"class_names": "a,b"}, UsageError, "--class-names"),
}
"""What is wrong -> options, error, part of its line; {NAME} is one of `files`."""


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize("what", REFUSALS)
def test_what_cannot_be_a_teacher_is_refused_in_one_line(what: str, files: dict[str, str], tmp_path: Path) -> None:
    options, error, part = REFUSALS[what]
    given = {name: value.format_map(files) if isinstance(value, str) else value for name, value in options.items()}
    with pytest.raises(error) as caught:
        api.import_model(**{"input_size": "1x8x8", "run": tmp_path / "run", "threads": 1, **given})
    assert part in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run" / "teacher").exists()


@pytest.mark.parametrize(
    ("model", "code"),
    [(["refused.py:Random"], 3), (["refused.py:Plain", "--weights", "nan"], 4)],
    ids=["random", "nan"],
)
def test_check_teacher_reports_it_without_a_traceback(model: list[str], code: int, files: dict[str, str]) -> None:
    done = kdx("check-teacher", *(files.get(word, word) for word in model), "--input-size", "1x8x8", cwd=HERE)
    assert done.returncode == code
    assert done.stderr.count("\n") == 1
    assert done.stderr.startswith("kdx: error: ")
