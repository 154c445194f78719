"""Recording and changing of values inside a network: the recorded values are right, and no hook is left."""

from __future__ import annotations

import weakref
from collections import OrderedDict
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from conftest import rounding
from helpers import num_hooks
from torch import nn

from kdextract.errors import ConfigError
from kdextract.models.architectures import architecture
from kdextract.models.hooks import (
    LayerOutput,
    batch_norm_layers,
    count_multiply_adds,
    evaluation_mode,
    hand_over_activations,
    last_layer,
    layer_outputs,
    record_activations,
    record_batch_statistics,
    record_features,
    transform_inputs,
    weighted_layers,
)

LENET_LAYERS = ["conv1", "conv2", "fc1", "fc2", "logits"]


@pytest.fixture
def lenet() -> nn.Module:
    torch.manual_seed(0)
    return architecture("lenet").build((1, 32, 32), 10).eval()


@pytest.fixture
def images() -> torch.Tensor:
    return torch.randn((3, 1, 32, 32), generator=torch.Generator().manual_seed(1))


def manual_activations(network: nn.Module, images: torch.Tensor) -> dict[str, torch.Tensor]:
    conv1 = F.conv2d(images, network.conv1.weight, network.conv1.bias)
    conv2 = F.conv2d(F.max_pool2d(conv1.relu(), 2), network.conv2.weight, network.conv2.bias)
    fc1 = F.linear(F.max_pool2d(conv2.relu(), 2).flatten(1), network.fc1.weight, network.fc1.bias)
    fc2 = F.linear(fc1.relu(), network.fc2.weight, network.fc2.bias)
    logits = F.linear(fc2.relu(), network.logits.weight, network.logits.bias)
    return {"conv1": conv1, "conv2": conv2, "fc1": fc1, "fc2": fc2, "logits": logits}


class Backwards(nn.Module):
    """A network whose layers are declared in another order than they run; one never runs."""

    def __init__(self) -> None:
        super().__init__()
        self.last = nn.Linear(4, 2)
        self.unused = nn.Linear(4, 4)
        self.middle = nn.Sequential(OrderedDict(inner=nn.Conv2d(4, 4, 3, groups=2), act=nn.ReLU()))
        self.first = nn.Conv2d(1, 4, 3, bias=False)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.last(self.middle(self.first(images)).amax((2, 3)))


def test_recorded_activations_equal_a_forward_by_hand(lenet: nn.Module, images: torch.Tensor) -> None:
    with record_activations(lenet, LENET_LAYERS) as activations:
        output = lenet(images)
    expected = manual_activations(lenet, images)
    assert activations.keys() == expected.keys()
    for name, value in expected.items():
        assert torch.allclose(activations[name], value, rtol=0, atol=rounding(value)), name
    assert activations["logits"] is output
    assert float(activations["fc1"].detach().min()) < 0, "the record is taken before the nonlinearity"


def test_recording_follows_every_pass_and_only_the_named_layers(lenet: nn.Module, images: torch.Tensor) -> None:
    with torch.no_grad(), record_activations(lenet, ["fc2"]) as activations:
        assert activations == {}
        lenet(images)
        first = activations["fc2"]
        lenet(2 * images[:1])
        assert list(activations) == ["fc2"]
        assert activations["fc2"].shape == (1, 84)
        assert not torch.equal(activations["fc2"], first[:1])


def test_recorded_activations_carry_gradients_to_the_images(lenet: nn.Module, images: torch.Tensor) -> None:
    images.requires_grad_(True)
    with record_activations(lenet, ["conv2"]) as activations:
        lenet(images)
    (gradient,) = torch.autograd.grad(activations["conv2"].square().sum(), images)
    assert float(gradient.abs().sum()) > 0


def test_no_hook_is_left(lenet: nn.Module, images: torch.Tensor) -> None:
    with record_activations(lenet, LENET_LAYERS) as activations, transform_inputs(lenet, ["fc1"], lambda _, x: 2 * x):
        lenet(images)
        assert num_hooks(lenet) == 8, "one each, and one that tells passes apart"
    assert num_hooks(lenet) == 0
    activations.clear()
    lenet(images)
    assert activations == {}


