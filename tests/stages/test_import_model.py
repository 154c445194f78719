"""`kdx import-model`, `kdx check-teacher`, `--teacher` and `--student SPEC`, with models of users."""

from __future__ import annotations

import io
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from kdextract import api
from kdextract.cli.commands import COMMANDS
from kdextract.errors import ArtifactError, ConfigError, UsageError
from kdextract.models.classifier import (
    Classifier,
    ClassifierSpec,
    encode_classifier,
    load_classifier,
    read_spec,
)
from kdextract.models.external.consent import TRUST_ALL
from kdextract.models.hooks import record_features
from kdextract.storage.artifacts import read_manifest
from kdextract.training.progress import Reporter

pytestmark = pytest.mark.usefixtures("state")
SOURCE = """
import torch
from torch import nn


class Net(nn.Module):
    def __init__(self, in_channels, num_classes, width):
        super().__init__()
        self.conv = nn.Conv2d(in_channels, width, 3, padding=1)
        self.norm = nn.BatchNorm2d(width)
        self.fc = nn.Linear(width * 64, num_classes)

    def forward(self, x):
        x = torch.relu(self.norm(self.conv(x)))
        return {"logits": self.fc(x.view(x.size(0), -1))}


def build(in_channels=1, num_classes=10, width=8):
    print("building")
    return Net(in_channels, num_classes, width)


def small(num_classes):
    return nn.Sequential(nn.Flatten(), nn.Linear(64, num_classes))


def twice(num_classes=10):
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 7))


class Random(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(64, 3)

    def forward(self, x):
        return self.fc(nn.functional.dropout(x.flatten(1), 0.5, training=True))


class Hidden(nn.Module):
    def __init__(self):
        super().__init__()
        self.scale = torch.randn(1)
        self.fc = nn.Linear(64, 3)

    def forward(self, x):
        return self.fc(x.flatten(1)) * self.scale
"""


@pytest.fixture
def model(tmp_path: Path) -> Path:
    path = tmp_path / "model.py"
    path.write_text(SOURCE)
    return path


def network(num_classes: int = 10, width: int = 8) -> Any:
    scope: dict[str, Any] = {"__name__": "stranger"}
    exec(SOURCE, scope)
    torch.manual_seed(0)
    made = scope["build"](1, num_classes, width)
    nn.init.normal_(made.norm.running_mean)
    return made.eval()


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    path = tmp_path / "weights.pth"
    torch.save({"epoch": 4, "state_dict": {f"module.{k}": v for k, v in network(7).state_dict().items()}}, path)
    return path


def imported(tmp_path: Path, model: Path | str, **options: Any) -> Any:
    return api.import_model(model=str(model), run=tmp_path / "run", threads=1, **options)


def test_a_function_and_its_weights_become_the_teacher(tmp_path: Path, model: Path, weights: Path) -> None:
    made = imported(tmp_path, f"{model}:build", weights=str(weights), mean="0.5", std="0.25", data="digits")
    metrics = made.manifest.metrics
    assert metrics["model"] == "model.py:build(num_classes=7)"
    assert (metrics["input_size"], metrics["num_classes"], metrics["batch_norm_layers"]) == ("1x8x8", 7, 1)
    said = "\n".join(metrics["found"])
    for part in (
        "under 'state_dict'",
        "'module.'",
        "1x8x8 (detected by trying sizes)",
        "'logits'",
        "rows of the last layer",
    ):
        assert part in said, part
    assert {entry.role for entry in made.manifest.inputs} == {"weights", "code"}
    teacher = load_classifier(made.directory)
    pixels = torch.rand(4, 1, 8, 8)
    with torch.no_grad():
        torch.testing.assert_close(teacher(pixels), network(7)((pixels - 0.5) / 0.25)["logits"])
    assert teacher.spec.class_names == tuple("0123456")
    assert (
        imported(tmp_path, f"{model}:build", weights=str(weights), mean="0.5", std="0.25", data="digits").status
        == "cached"
    )


def test_a_teacher_is_complete_without_the_file_of_its_code(tmp_path: Path, model: Path, weights: Path) -> None:
    made = imported(tmp_path, f"{model}:build", weights=str(weights))
    before = load_classifier(made.directory)(torch.ones(1, 1, 8, 8))
    model.write_text("raise SystemExit('another file by now')")
    assert torch.equal(load_classifier(made.directory)(torch.ones(1, 1, 8, 8)), before)
    assert str(tmp_path) not in (made.directory / "model.safetensors").read_bytes().decode("latin-1")


