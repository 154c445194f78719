"""The contract that every registered architecture keeps, and its size, which is that of its paper."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
import torchvision
from conftest import rounding
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from kdextract.errors import ArtifactError, ConfigError, UsageError
from kdextract.models.architectures import (
    Architecture,
    InputShape,
    architecture,
    model_names,
    register_model,
)
from kdextract.models.architectures.registry import scaled
from kdextract.models.classifier import Classifier, ClassifierSpec, encode_classifier, load_classifier
from kdextract.models.hooks import record_activations, weighted_layers
from kdextract.storage.tensor_files import encode_safetensors

# name -> (classes, parameters), at the input shape that the architecture was designed for. By hand, weights and
# biases per layer: lenet 156 + 2416 + 48120 + 10164 + 850; alex 64 (3 * 121 + 1) + 192 (64 * 25 + 1)
# + 384 (192 * 9 + 1) + 384 (384 * 9 + 1) + 256 (384 * 9 + 1) + 4096 (256 * 7 * 7 + 1) + 4096 * 4097 + 1000 * 4097;
# resnet14 480 + 4 * 2352 + 4704 + 3 * 9312 + 18624 + 3 * 37056 + 650, normalization in each, its half 240 + 4 * 600
# + 1200 + 3 * 2352 + 4704 + 3 * 9312 + 330; lenet5_bn 162 + 2432
# + 48120 + 10164 + 850; kegnet_mlp (UCI's Letter) 1700 + 9 * 10100 + 2626; bdnf_mlp 96 + 2 * 1056 + 66;
# vgg11_bn 1920 + 74112 + 295680 + 590592 + 1181184 + 3 * 2360832 + 5130. A wide block from a channels to b has
# 2a + 9ab + 2b + 9bb + (ab if a != b): wrn16_1 432 + 2 * 4672 + 14432 + 18560 + 57536 + 73984 + 778, wrn40_1 432
# + 6 * 4672 + 14432 + 5 * 18560 + 57536 + 5 * 73984 + 778, wrn16_2 432 + 14432 + 18560 + 57536 + 73984 + 229760
# + 295424 + 1546, wrn40_2 432 + 14432 + 5 * 18560 + 57536 + 5 * 73984 + 229760 + 5 * 295424 + 1546. An inverted
# residual from a to b with h = ta has ah + 2h + 9h + 2h + hb + 2b (the first two only where t > 1): mobilenet_v2 928
# + 896 + 5136 + 8832 + 10000 + 2 * 14848 + 21056 + 3 * 54272 + 66624 + 2 * 118272 + 155264 + 2 * 320000 + 473920
# + 412160 + 12810; airbench 312 + 13952 + 36992 + 147968 + 3 * 590336 + 2570.
PARAMETERS = {
    "lenet": (10, 61_706),
    "lenet_half": (10, 35_820),
    "lenet5": (10, 61_706),
    "lenet5_half": (10, 15_738),
    "hinton1200": (10, 2_395_210),
    "hinton800": (10, 1_276_810),
    "alex": (1000, 75_469_736),
    "alex_half": (1000, 19_900_360),
    "vgg16": (1000, 138_357_544),
    "vgg19": (1000, 143_667_240),
    "resnet18": (10, 11_173_962),
    "resnet34": (10, 21_282_122),
    "resnet14": (10, 172_970),
    "resnet14_half": (10, 43_866),
    "lenet5_bn": (10, 61_728),
    "kegnet_mlp": (26, 95_226),
    "bdnf_mlp": (2, 2_274),
    "vgg11_bn": (10, 9_231_114),
    "wrn40_2": (10, 2_243_546),
    "wrn40_1": (10, 563_930),
    "wrn16_2": (10, 691_674),
    "wrn16_1": (10, 175_066),
    "mobilenet_v2": (10, 2_236_682),
    "airbench": (10, 1_972_802),
}
# Input shapes that the smaller copies of large networks are built for; 32 pixels are the least that both families take.
SMALL_INPUT: dict[str, InputShape] = {name: (3, 32, 32) for name in ("alex", "alex_half", "vgg16", "vgg19")}
REFUSED: list[tuple[str, InputShape]] = [
    *[(name, (1, 28, 28)) for name in ("lenet", "lenet_half", "lenet5", "lenet5_half", "lenet5_bn")],
    *[(name, (1, 32, 33)) for name in ("lenet", "lenet_half", "lenet5", "lenet5_half", "lenet5_bn")],
    *[(name, (3, 31, 32)) for name in ("alex", "alex_half")],
    *[(name, (3, 32, 48)) for name in ("vgg16", "vgg19")],
    *[(name, (3, 33, 32)) for name in ("vgg16", "vgg19")],
    *[(name, (3, 15, 32)) for name in ("resnet14", "resnet14_half", "resnet18", "resnet34", "mobilenet_v2")],
    ("airbench", (3, 32, 15)),
    *[(name, (3, 32, 7)) for name in ("wrn40_2", "wrn40_1", "wrn16_2", "wrn16_1")],
    ("vgg11_bn", (3, 64, 31)),
]
# Networks that end with the mean over the pixels, and the least side that they take.
LEAST_SIDES = {name: 8 for name in ("wrn40_2", "wrn40_1", "wrn16_2", "wrn16_1")} | {
    "vgg11_bn": 32, "mobilenet_v2": 16, "airbench": 16,
}  # fmt: skip
# The networks that half the width is a network of the literature for; wide residual networks keep their stem.
HALVES = {
    "lenet": "lenet_half",
    "lenet5": "lenet5_half",
    "alex": "alex_half",
    "resnet14": "resnet14_half",
    "wrn40_2": "wrn40_1",
    "wrn16_2": "wrn16_1",
}
DEEPER = ("vgg19", "resnet34", "wrn40_2", "wrn40_1")  # which repeat the blocks of a network with fewer layers
ONE_WIDTH: set[str] = set()  # networks that can be built no narrower

every_model = pytest.mark.parametrize("name", model_names())
of_he = pytest.mark.parametrize("name", [name for name in model_names() if name != "airbench"])
"""Networks that are initialized for ReLU; the paper of airbench gives another initialization (test_airbench.py)."""


def small_classifier(name: str, num_classes: int = 5) -> Classifier:
    shape = SMALL_INPUT.get(name, architecture(name).input_shape)
    names = tuple(f"class {index}" for index in range(num_classes))
    means = tuple(0.1 * (channel + 1) for channel in range(shape[0]))
    torch.manual_seed(11)
    return Classifier(ClassifierSpec(name, shape, names, means, (0.3,) * shape[0]))


def on_meta(name: str, width: float, num_classes: int = 10) -> nn.Module:
    with torch.device("meta"):
        return architecture(name).build(architecture(name).input_shape, num_classes, width)


def count(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


def random_pixels(shape: InputShape, batch: int) -> torch.Tensor:
    return torch.rand((batch, *shape), generator=torch.Generator().manual_seed(3))


@every_model
def test_number_of_parameters_is_the_published_one(name: str) -> None:
    assert name in PARAMETERS, f"add {name} and its number of parameters, counted by hand, to this table"
    num_classes, expected = PARAMETERS[name]
    with torch.device("meta"):
        network = architecture(name).build(architecture(name).input_shape, num_classes)
    assert count(network) == expected


def test_table_names_only_registered_models() -> None:
    assert set(PARAMETERS) <= set(model_names())


@every_model
@pytest.mark.parametrize("batch", [1, 3])
def test_returns_one_logit_per_class_and_image_at_the_full_size(name: str, batch: int) -> None:
    shape = architecture(name).input_shape
    with torch.device("meta"):
        network = architecture(name).build(shape, 7)
        logits = network(torch.empty(batch, *shape))
    assert tuple(logits.shape) == (batch, 7)


@pytest.mark.parametrize(("name", "divisor"), [("alex", 1), ("alex_half", 2)])
def test_layers_of_alexnet_have_the_published_sizes(name: str, divisor: int) -> None:
    shapes = {"conv1": (64, 56), "conv2": (192, 28), "conv3": (384, 14), "conv4": (384, 14), "conv5": (256, 14)}
    expected: dict[str, tuple[int, ...]] = {n: (width // divisor, side, side) for n, (width, side) in shapes.items()}
    expected |= {"fc6": (4096 // divisor,), "fc7": (4096 // divisor,), "logits": (1000,)}
    with torch.device("meta"):
        network = architecture(name).build((3, 224, 224), 1000)
        assert weighted_layers(network, torch.empty(1, 3, 224, 224)) == expected


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow if name in DEEPER else ()) for name in model_names()]
)
def test_keeps_the_contract_of_a_classifier(name: str, tmp_path: Path) -> None:
    classifier = small_classifier(name).eval()
    pixels = random_pixels(classifier.input_shape, 3)
    with torch.no_grad():
        logits = classifier(pixels)
        assert tuple(logits.shape) == (3, 5)
        assert tuple(classifier(pixels[:1]).shape) == (1, 5)
        assert torch.isfinite(logits).all()
        assert logits.std() > 1e-3, "logits that do not depend on the image"
        assert torch.equal(classifier(pixels), logits), "two passes in evaluation mode differ"
        assert torch.allclose(classifier(pixels[1:2])[0], logits[1], rtol=0, atol=rounding(logits))

    path = tmp_path / "model.safetensors"
    path.write_bytes(encode_classifier(classifier))
    loaded = load_classifier(path)
    path.unlink()
    assert loaded.spec == classifier.spec
    assert not loaded.training
    assert loaded.num_parameters == classifier.num_parameters
    with torch.no_grad():
        assert torch.equal(loaded(pixels), logits)


@of_he
def test_weights_have_the_variance_of_he_and_biases_are_zero(name: str) -> None:
    network = small_classifier(name).network
    layers = [module for module in network.modules() if isinstance(module, nn.Conv2d | nn.Linear)]
    for layer in layers:
        fan_in = layer.weight[0].numel()
        expected = math.sqrt((1 if layer is layers[-1] else 2) / fan_in)
        tolerance = 5 / math.sqrt(2 * layer.weight.numel())  # five standard errors of a standard deviation
        assert float(layer.weight.detach().std()) == pytest.approx(expected, rel=tolerance)
        assert layer.bias is None or not layer.bias.any()


@of_he
def test_hidden_activations_keep_their_scale(name: str) -> None:
    """By He et al. 2015 pre-activations keep a mean square of about 2, whatever the depth.

    Maximum pooling raises it and zero padding lowers it, hence the wide bounds. PyTorch's own initialization loses a
    factor of 2.4 per layer, which leaves 0.23 in the second layer and 0.01 in the depth of vgg16. A block of a wide
    residual network doubles it until its normalization has statistics, so these are measured with those of the batch.
    """
    classifier = small_classifier(name).train(name.startswith("wrn"))
    hidden = [n for n, m in classifier.network.named_modules() if isinstance(m, nn.Conv2d | nn.Linear)][:-1]
    inputs = torch.randn((4, *classifier.input_shape), generator=torch.Generator().manual_seed(5))
    with torch.no_grad(), record_activations(classifier.network, hidden) as activations:
        classifier.network(inputs)
    for layer in hidden:
        root_mean_square = float(activations[layer].square().mean().sqrt())
        assert 0.4 < root_mean_square < 12, f"{layer} has root mean square {root_mean_square:.3g}"


@pytest.mark.parametrize(("name", "blocks"), [("resnet18", 8), ("resnet34", 16)])
def test_residual_networks_halve_the_image_three_times(name: str, blocks: int) -> None:
    with torch.device("meta"):
        network = architecture(name).build((3, 32, 32), 10)
        shapes = weighted_layers(network, torch.empty(1, 3, 32, 32))
        other_size = network(torch.empty(2, 3, 20, 24))
    sides = [shape[1] for layer, shape in shapes.items() if layer.endswith("conv2")]
    assert len(sides) == blocks
    assert sorted(set(sides), reverse=True) == [32, 16, 8, 4]
    assert shapes["conv1"] == (64, 32, 32), "neither stride nor pooling in the stem"
    assert sum("shortcut" in layer for layer in shapes) == 3, "only where the shape changes"
    assert tuple(other_size.shape) == (2, 10)


@pytest.mark.parametrize(
    ("name", "layer", "channels"), [("resnet18", "block1_1", 64), ("mobilenet_v2", "block4_2", 64)]
)
def test_a_new_residual_block_returns_its_input(name: str, layer: str, channels: int) -> None:
    block = small_classifier(name).network.get_submodule(layer)
    inputs = torch.rand((2, channels, 4, 4), generator=torch.Generator().manual_seed(1))
    assert torch.equal(block(inputs), inputs)


@pytest.mark.parametrize(
    ("name", "blocks", "width"), [("wrn40_2", 6, 2), ("wrn40_1", 6, 1), ("wrn16_2", 2, 2), ("wrn16_1", 2, 1)]
)
def test_wide_residual_networks_have_three_stages(name: str, blocks: int, width: int) -> None:
    with torch.device("meta"):
        network = architecture(name).build((3, 32, 32), 10)
        shapes = weighted_layers(network, torch.empty(1, 3, 32, 32))
    stages = [(16 * width, 32, 32), (32 * width, 16, 16), (64 * width, 8, 8)]
    assert [shapes[layer] for layer in shapes if layer.endswith("conv2")] == [s for s in stages for _ in range(blocks)]
    around = ["block1_1.shortcut"] * (width > 1) + ["block2_1.shortcut", "block3_1.shortcut"]
    assert [layer for layer in shapes if "shortcut" in layer] == around, "only where the shape changes"


@pytest.mark.parametrize("layer", ["block1_2", "block2_1"])
def test_a_wide_block_is_the_published_formula(layer: str) -> None:
    """Before any training x + W2 relu(W1 relu(x)), and with W relu(x) instead of x where the shape changes."""
    block = small_classifier("wrn16_1").network.get_submodule(layer).eval()
    weights = {name: value.double() for name, value in block.named_parameters()}
    inputs = torch.randn((2, 16, 6, 6), generator=torch.Generator().manual_seed(1)).double()
    active, stride = inputs.relu(), 1 if layer == "block1_2" else 2
    hidden = nn.functional.conv2d(active, weights["conv1.weight"], stride=stride, padding=1).relu()
    around = nn.functional.conv2d(active, weights["shortcut.weight"], stride=2) if stride == 2 else inputs
    expected = around + nn.functional.conv2d(hidden, weights["conv2.weight"], padding=1)
    left_out = 10 * nn.BatchNorm2d(1).eps * float(expected.abs().max())  # what normalization adds to each variance
    assert torch.allclose(block.double()(inputs), expected, rtol=0, atol=left_out)


def test_mobilenet_is_the_published_table_with_two_strides_less() -> None:
    with torch.device("meta"):
        network = architecture("mobilenet_v2").build((3, 32, 32), 10)
        shapes = weighted_layers(network, torch.empty(1, 3, 32, 32))
    ends = [shapes[layer][:2] for layer in shapes if layer.endswith("project")]
    runs = [(16, 32, 1), (24, 32, 2), (32, 16, 3), (64, 8, 4), (96, 8, 3), (160, 4, 3), (320, 4, 1)]
    assert ends == [(channels, side) for channels, side, count in runs for _ in range(count)]
    assert "block1_1.expand" not in shapes
    assert shapes["block2_1.expand"] == (96, 32, 32)
    assert shapes["block3_1.depthwise"] == (144, 16, 16)
    assert (shapes["conv1"], shapes["conv2"]) == ((32, 32, 32), (1280, 4, 4))


def test_vgg_for_small_images_ends_with_one_linear_layer() -> None:
    with torch.device("meta"):
        network = architecture("vgg11_bn").build((3, 32, 32), 10)
        shapes = weighted_layers(network, torch.empty(1, 3, 32, 32))
    convolutions = [(64, 32), (128, 16), (256, 8), (256, 8), (512, 4), (512, 4), (512, 2), (512, 2)]
    assert list(shapes.values()) == [*[(width, side, side) for width, side in convolutions], (10,)]
    assert tuple(dict(network.named_modules())["logits"].weight.shape) == (10, 512)


@pytest.mark.parametrize("name", LEAST_SIDES)
@pytest.mark.parametrize(("channels", "more"), [(1, (0, 0)), (4, (5, 12))])
def test_takes_any_channels_and_sides_in_either_memory_layout(name: str, channels: int, more: tuple[int, int]) -> None:
    shape = (channels, LEAST_SIDES[name] + more[0], LEAST_SIDES[name] + more[1])
    torch.manual_seed(7)
    network = architecture(name).build(shape, 3)
    pixels = random_pixels(shape, 3)
    with torch.no_grad():
        network(pixels)  # once in training mode, for statistics to normalize with
        logits = network.eval()(pixels)
        placed = network.to(memory_format=torch.channels_last)(pixels.to(memory_format=torch.channels_last))
    assert tuple(logits.shape) == (3, 3)
    assert torch.allclose(placed, logits, rtol=0, atol=rounding(logits))


@pytest.mark.parametrize("name", [name for name in LEAST_SIDES if name != "airbench"])
def test_the_mean_over_the_pixels_has_the_gradient_of_a_mean(name: str) -> None:
    """Not that of adaptive pooling, which on a GPU is another one in every run."""
    with torch.device("meta"):
        logits = architecture(name).build((3, 32, 32), 3)(torch.empty(2, 3, 32, 32))
    waiting, seen = [logits.grad_fn], set()
    while waiting:
        node = waiting.pop()
        if node is not None and node not in seen:
            seen.add(node)
            waiting += [following for following, _ in node.next_functions]
    names = {node.name() for node in seen}
    assert any(name.startswith("MeanBackward") for name in names)
    assert not any("Adaptive" in name for name in names)


@pytest.mark.parametrize(("name", "shape"), REFUSED)
def test_wrong_input_size_is_refused(name: str, shape: InputShape) -> None:
    with torch.device("meta"), pytest.raises(ConfigError, match=f"{name} takes images .*{shape[1]}x{shape[2]}"):
        architecture(name).build(shape, 10)


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 20, 30), (1, 1, 5)])
@pytest.mark.parametrize("name", ["hinton1200", "hinton800", "kegnet_mlp", "bdnf_mlp"])
def test_fully_connected_networks_take_any_size(name: str, shape: InputShape) -> None:
    with torch.device("meta"):
        network = architecture(name).build(shape, 3)
        assert tuple(network(torch.empty(2, *shape)).shape) == (2, 3)


@every_model
def test_one_class_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match="at least 2 classes"):
        architecture(name).build(architecture(name).input_shape, 1)


@every_model
def test_has_a_source_and_a_one_line_description(name: str) -> None:
    entry = architecture(name)
    assert entry.name == name
    assert len(entry.source) > 10
    assert (entry.builder.__doc__ or "").strip()


def test_networks_of_one_width_are_in_the_table() -> None:
    assert {name for name in model_names() if not architecture(name).has_width} == ONE_WIDTH


@pytest.mark.parametrize(
    ("units", "width", "expected"),
    [(16, 1.0, 16), (120, 0.5, 60), (5, 0.5, 3), (7, 0.5, 4), (10, 0.24, 2), (3, 0.1, 1), (6, 4.0, 24)],
)
def test_units_are_rounded_half_up_and_never_vanish(units: int, width: float, expected: int) -> None:
    assert scaled(units, width) == expected


@pytest.mark.parametrize("name", sorted(set(model_names()) - ONE_WIDTH))
def test_half_the_width_keeps_the_contract(name: str) -> None:
    shape = SMALL_INPUT.get(name, architecture(name).input_shape)
    narrow = on_meta(name, 0.5, num_classes=7)
    assert count(narrow) < count(on_meta(name, 1.0, num_classes=7))
    assert tuple(narrow(torch.empty(2, *architecture(name).input_shape, device="meta")).shape) == (2, 7)

    torch.manual_seed(11)
    network = architecture(name).build(shape, 7, 0.5).eval()
    pixels = random_pixels(shape, 2).requires_grad_()
    logits = network(pixels)
    assert tuple(logits.shape) == (2, 7)
    logits.square().sum().backward()
    assert pixels.grad is not None
    assert pixels.grad.isfinite().all()
    assert all(gradient.any() for gradient in pixels.grad), "no gradient reaches the image"


@pytest.mark.parametrize(("name", "half"), HALVES.items())
def test_half_the_width_is_the_half_of_the_literature(name: str, half: str) -> None:
    narrow, published = on_meta(name, 0.5), on_meta(half, 1.0)
    assert repr(narrow) == repr(published)
    shapes = [{key: value.shape for key, value in network.state_dict().items()} for network in (narrow, published)]
    assert shapes[0] == shapes[1]


@pytest.mark.parametrize("width", [0.35, 0.5, 1.4])
def test_mobilenets_width_is_the_papers_multiplier(width: float) -> None:
    """The last convolution keeps its 1280 channels below 1; torchvision's network differs in its strides only."""
    with torch.device("meta"):
        reference = torchvision.models.mobilenet_v2(num_classes=10, width_mult=width, round_nearest=1)
    ours, theirs = (
        [value.shape for value in network.state_dict().values()]
        for network in (on_meta("mobilenet_v2", width), reference)
    )
    assert ours == theirs