def test_no_hook_is_left_after_an_exception(lenet: nn.Module) -> None:
    with pytest.raises(KeyError, match="stop"), record_activations(lenet, LENET_LAYERS):
        raise KeyError("stop")
    assert num_hooks(lenet) == 0

    def fail(name: str, inputs: torch.Tensor) -> torch.Tensor:
        raise KeyError("stop")

    with pytest.raises(KeyError, match="stop"), transform_inputs(lenet, LENET_LAYERS, fail):
        lenet(torch.zeros(1, 1, 32, 32))
    assert num_hooks(lenet) == 0
    with pytest.raises(RuntimeError):
        weighted_layers(lenet, torch.zeros(1, 5, 32, 32))
    assert num_hooks(lenet) == 0


def test_no_hook_is_left_when_a_layer_does_not_exist(lenet: nn.Module) -> None:
    with pytest.raises(AttributeError, match="fc9"), record_activations(lenet, ["conv1", "fc9"]):
        pass
    with pytest.raises(AttributeError, match="fc9"), transform_inputs(lenet, ["conv1", "fc9"], lambda _, x: x):
        pass
    assert num_hooks(lenet) == 0


def test_transform_inputs_replaces_the_input_of_a_layer(lenet: nn.Module, images: torch.Tensor) -> None:
    seen: list[str] = []

    def halve(name: str, inputs: torch.Tensor) -> torch.Tensor:
        seen.append(name)
        return inputs / 2

    with torch.no_grad():
        plain = lenet(images)
        with transform_inputs(lenet, ["conv1", "fc1"], halve):
            changed = lenet(images)
        first = manual_activations(lenet, images / 2)
        features = F.max_pool2d(first["conv2"].relu(), 2).flatten(1) / 2
        expected = lenet.logits(lenet.fc2(lenet.fc1(features).relu()).relu())
        assert seen == ["conv1", "fc1"]
        assert torch.allclose(changed, expected, rtol=0, atol=rounding(expected))
        assert not torch.allclose(changed, plain, rtol=0, atol=100 * rounding(plain))
        assert torch.equal(lenet(images), plain)


def test_layers_come_in_the_order_in_which_they_run() -> None:
    layers = weighted_layers(Backwards(), torch.zeros(2, 1, 9, 9))
    assert list(layers.items()) == [("first", (4, 7, 7)), ("middle.inner", (4, 5, 5)), ("last", (2,))]


def test_layers_of_lenet(lenet: nn.Module, images: torch.Tensor) -> None:
    shapes = [(6, 28, 28), (16, 10, 10), (120,), (84,), (10,)]
    assert list(weighted_layers(lenet, images).items()) == list(zip(LENET_LAYERS, shapes, strict=True))


@pytest.mark.parametrize("batch", [1, 4])
def test_multiply_adds_of_lenet(lenet: nn.Module, batch: int) -> None:
    by_hand = 6 * 25 * 784 + 16 * 150 * 100 + 400 * 120 + 120 * 84 + 84 * 10
    assert by_hand == 416_520
    assert count_multiply_adds(lenet, torch.zeros(batch, 1, 32, 32)) == by_hand


def test_multiply_adds_of_other_networks() -> None:
    with torch.device("meta"):
        dense = architecture("hinton800").build((1, 28, 28), 10)
        vgg = architecture("vgg16").build((3, 224, 224), 1000)
        assert count_multiply_adds(dense, torch.zeros(1, 1, 28, 28)) == 784 * 800 + 800 * 800 + 800 * 10
        # 15.5 billion: the figure that is usually given for VGG-16 at 224 pixels
        assert count_multiply_adds(vgg, torch.zeros(1, 3, 224, 224)) == 15_470_264_320
    # two groups: each output channel of the middle layer sees two of the four input channels
    grouped = 4 * 9 * 49 + 4 * (2 * 9) * 25 + 4 * 2
    assert count_multiply_adds(Backwards(), torch.zeros(1, 1, 9, 9)) == grouped


