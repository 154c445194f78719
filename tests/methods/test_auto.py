"""The method that `--method auto` selects."""

from __future__ import annotations

import pytest
import torch

from kdextract.methods import live_method, live_names
from kdextract.methods.auto import candidates, pick
from kdextract.models.architectures import model_names
from kdextract.models.classifier import Classifier, ClassifierSpec


def teacher(architecture: str, shape: tuple[int, int, int]) -> Classifier:
    torch.manual_seed(0)
    mean, std = (0.5,) * shape[0], (0.3,) * shape[0]
    return Classifier(ClassifierSpec(architecture, shape, tuple("abcdefghij"), mean, std)).frozen()


@pytest.mark.parametrize(
    ("architecture", "shape", "expected"),
    [
        ("lenet5", (1, 32, 32), "structured_noise"),
        ("hinton1200", (1, 28, 28), "structured_noise"),
        ("lenet5", (3, 32, 32), "structured_noise"),
        ("resnet18", (3, 32, 32), "natural_inversion"),
        ("resnet18", (1, 32, 32), "structured_noise"),
    ],
)
def test_the_choice_depends_on_the_teacher(architecture: str, shape: tuple[int, int, int], expected: str) -> None:
    name, reason = pick(teacher(architecture, shape))
    assert name == expected
    assert reason
    assert not reason.endswith(".")


def test_a_method_that_optimizes_no_pixels_can_be_asked_for() -> None:
    assert pick(teacher("resnet18", (3, 32, 32)), optimizes=False)[0] == "natural_noise"
    assert pick(teacher("resnet18", (1, 32, 32)), optimizes=False)[0] == "structured_noise"


def test_the_reason_contains_the_number_of_layers() -> None:
    assert "20 batch normalization layers" in pick(teacher("resnet18", (3, 32, 32)))[1]


@pytest.mark.parametrize("architecture", model_names())
def test_the_chosen_method_exists(architecture: str) -> None:
    shape = (3, 32, 32) if architecture not in ("hinton1200", "hinton800") else (1, 28, 28)
    assert pick(teacher(architecture, shape))[0] in live_names()


@pytest.mark.parametrize("architecture", ["lenet5", "lenet5_bn", "resnet18"])
@pytest.mark.parametrize("channels", [1, 3])
def test_three_methods_that_need_only_the_teacher_are_tried(architecture: str, channels: int) -> None:
    usual = pick(teacher(architecture, (channels, 32, 32)))[0]
    names = candidates(teacher(architecture, (channels, 32, 32)))
    assert names[0] == usual
    assert len(set(names)) == len(names) == 3
    for name in names:
        assert architecture != "lenet5" or not live_method(name).matches_batch_norm
