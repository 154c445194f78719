"""Cut networks: the file alone rebuilds them, channels of zeros make no difference, the teacher is not changed."""

from __future__ import annotations

import math
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import environment, rounding
from helpers import equal, seeded, weights
from torch import nn

from kdextract.errors import ArtifactError, ConfigError
from kdextract.models.architectures import architecture, model_names
from kdextract.models.classifier import (
    Classifier,
    ClassifierSpec,
    encode_classifier,
    load_classifier,
    read_spec,
)
from kdextract.models.external.names import HALF, Share
from kdextract.models.importer import Findings, ModelOptions, read_model
from kdextract.models.pruning.cut import (
    Channels,
    Counts,
    channel_groups,
    counts_at,
    counts_for,
    cut,
    cut_to,
    most_important,
    width_for,
    with_counts,
)
from kdextract.models.pruning.groups import Group
from kdextract.models.pruning.importance import magnitude, strongest
from kdextract.models.pruning.sizes import find_layer
from kdextract.stages.compress import choose_ranks, fill
from kdextract.storage.tensor_files import encode_safetensors, read_safetensors

NETWORKS = Path(__file__).with_name("networks_to_cut.py")
LARGE = ("alex", "alex_half", "vgg16", "vgg19")
"""Architectures that also take images of 32 pixels, at which they are smaller."""
OF_EACH_KIND = ("lenet5", "lenet5_bn", "hinton800", "mobilenet_v2", "resnet14", "wrn16_1", "vgg11_bn")
"""Architectures that are cut in the usual run of the tests; `slow` has the others."""
EXACT = {
    "Padded": set(),
    "Padded(both_sides=True)": {"conv", "blocks.0.conv2", "blocks.1.conv2", "blocks.2.conv2"},
    "Depthwise": set(),
    "Dense": set(),
    "FixedView": {"conv2"},
    "Notebook": set(),
    "Auxiliary": set(),
    "Shuffled": {"conv1"},
    "Normed": set(),
    "Twice": set(),
}
"""Networks in which channels of zeros make no difference -> the layers that are left whole."""
MIXING = {"Grouped": set(), "Layered": set(), "Attention": set(), "OwnAttention": {"qkv"}}
"""Networks that normalize over channels, or mix them -> the layers that are left whole."""
SIZES = [(1, 2), (3, 10), (1, 100)]
"""Channels of the images, and classes."""


def varied(made: Classifier, seed: int = 0) -> Classifier:
    """Give every weight and statistic of a network a value that differs from its usual first one."""
    random = seeded(seed)
    for module in made.network.modules():
        for name, value in [*module._parameters.items(), *module._buffers.items()]:
            if value is None or not value.is_floating_point():
                continue
            if name == "running_var":
                value.copy_(torch.rand(value.shape, generator=random) + 0.5)
            elif value.dim() < 2:
                value.data.copy_(0.05 * torch.randn(value.shape, generator=random) + (name == "weight"))
            else:
                gain = math.sqrt(4 * len(value) / value.numel())  # of which half is left when half is silent
                value.data.copy_(gain * torch.randn(value.shape, generator=random))
    return made.eval()


def ours(name: str, channels: int, num_classes: int) -> Classifier:
    """An architecture of kdx, with random weights."""
    shape = (3, 32, 32) if name in LARGE else architecture(name).input_shape
    shape = shape if shape[:2] == (1, 1) else (channels, *shape[1:])
    names = tuple(map(str, range(num_classes)))
    torch.manual_seed(0)
    return varied(Classifier(ClassifierSpec(name, shape, names, (0.4,) * shape[0], (0.3,) * shape[0])))


def theirs(name: str, channels: int = 3, num_classes: int = 10) -> Classifier:
    """A network of `networks_to_cut.py`, imported."""
    torch.manual_seed(0)
    target, _, more = name.rstrip(")").partition("(")
    arguments = ", ".join(filter(None, [more, f"in_channels={channels}, num_classes={num_classes}"]))
    options = ModelOptions(f"{NETWORKS}:{target}({arguments})", input_size=f"{channels}x16x16", mean="0.4", std="0.3")
    return varied(read_model(options, Findings()))


