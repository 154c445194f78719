"""`kdx quantize`: int8 networks that answer like the network, calibrated without data, in files that are data."""

from __future__ import annotations

import json
import shutil
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import Here, error_of, sha256s
from helpers import equal, num_hooks, seeded, weights
from torch import nn

from kdextract import api
from kdextract.errors import ArtifactError, ConfigError, UsageError
from kdextract.models import exporter
from kdextract.models.classifier import Classifier, ClassifierSpec, load_classifier
from kdextract.models.exporter import open_onnx, to_onnx
from kdextract.synthesis.structured_noise.patterns import structured_images

pytest.importorskip("torchao")
onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxscript")
pytest.importorskip("onnxruntime")

from kdextract.models.quantizer import Quantized, quantize  # noqa: E402

pytestmark = pytest.mark.usefixtures("one_table_of_onnx_operators")
ERROR = 0.2
"""Largest accepted error of logits, as a share of how much the logits of different images differ."""

OWN_NETWORK = """
from torch import nn

def build():
    return nn.Sequential(
        nn.Conv2d(3, 24, 3, padding=1), nn.ReLU(), nn.AvgPool2d(2), nn.Conv2d(24, 48, 3, stride=2), nn.SiLU(),
        nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(192, 100),
    )
"""


def own_network() -> nn.Module:
    scope: dict[str, Any] = {}
    exec(OWN_NETWORK, scope)
    network: nn.Module = scope["build"]()
    return network


def classifier_of(name: str) -> Classifier:
    """Return a classifier whose biases and running statistics are not those of a new network."""
    torch.manual_seed(0)
    shape, num_classes = {"lenet5": ((1, 32, 32), 10), "resnet14_half": ((3, 32, 32), 2), "own": ((3, 20, 16), 100)}[
        name
    ]
    spec = ClassifierSpec(name, shape, tuple(map(str, range(num_classes))), (0.4,) * shape[0], (0.3,) * shape[0])
    classifier = Classifier(spec, own_network() if name == "own" else None)
    with torch.no_grad():
        for module in classifier.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean.normal_(0, 0.1)  # type: ignore[union-attr]
                module.running_var.uniform_(0.5, 2)  # type: ignore[union-attr]
                module.weight.uniform_(0.5, 1.5)  # some are 0 in a new network
            elif isinstance(module, nn.Conv2d | nn.Linear) and module.bias is not None:
                module.bias.normal_(0, 0.1)
    return classifier.frozen()


def images(classifier: Classifier, seed: int, count: int = 128) -> torch.Tensor:
    return structured_images(count, classifier.input_shape, 0.4, seeded(seed))


@lru_cache
def quantized(name: str, seed: int = 1) -> tuple[Classifier, Quantized]:
    """Return a classifier and what is made of it; tests do not change them."""
    classifier = classifier_of(name)
    return classifier, quantize(classifier, list(images(classifier, seed).split(32)))


def int8_weights(content: bytes) -> dict[str, np.ndarray]:
    """Return the constants of an ONNX file that are int8 and have at least two axes, by name."""
    tensors = onnx.load_from_string(content).graph.initializer
    arrays = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in tensors}
    return {name: array for name, array in arrays.items() if array.dtype == np.int8 and array.ndim > 1}


def scales(content: bytes) -> list[float]:
    """Return all scales of activations, in order."""
    graph = onnx.load_from_string(content).graph
    arrays = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in graph.initializer}
    return [float(arrays[node.input[1]]) for node in graph.node if node.op_type == "QuantizeLinear"]