def test_code_of_a_file_from_elsewhere_does_not_run(
    tmp_path: Path, model: Path, weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = imported(tmp_path, f"{model}:build", weights=str(weights))
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "another machine"))
    with pytest.raises(ArtifactError, match=r"the code of model.py .* calls build\(num_classes=7\), which was not"):
        load_classifier(made.directory)
    with pytest.raises(ArtifactError, match="--trust-code"):
        api.import_model(model=str(made.directory), run=tmp_path / "there")
    monkeypatch.setenv(TRUST_ALL, "1")
    load_classifier(made.directory)
    monkeypatch.delenv(TRUST_ALL)
    api.import_model(model=str(made.directory), run=tmp_path / "there", trust_code=True)
    load_classifier(made.directory)


def test_the_same_model_gives_the_same_bytes_anywhere(tmp_path: Path, model: Path, weights: Path) -> None:
    first = imported(tmp_path, f"{model}:build", weights=str(weights))
    (tmp_path / "elsewhere").mkdir()
    copy = shutil.copy(model, tmp_path / "elsewhere" / "model.py")
    second = api.import_model(model=f"{copy}:build", weights=str(weights), run=tmp_path / "second")
    assert first.manifest.identity == second.manifest.identity


def test_output_of_a_users_code_does_not_mix_with_json(tmp_path: Path, model: Path, weights: Path) -> None:
    command = ["import-model", f"{model}:build", "--weights", str(weights), "--run", str(tmp_path / "run"), "--json"]
    done = subprocess.run(
        [sys.executable, "-m", "kdextract", *command], cwd="/", capture_output=True, text=True, env=os.environ
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["num_classes"] == 7
    assert "building" in done.stderr
    assert "weights: prefix 'module.' removed from 9 names" in json.loads(done.stdout)["found"]


def test_registered_names_take_weights_too(tmp_path: Path) -> None:
    source = Classifier(ClassifierSpec("lenet5", (1, 32, 32), tuple("abcd"), (0.0,), (1.0,))).eval()
    save_file(source.network.state_dict(), tmp_path / "w.safetensors")
    made = imported(tmp_path, "lenet5", weights=str(tmp_path / "w.safetensors"), class_names="a, b,c,d")
    teacher = load_classifier(made.directory)
    assert teacher.spec.class_names == tuple("abcd")
    pixels = torch.rand(2, 1, 32, 32)
    torch.testing.assert_close(teacher(pixels), source(pixels))


def test_networks_of_torchvision_are_found_by_name(tmp_path: Path) -> None:
    import torchvision

    source = torchvision.models.squeezenet1_1(num_classes=5).eval()
    torch.save(source.state_dict(), tmp_path / "w.pt")
    made = imported(
        tmp_path, "torchvision/squeezenet1_1", weights=str(tmp_path / "w.pt"), input_size="3x40x40", num_classes=5
    )
    teacher = load_classifier(made.directory)
    assert teacher.spec.mean == (0.485, 0.456, 0.406)
    assert teacher.feature_layer == "classifier.1"
    pixels = torch.rand(2, 3, 40, 40)
    torch.testing.assert_close(teacher.of_normalized(pixels), source(pixels))


def test_files_of_kdx_are_teachers_as_they_are(tmp_path: Path) -> None:
    source = Classifier(ClassifierSpec("lenet5", (1, 32, 32), tuple("abcd"), (0.2,), (0.3,)))
    path = tmp_path / "some" / "model.safetensors"
    path.parent.mkdir()
    path.write_bytes(encode_classifier(source))
    first = imported(tmp_path, path)
    assert (first.directory / "model.safetensors").read_bytes() == path.read_bytes()
    for spec in (path.parent, tmp_path / "run"):
        again = api.import_model(model=str(spec), run=tmp_path / f"run of {spec.name}")
        assert again.manifest.identity == first.manifest.identity
    with pytest.raises(UsageError, match="--mean has no effect"):
        imported(tmp_path, path, mean="0.5")
    with pytest.raises(ArtifactError, match=r"is a directory without model\.safetensors"):
        imported(tmp_path, tmp_path)


def test_programs_are_code(tmp_path: Path) -> None:
    torch.manual_seed(0)
    source = nn.Sequential(nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.Flatten(), nn.Linear(108, 4)).eval()
    batch = torch.export.Dim("batch")
    program = torch.export.export(source, (torch.zeros(2, 1, 8, 8),), dynamic_shapes=({0: batch},))
    path = tmp_path / "program.pt2"
    stream = io.BytesIO()
    torch.export.save(program, stream)
    path.write_bytes(stream.getvalue())
    with pytest.raises(ArtifactError, match="--trust-code"):
        imported(tmp_path, path)
    made = imported(tmp_path, path, trust_code=True)
    assert made.manifest.metrics["batch_norm_layers"] == 1
    pixels = torch.rand(3, 1, 8, 8)
    path.unlink()
    torch.testing.assert_close(load_classifier(made.directory)(pixels), source(pixels))
    student = api.distill(
        run=tmp_path / "run", student="hinton800", data="noise:uniform", steps=2, batch_size=8, threads=1
    )
    assert student.status == "made"


@pytest.mark.parametrize(
    ("model", "options", "error", "match"),
    [
        (":build", {"num_classes": 3, "input_size": "1x9x9"}, ConfigError, "cannot take images of 1x9x9"),
        (":twice", {"num_classes": 3}, ConfigError, "7 classes, not for 3"),
        (":small", {}, UsageError, "parameters without a default; give their values: .*small.num_classes="),
        (":bild", {}, UsageError, "no 'bild'.*'build'"),
        (":Random", {}, ConfigError, "gives different outputs for equal images"),
        (":Hidden", {}, ConfigError, "values that are not in its state_dict"),
        (":build", {"mean": "0.5,0.5"}, UsageError, "2 values, but the images have 1 channels"),
        (":build", {"mean": "x"}, UsageError, "--mean takes one number per channel"),
        (":build", {"std": "0"}, UsageError, "--std has values outside of the possible range"),
        (":build", {"class_names": "a,a"}, UsageError, "1 different names"),
        (":build", {"feature_layer": "fcc"}, ConfigError, "no layer 'fcc'.*'fc'"),
        (":build", {"input_size": "8"}, UsageError, "3x32x32"),
        (":build(depth=3)", {}, UsageError, "no parameter 'depth'"),
    ],
)
def test_what_does_not_fit_is_refused_in_one_line(
    tmp_path: Path, model: Path, options: dict[str, Any], error: type[Exception], match: str, request: Any
) -> None:
    path = tmp_path / "model.py"
    path.write_text(SOURCE)
    with pytest.raises(error, match=match) as caught:
        imported(tmp_path, f"{path}{request.node.callspec.params['model']}", **options)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run" / "teacher").exists()


@pytest.mark.parametrize(
    ("spec", "match"),
    [
        ("lenet6", "unknown model 'lenet6'. Did you mean 'lenet'"),
        ("lenet5", "comes without weights; give them with --weights FILE$"),
        ("torchvision/resnet18", "--weights FILE, or download the library's own with --download"),
        ("torchvision/resnet81", "Did you mean 'resnet18'"),
        ("net.py", "a file of code; name a function or class in it, such as net.py:build"),
        ("old/net.pth.tar", "a file of weights; name the network as MODEL"),
    ],
)
def test_networks_without_weights_or_of_no_library_are_refused(tmp_path: Path, spec: str, match: str) -> None:
    with pytest.raises(UsageError, match=match):
        imported(tmp_path, spec)
    assert not (tmp_path / "run").exists()


CONFIGURED = """
from types import SimpleNamespace
from torch import nn


def of_timm():
    network = nn.Sequential(nn.Conv2d(1, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3))
    network.pretrained_cfg = {"input_size": (1, 24, 24), "mean": (0.5,), "std": (0.25,)}
    return network


class OfTransformers(nn.Module):
    def __init__(self):
        super().__init__()
        self.config = SimpleNamespace(image_size=24, num_channels=1, id2label={0: "cat", 1: "dog", 2: "eel"})
        self.net = of_timm()

    def forward(self, pixel_values):
        return SimpleNamespace(loss=None, logits=self.net(pixel_values))
"""


def test_a_models_own_configuration_is_read(tmp_path: Path) -> None:
    path = tmp_path / "model.py"
    path.write_text(CONFIGURED)
    teacher = load_classifier(imported(tmp_path, f"{path}:of_timm").directory)
    assert (teacher.input_shape, teacher.spec.mean, teacher.spec.std) == ((1, 24, 24), (0.5,), (0.25,))
    other = load_classifier(api.import_model(model=f"{path}:OfTransformers", run=tmp_path / "b").directory)
    assert (other.input_shape, other.spec.mean, other.spec.class_names) == ((1, 24, 24), (0.0,), ("cat", "dog", "eel"))
    assert other.spec.head.part == ("logits",)


def test_the_layer_of_the_features_can_be_named(tmp_path: Path) -> None:
    path = tmp_path / "lenet5.safetensors"
    path.write_bytes(encode_classifier(Classifier(ClassifierSpec("lenet5", (1, 32, 32), tuple("ab"), (0.2,), (0.3,)))))
    assert imported(tmp_path, path).manifest.metrics["feature_layer"] == "logits"
    named = api.import_model(model=str(path), run=tmp_path / "named", feature_layer="fc1")
    teacher = load_classifier(named.directory)
    assert teacher.feature_layer == "fc1"
    with record_features(teacher.network, teacher.feature_layer) as features:
        teacher(torch.zeros(2, 1, 32, 32))
    assert features[0].shape == (2, 120)
    with pytest.raises(ConfigError, match="no layer 'fc9'"):
        api.import_model(model=str(path), run=tmp_path / "x", feature_layer="fc9")


def test_weights_that_are_not_finite_are_named(tmp_path: Path, model: Path) -> None:
    state = network(10).state_dict()
    state["fc.weight"][0, 0] = torch.nan
    torch.save(state, tmp_path / "w.pth")
    with pytest.raises(ArtifactError, match=r"w\.pth: fc\.weight has 1 values that are not finite"):
        imported(tmp_path, f"{model}:build", weights=str(tmp_path / "w.pth"))


def test_weights_of_another_network_do_not_fit(tmp_path: Path, model: Path, weights: Path) -> None:
    with pytest.raises(ConfigError, match=r"\[7, 512\].*\[9, 512\]"):
        imported(tmp_path, f"{model}:build", weights=str(weights), num_classes=9)


def test_what_code_imports_from_its_folder_has_to_stay_as_it_is(tmp_path: Path) -> None:
    layers = tmp_path / "layers_of_a_stranger.py"
    layers.write_text("from torch import nn\ndef act(): return nn.ReLU()\n")
    path = tmp_path / "model.py"
    path.write_text(
        "from torch import nn\nfrom layers_of_a_stranger import act\n"
        "def build(): return nn.Sequential(nn.Flatten(), nn.Linear(64, 8), act(), nn.Linear(8, 3))\n"
    )
    made = imported(tmp_path, f"{path}:build")
    assert any(line.startswith("needs: layers_of_a_stranger.py") for line in made.manifest.metrics["found"])
    load_classifier(made.directory)
    before = layers.read_text()
    layers.write_text(before.replace("ReLU", "Tanh"))
    with pytest.raises(ArtifactError, match=r"imports layers_of_a_stranger\.py from its folder, which was changed"):
        load_classifier(made.directory)
    layers.unlink()
    with pytest.raises(ArtifactError, match="is missing now"):
        load_classifier(made.directory)
    layers.write_text(before)
    load_classifier(made.directory)


LAZY = """
from torch import nn


def lazy(n_classes):
    return nn.Sequential(nn.LazyConv2d(4, 3), nn.LazyBatchNorm2d(), nn.Flatten(), nn.LazyLinear(n_classes))
"""


def test_lazy_layers_and_classes_without_a_default_come_from_weights(tmp_path: Path) -> None:
    path = tmp_path / "model.py"
    path.write_text(LAZY)
    source = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(144, 6)).eval()
    torch.save(source.state_dict(), tmp_path / "w.pth")
    made = imported(tmp_path, f"{path}:lazy", weights=str(tmp_path / "w.pth"), input_size="1x8x8")
    pixels = torch.rand(3, 1, 8, 8)
    torch.testing.assert_close(load_classifier(made.directory)(pixels), source(pixels))
    assert made.manifest.metrics["num_classes"] == 6
    with pytest.raises(ConfigError, match="lazy layers"):
        api.import_model(model=f"{path}:lazy", weights=str(tmp_path / "w.pth"), run=tmp_path / "other")
    student = api.distill(
        run=tmp_path / "run", student=f"{path}:lazy", data="noise:uniform", steps=2, batch_size=4, threads=1
    )
    assert student.manifest.metrics["num_parameters"] == sum(p.numel() for p in source.parameters())