# ---- batch normalization ------------------------------------------------------------------------------------------


@pytest.fixture
def normalized() -> nn.Module:
    """A network with two layers that keep statistics, and one that does not."""
    torch.manual_seed(3)
    network = nn.Sequential(
        OrderedDict(
            conv=nn.Conv2d(1, 3, 5),
            norm1=nn.BatchNorm2d(3),
            forgets=nn.BatchNorm2d(3, track_running_stats=False),
            pool=nn.AdaptiveAvgPool2d(1),
            flatten=nn.Flatten(),
            norm2=nn.BatchNorm1d(3),
        )
    )
    with torch.no_grad():
        network(torch.randn(8, 1, 32, 32))
    return network.eval()


def test_batch_statistics_equal_those_by_hand(normalized: nn.Module, images: torch.Tensor) -> None:
    assert batch_norm_layers(normalized) == ["norm1", "norm2"]
    images.requires_grad_(True)
    with record_batch_statistics(normalized) as recorded:
        normalized(images)
    assert list(recorded) == ["norm1", "norm2"]
    entering = normalized.conv(images).detach().transpose(0, 1).flatten(1).double().numpy()
    first = recorded["norm1"]
    assert first.mean.tolist() == pytest.approx(entering.mean(axis=1), rel=1e-4, abs=1e-6)
    assert first.variance.tolist() == pytest.approx(entering.var(axis=1), rel=1e-4)
    assert torch.equal(first.kept_mean, normalized.norm1.running_mean)
    assert torch.equal(first.kept_variance, normalized.norm1.running_var)
    for values in recorded.values():
        (gradient,) = torch.autograd.grad((values.mean + values.variance).sum(), images, retain_graph=True)
        assert float(gradient.abs().sum()) > 0
    assert num_hooks(normalized) == 0


def test_a_network_without_batch_normalization_records_nothing(lenet: nn.Module, images: torch.Tensor) -> None:
    with record_batch_statistics(lenet) as recorded:
        lenet(images)
    assert recorded == {}
    assert batch_norm_layers(lenet) == []


def test_batch_statistics_leave_no_hook_after_an_exception(normalized: nn.Module) -> None:
    with pytest.raises(KeyError, match="stop"), record_batch_statistics(normalized):
        raise KeyError("stop")
    assert num_hooks(normalized) == 0


def test_evaluation_mode_ends_with_every_module_in_its_own_mode(normalized: nn.Module) -> None:
    normalized.train()
    normalized.norm1.eval()
    modes = [module.training for module in normalized.modules()]
    with evaluation_mode(normalized):
        assert not any(module.training for module in normalized.modules())
    assert [module.training for module in normalized.modules()] == modes
    with pytest.raises(KeyError, match="stop"), evaluation_mode(normalized):
        raise KeyError("stop")
    assert [module.training for module in normalized.modules()] == modes


def test_features_are_what_enters_the_last_linear_layer() -> None:
    network = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8, 5), nn.ReLU(), nn.Linear(5, 3))
    images = torch.rand(4, 1, 4, 4)
    with record_features(network, "5") as features:
        network(images)
        network(images[:2])
    assert [tuple(f.shape) for f in features] == [(4, 5), (2, 5)]
    torch.testing.assert_close(features[0], network[:5](images))
    assert features[0].requires_grad
    network(images)
    assert len(features) == 2, "the hook is gone"


def test_a_missing_layer_has_no_features() -> None:
    with pytest.raises(ConfigError, match=r"no layer 'fcc'.*Did you mean 'fc'"):
        record_features(nn.Sequential(OrderedDict(fc=nn.Linear(1, 2))), "fcc").__enter__()