# ---- networks ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [pytest.param("lenet5", marks=pytest.mark.slow), "resnet14_half", "own"])
def test_a_quantized_network_answers_like_the_network(name: str) -> None:
    classifier = classifier_of(name)
    before, hooks = weights(classifier), num_hooks(classifier)
    result = quantize(classifier, list(images(classifier, 1).split(32)))
    assert equal(weights(classifier), before)
    assert num_hooks(classifier) == hooks
    fresh = images(classifier, 2)
    with torch.no_grad():
        floats, in_pytorch = classifier(fresh), result.program(fresh)
    integers = open_onnx(result.content)(fresh)
    spread = (floats - floats.mean(0)).std()
    for logits in (in_pytorch, integers):
        assert (logits - floats).std() < ERROR * spread
        assert not torch.allclose(logits, floats, rtol=0, atol=1e-4 * float(spread)), "nothing was rounded"
    assert (integers - in_pytorch).std() < ERROR / 2 * spread
    assert (integers.argmax(1) == in_pytorch.argmax(1)).float().mean() > 0.9
    assert open_onnx(result.content)(fresh[:1]).shape == (1, classifier.num_classes)


@pytest.mark.parametrize(
    "name", ["resnet14_half", *(pytest.param(name, marks=pytest.mark.slow) for name in ("lenet5", "own"))]
)
def test_weights_are_int8_in_a_file_of_a_third_or_less(name: str) -> None:
    classifier, result = quantized(name)
    found = int8_weights(result.content)
    assert len(found) == result.num_quantized
    assert result.num_quantized == result.num_layers - (name == "lenet5"), "a convolution of grey images stays float32"
    values = sum(array.size for array in found.values())
    assert values > 0.9 * classifier.num_parameters
    assert all(len(np.unique(array)) > 16 for array in found.values()), "the range is used"
    assert max(255 * 2 * abs(int(value)) for array in found.values() for value in (array.min(), array.max())) < 2**15
    exported = to_onnx(classifier)
    assert len(result.content) - values < 0.5 * (len(exported) - 4 * values) + 20_000
    if classifier.num_parameters > 50_000:
        assert len(result.content) < len(exported) / 3


def test_residual_sums_and_convolutions_are_computed_with_integers() -> None:
    """torchao's quantizer for PyTorch's compiler leaves sums in float32, and with them every second convolution."""
    _, result = quantized("resnet14_half")
    graph = onnx.load_from_string(result.content).graph
    quantizes = {name for node in graph.node if node.op_type == "DequantizeLinear" for name in node.output}
    inputs = {name: node.op_type for node in graph.node for name in node.input}
    sums = [node for node in graph.node if node.op_type == "Add"]
    assert len(sums) == 6
    assert all(name in quantizes for node in sums for name in node.input)
    convolutions = [node for node in graph.node if node.op_type == "Conv"]
    assert {inputs[node.output[0]] for node in convolutions} <= {"QuantizeLinear", "Relu"}


@pytest.mark.slow
def test_the_images_matter_and_equal_ones_give_equal_bytes() -> None:
    classifier, result = quantized("lenet5")
    again = quantize(classifier, list(images(classifier, 1).split(32)))
    assert again.content == result.content
    dark = quantize(classifier, [0.1 * batch for batch in images(classifier, 1).split(32)])
    assert dark.content != result.content
    pairs = list(zip(scales(dark.content), scales(result.content), strict=True))
    assert all(small < 0.9 * large for small, large in pairs[:2]), "smaller activations have smaller scales"
    assert int8_weights(dark.content).keys() == int8_weights(result.content).keys()
    for one, other in zip(int8_weights(dark.content).values(), int8_weights(result.content).values(), strict=True):
        np.testing.assert_array_equal(one, other)