def pixels(classifier: Classifier, count: int = 4) -> torch.Tensor:
    return torch.rand(count, *classifier.input_shape, generator=seeded(7))


def answers(classifier: Classifier) -> torch.Tensor:
    with torch.no_grad():
        return classifier(pixels(classifier))


def reloaded(made: Classifier, folder: Path) -> Classifier:
    """Return the classifier of the file that holds this one."""
    file = folder / "model.safetensors"
    file.write_bytes(encode_classifier(made))
    return load_classifier(file)


def silence_half(classifier: Classifier, channels: Channels) -> dict[Group, list[int]]:
    """Set the outputs of half of the channels of each group to zero, so that they have no effect; return the others."""
    random, silent, kept = seeded(3), {}, {}
    for group in channels.groups:
        kept[group] = []
        for block in group.members():
            order = [block[position] for position in torch.randperm(len(block), generator=random).tolist()]
            stay = math.floor(len(block) / 2 + 0.5)
            kept[group] += order[:stay]
            for channel in order[stay:]:
                for axis, indices in zip(group.axes, group.channels[channel], strict=True):
                    if axis.side == "out":
                        silent.setdefault(axis.layer, []).extend(indices)
    for name, indices in silent.items():
        layer: Any = find_layer(classifier.network, name)
        if hasattr(layer, "parametrizations"):
            layer.parametrizations.weight.original0.data[indices] = 0
            layer.bias.data[indices] = 0
            continue
        for tensor in ("weight", "bias", "running_mean"):
            if isinstance(getattr(layer, tensor, None), torch.Tensor):
                getattr(layer, tensor).data[indices] = 0
    return {group: sorted(stay) for group, stay in kept.items()}


def kept_at_width(channels: Channels, width: float) -> dict[Group, list[int]]:
    """Return the channels with the largest weights, a share `width` of each group."""
    return most_important(magnitude)(channels, counts_at(channels, width))[1]


def check_cut(teacher: Classifier, student: Classifier, folder: Path) -> None:
    """Check what is true of every cut."""
    assert answers(student).shape == (4, teacher.num_classes)
    assert torch.equal(answers(reloaded(student, folder)), answers(student))
    assert student.multiply_adds() < teacher.multiply_adds()
    assert student.num_parameters < teacher.num_parameters
    assert student.train()(torch.zeros(4, *student.input_shape)).shape == (4, teacher.num_classes)


def check_silent_channels_can_be_cut(teacher: Classifier, whole: set[str], folder: Path) -> None:
    """Check that a network without the channels that have no effect gives the logits of the network with them."""
    channels = channel_groups(teacher)
    assert set(channels.whole) == whole, "layers that cannot be cut"
    kept = silence_half(teacher, channels)
    before = weights(teacher)
    made = cut(teacher, kept)
    torch.testing.assert_close(answers(made), answers(teacher), rtol=0, atol=rounding(answers(teacher)))
    assert float(answers(teacher).std(0).max()) > 1e-3, "images differ"
    assert equal(weights(teacher), before)
    check_cut(teacher, made, folder)


@pytest.mark.parametrize(
    ("index", "name"),
    [
        pytest.param(index, name, marks=() if name in OF_EACH_KIND else pytest.mark.slow, id=name)
        for index, name in enumerate(model_names())
    ],
)
def test_channels_that_have_no_effect_can_be_cut_from_every_architecture(index: int, name: str, tmp_path: Path) -> None:
    check_silent_channels_can_be_cut(ours(name, *SIZES[index % len(SIZES)]), set(), tmp_path)


@pytest.mark.parametrize(("channels", "num_classes"), SIZES)
@pytest.mark.parametrize("name", EXACT)
def test_channels_that_have_no_effect_can_be_cut_from_imported_networks(
    name: str, channels: int, num_classes: int, tmp_path: Path
) -> None:
    check_silent_channels_can_be_cut(theirs(name, channels, num_classes), EXACT[name], tmp_path)


