"""Which channels stay: scales of batch normalization, Taylor expansions, and the merging of similar channels."""

from __future__ import annotations

import math
from collections.abc import Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from conftest import rounding
from helpers import equal, seeded, weights
from networks_to_cut import Small
from torch import nn

from kdextract.models.classifier import Classifier, ClassifierSpec
from kdextract.models.external.names import Share
from kdextract.models.importer import Findings, ModelOptions, read_model
from kdextract.models.pruning.cut import Channels, channel_groups, counts_at, cut, cut_to, most_important, width_for
from kdextract.models.pruning.fold import folding, followed_by_batch_norm, remaining_variance, unfoldable
from kdextract.models.pruning.groups import Group
from kdextract.models.pruning.importance import batch_norm_scales, scaling_layers, taylor
from kdextract.models.pruning.slices import Axis, merge

NETWORKS = Path(__file__).with_name("networks_to_cut.py")
FOLDED = ["Padded", "Depthwise", "Dense", "FixedView", "Shuffled", "Normed", "Twice"]
"""Networks of `networks_to_cut.py` that do not normalize over channels."""


def varied(made: Classifier) -> Classifier:
    """Give a network larger weights, and other statistics, scales and shifts of batch normalization, than new ones."""
    random = seeded(5)
    for parameter in made.network.parameters():
        if parameter.dim() > 1:
            gain = math.sqrt(2 * len(parameter) / parameter.numel())
            parameter.data.copy_(gain * torch.randn(parameter.shape, generator=random))
    for module in made.network.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            count = module.num_features
            module.running_mean = (0.3 * torch.randn(count, generator=random)).to(module.weight.dtype)
            module.running_var = (torch.rand(count, generator=random) + 0.5).to(module.weight.dtype)
            sign = torch.where(torch.rand(count, generator=random) < 0.3, -1.0, 1.0)
            module.weight.data = (sign * (torch.rand(count, generator=random) + 0.2)).to(module.weight.dtype)
            module.bias.data = (0.2 * torch.randn(count, generator=random)).to(module.weight.dtype)
    return made.eval()


def imported(name: str, channels: int = 3) -> Classifier:
    """A network of `networks_to_cut.py`: a name, or a name with arguments in parentheses."""
    torch.manual_seed(0)
    target, _, more = name.rstrip(")").partition("(")
    arguments = ", ".join(filter(None, [more, f"in_channels={channels}"]))
    options = ModelOptions(f"{NETWORKS}:{target}({arguments})", input_size=f"{channels}x16x16", mean="0.4", std="0.3")
    return varied(read_model(options, Findings()))


def small(channels: int = 1, batch_norm: bool = True) -> Classifier:
    return imported(f"Small(batch_norm={batch_norm})", channels)


def pixels(made: Classifier, count: int = 6) -> torch.Tensor:
    return torch.rand(count, *made.input_shape, generator=seeded(7))


def answers(made: Classifier) -> torch.Tensor:
    with torch.no_grad():
        return made(pixels(made))


def layer(net: nn.Module, name: str) -> Any:
    return net.get_submodule(name)


# batch normalization


def test_the_channels_with_the_largest_scales_stay() -> None:
    teacher = small()
    channels = channel_groups(teacher)
    scales = torch.tensor([0.1, -2.0, 0.3, 0.05, 1.0, -0.2])
    layer(channels.network, "1").weight.data = scales
    made = cut_to(teacher, Share("width", 0.5), most_important(batch_norm_scales), channels)
    first = next(group for group in channels.groups if group.name == "0")
    assert made.kept[first] == [1, 2, 4], "the sign does not matter"
    assert batch_norm_scales(channels.network, first).tolist() == pytest.approx(scales.abs().tolist())