# --teacher


def test_every_stage_can_import_its_teacher(tmp_path: Path, model: Path, weights: Path) -> None:
    options: dict[str, Any] = {"run": tmp_path / "run", "teacher": f"{model}:build", "weights": str(weights)}
    made = api.optimize_dataset(objective="structured_noise", images_per_class=2, threads=1, **options)
    assert read_manifest(tmp_path / "run" / "teacher").stage == "import-model"
    assert (
        api.optimize_dataset(objective="structured_noise", images_per_class=2, threads=1, **options).status == "cached"
    )
    api.distill(student="half", steps=2, batch_size=4, threads=1, **options)
    assert made.manifest.needs == "teacher"
    with pytest.raises(ConfigError, match="has another teacher"):
        api.distill(student="half", run=tmp_path / "run", teacher=f"{model}:build(width=4)")
    with pytest.raises(UsageError, match="--weights has no effect without --teacher"):
        api.distill(run=tmp_path / "run", weights="x")
    with pytest.raises(ConfigError, match="import it first"):
        api.distill(run=tmp_path / "other", teacher=f"{model}:build", dry_run=True)


# --student


@pytest.fixture
def teacher_run(tmp_path: Path, model: Path, weights: Path) -> Path:
    imported(tmp_path, f"{model}:build", weights=str(weights))
    return tmp_path / "run"