class Twice(nn.Module):
    """A network that uses one convolution and one normalization twice."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 3, padding=1)
        self.norm = nn.BatchNorm2d(3)
        self.fc = nn.Linear(3, 2)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        for _ in range(2):
            images = self.norm(self.conv(images))
        return self.fc(input=images.mean((2, 3)))


def test_a_layer_that_is_used_twice_is_recorded_twice() -> None:
    network = Twice().eval()
    images = torch.rand(4, 3, 8, 8)
    assert weighted_layers(network, images) == {"conv": (3, 8, 8), "conv#2": (3, 8, 8), "fc": (2,)}
    with (
        torch.no_grad(),
        record_activations(network, ["conv", "conv#2"]) as activations,
        record_batch_statistics(network) as recorded,
        record_features(network, "fc") as features,
    ):
        for _ in range(2):
            network(images)
            assert list(activations) == ["conv", "conv#2"]
            assert list(recorded) == ["norm", "norm#2"]
        first = network.conv(images)
        second = network.conv(network.norm(first))
    torch.testing.assert_close(activations["conv"], first)
    torch.testing.assert_close(activations["conv#2"], second)
    torch.testing.assert_close(recorded["norm#2"].mean, second.mean((0, 2, 3)))
    torch.testing.assert_close(features[0], network.norm(second).mean((2, 3)))
    assert last_layer(network, 2, images) == "fc"
    assert count_multiply_adds(network, images) == 2 * 64 * 81 + 6
    assert num_hooks(network) == 0


def test_features_of_tokens_and_of_pixels_are_their_means() -> None:
    network = nn.Sequential(nn.Conv2d(4, 2, 1))
    images = torch.rand(3, 4, 6, 6)
    with record_features(network, "0") as features, torch.no_grad():
        network(images)
    torch.testing.assert_close(features[0], images.mean((2, 3)))
    linear, tokens = nn.Sequential(nn.Linear(5, 2)), torch.rand(3, 7, 5)
    with record_features(linear, "0") as features, torch.no_grad():
        linear(tokens)
    torch.testing.assert_close(features[0], tokens.mean(1))


def test_the_last_layer_is_the_one_that_runs_last() -> None:
    assert last_layer(Backwards(), 2, torch.zeros(2, 1, 9, 9)) == "last"
    pooled = nn.Sequential(nn.Conv2d(1, 4, 3), nn.Conv2d(4, 2, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    assert last_layer(pooled, 2, torch.zeros(2, 1, 9, 9)) == "1"
    with pytest.raises(ConfigError, match="no convolution and no linear layer"):
        last_layer(nn.Flatten(), 2, torch.zeros(2, 1, 9, 9))


def test_frozen_batch_normalization_keeps_statistics_too() -> None:
    from torchvision.ops import FrozenBatchNorm2d

    network = nn.Sequential(FrozenBatchNorm2d(3), nn.InstanceNorm2d(3, track_running_stats=True))
    assert batch_norm_layers(network) == ["0"]


def test_outputs_are_handed_over_and_not_kept() -> None:
    network, images = Twice().eval(), torch.rand(4, 3, 8, 8)
    seen: list[tuple[str, Any]] = []

    def take(name: str, output: torch.Tensor) -> None:
        assert all(of_before() is None for _, of_before in seen), "what was handed over before is gone"
        seen.append((name, weakref.ref(output)))

    network.norm = nn.Identity()  # a normalization would hold the output of the convolution until it is done
    with torch.no_grad(), hand_over_activations(network, ["conv", "fc"], take):
        network(images)
    assert [name for name, _ in seen] == ["conv", "fc"], "the second call of the convolution has a name of its own"
    assert num_hooks(network) == 0


def test_layer_outputs_name_the_dimension_of_channels() -> None:
    network = nn.Sequential(OrderedDict(conv=nn.Conv2d(3, 4, 1), last=nn.Flatten(2), fc=nn.Linear(64, 5)))
    outputs = layer_outputs(network, torch.rand(2, 3, 8, 8))
    assert outputs == {"conv": LayerOutput((2, 4, 8, 8), 1), "fc": LayerOutput((2, 4, 5), 2)}


def test_running_statistics_of_instances_are_not_those_of_batches() -> None:
    both = nn.Sequential(
        nn.InstanceNorm1d(3, track_running_stats=True), nn.BatchNorm1d(3), nn.BatchNorm1d(3, track_running_stats=False)
    )
    assert batch_norm_layers(both) == ["1"]