def test_scales_of_channels_that_are_added_are_summed() -> None:
    teacher = imported("Padded")
    channels = channel_groups(teacher)
    group = next(group for group in channels.groups if ("conv", "out") in group.axes)
    layers = [axis.layer for axis in scaling_layers(channels.network, group)]
    assert len(layers) > 1
    expected = torch.zeros(len(group.channels), dtype=torch.float64)
    for position, axis in enumerate(group.axes):
        if axis.layer in layers:
            scale = layer(teacher.network, axis.layer).weight.detach().abs().double()
            expected += torch.stack([scale[list(channel[position])].sum() for channel in group.channels])
    torch.testing.assert_close(batch_norm_scales(channels.network, group), expected)


@pytest.mark.parametrize("affine", [True, False])
def test_only_batch_normalization_with_scales_scales(affine: bool) -> None:
    net = nn.Sequential(
        nn.Conv2d(1, 4, 3),
        nn.BatchNorm2d(4, affine=affine),
        nn.Conv2d(4, 5, 3),
        nn.InstanceNorm2d(5, affine=True),
        nn.Flatten(),
        nn.Linear(320, 3),
    )
    names = ("a", "b", "c")
    channels = channel_groups(Classifier(ClassifierSpec("hinton800", (1, 12, 12), names, (0.4,), (0.3,)), net))
    assert [bool(scaling_layers(channels.network, group)) for group in channels.groups] == [affine, False]


# Taylor


class Gated(nn.Module):
    """Two convolutions whose outputs have a factor 1 on each channel."""

    def __init__(self, channels: int, batch_norm: bool) -> None:
        super().__init__()
        self.net = Small(channels, 10, batch_norm)
        self.gates = nn.ParameterList([nn.Parameter(torch.ones(6)), nn.Parameter(torch.ones(8))])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        gates = iter(self.gates)
        for module in self.net:
            x = module(x)
            if isinstance(module, nn.ReLU):
                x = x * next(gates).view(1, -1, 1, 1)
        return x


@pytest.mark.parametrize("batch_norm", [True, False])
@pytest.mark.parametrize("channels", [1, 3])
def test_taylor_is_the_squared_derivative_for_a_gate_on_the_channel(channels: int, batch_norm: bool) -> None:
    teacher = small(channels, batch_norm)
    found = channel_groups(teacher)
    random = seeded(3)
    batches = [
        (torch.rand(5, channels, 16, 16, generator=random), torch.randint(0, 4, (5,), generator=random))
        for _ in range(3)
    ]
    trained = Classifier(teacher.spec, deepcopy(found.network)).eval()
    before = weights(trained)
    importance = taylor(trained, found.groups, batches)
    assert equal(weights(trained), before)
    assert all(parameter.grad is None for parameter in trained.parameters())
    gated = Gated(channels, batch_norm).eval()
    gated.net.load_state_dict(teacher.network.state_dict())
    for group, gate in zip(found.groups, gated.gates, strict=True):
        expected = torch.zeros(len(gate))
        for images, labels in batches:
            loss = F.cross_entropy(gated((images - teacher.mean) / teacher.std), labels)
            (derivative,) = torch.autograd.grad(loss, gate)
            expected += derivative.square() / len(batches)
        assert int((expected > 0).sum()) > len(expected) / 2
        torch.testing.assert_close(importance(found.network, group).float(), expected, rtol=1e-3, atol=1e-9)


@pytest.mark.parametrize("name", ["Depthwise", "Dense", "Twice", "Layered", "Attention"])
def test_taylor_of_imported_networks_is_that_of_setting_the_reading_weights_to_zero(name: str) -> None:
    """The sum of weight times gradient is what the loss changes by, to first order, if all of these shrink together."""
    teacher = imported(name)
    found = channel_groups(teacher)
    trained = Classifier(teacher.spec, deepcopy(found.network)).eval()
    images, labels = pixels(teacher), torch.arange(6) % teacher.num_classes
    importance = taylor(trained, found.groups, [(images, labels)])
    double = deepcopy(found.network).double().eval()
    normalized = ((images - teacher.mean) / teacher.std).double()

    def loss(group: Group, step: float) -> float:
        changed = deepcopy(double)
        for position, axis in enumerate(group.axes):
            if axis.side == "in":
                reader = layer(changed, axis.layer)
                for index in group.channels[0][position]:
                    part, row = divmod(index, reader.weight.shape[1])
                    outputs = len(reader.weight) // getattr(reader, "groups", 1)
                    reader.weight.data[part * outputs : (part + 1) * outputs, row] *= 1 - step
        with torch.no_grad():
            return float(F.cross_entropy(teacher.spec.head.values(changed(normalized)), labels))

    for group in found.groups:
        slope = (loss(group, 1e-5) - loss(group, -1e-5)) / 2e-5
        assert float(importance(found.network, group)[0]) == pytest.approx(slope**2, rel=0.02, abs=1e-8)