@settings(derandomize=True, database=None, deadline=None, max_examples=40)
@given(
    name=st.sampled_from(sorted(set(model_names()) - ONE_WIDTH)),
    widths=st.lists(st.floats(0.1, 2.0), min_size=2, max_size=2).map(sorted),
)
def test_every_width_builds_and_a_wider_network_is_no_smaller(name: str, widths: list[float]) -> None:
    networks = [on_meta(name, width, num_classes=3) for width in widths]
    sizes = [count(network) for network in networks]
    assert sizes == sorted(sizes)
    for network in networks:
        assert tuple(network(torch.empty(1, *architecture(name).input_shape, device="meta")).shape) == (1, 3)


@pytest.mark.parametrize("width", [0.0, -0.5, 4.01, math.inf, math.nan])
def test_width_out_of_bounds_is_refused(width: float) -> None:
    with pytest.raises(UsageError, match=rf"above 0 and at most 4, got {width}"):
        architecture("lenet").build((1, 32, 32), 10, width)


def test_a_width_of_a_network_that_has_one_only_is_refused() -> None:
    def fixed(input_shape: InputShape, num_classes: int) -> nn.Module:
        return nn.Sequential(nn.Flatten(), nn.Linear(math.prod(input_shape), num_classes))

    entry = Architecture("fixed", fixed, (1, 2, 2), "this test")
    assert not entry.has_width
    assert count(entry.build((1, 2, 2), 3)) == count(entry.build((1, 2, 2), 3, 1.0)) == 15
    with pytest.raises(ConfigError, match=r"fixed has one width only.* 0\.5"):
        entry.build((1, 2, 2), 3, 0.5)