@pytest.mark.parametrize(
    ("student", "name", "architecture"),
    [
        ("half", "build-half", "model.py:build(in_channels=1, num_classes=7, width=4)"),
        ("width:0.25", "build-width-0.25", "model.py:build(num_classes=7)"),
        ("width:0.25:hinton800", "hinton800-0.25", "hinton800(width=0.25)"),
        ("MODEL:small", "small", "model.py:small(num_classes=7)"),
        ("MODEL:build(width=3)", "build-width3", "model.py:build(in_channels=1, num_classes=7, width=3)"),
        ("half:hinton800", "hinton800-half", "hinton800(width=0.5)"),
        ("hinton800", "hinton800", "hinton800"),
    ],
)
def test_students_of_any_spec(teacher_run: Path, model: Path, student: str, name: str, architecture: str) -> None:
    made = api.distill(
        run=teacher_run,
        student=student.replace("MODEL", str(model)),
        data="noise:uniform",
        steps=2,
        batch_size=4,
        threads=1,
    )
    assert made.directory.name == name
    assert made.manifest.metrics["student"] == architecture
    assert load_classifier(made.directory)(torch.zeros(3, 1, 8, 8)).shape == (3, 7)
    assert read_spec(made.directory / "model.safetensors").class_names == tuple("0123456")