# folding


def duplicated(teacher: Classifier, channels: Channels) -> tuple[Classifier, dict[Group, list[int]]]:
    """Make half of the channels of each group copies of the others, and halve the weights that read the copies.

    Returns:
        The classifier, in which each copied channel and its copy do together what the copied one did, and the channels
        that are no copies.
    """
    made = deepcopy(teacher)
    made.network = deepcopy(channels.network).requires_grad_(False)
    originals: dict[Group, list[int]] = {}
    for group in channels.groups:
        originals[group] = []
        for block in group.members():
            half = (len(block) + 1) // 2
            originals[group] += block[:half]
            for first, second in zip(block[: len(block) - half], block[half:], strict=True):
                for position, axis in enumerate(group.axes):
                    if axis.side == "out":
                        copy_channel(
                            made.network, axis, group.channels[first][position], group.channels[second][position]
                        )
    return made, originals


def copy_channel(net: nn.Module, axis: Axis, source: Sequence[int], target: Sequence[int]) -> None:
    """Give some outputs of a layer, or entries of a parameter, the values of others."""
    if axis.layer in dict(net.named_parameters()):
        tensors = [net.get_parameter(axis.layer)]
    else:
        module = layer(net, axis.layer)
        names = ("weight", "bias", "running_mean", "running_var")
        tensors = [value for name in names if (value := getattr(module, name, None)) is not None]
    for tensor in tensors:
        tensor.data[list(target)] = tensor.data[list(source)]


def check_folded(teacher: Classifier) -> None:
    channels = channel_groups(teacher)
    made, originals = duplicated(teacher, channels)
    found = channel_groups(made)
    assert [group.channels for group in found.groups] == [group.channels for group in channels.groups]
    half = cut_to(made, Share("width", 0.5), folding(made, 0), found)
    counts = [len(kept) for kept in half.kept.values()]
    assert counts == [len(kept) for kept in originals.values()]
    assert half.classifier.num_parameters < made.num_parameters
    expected = answers(made)
    torch.testing.assert_close(answers(half.classifier), expected, rtol=0, atol=rounding(expected))
    assert float(expected.std(0).max()) > 1e-3, "images differ"
    plain = cut_to(made, Share("width", 0.5), None, found)
    assert float((answers(plain.classifier) - expected).abs().max()) > 10 * rounding(expected)


@pytest.mark.parametrize("batch_norm", [True, False])
@pytest.mark.parametrize("channels", [1, 3])
def test_copies_of_channels_are_folded_without_any_difference(channels: int, batch_norm: bool) -> None:
    check_folded(small(channels, batch_norm))


@pytest.mark.parametrize("name", FOLDED)
def test_copies_of_channels_of_imported_networks_are_folded_without_any_difference(name: str) -> None:
    check_folded(imported(name))


@pytest.mark.parametrize("name", ["Small", "Depthwise", "Normed"])
def test_more_clusters_than_different_channels_are_filled_with_copies(name: str) -> None:
    teacher = imported(name)
    channels = channel_groups(teacher)
    made, _ = duplicated(teacher, channels)
    found = channel_groups(made)
    folded = cut_to(made, Share("width", 0.75), folding(made, 0), found)
    for group, kept in folded.kept.items():
        assert len(kept) == group.unit * math.floor(0.75 * len(group.channels) / group.unit + 0.5)
    expected = answers(made)
    torch.testing.assert_close(answers(folded.classifier), expected, rtol=0, atol=rounding(expected))