@pytest.mark.parametrize(("channels", "num_classes"), SIZES)
@pytest.mark.parametrize("name", MIXING)
def test_networks_that_mix_channels_can_be_cut(name: str, channels: int, num_classes: int, tmp_path: Path) -> None:
    teacher = theirs(name, channels, num_classes)
    before = weights(teacher)
    made = cut_to(teacher, HALF)
    assert set(made.whole) == MIXING[name]
    assert equal(weights(teacher), before)
    check_cut(teacher, made.classifier, tmp_path)
    assert all(name in made.summary for name in list(made.whole)[:4])


def test_blocks_of_normalization_grouped_convolutions_and_heads_keep_equally_many_channels() -> None:
    for name, layer, unit in (("Grouped", "conv1", 3), ("Depthwise", "point", 4), ("Attention", "patches", 4)):
        channels = channel_groups(theirs(name))
        group = next(group for group in channels.groups if (layer, "out") in group.axes)
        assert group.unit == unit
        for width in (0.05, 0.3, 0.5, 0.9):
            (kept,) = [kept for own, kept in kept_at_width(channels, width).items() if own is group]
            counts = [len(set(block) & set(kept)) for block in group.members()]
            assert len(set(counts)) == 1
            assert counts[0] == max(1, math.floor(width * len(group.channels) / unit + 0.5))


@pytest.mark.parametrize("name", ["Depthwise", "Layered", "Normed", "Twice"])
def test_all_channels_kept_change_nothing(name: str) -> None:
    teacher = theirs(name)
    channels = channel_groups(teacher)
    made = cut(teacher, {group: range(len(group.channels)) for group in channels.groups}, channels.network)
    assert made.spec == teacher.spec
    torch.testing.assert_close(answers(made), answers(teacher), rtol=0, atol=rounding(answers(teacher)))
    if name != "Normed":
        assert equal(weights(made), weights(teacher))


@pytest.mark.parametrize("share", [0.1, 0.3, 0.5, 0.75])
@pytest.mark.parametrize("name", ["wrn16_1", "lenet5_bn", "hinton800"])
@pytest.mark.slow
def test_multiply_adds_are_the_most_that_the_share_allows(name: str, share: float) -> None:
    teacher = ours(name, 1, 10)
    made = cut_to(teacher, Share("macs", share)).classifier.multiply_adds()
    most = share * teacher.multiply_adds()
    assert made <= most
    channels = channel_groups(teacher)
    possible = [cut(teacher, kept_at_width(channels, n / 40), channels.network).multiply_adds() for n in range(41)]
    assert made >= max(number for number in possible if number <= most)


@pytest.mark.parametrize("of", ["macs", "params"])
@pytest.mark.parametrize("share", [0.1, 0.3, 0.63])
def test_of_a_small_network_as_much_stays_as_fits(of: str, share: float) -> None:
    """All groups at one width, LeNet-5 kept 0.20 of its multiply-adds where 0.3 were allowed."""
    teacher = ours("lenet5_bn", 1, 10)
    channels = channel_groups(teacher)

    def cost(counts: Counts) -> int:
        made = with_counts(teacher, channels, counts)
        return made.multiply_adds() if of == "macs" else made.num_parameters

    counts, full = counts_for(teacher, channels, Share(of, share)), counts_at(channels, 1.0)
    most = share * cost(full)
    assert 0.9 * most < cost(counts) <= most
    if cost(counts) < 0.98 * most:
        assert all(cost(counts | {group: counts[group] + 1}) > most for group in counts if counts[group] < full[group])
    shares = [counts[group] / full[group] for group in counts]
    at_one_width = counts_at(channels, width_for(teacher, channels, Share(of, share)))
    assert all(counts[group] >= at_one_width[group] for group in counts)
    assert max(shares) < min(shares) + 0.5


