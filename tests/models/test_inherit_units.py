"""Students whose initial weights are those of units of their teacher."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from conftest import rounding
from torch import nn

from kdextract.models.architectures import architecture
from kdextract.models.architectures.registry import scaled
from kdextract.models.classifier import Classifier, ClassifierSpec
from kdextract.models.inherit_units import inherit


def classifier(name: str, seed: int, shape: tuple[int, int, int] = (1, 32, 32), classes: int = 10) -> Classifier:
    torch.manual_seed(seed)
    names = tuple(str(index) for index in range(classes))
    mean, std = (0.2,) * shape[0], (0.3,) * shape[0]
    return Classifier(ClassifierSpec(name, shape, names, mean, std)).eval()


def around(network: nn.Module, shape: tuple[int, int, int] = (3, 8, 8)) -> Classifier:
    """A classifier of a network that is not a registered architecture."""
    holder = classifier("hinton800", 0, shape)
    holder.network = network.eval()
    return holder


def contents(network: nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in network.state_dict().items()}


@pytest.mark.parametrize(
    ("teacher", "student"), [("lenet", "lenet_half"), ("lenet5", "lenet5_half"), ("hinton1200", "hinton800")]
)
def test_every_unit_of_the_student_is_one_of_the_teachers(teacher: str, student: str) -> None:
    giver, heir = classifier(teacher, 0), classifier(student, 1)
    before = contents(giver.network)
    assert inherit(giver, heir)
    assert all(torch.equal(value, before[name]) for name, value in giver.network.state_dict().items())
    first, own = (
        next(layer for layer in network.children() if isinstance(layer, nn.Conv2d | nn.Linear))
        for network in (giver.network, heir.network)
    )
    rows = {row.detach().numpy().tobytes() for row in first.weight.flatten(1)}
    assert all(row.detach().numpy().tobytes() in rows for row in own.weight.flatten(1))
    last, own = list(giver.network.children())[-1], list(heir.network.children())[-1]
    assert torch.equal(own.bias, last.bias), "the classes stay as they are"


def test_a_copy_of_the_same_width_is_the_teacher() -> None:
    giver, heir = classifier("lenet5", 0), classifier("lenet5", 1)
    assert inherit(giver, heir)
    pixels = torch.rand(4, 1, 32, 32)
    with torch.no_grad():
        assert torch.equal(giver(pixels), heir(pixels))


def silence(network: nn.Module, width: float) -> None:
    """Set to 0 the outgoing weights of the units of hidden layers that a network of this width does not have."""
    layers = [layer for layer in network.modules() if isinstance(layer, nn.Conv2d | nn.Linear)]
    with torch.no_grad():
        for layer, following in pairwise(layers):
            units = len(layer.weight)
            following.weight.view(len(following.weight), units, -1)[:, scaled(units, width) :] = 0


@pytest.mark.parametrize("width", [0.5, 0.3])
@pytest.mark.parametrize("name", ["lenet5", "lenet5_bn", "hinton1200", "vgg11_bn"])
def test_a_student_of_another_width_has_the_teachers_strongest_units(name: str, width: float) -> None:
    """If the outgoing weights of the teacher's other units are 0, the student has the logits of the teacher."""
    shape = architecture(name).input_shape
    giver = classifier(name, 0, shape)
    torch.manual_seed(1)
    heir = around(architecture(name).build(shape, 10, width), shape)
    silence(giver.network, width)
    for layer in giver.network.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.running_mean.normal_()
            layer.running_var.uniform_(0.5, 1.5)
    assert heir.num_parameters < giver.num_parameters
    pixels = torch.rand(4, *shape)
    with torch.no_grad():
        expected = giver(pixels)
        assert not torch.allclose(heir(pixels), expected, rtol=0, atol=10 * rounding(expected))
        assert inherit(giver, heir)
        torch.testing.assert_close(heir(pixels), expected, rtol=0, atol=rounding(expected))