def test_the_first_channel_of_a_cluster_gets_the_mean_or_the_sum() -> None:
    net = nn.Sequential(nn.Conv2d(2, 4, 1), nn.Conv2d(4, 6, 1, groups=2))
    first, second = (layer(net, name).weight.detach().clone() for name in ("0", "1"))
    merge(net, Axis("0", "out"), [[0, 1], [2, 3]])
    merge(net, Axis("1", "in"), [[0, 1], [3, 2]])
    torch.testing.assert_close(layer(net, "0").weight[0], (first[0] + first[1]) / 2)
    torch.testing.assert_close(layer(net, "0").weight[2], (first[2] + first[3]) / 2)
    torch.testing.assert_close(layer(net, "1").weight[:3, 0], second[:3].sum(1))
    torch.testing.assert_close(layer(net, "1").weight[3:, 1], second[3:].sum(1))
    torch.testing.assert_close(layer(net, "1").weight[:3, 1], second[:3, 1])


def test_the_repaired_variance_is_that_of_the_mean_on_uncorrelated_inputs() -> None:
    """For inputs without correlation, the variance of a mean of outputs follows from the weights alone."""
    random = seeded(2)
    for count, spread in ((2, 0.1), (3, 0.5), (7, 1.0)):
        directions = torch.randn(1, 40, generator=random) + spread * torch.randn(count, 40, generator=random)
        inputs = torch.randn(200_000, 40, generator=random)
        outputs = inputs @ nn.functional.normalize(directions, dim=1).T
        expected = float(outputs.mean(1).var())
        assert remaining_variance(directions.double()) == pytest.approx(expected, rel=0.02)
    assert remaining_variance(torch.ones(5, 3).double()) == pytest.approx(1)
    assert remaining_variance(torch.zeros(5, 3).double()) == pytest.approx(1)
    assert remaining_variance(torch.eye(4).double()) == pytest.approx(1 / 4)


@pytest.mark.parametrize("negative", [False, True])
def test_statistics_of_folded_channels_are_those_measured_on_uncorrelated_inputs(negative: bool) -> None:
    """A normalized mean of the channels must have mean 0 and variance 1, so that the one that stays varies as much."""
    random = seeded(4)
    net = nn.Sequential(nn.Linear(30, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3)).eval()
    base = torch.randn(4, 30, generator=random)
    first, norm = layer(net, "0"), layer(net, "1")
    sizes = torch.rand(8, 1, generator=random) * 3 + 0.5
    first.weight.data = sizes * (base.repeat(2, 1) + 0.3 * torch.randn(8, 30, generator=random))
    if negative:
        norm.weight.data[4:] = -1
        first.weight.data[4:] *= -1
    norm.running_mean = first.bias.detach().clone()
    norm.running_var = first.weight.detach().square().sum(1)
    made = Classifier(
        ClassifierSpec("hinton800", (1, 1, 30), ("a", "b", "c"), (0.0,), (1.0,)), nn.Sequential(nn.Flatten(), net)
    )
    channels = channel_groups(made.eval())
    folded = folding(made, 0)(channels, counts_at(channels, 0.5))
    net_after, kept = folded
    rows = kept[channels.groups[0]]
    assert len(rows) == 4
    with torch.no_grad():
        inputs = torch.randn(100_000, 30, generator=random)
        outputs = layer(net_after, "1.1")(layer(net_after, "1.0")(inputs))[:, rows]
    bias = layer(net_after, "1.1").bias.detach()[rows]
    scale = layer(net_after, "1.1").weight.detach()[rows]
    assert bool((scale > 0).all())
    torch.testing.assert_close(outputs.mean(0), bias, rtol=0, atol=0.02)
    torch.testing.assert_close(outputs.std(0), scale, rtol=0.02, atol=0)