def test_a_share_of_multiply_adds_that_no_width_reaches_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"to 0.0001 of its multiply-adds: .* 0\.\d+ of them are left"):
        cut_to(theirs("FixedView"), Share("macs", 1e-4))


def test_at_least_one_channel_stays() -> None:
    made = cut_to(theirs("Dense"), Share("width", 1e-6)).classifier
    assert dict(made.spec.kept)["stem"] == (1, 3, 1)
    assert dict(made.spec.kept)["convs.2"] == (1, 3, 1), "one of each of three layers"
    assert answers(made).shape == (4, 10)


@pytest.mark.parametrize("name", ["Depthwise", "Padded", "Attention"])
def test_a_cut_network_can_be_cut_again(name: str, tmp_path: Path) -> None:
    once = reloaded(cut_to(theirs(name), Share("width", 0.75)).classifier, tmp_path)
    before = weights(once)
    made = cut_to(once, HALF)
    check_cut(once, made.classifier, tmp_path)
    assert equal(weights(once), before)
    assert dict(once.spec.kept).keys() == dict(made.classifier.spec.kept).keys()


def test_a_factorized_network_can_be_cut(tmp_path: Path) -> None:
    teacher = ours("lenet5", 1, 10)
    ranks = choose_ranks(teacher.network, {"conv2": 0.5, "fc1": 0.5}, 0.5)
    compressed = Classifier(replace(teacher.spec, factors=tuple(ranks))).eval()
    fill(teacher, compressed)
    channels = channel_groups(compressed)
    made = cut(compressed, silence_half(compressed, channels))
    check_cut(compressed, made, tmp_path)
    assert channels.whole == {}
    assert {"conv2.inwards", "conv2.core", "conv2.outwards"} <= dict(made.spec.kept).keys()
    expected = answers(compressed)
    torch.testing.assert_close(answers(made), expected, rtol=0, atol=rounding(expected))


@pytest.mark.parametrize(
    ("name", "reason"),
    [("Recurrent", "GRU"), ("OneLayer", "one layer"), ("torchvision/shufflenet_v2_x0_5", "torch-pruning")],
)
def test_networks_without_channels_to_cut_are_refused_with_the_reason(name: str, reason: str) -> None:
    if name.startswith("torchvision"):
        names = tuple(map(str, range(1000)))
        teacher = Classifier(ClassifierSpec(name, (3, 32, 32), names, (0.4,) * 3, (0.3,) * 3)).eval()
    else:
        teacher = theirs(name)
    with pytest.raises(ConfigError, match=reason) as caught:
        cut_to(teacher, HALF)
    assert "\n" not in str(caught.value)


def test_a_compiled_teacher_is_cut_without_compilation() -> None:
    teacher = ours("lenet5_bn", 1, 10)
    plain = cut_to(teacher, HALF).classifier
    compiled = cut_to(teacher.copy().placed(torch.device("cpu"), torch.bfloat16, compiled=True), HALF).classifier
    assert equal(weights(plain), weights(compiled))
    assert compiled.network._compiled_call_impl is None


def test_random_numbers_of_the_process_are_not_drawn() -> None:
    teacher = theirs("Normed")
    torch.manual_seed(5)
    before = torch.get_rng_state()
    cut_to(teacher, HALF)
    assert torch.equal(torch.get_rng_state(), before)


def test_importance_is_the_norm_of_all_weights_of_a_channel() -> None:
    network = nn.Sequential(nn.Conv2d(1, 3, 2), nn.Flatten(), nn.Linear(12, 2))
    spec = ClassifierSpec("hinton800", (1, 3, 3), ("a", "b"), (0.0,), (1.0,))
    (group,) = channel_groups(Classifier(spec, network)).groups
    conv, bias, linear = network[0].weight.detach(), network[0].bias.detach(), network[2].weight.detach()
    expected = [
        sum(float(part.square().sum()) for part in (conv[i], bias[i], linear[:, 4 * i : 4 * i + 4])) for i in range(3)
    ]
    assert magnitude(network, group).square().tolist() == pytest.approx(expected)
    assert strongest(torch.tensor([1.0, 3.0, 2.0]), group, 2) == [1, 2]


