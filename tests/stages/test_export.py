"""`kdx export`: files that return the classifier's logits, in batches of any size, and their model cards."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import io
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import ROOT, Here, environment, error_of, kdx, rounding, sha256s
from torch import nn

import kdextract
from kdextract import api
from kdextract.errors import ArtifactError, ConfigError, GateError, UsageError
from kdextract.models import exporter as exporting
from kdextract.models.architectures import architecture, model_names
from kdextract.models.classifier import Classifier, ClassifierSpec, encode_classifier, load_classifier
from kdextract.models.exporter import CHECKED_BATCHES, compare, open_onnx, open_pt2, to_onnx, to_pt2
from kdextract.stages.export import images_to_compare
from kdextract.stages.outputs.model_card import SHOWN_CLASSES, escaped
from kdextract.storage.artifacts import Manifest, read_manifest, write_manifest

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")

pytestmark = pytest.mark.usefixtures("one_table_of_onnx_operators")
MODELS = {  # one of each family, where a small one will do, at a size that it can take
    "airbench": (3, 32, 32),
    "alex_half": (3, 32, 32),
    "lenet_half": (1, 32, 32),
    "lenet5_bn": (1, 32, 32),
    "hinton800": (1, 28, 28),
    "kegnet_mlp": (1, 1, 16),
    "mobilenet_v2": (3, 32, 32),
    "resnet14_half": (3, 32, 32),
    "vgg11_bn": (3, 32, 32),
    "wrn16_1": (3, 32, 32),
}
DEEP = {"airbench", "alex_half", "mobilenet_v2", "vgg11_bn", "wrn16_1"}  # whose export takes long
TRACES = (b"site-packages", b".py", b"stack_trace", b'File "', str(ROOT).encode(), str(Path.home()).encode() + b"/")


def classifier_of(
    shape: tuple[int, int, int], name: str = "lenet_half", network: nn.Module | None = None, num_classes: int = 10
) -> Classifier:
    torch.manual_seed(0)
    names = tuple(f"class {number}" for number in range(num_classes))
    return Classifier(ClassifierSpec(name, shape, names, (0.4,) * shape[0], (0.3,) * shape[0]), network).frozen()


@cache
def exported(write: Callable[[Classifier], bytes]) -> bytes:
    """Return the file that `write` makes of a classifier of 32x32 grey images."""
    return write(classifier_of((1, 32, 32)))


def export(run: Path, **options: Any) -> tuple[Path, Manifest]:
    """Export, and return the directory and the manifest."""
    outcome = api.export(run=run, threads=1, **options)
    assert outcome.manifest is not None
    return outcome.directory, outcome.manifest


# ---- programs ------------------------------------------------------------------------------------------------------


def test_every_family_has_a_model_here() -> None:
    families = {architecture(name).builder.__module__ for name in model_names()}
    assert {architecture(name).builder.__module__ for name in MODELS} == families


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow if name in DEEP else ()) for name in MODELS]
)
def test_programs_return_the_classifiers_logits_at_any_batch_size(name: str) -> None:
    classifier = classifier_of(MODELS[name], name)
    onnx_file, pt2_file = to_onnx(classifier), to_pt2(classifier)
    onnx.checker.check_model(onnx.load_from_string(onnx_file), full_check=True)
    session = onnxruntime.InferenceSession(onnx_file, providers=["CPUExecutionProvider"])
    program = torch.export.load(io.BytesIO(pt2_file)).module()
    for size in (1, 2, 7):
        pixels = torch.rand(size, *classifier.input_shape)
        expected = classifier(pixels)
        (answer,) = session.run(["logits"], {"pixels": pixels.numpy()})
        atol = rounding(expected)
        assert torch.allclose(torch.from_numpy(answer), expected, rtol=0, atol=atol)
        assert torch.allclose(program(pixels), expected, rtol=0, atol=atol)
        assert answer.shape == (size, 10)


def test_inputs_and_outputs_have_names_types_and_sizes() -> None:
    session = onnxruntime.InferenceSession(exported(to_onnx), providers=["CPUExecutionProvider"])
    (pixels,), (logits,) = session.get_inputs(), session.get_outputs()
    assert (pixels.name, pixels.type, pixels.shape) == ("pixels", "tensor(float)", ["batch", 1, 32, 32])
    assert (logits.name, logits.type, logits.shape) == ("logits", "tensor(float)", ["batch", 10])


def test_files_contain_metadata() -> None:
    expected = {
        "kdx_version": kdextract.__version__,
        "class_names": json.dumps([f"class {number}" for number in range(10)]),
        "input_shape": "[1, 32, 32]",
        "input_range": "[0, 1]",
        "normalization": "inside",
    }
    model = onnx.load_from_string(exported(to_onnx))
    assert {entry.key: entry.value for entry in model.metadata_props} == expected
    assert [opset.version for opset in model.opset_import] == [exporting.OPSET]
    extra = {"kdx.json": ""}
    torch.export.load(io.BytesIO(exported(to_pt2)), extra_files=extra)
    assert json.loads(extra["kdx.json"]) == expected


def test_a_program_keeps_the_names_of_its_layers() -> None:
    classifier = classifier_of((1, 32, 32))
    modules = torch.export.unflatten(torch.export.load(io.BytesIO(exported(to_pt2))))
    assert {f"network.{name}" for name, _ in classifier.network.named_parameters()} <= set(modules.state_dict())
    pixels = torch.rand(3, 1, 32, 32)
    assert torch.allclose(modules(pixels), classifier(pixels))


@pytest.mark.parametrize("write", [to_onnx, to_pt2])
def test_equal_classifiers_give_equal_bytes_without_paths_of_this_machine(write: Any) -> None:
    content = exported(write)
    assert content == write(classifier_of((1, 32, 32)))
    assert [trace for trace in TRACES if trace in content] == []
    other = classifier_of((1, 32, 32))
    with torch.no_grad():
        next(other.network.parameters()).add_(1e-3)
    assert content != write(other)


def test_the_placement_of_a_classifier_does_not_change_the_file() -> None:
    classifier = classifier_of((3, 32, 32), "resnet14_half")
    usual = to_onnx(classifier)
    placed = classifier_of((3, 32, 32), "resnet14_half").placed(torch.device("cpu"), torch.bfloat16).train()
    placed.requires_grad_(True)
    assert to_onnx(placed) == usual
    assert placed.training
    assert next(placed.network.parameters()).requires_grad


class Twofold(nn.Module):
    """A layer in double precision."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(64, 10).double()

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.layer(images.flatten(1))