def test_dropout_acts_in_training_only() -> None:
    classifier = small_classifier("hinton1200")
    pixels = random_pixels(classifier.input_shape, 2)
    with torch.no_grad():
        assert not torch.equal(classifier.train()(pixels), classifier.train()(pixels))
        assert torch.equal(classifier.eval()(pixels), classifier.eval()(pixels))


def test_normalization_is_the_first_operation() -> None:
    classifier = small_classifier("lenet").eval()
    pixels = random_pixels(classifier.input_shape, 2)
    with torch.no_grad():
        expected = classifier.network((pixels - 0.1) / 0.3)
        assert torch.allclose(classifier(pixels), expected, rtol=0, atol=rounding(expected))


def test_placed_keeps_weights_and_outputs() -> None:
    classifier = small_classifier("lenet").eval()
    pixels = random_pixels(classifier.input_shape, 2)
    before = {name: value.clone() for name, value in classifier.network.state_dict().items()}
    with torch.no_grad():
        logits = classifier(pixels)
        placed = classifier.placed(torch.device("cpu"))
        assert torch.allclose(placed(pixels), logits, rtol=0, atol=rounding(logits))
    assert all(torch.equal(before[name], value) for name, value in placed.network.state_dict().items())


def test_registering_a_name_twice_is_refused() -> None:
    before = architecture("lenet")
    with pytest.raises(ValueError, match="'lenet' is registered twice"):

        @register_model("lenet", input_shape=(1, 32, 32), source="nowhere")
        def other(input_shape: InputShape, num_classes: int) -> nn.Module:
            raise AssertionError

    assert architecture("lenet") is before