# the record in a file


def kept_in(made: Classifier, folder: Path, kept: Any) -> Path:
    """Write the file of a classifier with another record of its channels."""
    file = folder / "model.safetensors"
    file.write_bytes(encode_classifier(made))
    tensors, metadata = read_safetensors(file)
    metadata["classifier"]["kept"] = kept
    file.write_bytes(encode_safetensors(tensors, metadata))
    return file


def test_files_of_whole_networks_have_no_record_of_channels(tmp_path: Path) -> None:
    file = tmp_path / "model.safetensors"
    file.write_bytes(encode_classifier(ours("lenet5", 1, 10)))
    assert "kept" not in read_safetensors(file)[1]["classifier"]
    assert read_spec(file).kept == ()


@pytest.mark.parametrize("foreign", [False, True])
@pytest.mark.parametrize(
    "change",
    [
        lambda kept: [*kept, kept[0]],
        lambda kept: [*kept, ["nowhere", [1, 1, 1]]],
        lambda kept: [*kept, ["", [1]]],
        lambda kept: [[name, [size + 10**6 for size in sizes]] for name, sizes in kept],
        lambda kept: [[name, [0 for size in sizes]] for name, sizes in kept],
        lambda kept: [[name, [-size for size in sizes]] for name, sizes in kept],
        lambda kept: [[name, [float(size) for size in sizes]] for name, sizes in kept],
        lambda kept: [[name, [True for size in sizes]] for name, sizes in kept],
        lambda kept: [[name, [*sizes, 1, 1, 1, 1, 1]] for name, sizes in kept],
        lambda kept: [[name, []] for name, sizes in kept],
        lambda kept: [[name] for name, sizes in kept],
        lambda kept: [[sizes, name] for name, sizes in kept],
        lambda kept: kept[1:],
        lambda kept: [],
        lambda kept: [[name, [1] * len(sizes)] for name, sizes in kept],
        lambda kept: "all",
        lambda kept: 5,
        lambda kept: {"conv1": [1, 1, 1]},
        lambda kept: [["relu1", [1]], *kept],
        lambda kept: [["pool1", [10**9]] for _ in range(10_000)],
    ],
)
def test_records_that_do_not_fit_are_refused(change: Any, foreign: bool, tmp_path: Path) -> None:
    teacher = theirs("Depthwise") if foreign else ours("lenet5_bn", 1, 10)
    made = cut_to(teacher, HALF).classifier
    kept = [[name, list(sizes)] for name, sizes in made.spec.kept]
    assert torch.equal(answers(load_classifier(kept_in(made, tmp_path, kept))), answers(made))
    with pytest.raises(ArtifactError):
        load_classifier(kept_in(made, tmp_path, change(kept)))


@pytest.mark.parametrize("name", ["Normed", "Auxiliary"])
def test_outputs_of_training_alone_keep_their_classes(name: str) -> None:
    made = cut_to(theirs(name), HALF).classifier
    assert made.network.second.weight.shape == (10, 4)


def test_a_file_is_read_without_torch_pruning(tmp_path: Path) -> None:
    file = tmp_path / "model.safetensors"
    file.write_bytes(encode_classifier(cut_to(theirs("Normed"), HALF).classifier))
    reading = "import sys, kdextract\nkdextract.load_classifier(sys.argv[1])\nassert 'torch_pruning' not in sys.modules"
    subprocess.run([sys.executable, "-c", reading, str(file)], env=environment(), check=True)


def test_a_teacher_whose_channels_were_cut_has_students_of_other_networks() -> None:
    made = cut_to(ours("lenet5", 1, 10), HALF).classifier
    assert made.spec.student("hinton800").kept == ()


def test_groups_are_told_apart_by_identity() -> None:
    channels = channel_groups(ours("lenet5", 1, 10))
    first, second = channels.groups[:2]
    assert isinstance(first, Group)
    assert first != second
    assert first.name in ("conv1", "conv2")