class InTwos(nn.Module):
    """A network that only supports batches of two images."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(64, 10)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.layer(images.reshape(2, 64))


class Lowly(InTwos):
    """A network in bfloat16, which onnxruntime does not support."""

    def __init__(self) -> None:
        super().__init__()
        self.bfloat16()

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.layer(images.flatten(1))


@pytest.mark.slow
def test_networks_that_are_not_of_kdx() -> None:
    import torchvision

    networks = {
        (1, 8, 8): Twofold(),
        (3, 16, 16): torchvision.models.VisionTransformer(16, 8, 1, 2, 16, 32, num_classes=10),
        (3, 32, 32): torchvision.models.squeezenet1_1(num_classes=10),
    }
    for shape, network in networks.items():
        for parameter in network.parameters():
            nn.init.normal_(parameter, 0, 0.1)
        classifier = classifier_of(shape, "torchvision/of_elsewhere", network)
        images = images_to_compare(classifier, 0)
        for program in (open_onnx(to_onnx(classifier)), open_pt2(to_pt2(classifier))):
            assert program(images[0]).dtype == torch.float32
            found = compare(classifier, program, images)
            assert found.largest_difference <= 1e-4 * max(1, found.largest_logit)
            assert found.same_class == 1
            assert found.largest_logit > 1e-3


def test_networks_that_cannot_be_exported_are_refused_in_one_line() -> None:
    fixed = classifier_of((1, 8, 8), "torchvision/of_elsewhere", InTwos())
    with pytest.raises(ConfigError, match=r"^the network cannot be written as ONNX for batches of any size: .+"):
        to_onnx(fixed)
    with pytest.raises(ConfigError, match=r"^torch\.export cannot write the network for batches of any size: .+"):
        to_pt2(fixed)
    with pytest.raises(ConfigError, match=r"^onnxruntime cannot run the exported network: .+"):
        open_onnx(to_onnx(classifier_of((1, 8, 8), "torchvision/of_elsewhere", Lowly())))


def test_libraries_print_nothing(capfd: pytest.CaptureFixture[str], recwarn: pytest.WarningsRecorder) -> None:
    classifier = classifier_of((1, 32, 32))
    for program in (open_onnx(to_onnx(classifier)), open_pt2(to_pt2(classifier))):
        program(torch.zeros(1, 1, 32, 32))
    assert capfd.readouterr() == ("", "")
    assert [str(warning.message) for warning in recwarn] == []


@pytest.mark.parametrize("package", exporting.ONNX_PACKAGES)
def test_missing_packages_are_named(package: str, run_copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ConfigError, match=rf"needs {package}: pip install 'kdextract\[export\]'"):
        export(run_copy, dry_run=True)
    with pytest.raises(ConfigError, match=r"pip install"):
        to_onnx(classifier_of((1, 32, 32)))
    assert export(run_copy, format="pt2")[1].metrics["file"] == "model.pt2"


# ---- the comparison ------------------------------------------------------------------------------------------------


def test_images_of_the_comparison() -> None:
    classifier = classifier_of((3, 32, 32), "resnet14_half")
    batches = images_to_compare(classifier, 0)
    assert tuple(len(batch) for batch in batches) == CHECKED_BATCHES
    assert sum(CHECKED_BATCHES) == 64
    images = torch.cat(batches)
    assert 0 <= images.min() < images.max() <= 1
    noise = images[1::2].flatten(1).std(1)
    assert noise.min() > 0.25, "uniform"
    assert (images[::2, :, 1:] - images[::2, :, :-1]).abs().mean() < 0.15, "with structure"
    assert torch.equal(images, torch.cat(images_to_compare(classifier, 0)))
    assert not torch.equal(images, torch.cat(images_to_compare(classifier, 1)))
    assert len(torch.cat(images_to_compare(classifier_of((1, 1, 16), "kegnet_mlp"), 0))) == 64


def test_the_comparison_finds_differences() -> None:
    classifier = classifier_of((1, 32, 32))
    images = images_to_compare(classifier, 0)
    same = compare(classifier, classifier, images)
    assert (same.num_images, same.largest_difference, same.same_class) == (64, 0.0, 1.0)
    shifted = compare(classifier, lambda pixels: classifier(pixels) + 0.5, images)
    assert shifted.largest_difference == pytest.approx(0.5, rel=1e-5)
    assert shifted.same_class == 1.0
    assert compare(classifier, lambda pixels: classifier(pixels).flip(1), images).same_class < 0.5
    assert compare(classifier, lambda pixels: classifier(pixels) * float("nan"), images).largest_difference > 1e30
    with pytest.raises(ConfigError, match=r"\(64, 9\).*\(64, 10\)"):
        compare(classifier, lambda pixels: classifier(pixels)[:, 1:], images)


# ---- the command ---------------------------------------------------------------------------------------------------


def logits_of(directory: Path, pixels: torch.Tensor) -> torch.Tensor:
    """Return the logits of an exported file, computed by the code of its card."""
    block = re.search(r"```python\n(.*?)```", (directory / "README.md").read_text(), re.S)
    assert block is not None
    assert len([line for line in block[1].splitlines() if line]) == 3
    names: dict[str, Any] = {"pixels": pixels.numpy() if "onnx" in block[1] else pixels}
    with contextlib.chdir(directory):
        exec(block[1], names)
    return torch.as_tensor(names["logits"]).detach()


@pytest.mark.parametrize("format", ["onnx", "pt2", "safetensors"])
def test_every_format_returns_the_students_logits(run_copy: Path, format: str) -> None:
    directory, manifest = export(run_copy, format=format)
    assert directory == run_copy / "exports" / f"lenet_half-{format}"
    assert sorted(path.name for path in directory.iterdir()) == ["README.md", "manifest.json", f"model.{format}"]
    assert [entry.role for entry in manifest.inputs] == ["classifier", "teacher", "evaluation"]
    assert (manifest.kind, manifest.needs, manifest.real_data) == ("export", "teacher+statistics", ())
    metrics = manifest.metrics
    assert (metrics["format"], metrics["file"], metrics["num_images"]) == (format, f"model.{format}", 64)
    assert metrics["bytes"] == (directory / f"model.{format}").stat().st_size
    assert 0 <= metrics["largest_difference"] <= 1e-4
    assert metrics["same_class"] == 1.0
    assert metrics["num_parameters"] == 35820
    assert ("opset" in metrics) == (format == "onnx")
    student = load_classifier(run_copy / "students" / "lenet_half" / "model.safetensors").frozen()
    pixels = torch.rand(5, 1, 32, 32, generator=torch.Generator().manual_seed(1))
    expected = student(pixels)
    assert torch.allclose(logits_of(directory, pixels), expected, rtol=0, atol=rounding(expected))
    card = (directory / "README.md").read_bytes()
    for trace in (str(run_copy).encode(), *TRACES):
        assert trace not in card
        assert trace not in (directory / f"model.{format}").read_bytes()


def test_a_second_time_it_is_cached_until_something_changes(run_copy: Path) -> None:
    def status(**options: Any) -> str:
        return api.export(run=run_copy, format="pt2", threads=1, **options).status

    assert [status(), status()] == ["made", "cached"]
    before = sha256s(run_copy / "exports" / "lenet_half-pt2")
    assert status(atol=1e-3) == "made", "another option"
    assert sha256s(run_copy / "exports" / "lenet_half-pt2") == before
    api.evaluate(run=run_copy, artifact="students/lenet_half", name="again", threads=1)
    assert status(atol=1e-3) == "cached", "an evaluation with the same figures is nothing new"
    shutil.rmtree(run_copy / "evaluations")
    assert status(atol=1e-3) == "made"
    assert "Not evaluated" in (run_copy / "exports" / "lenet_half-pt2" / "README.md").read_text()
    assert export(run_copy, format="pt2", name="release")[0] == run_copy / "exports" / "release"


def test_a_file_with_other_logits_is_not_written(run_copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept, _ = export(run_copy, format="pt2")
    before = sha256s(kept)
    student = load_classifier(run_copy / "students" / "lenet_half" / "model.safetensors")
    with torch.no_grad():
        list(student.network.parameters())[-1][3] += 0.25
    content = to_pt2(student)
    monkeypatch.setattr(exporting, "to_pt2", lambda classifier: content)
    with pytest.raises(GateError, match=r"logits of model\.pt2 differ .* by up to 0\.25, more than --atol 0\.0001"):
        export(run_copy, format="pt2", force=True)
    with pytest.raises(GateError):
        export(run_copy, format="pt2", name="other")
    assert sha256s(kept) == before
    assert not (run_copy / "exports" / "other").exists()
    assert export(run_copy, format="pt2", atol=0.3, name="other")[1].metrics["largest_difference"] == 0.25


@pytest.mark.slow
def test_teachers_compressed_networks_and_other_files(run_copy: Path, tmp_path: Path) -> None:
    api.compress(run=run_copy, threads=1)
    names = {"teacher": "teacher-pt2", "compressed/tucker": "tucker-compressed-pt2"}
    for label, name in names.items():
        directory, manifest = export(run_copy, artifact=label, format="pt2")
        assert directory.name == name
        assert manifest.inputs[0].path == label
        assert "are not known" not in (directory / "README.md").read_text()
    student = run_copy / "students" / "lenet_half"
    assert export(run_copy, artifact=str(student), format="pt2")[1].inputs[0].path == "students/lenet_half"
    by_file, manifest = export(run_copy, artifact=str(student / "model.safetensors"), format="pt2")
    assert (by_file.name, manifest.inputs[0].path) == ("lenet_half-pt2", "students/lenet_half")
    elsewhere = tmp_path / "elsewhere" / "model.safetensors"
    elsewhere.parent.mkdir()
    shutil.copy(student / "model.safetensors", elsewhere)
    for run in (run_copy, tmp_path / "new"):
        directory, manifest = export(run, artifact=str(elsewhere), format="pt2")
        assert directory == run / "exports" / "elsewhere-pt2"
        assert [entry.role for entry in manifest.inputs] == ["classifier"]
        card = (directory / "README.md").read_text()
        assert "its teacher and its training data are not known" in card
        assert "kdx evaluate FILE" in card
        assert str(tmp_path) not in card
    other_name = shutil.copy(elsewhere, elsewhere.with_name("snapshot-000400.safetensors"))
    assert export(run_copy, artifact=str(other_name), format="pt2")[0].name == "elsewhere-snapshot-000400-pt2"
    api.evaluate(run=run_copy, artifact=str(elsewhere), threads=1)
    directory, manifest = export(run_copy, artifact=str(elsewhere), format="pt2")
    assert [entry.role for entry in manifest.inputs] == ["classifier", "evaluation"]


def test_missing_artifacts_are_refused(run_copy: Path, teacher_run: Path) -> None:
    with pytest.raises(UsageError, match=r"no artifact 'lenet_haf'.*students/lenet_half"):
        export(run_copy, artifact="lenet_haf")
    with pytest.raises(UsageError, match=r"'onx'.*Did you mean 'onnx'"):
        export(run_copy, format="onx")
    with pytest.raises(ArtifactError, match=r"nowhere\.safetensors does not exist"):
        export(run_copy, artifact="nowhere.safetensors")
    with pytest.raises(ConfigError, match="has no student"):
        export(teacher_run)
    with pytest.raises(UsageError, match="--atol must be at least 0"):
        export(run_copy, atol=-1)


# ---- the model card ------------------------------------------------------------------------------------------------


def facts_of(card: str) -> dict[str, str]:
    """Return the texts of the section Origin by name, without backslashes."""
    found = re.findall(r"^- \*\*(.+?)\.\*\* (.+)$", card, re.M)
    return {name: text.replace("\\", "") for name, text in found}


def test_the_card_of_a_student(run_copy: Path) -> None:
    directory, _ = export(run_copy, format="safetensors")
    card = (directory / "README.md").read_text()
    teacher, scores = (
        read_manifest(run_copy / "teacher"),
        read_manifest(run_copy / "evaluations" / "lenet_half").metrics,
    )
    facts = facts_of(card)
    accuracy = 100 * teacher.metrics["validation_accuracy"]
    assert facts["Teacher"] == (
        "lenet, 61,706 parameters, trained on 1,370 images of digits; "
        f"validation accuracy {accuracy:.2f} % (72 images that were not used for training)."
    )
    assert facts["Method"].startswith("all_layers: Match the pre-activations")
    assert "Lopes et al. 2017" in facts["Method"]
    assert facts["Training images"] == "40 synthetic images of transfer-sets/all_layers."
    blank, targets, made = 1, 20 * 128, 40 * 3 + 40
    assert facts["Teacher queries"].startswith(f"The teacher processed {targets + 4 + blank:,} images in kdx distill")
    assert f"and {made + blank} in the stages that made the training images" in facts["Teacher queries"]
    assert facts["Training"].startswith("20 steps of 128 images, optimizer soap, loss kl at temperature 4;")
    assert facts["Data used"].startswith("The teacher, and statistics of its activations")
    assert facts["Real data read"] == (
        "digits (train) by teacher for training; digits (train) by statistics for statistics."
    )
    assert facts["Seeds"] == "teacher 0, transfer-sets/all_layers 0, students/lenet_half 0."
    shares = " | ".join(f"{100 * scores[name]:.2f} %" for name in ("accuracy", "agreement", "teacher_accuracy"))
    assert f"| digits | 355 | {shares} |" in card
    assert "float32 \\[batch, 1, 32, 32\\], any batch size, values in \\[0, 1\\]" in card
    assert "35,820 parameters" in card
    assert "not a privacy guarantee" in card
    assert "None" not in card


def test_the_card_follows_the_hashes(run_copy: Path) -> None:
    """Artifacts that were made again under the same name are not the sources of a student that was made before."""
    api.optimize_dataset(
        run=run_copy, objective="all_layers", images_per_class=2, batch_size=20, steps=2, threads=1, force=True
    )
    api.train(run=run_copy, epochs=1, seed=3, threads=1, force=True)
    directory, manifest = export(run_copy, format="safetensors")
    card = (directory / "README.md").read_text()
    facts = facts_of(card)
    assert [entry.role for entry in manifest.inputs] == ["classifier"]
    assert "Teacher" not in facts
    assert facts["Method"] == "Knowledge distillation: trained to reproduce the teacher's outputs."
    assert facts["Training images"] == "40 synthetic images of transfer-sets/all_layers."
    assert facts["Real data read"] == "none is recorded."
    assert "Not evaluated" in card


@pytest.mark.slow
def test_the_card_of_other_students(teacher_run: Path) -> None:
    def facts(name: str, **options: Any) -> tuple[dict[str, str], str]:
        api.distill(run=teacher_run, steps=2, name=name, threads=1, **options)
        directory, _ = export(teacher_run, artifact=f"students/{name}", format="safetensors")
        card = (directory / "README.md").read_text()
        return facts_of(card), card

    live, card = facts("live", method="structured_noise", pool=200, fresh=0)
    assert live["Method"].startswith("structured_noise: Random lines")
    assert live["Training images"].endswith("synthetic images, made during training.")
    assert live["Data used"].startswith("Only the teacher")
    made = read_manifest(teacher_run / "students" / "live").metrics
    assert ("Estimated accuracy on real images" in card) == ("estimated_accuracy" in made)
    noise, _ = facts("floor", data="noise:normal", inherit=False)
    assert noise["Training images"].endswith("images of normal noise.")
    assert noise["Method"].startswith("Knowledge distillation")
    assert noise["Training"].endswith("Initial weights: random.")
    real, _ = facts("ceiling", data="digits")
    assert real["Training images"] == "1,442 real images of digits."
    assert real["Data used"] == "The teacher, and real images."
    assert "digits (train) by students/ceiling for distillation" in real["Real data read"]
    api.train_generator(run=teacher_run, method="kegnet", generators=1, steps=2, batch_size=8, threads=1)
    api.generate(run=teacher_run, images_per_class=2, name="drawn", threads=1)
    drawn, _ = facts("drawn", data="transfer-sets/drawn")
    assert drawn["Method"].startswith("kegnet: Generators")
    sources = [teacher_run / "generators" / "kegnet", teacher_run / "transfer-sets" / "drawn"]
    asked = sum(read_manifest(source).budget["teacher_queries"] for source in sources)
    assert asked > 2 * 8 + 20
    assert f"and {asked} in the stages" in drawn["Teacher queries"]
    api.compress(run=teacher_run, threads=1)
    started, _ = facts("started", student="compressed/tucker", data="transfer-sets/drawn")
    assert "Initial weights: those of compressed/tucker." in started["Training"]


def test_the_card_names_no_folder_and_escapes_names(run_copy: Path, tmp_path: Path) -> None:
    directory = run_copy / "teacher"
    manifest = read_manifest(directory)
    opened = ({"spec": f"npz:{tmp_path}/faces.npz", "split": "train", "purpose": "training"},)
    config = {**manifest.config, "data": f"npz:{tmp_path}/faces.npz"}
    write_manifest(directory, dataclasses.replace(manifest, config=config, real_data=opened))
    exported, _ = export(run_copy, artifact="teacher", format="safetensors")
    card = (exported / "README.md").read_text()
    assert "images of npz:faces.npz" in card
    assert str(tmp_path) not in card
    write_manifest(directory, dataclasses.replace(manifest, stage="import-model", config={"seed": 0}, real_data=()))
    exported, _ = export(run_copy, artifact="teacher", format="safetensors", force=True)
    imported = facts_of((exported / "README.md").read_text())
    said = "lenet, 61,706 parameters, imported by kdx import-model; training data not stated"
    assert imported["Import"].startswith(said)
    assert "Seeds" not in imported
    spec = classifier_of((1, 32, 32), num_classes=SHOWN_CLASSES + 5).spec
    nasty = ("<script>|`*x*`\n# [a](b)", *spec.class_names[1:])
    file = tmp_path / "named" / "model.safetensors"
    file.parent.mkdir()
    file.write_bytes(encode_classifier(Classifier(dataclasses.replace(spec, class_names=nasty))))
    exported, _ = export(run_copy, artifact=str(file), format="safetensors")
    card = (exported / "README.md").read_text()
    assert r"| 0 | \<script\>\|\`\*x\*\` \# \[a\](b) |" in card.splitlines()
    assert "and 5 more classes, whose names are in the file." in card
    assert len(re.findall(r"^\| \d+ \| ", card, re.M)) == SHOWN_CLASSES


def test_escaped_text_is_what_markdown_shows() -> None:
    assert escaped("a_b|c\r\nd\x00e") == r"a\_b\|c d e"
    assert escaped("1 to 9, 50 %") == "1 to 9, 50 %"


# ---- at a terminal -------------------------------------------------------------------------------------------------


def test_at_a_terminal(run_copy: Path, tmp_path: Path) -> None:
    command = ("export", "--run", run_copy, "--threads", "1")
    done = kdx(*command, "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    document = json.loads(done.stdout)
    assert (document["status"], document["file"], document["opset"]) == ("made", "model.onnx", exporting.OPSET)
    directory = Path(document["directory"])
    session = onnxruntime.InferenceSession(directory / "model.onnx", providers=["CPUExecutionProvider"])
    student = load_classifier(run_copy / "students" / "lenet_half" / "model.safetensors").frozen()
    pixels = torch.rand(3, 1, 32, 32, generator=torch.Generator().manual_seed(2))
    (answer,) = session.run(None, {"pixels": pixels.numpy()})
    expected = student(pixels)
    assert torch.allclose(torch.from_numpy(answer), expected, rtol=0, atol=rounding(expected))
    shown = kdx("show", "--run", run_copy, cwd=tmp_path)
    assert "exports/lenet_half-onnx" in shown.stdout


def test_no_tolerance_means_no_difference(
    here: Here,
    run_copy: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """On some processors both programs round equally, so one logit of the exported one is changed by 20 roundings."""
    command = ("export", "--run", run_copy, "--threads", "1", "--atol", "0")
    assert here(*command, "--format", "safetensors").returncode == 0, "the classifier itself does not differ"
    student = load_classifier(run_copy / "students" / "lenet_half" / "model.safetensors").frozen()
    images = images_to_compare(student, 0)
    largest = compare(student, student, images).largest_logit
    moved = 20 * torch.finfo(torch.float32).eps * largest
    list(student.network.parameters())[-1][3] += moved
    content = to_onnx(student)
    monkeypatch.setattr(exporting, "to_onnx", lambda classifier: content)
    said = error_of(here(*command, "--name", "strict"), 5)
    assert said.startswith("kdx: error: the logits of model.onnx differ")
    assert said.endswith("nothing was written")
    assert not (run_copy / "exports" / "strict").exists()
    _, manifest = export(run_copy, atol=10 * moved, name="strict")
    assert 0 < manifest.metrics["largest_difference"] <= 10 * moved


@pytest.mark.slow
def test_another_process_writes_the_same_bytes(tmp_path: Path) -> None:
    """With another order of sets and dicts, and in another directory."""
    file = tmp_path / "model.safetensors"
    file.write_bytes(encode_classifier(classifier_of((1, 32, 32))))
    script = (
        "import hashlib, sys\nfrom kdextract import load_classifier\n"
        "from kdextract.models.exporter import to_onnx, to_pt2\n"
        "classifier = load_classifier(sys.argv[1])\n"
        "print(*(hashlib.sha256(write(classifier)).hexdigest() for write in (to_onnx, to_pt2)))"
    )
    env = environment({"PYTHONHASHSEED": "7"})
    done = subprocess.run([sys.executable, "-c", script, file], env=env, cwd=tmp_path, capture_output=True, text=True)
    assert done.stdout.split() == [hashlib.sha256(exported(write)).hexdigest() for write in (to_onnx, to_pt2)]