@pytest.mark.parametrize(
    ("student", "error", "match"),
    [
        ("lenet5", ConfigError, "takes images of 32x32 pixels, got 1x8x8"),
        ("torchvision/resnet18", ConfigError, "takes images of 3 channels"),
        ("MODEL:Random", ConfigError, "3 classes, the teacher 7"),
        ("MODEL:nothing", UsageError, "no 'nothing'"),
        ("width:0.5:MODEL:small", ConfigError, "has no width"),
        ("lenet7", UsageError, "unknown model 'lenet7'. Did you mean 'lenet'"),
        ("compressed/none", ConfigError, "make it with: kdx compress"),
        ("nowhere/model.safetensors", ArtifactError, "does not exist"),
    ],
)
def test_students_that_do_not_fit_are_refused_before_anything_runs(
    teacher_run: Path, model: Path, student: str, error: type[Exception], match: str
) -> None:
    with pytest.raises(error, match=match):
        api.distill(run=teacher_run, student=student.replace("MODEL", str(model)), data="noise:uniform", steps=2)
    assert not (teacher_run / "students").exists()


# check-teacher


def checked(**options: Any) -> dict[str, Any]:
    command = COMMANDS["check-teacher"]
    config = command.config(**options)
    record = command.run(config, Reporter(quiet=True))
    command.check(config, record)
    return record


def results(record: dict[str, Any]) -> dict[str, str]:
    return {row["check"]: row["result"] for row in record["checks"]}


def applies(record: dict[str, Any]) -> dict[tuple[str, str], str]:
    return {(row["command"], row["method"]): row["applies"] for row in record["methods"]}


