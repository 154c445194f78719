"""`kdx compress`: decomposed networks, and the students that start from them."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from conftest import rounding
from torch import nn

from kdextract import api
from kdextract.errors import ArtifactError, ConfigError, UsageError
from kdextract.models.architectures import architecture, model_names
from kdextract.models.classifier import Classifier, ClassifierSpec, encode_classifier, load_classifier
from kdextract.models.factorized import factorizable_layers
from kdextract.stages.compress import PRESETS, CompressConfig, choose_ranks, fill

SMALL = ("lenet", "lenet5", "hinton800", "resnet18")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("compress") / "run"
    api.train(run=run, model="lenet5", epochs=3, threads=1)
    return run


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Path:
    return shutil.copytree(trained, tmp_path / "run")


def teacher_of(name: str) -> Classifier:
    torch.manual_seed(0)
    shape = architecture(name).input_shape
    names = tuple("abcd")
    return Classifier(ClassifierSpec(name, shape, names, (0.3,) * shape[0], (0.2,) * shape[0])).eval()


@pytest.mark.parametrize("name", SMALL)
def test_full_ranks_give_the_logits_of_the_teacher(name: str) -> None:
    teacher = teacher_of(name)
    layers = [
        (layer, module.weight.shape[1], module.weight.shape[0])
        for layer, module in factorizable_layers(teacher.network).items()
    ][1:3]
    compressed = Classifier(replace(teacher.spec, factors=tuple(layers))).eval()
    errors = fill(teacher, compressed)
    assert max(errors.values()) < 1e-3
    pixels = torch.rand((3, *teacher.input_shape), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected = teacher(pixels)
        torch.testing.assert_close(compressed(pixels), expected, rtol=0, atol=rounding(expected))


@pytest.mark.parametrize("name", model_names())
def test_every_model_can_be_decomposed(name: str) -> None:
    """On the meta device, without memory for weights."""
    with torch.device("meta"):
        shape = architecture(name).input_shape
        network = architecture(name).build(shape, 10)
        layers = factorizable_layers(network)
        assert len(layers) >= 3
        middle = list(layers)[1]
        spec = ClassifierSpec(name, shape, tuple("0123456789"), (0.5,) * shape[0], (0.5,) * shape[0])
        smaller = replace(spec, factors=((middle, 1, 1),)).build()
    count = [sum(p.numel() for p in n.parameters()) for n in (smaller, network)]
    weight = layers[middle].weight
    kernel = weight[0, 0].numel()
    assert count[1] - count[0] == weight.numel() - (weight.shape[1] + kernel + weight.shape[0])


def test_a_compressed_network_can_be_saved_and_loaded(tmp_path: Path) -> None:
    teacher = teacher_of("lenet5")
    compressed = Classifier(replace(teacher.spec, factors=(("conv2", 2, 3), ("fc1", 5, 4)))).eval()
    fill(teacher, compressed)
    (tmp_path / "model.safetensors").write_bytes(encode_classifier(compressed))
    loaded = load_classifier(tmp_path / "model.safetensors")
    assert loaded.spec == compressed.spec
    pixels = torch.rand(2, 1, 32, 32)
    with torch.no_grad():
        assert torch.equal(loaded(pixels), compressed(pixels))


@pytest.mark.parametrize("factors", [(("conv9", 1, 1),), (("conv2", 7, 1),), (("conv2", 0, 1),), (("relu1", 1, 1),)])
def test_a_file_with_impossible_factors_is_refused(tmp_path: Path, factors: tuple[tuple[str, int, int], ...]) -> None:
    teacher = teacher_of("lenet5")
    teacher.spec = replace(teacher.spec, factors=factors)
    (tmp_path / "model.safetensors").write_bytes(encode_classifier(teacher))
    with pytest.raises(ArtifactError):
        load_classifier(tmp_path / "model.safetensors")


def test_the_default_keeps_the_first_and_the_last_layer(run: Path) -> None:
    made = api.compress(run=run, tucker_ratio=0.5, threads=1)
    metrics = made.manifest.metrics
    assert metrics["ranks"] == ["conv2 3x8", "conv3 8x60", "fc1 60x42"]
    assert metrics["num_parameters"] < metrics["teacher_parameters"] == 61_706
    assert metrics["multiply_adds"] < metrics["teacher_multiply_adds"] == 416_520
    assert made.manifest.needs == "teacher"
    assert not made.manifest.real_data
    assert api.compress(run=run, tucker_ratio=0.5, threads=1).status == "cached"


@pytest.mark.parametrize("preset", PRESETS)
def test_presets_decompose_their_layers(run: Path, preset: str) -> None:
    metrics = api.compress(run=run, preset=preset, threads=1).manifest.metrics
    named = [entry.split("=")[0] for entry in PRESETS[preset]["lenet5"].split(",")]
    assert [entry.split()[0] for entry in metrics["ranks"]] == named
    assert metrics["num_parameters"] < metrics["teacher_parameters"]
    if preset == "kegnet-3":
        assert "conv3 5x8" in metrics["ranks"]
    if preset == "bdnf-2":
        assert metrics["ranks"] == ["conv2 3x8", "conv3 2x18"]


def test_distill_and_evaluate_take_the_result(run: Path) -> None:
    api.compress(run=run, layers="conv3=5x8", name="small", threads=1)
    start = load_classifier(run / "compressed" / "small" / "model.safetensors")
    options = {"method": "structured_noise", "steps": 3, "threads": 1}
    student = api.distill(run=run, student="compressed/small", **options)
    assert student.directory == run / "students" / "small"
    assert [i.path for i in student.manifest.inputs] == ["teacher", "compressed/small"]
    trained_student = load_classifier(student.directory / "model.safetensors")
    assert trained_student.spec == start.spec
    cores = [c.network.state_dict()["conv3.core.weight"] for c in (start, trained_student)]
    assert 0 < float((cores[0] - cores[1]).norm()) < 0.5 * float(cores[0].norm()), "it began as the compressed teacher"
    scores = [api.evaluate(run=run, artifact=a, threads=1) for a in ("compressed/small", "students/small")]
    assert scores[0].directory != scores[1].directory


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("preset", PRESETS)
def test_presets_name_layers_of_resnet14(preset: str, channels: int) -> None:
    network = architecture("resnet14").build((channels, 32, 32), 10)
    rules = config(preset=preset).rules_by_layer("resnet14", channels)
    assert rules is not None
    ranks = choose_ranks(network, rules, "evbmf")
    assert len(ranks) == {"1": 2, "2": 2, "3": 4}[preset[-1]] * (1 if "kegnet" in preset else 2)
    if preset == "bdnf-3":
        assert ("block3_1.conv1", *((19, 38) if channels == 1 else (12, 25))) in ranks


def config(**options: object) -> CompressConfig:
    return CompressConfig(**options)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "options",
    [
        {"tucker": "evbmf", "tucker_ratio": 0.5},
        {"tucker_ratio": 0.5, "tucker_ranks": "1,2"},
        {"tucker_ranks": "5"},
        {"tucker_ranks": "0,3"},
        {"layers": "conv2,conv2"},
        {"layers": "conv2=big"},
        {"layers": "conv2=1.5"},
        {"layers": ","},
        {"preset": "kegnet-1", "layers": "conv2"},
        {"preset": "kegnet-1", "tucker": "evbmf"},
        {"preset": "kegnet-9"},
        {"tucker_ratio": 1.5},
    ],
)
def test_invalid_options_are_refused(options: dict[str, object]) -> None:
    with pytest.raises(UsageError):
        config(**options)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"layers": "conv7"}, "conv7"),
        ({"layers": "relu1"}, "conv1, conv2"),
        ({"tucker_ranks": "99,1"}, "ranks 99 and 1 do not fit"),
    ],
)
def test_options_that_do_not_fit_the_teacher_are_refused(run: Path, options: dict[str, str], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        api.compress(run=run, threads=1, **options)
    assert not (run / "compressed").exists() or not list((run / "compressed").glob("[!.]*"))


def test_a_preset_is_for_its_network(run_copy: Path) -> None:
    with pytest.raises(ConfigError, match="is for lenet5, resnet14"):
        api.compress(run=run_copy, preset="bdnf-1", threads=1)


def test_a_student_that_was_never_compressed_is_named(run: Path) -> None:
    with pytest.raises(ConfigError, match="has no compressed/tucker; make it with: kdx compress"):
        api.distill(run=run, student="compressed/tucker", method="structured_noise", steps=1)


def test_rules_are_read_per_layer() -> None:
    rules = config(tucker_ratio=0.25, layers="a, b=evbmf,c=.5,d=3x4").rules_by_layer("", 1)
    assert rules == {"a": 0.25, "b": "evbmf", "c": 0.5, "d": (3, 4)}
    assert config().common_rule() == "evbmf"
    assert config(tucker_ranks="2,3").common_rule() == (2, 3)


def test_ratios_round_down_to_at_least_one() -> None:
    network = nn.Sequential(nn.Conv2d(1, 10, 3), nn.Conv2d(10, 7, 3), nn.Linear(7, 2))
    assert choose_ranks(network, None, 0.3) == [("1", 3, 2)]
    assert choose_ranks(network, {"1": 0.01}, 0.3) == [("1", 1, 1)]