def test_networks_that_cannot_be_quantized_say_why() -> None:
    class Branch(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(64, 10)

        def forward(self, values: torch.Tensor) -> torch.Tensor:
            flat = values.flatten(1)
            return self.layer(flat) if flat.sum() > 0 else self.layer(-flat)

    for network, reason in (
        (Branch(), "the network cannot be quantized: "),
        (nn.Sequential(nn.AvgPool2d(4), nn.Flatten()), "no convolution or linear layer"),
    ):
        spec = ClassifierSpec("own", (1, 8, 8), tuple("abcd"), (0.4,), (0.3,))
        with pytest.raises(ConfigError, match=reason) as caught:
            quantize(Classifier(spec, network).frozen(), [torch.rand(4, 1, 8, 8)])
        assert "\n" not in str(caught.value)


# ---- the command ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def made(finished_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose student is quantized. Tests only read it."""
    run = shutil.copytree(finished_run, tmp_path_factory.mktemp("quantized") / "run")
    api.quantize(run=run, threads=1)
    return run


def test_the_student_is_quantized_without_data(made: Path) -> None:
    outcome = api.quantize(run=made, threads=1)
    assert outcome.status == "cached"
    manifest = outcome.manifest
    assert (manifest.kind, manifest.label, manifest.stage) == ("quantized", "quantized/lenet_half-int8", "quantize")
    assert [entry.path for entry in manifest.inputs] == ["students/lenet_half"]
    assert manifest.needs == "teacher+statistics", "that of the student"
    assert manifest.real_data == ()
    assert "teacher_queries" not in manifest.budget or manifest.budget["teacher_queries"] == 0
    metrics = outcome.metrics
    assert "accuracy" not in metrics
    assert metrics["agreement"] > 0.85
    assert metrics["runtime_agreement"] > 0.95
    assert metrics["bytes"] == outcome.files["model.onnx"].stat().st_size < metrics["float32_bytes"] / 2
    assert metrics["weight_bytes"] < metrics["float32_weight_bytes"] / 3
    assert all(metrics[name] > 0 for name in metrics if "latency" in name)
    assert sum("latency" in name for name in metrics) == 4


@pytest.mark.slow
def test_the_same_command_writes_the_same_bytes(made: Path, tmp_path: Path) -> None:
    run = shutil.copytree(made, tmp_path / "run")
    old = sha256s(run / "quantized" / "lenet_half-int8")
    assert api.quantize(run=run, threads=1, force=True).status == "made"
    assert sha256s(run / "quantized" / "lenet_half-int8") == old
    other = api.quantize(run=run, threads=1, seed=1, name="other")
    assert sha256s(other.directory)["model.onnx"] != old["model.onnx"], "other images"
    with pytest.raises(ConfigError, match="--seed: 0 -> 1"):
        api.quantize(run=run, threads=1, seed=1)


def test_it_is_evaluated_loaded_and_shown(made: Path, tmp_path: Path, here: Here) -> None:
    run = shutil.copytree(made, tmp_path / "run")
    student = api.evaluate("students/lenet_half", run=run, threads=1).metrics
    scored = api.evaluate("quantized/lenet_half-int8", run=run, threads=1)
    assert scored.directory.name == "lenet_half-int8"
    assert abs(scored.metrics["accuracy"] - student["accuracy"]) < 0.05
    for name in ("num_parameters", "multiply_adds"):
        assert scored.metrics[name] == student[name], "those of the network before"
    folder = run / "quantized" / "lenet_half-int8"
    by_path = api.evaluate(str(folder / "model.onnx"), run=run, threads=1, name="file")
    assert by_path.metrics["confusion_matrix"] == scored.metrics["confusion_matrix"]
    loaded = load_classifier(folder)
    pixels = torch.rand(5, *loaded.input_shape, generator=seeded(0))
    expected = open_onnx((folder / "model.onnx").read_bytes())(pixels)
    for classifier in (loaded, loaded.copy(), api.quantize(run=run, threads=1).classifier()):
        assert torch.equal(classifier(pixels), expected)
    original = load_classifier(run / "students" / "lenet_half")
    assert loaded.spec.class_names == original.spec.class_names
    shown = here("show", "--run", run)
    assert "quantized/lenet_half-int8" in shown.stdout
    assert "students/lenet_half" in here("show", "quantized/lenet_half-int8", "--run", run).stdout.split("lineage")[1]
    assert here("verify", "--run", run).returncode == 0


@pytest.mark.slow
def test_sources_of_images_and_real_test_data(made: Path, tmp_path: Path) -> None:
    run = shutil.copytree(made, tmp_path / "run")
    files = {}
    for data, needs in (
        ("transfer-sets/all_layers", "teacher+statistics"),
        ("noise:uniform", "teacher"),
        ("digits", "teacher+data"),
    ):
        outcome = api.quantize("teacher", run=run, threads=1, data=data, name="a", force=True)
        assert outcome.manifest.needs == needs
        assert outcome.metrics["source"] == data.split("/")[-1]
        files[data] = sha256s(outcome.directory)["model.onnx"]
    assert len(set(files.values())) == 3
    assert outcome.manifest.real_data == ({"spec": "digits", "split": "train", "purpose": "calibration"},)
    assert outcome.manifest.budget["teacher_queries_by_purpose"]["calibration"] == 512
    outcome = api.quantize("teacher", run=run, threads=1, test_data="digits")
    assert outcome.manifest.needs == "teacher", "test data change nothing but the figures"
    assert outcome.manifest.real_data == ({"spec": "digits", "split": "test", "purpose": "evaluation"},)
    assert [entry.role for entry in outcome.manifest.inputs] == ["classifier", "test-data"]
    metrics = outcome.metrics
    assert metrics["float32_accuracy"] > 0.5
    assert abs(metrics["accuracy"] - metrics["float32_accuracy"]) < 0.05


def imported(folder: Path) -> Path:
    """Return a run whose teacher is a user's network of 3x20x16 pixels and 100 classes, without batch normalization."""
    (folder / "model.py").write_text(OWN_NETWORK)
    torch.manual_seed(0)
    torch.save(own_network().state_dict(), folder / "weights.pt")
    spec, weights_file = f"{folder / 'model.py'}:build", folder / "weights.pt"
    api.import_model(spec, run=folder / "own", weights=weights_file, input_size="3x20x16", threads=1)
    return folder / "own"


@pytest.mark.slow
def test_an_imported_network_and_a_table(tmp_path: Path, state: Path, here: Here) -> None:
    done = here("quantize", "teacher", "--run", imported(tmp_path), "--threads", "1", "--json")
    assert done.returncode == 0, done.stderr
    record = json.loads(done.stdout)
    assert (record["artifact"], record["num_layers"]) == ("quantized/teacher-int8", 3)
    assert record["source"] == "structured_noise"
    api.train(run=tmp_path / "table", data="iris", model="kegnet_mlp", epochs=1, threads=1)
    outcome = api.quantize("teacher", run=tmp_path / "table", threads=1)
    assert outcome.metrics["source"] == "noise:normal"
    assert outcome.metrics["quantized_layers"] == outcome.metrics["num_layers"] > 2


def test_wrong_arguments_are_one_line_and_write_nothing(
    made: Path, tmp_path: Path, state: Path, here: Here, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = shutil.copytree(made, tmp_path / "run")
    before = sorted(str(path) for path in run.rglob("*"))
    quantize_here = ("quantize", "--run", run, "--threads", "1", "--name", "b")
    assert "--bits 4 is not supported" in error_of(here(*quantize_here, "--bits", "4"), 2)
    assert "no transfer set or generator" in error_of(here(*quantize_here, "--data", "nonsense"), 2)
    assert "quantized" not in error_of(here("quantize", "nobody", "--run", run), 2)
    other, transfer_set = imported(tmp_path), str(run / "transfer-sets" / "all_layers")
    assert "(3, 20, 16) is needed" in error_of(here("quantize", "teacher", "--run", other, "--data", transfer_set), 3)
    assert not (other / "quantized" / "teacher-int8").exists()
    monkeypatch.setattr(exporter, "find_spec", lambda name: None if name == "torchao" else name)
    line = error_of(here(*quantize_here), 3)
    assert "quantization needs torchao: pip install 'kdextract[quantize]'" in line
    monkeypatch.setattr(exporter, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"a quantized classifier needs onnx and .*kdextract\[quantize\]"):
        load_classifier(run / "quantized" / "lenet_half-int8")
    assert sorted(str(path) for path in run.rglob("*") if "partial" not in str(path)) == before


def test_a_quantized_classifier_is_no_teacher_student_or_export(made: Path, tmp_path: Path) -> None:
    run = shutil.copytree(made, tmp_path / "run")
    for command, options in (
        (api.quantize, {"artifact": "quantized/lenet_half-int8"}),
        (api.export, {"artifact": "quantized/lenet_half-int8"}),
    ):
        with pytest.raises(ConfigError, match=r"is quantized, .* its model\.onnx is exported already"):
            command(run=run, threads=1, **options)
    with pytest.raises(UsageError, match="quantized/lenet_half-int8"):
        api.distill(run=run, threads=1, student="quantized/lenet_half-int8")


# ---- files of others -----------------------------------------------------------------------------------------------


def changed(content: bytes, how: str) -> bytes:
    """Return a quantized classifier's file with one thing wrong."""
    model = onnx.load_from_string(content)
    texts = {entry.key: entry for entry in model.metadata_props}
    if how == "external file":
        tensor = model.graph.initializer[0]
        tensor.ClearField("raw_data")
        tensor.data_location = onnx.TensorProto.EXTERNAL
        entry = tensor.external_data.add()
        entry.key, entry.value = "location", "../../../../etc/passwd"
    elif how == "other operators":
        opset = model.opset_import.add()
        opset.domain, opset.version = "com.example", 1
        model.graph.node[0].domain = "com.example"
    elif how == "no record":
        model.metadata_props.remove(texts["classifier"])
    elif how == "record":
        texts["classifier"].value = "[" * 100_000
    elif how == "number":
        texts["classifier"].value = texts["classifier"].value.replace(
            '"num_parameters": ', '"num_parameters": "x", "y": '
        )
    elif how == "shape":
        texts["input_shape"].value = "[1, 9, 9]"
    elif how == "classes":
        texts["class_names"].value = '["one", "two"]'
    elif how == "graph":
        model.graph.node[-1].input[0] = "nothing"
    return bytes(model.SerializeToString())


@pytest.mark.parametrize(
    ("how", "reason"),
    [
        ("external file", "another file|not a sound ONNX file"),
        ("other operators", "not of the ONNX standard|not a sound"),
        ("no record", "not a quantized classifier of kdx"),
        ("record", "malformed metadata"),
        ("number", "malformed metadata"),
        ("shape", "does not take pixels of the size"),
        ("classes", "of 2 classes"),
        ("graph", "not a sound ONNX file|cannot run"),
    ],
)
def test_a_hostile_file_is_refused_in_one_line(how: str, reason: str, made: Path, tmp_path: Path) -> None:
    file = tmp_path / "model.onnx"
    file.write_bytes(changed((made / "quantized" / "lenet_half-int8" / "model.onnx").read_bytes(), how))
    with pytest.raises(ArtifactError, match=reason) as caught:
        load_classifier(file)
    assert "\n" not in str(caught.value)
    assert str(file) in str(caught.value)


def test_files_that_are_no_quantized_classifier_are_refused(made: Path, tmp_path: Path) -> None:
    content = (made / "quantized" / "lenet_half-int8" / "model.onnx").read_bytes()
    file = tmp_path / "model.onnx"
    for other in (b"", b"\x80\x04.", content[: len(content) // 2], content[:-1], b"\x08" + bytes(1000)):
        file.write_bytes(other)
        with pytest.raises(ArtifactError):
            load_classifier(file)
    file.write_bytes(to_onnx(classifier_of("lenet5")))
    with pytest.raises(ArtifactError, match="not a quantized classifier of kdx"):
        load_classifier(file)
    with pytest.raises(ArtifactError, match="does not exist"):
        load_classifier(tmp_path / "nothing.onnx")