@pytest.mark.parametrize("also", [False, True])
def test_batch_normalization_that_does_not_read_a_layer_alone_is_found(also: bool) -> None:
    teacher = imported(f"ReadTwice(also={also})")
    channels = channel_groups(teacher)
    before = weights(teacher)
    assert followed_by_batch_norm(teacher, channels.network) == ({} if also else {"conv": "bn"})
    check_folded(teacher)
    assert equal(weights(teacher), before)


def test_attention_is_left_whole() -> None:
    teacher = imported("Attention")
    channels = channel_groups(teacher)
    reasons = unfoldable(channels)
    assert 0 < len(reasons) < len(channels.groups)
    made = cut_to(teacher, Share("width", 0.5), folding(teacher, 0), channels.without(reasons))
    assert "folding does not merge" in made.whole["patches"]
    assert dict(made.classifier.spec.kept)["encoder.layers.0.linear1"] == (12, 16)
    assert answers(made.classifier).shape == answers(teacher).shape


# every criterion, and the shares


def selections(teacher: Classifier, channels: Channels) -> dict[str, Any]:
    trained = Classifier(teacher.spec, deepcopy(channels.network)).eval()
    labels = torch.arange(6) % teacher.num_classes
    found = {
        "magnitude": None,
        "taylor": most_important(taylor(trained, channels.groups, [(pixels(teacher), labels)])),
        "fold": folding(teacher, 0),
    }
    if all(scaling_layers(channels.network, group) for group in channels.groups):
        found["batch-norm"] = most_important(batch_norm_scales)
    return found


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("name", ["plain", "batch norm", "Depthwise", "Padded", "Grouped", "Layered"])
def test_every_criterion_cuts_every_kind_of_network(name: str, channels: int) -> None:
    teacher = small(channels, name == "batch norm") if name in ("plain", "batch norm") else imported(name, channels)
    before = weights(teacher)
    found = channel_groups(teacher)
    for criterion, select in selections(teacher, found).items():
        made = cut_to(teacher, Share("width", 0.5), select, found)
        for group, kept in made.kept.items():
            own = [len(set(block) & set(kept)) for block in group.members()]
            assert own == [math.floor(len(group.channels) / group.unit / 2 + 0.5)] * group.unit, criterion
        assert torch.isfinite(answers(made.classifier)).all()
        assert equal(weights(teacher), before)
        again = cut_to(teacher, Share("width", 0.5), selections(teacher, found)[criterion], found)
        assert equal(weights(made.classifier), weights(again.classifier)), criterion


@pytest.mark.parametrize("share", [0.4, *(pytest.param(share, marks=pytest.mark.slow) for share in (0.1, 0.75))])
@pytest.mark.parametrize("name", ["Padded", "FixedView"])
def test_parameters_are_the_most_that_the_share_allows(name: str, share: float) -> None:
    teacher = imported(name)
    channels = channel_groups(teacher)
    made = cut_to(teacher, Share("params", share), None, channels).classifier.num_parameters
    most = share * teacher.num_parameters
    widths = [n / 40 for n in range(41)]
    possible = [
        cut_to(teacher, Share("width", width), None, channels).classifier.num_parameters for width in widths[1:]
    ]
    assert max([number for number in possible if number <= most], default=0) <= made <= most


@pytest.mark.parametrize("of", ["params", "macs", "width"])
def test_a_share_of_1_changes_nothing(of: str) -> None:
    teacher = small()
    channels = channel_groups(teacher)
    assert width_for(teacher, channels, Share(of, 1.0)) == 1
    for select in selections(teacher, channels).values():
        made = cut_to(teacher, Share(of, 1.0), select, channels).classifier
        assert equal(weights(made), weights(teacher))
    whole = {group: range(len(group.channels)) for group in channels.groups}
    assert equal(weights(cut(teacher, whole, channels.network)), weights(teacher))