def test_unknown_model_is_refused_with_the_most_similar_name() -> None:
    with pytest.raises(UsageError, match=r"'lenet5_hlaf'.* Did you mean 'lenet5_half'") as caught:
        architecture("lenet5_hlaf")
    assert all(name in str(caught.value) for name in model_names())


def test_file_of_another_architecture_is_refused(tmp_path: Path) -> None:
    half, metadata = small_classifier("lenet_half"), {"classifier": {"architecture": "lenet"}}
    metadata["classifier"] |= {"input_shape": [1, 32, 32], "class_names": list("abcde"), "mean": [0.1], "std": [0.3]}
    path = tmp_path / "model.safetensors"
    path.write_bytes(encode_safetensors(half.network.state_dict(), metadata))
    with pytest.raises(ArtifactError, match=r"model\.safetensors does not fit"):
        load_classifier(path)


@pytest.mark.parametrize(
    "change",
    [
        {"architecture": "no_such_net"},
        {"input_shape": [1, 28, 28]},
        {"input_shape": [1, 32]},
        {"input_shape": "1x32x32"},
        {"class_names": ["only one"]},
        {"class_names": None},
        {"mean": ["dark"]},
        {"std": None},
    ],
    ids=str,
)
def test_malformed_description_is_refused(change: dict[str, object], tmp_path: Path) -> None:
    classifier = small_classifier("lenet")
    record = {
        "architecture": "lenet",
        "input_shape": [1, 32, 32],
        "class_names": list("abcde"),
        "mean": [0],
        "std": [1],
    }
    path = tmp_path / "model.safetensors"
    path.write_bytes(encode_safetensors(classifier.network.state_dict(), {"classifier": record | change}))
    with pytest.raises(ArtifactError, match=r"model\.safetensors"):
        load_classifier(path)


def test_missing_description_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(encode_safetensors(small_classifier("lenet").network.state_dict(), {}))
    with pytest.raises(ArtifactError, match="not a classifier of kdx"):
        load_classifier(path)
    with pytest.raises(ArtifactError, match="does not exist"):
        load_classifier(tmp_path / "other.safetensors")