def test_a_student_that_is_wider_than_its_teacher_is_unchanged() -> None:
    heir = around(architecture("lenet5").build((1, 32, 32), 10, 1.5), (1, 32, 32))
    before = contents(heir.network)
    assert not inherit(classifier("lenet5", 0), heir)
    assert all(torch.equal(value, before[key]) for key, value in heir.network.state_dict().items())


def narrow(width: int, seed: int, weak: int = 0) -> nn.Sequential:
    """Convolution, normalization, a linear layer over 4 pixels of each channel; the last `weak` channels are zero."""
    torch.manual_seed(seed)
    network = nn.Sequential(
        nn.Conv2d(3, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(),
        nn.Linear(width * 4, 10),
    )  # fmt: skip
    with torch.no_grad():
        network[1].running_mean.copy_(torch.randn(width))
        network[1].running_var.copy_(torch.rand(width) + 0.5)
        network[1].weight.copy_(torch.rand(width) + 0.5)
        if weak:
            network[0].weight[-weak:] = 0
            network[5].weight.view(10, width, 4)[:, -weak:] = 0
    return network


def test_units_of_zero_weight_are_left_out_first() -> None:
    """Without them the student is the teacher, its batch normalization included."""
    giver, heir = around(narrow(8, 0, weak=3)), around(narrow(5, 1))
    assert inherit(giver, heir)
    pixels = torch.rand(6, 3, 8, 8)
    with torch.no_grad():
        expected = giver(pixels)
        torch.testing.assert_close(heir(pixels), expected, rtol=0, atol=rounding(expected))


@pytest.mark.parametrize(
    ("teacher", "student"),
    [("lenet", "lenet5_half"), ("lenet_half", "lenet"), ("hinton1200", "lenet_half"), ("lenet5_half", "lenet5")],
)
def test_other_networks_and_wider_ones_are_unchanged(teacher: str, student: str) -> None:
    giver, heir = classifier(teacher, 0), classifier(student, 1)
    before = contents(heir.network)
    assert not inherit(giver, heir)
    assert all(torch.equal(value, before[name]) for name, value in heir.network.state_dict().items())


def test_networks_that_branch_are_unchanged() -> None:
    assert not inherit(classifier("resnet18", 0, (3, 32, 32)), classifier("resnet18", 1, (3, 32, 32)))


def test_kernels_must_be_equal() -> None:
    def network(kernel: int) -> nn.Sequential:
        return nn.Sequential(nn.Conv2d(3, 4, kernel), nn.Flatten(), nn.Linear(4 * (9 - kernel) ** 2, 10))

    assert inherit(around(network(3)), around(network(3)))
    assert not inherit(around(network(3)), around(network(5)))


def test_a_network_may_begin_with_batch_normalization() -> None:
    def network(width: int) -> nn.Sequential:
        norms = nn.BatchNorm2d(3), nn.BatchNorm2d(width)
        return nn.Sequential(
            norms[0], nn.Conv2d(3, width, 3), norms[1], nn.ReLU(), nn.Flatten(), nn.Linear(width * 36, 2)
        )

    giver, heir = around(network(8)), around(network(4))
    with torch.no_grad():
        giver(torch.rand(5, 3, 8, 8))
        giver.network[0].running_mean.copy_(torch.tensor([1.0, 2.0, 3.0]))
        giver.network[2].bias.copy_(torch.arange(8.0))
    assert inherit(giver, heir)
    assert heir.network[0].running_mean.tolist() == [1, 2, 3]
    rows = giver.network[1].weight.flatten(1)
    units = [int((rows == row).all(1).nonzero()) for row in heir.network[1].weight.flatten(1)]
    assert heir.network[2].bias.tolist() == units, "the same channels as the convolution before"


def test_batch_normalization_with_other_tensors_is_unchanged() -> None:
    giver = around(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(144, 2)))
    heir = around(nn.Sequential(nn.Conv2d(3, 2, 3), nn.BatchNorm2d(2, affine=False), nn.Flatten(), nn.Linear(72, 2)))
    before = contents(heir.network)
    assert not inherit(giver, heir)
    assert all(torch.equal(value, before[name]) for name, value in heir.network.state_dict().items())