def test_a_valid_teacher_passes_all_checks(finished_run: Path) -> None:
    before = {path: path.read_bytes() for path in finished_run.rglob("*") if path.is_file()}
    record = checked(run=finished_run, data="digits", images=64)
    assert set(results(record).values()) == {"ok"}, record["checks"]
    details = {row["check"]: row["detail"] for row in record["checks"]}
    assert "accuracy" in details["real images"]
    assert applies(record)["distill --method", "structured_noise"] == "yes"
    assert applies(record)["distill --method", "deep_inversion"] == "with data"
    assert before == {path: path.read_bytes() for path in finished_run.rglob("*") if path.is_file()}


def trained_digits(side: int = 8) -> tuple[nn.Module, Any]:
    """Return a network with batch normalization, trained for few steps on digits with mean 0.3 and std 0.4."""
    from kdextract.data.load import load_data

    data = load_data("digits", "train", Path())
    images = (data.images.float() / 255 - 0.3) / 0.4
    made = network()
    optimizer = torch.optim.Adam(made.parameters(), 1e-2)
    made.train()
    for rows in torch.randperm(len(images), generator=torch.Generator().manual_seed(0)).repeat(3).split(64):
        optimizer.zero_grad()
        nn.functional.cross_entropy(made(images[rows])["logits"], data.labels[rows]).backward()
        optimizer.step()
    return made.eval(), data


def test_a_wrong_normalization_is_flagged(tmp_path: Path, model: Path) -> None:
    source, _ = trained_digits()
    path = tmp_path / "w.pth"
    torch.save(source.state_dict(), path)
    right = checked(model=f"{model}:build", weights=str(path), mean="0.3", std="0.4", data="digits")
    assert results(right)["normalization"] == "ok"
    wrong = checked(model=f"{model}:build", weights=str(path), std="bytes", data="digits")
    assert results(wrong)["normalization"] == "warning"
    (row,) = (row for row in wrong["checks"] if row["check"] == "normalization")
    assert "times smaller" in row["detail"]
    blind = checked(model=f"{model}:build", weights=str(path), std="bytes")
    assert results(blind)["normalization"] == "warning", "its batch normalization tells, without real images"
    assert applies(right)["optimize-dataset --objective", "deep_inversion"] == "yes"


PROBLEMS = """
import torch
from torch import nn


class Base(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(64, 3)


class NoGradient(Base):
    def forward(self, x):
        return self.fc(x.flatten(1).detach())


class Company(Base):
    def forward(self, x):
        return self.fc(x.flatten(1) - x.flatten(1).mean(0))


class Counting(Base):
    def __init__(self):
        super().__init__()
        self.register_buffer("seen", torch.zeros(1))

    def forward(self, x):
        self.seen += len(x)
        return self.fc(x.flatten(1))


class Constant(Base):
    def forward(self, x):
        return self.fc(torch.ones_like(x).flatten(1))
"""


@pytest.mark.parametrize(
    ("kind", "check", "result"),
    [
        ("NoGradient", "gradients", "problem"),
        ("Company", "one at a time", "problem"),
        ("Counting", "repeats itself", "problem"),
        ("Constant", "answers", "problem"),
    ],
)
def test_defects_of_a_teacher_are_found(tmp_path: Path, kind: str, check: str, result: str) -> None:
    path = tmp_path / "model.py"
    path.write_text(PROBLEMS)
    command = COMMANDS["check-teacher"]
    config = command.config(model=f"{path}:{kind}", input_size="1x8x8")
    record = command.run(config, Reporter(quiet=True))
    assert results(record)[check] == result, record["checks"]
    if kind == "NoGradient":
        assert applies(record)["distill --method", "structured_noise"] == "yes"
        assert applies(record)["distill --method", "dfad"] == "no"
        command.check(config, record)
    else:
        with pytest.raises(ConfigError, match=f"cannot be a teacher: {check}"):
            command.check(config, record)


def test_weights_of_a_file_of_kdx_that_are_not_finite_are_found(tmp_path: Path) -> None:
    damaged = Classifier(ClassifierSpec("lenet5", (1, 32, 32), tuple("ab"), (0.2,), (0.3,)))
    with torch.no_grad():
        next(damaged.parameters())[0] = torch.nan
    path = tmp_path / "model.safetensors"
    path.write_bytes(encode_classifier(damaged))
    command = COMMANDS["check-teacher"]
    config = command.config(model=str(path))
    record = command.run(config, Reporter(quiet=True))
    assert results(record)["weights"] == "problem"
    with pytest.raises(ConfigError, match=r"weights: conv1\.weight has values that are not finite"):
        command.check(config, record)
