"""Networks with a larger last layer: ours, decomposed ones, and imported ones."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from conftest import rounding
from torch import nn

from kdextract import api
from kdextract.errors import ConfigError
from kdextract.models.architectures import architecture
from kdextract.models.classifier import Classifier, ClassifierSpec, encode_classifier, load_classifier
from kdextract.models.external.head import Head
from kdextract.models.more_classes import first_classes, with_more_classes

NAMES = ("new", "newer", "newest")
BUILD = (
    "from torch import nn\n"
    "def build({parameters}):\n"
    "    features = nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()\n"
    "    return nn.Sequential(*features, nn.Linear(4, {classes}){last})\n"
)


def ours(name: str, num_classes: int, factors: tuple[tuple[str, int, int], ...] = ()) -> Classifier:
    torch.manual_seed(0)
    shape = architecture(name).input_shape
    names = tuple(f"class {index}" for index in range(num_classes))
    spec = ClassifierSpec(name, shape, names, (0.3,) * shape[0], (0.2,) * shape[0], factors)
    return Classifier(spec).eval()


def require_same_answers(old: Classifier, new: Classifier, path: Path) -> None:
    """The old logits are those of the old classifier, in memory and from a file."""
    count = old.num_classes
    pixels = torch.rand((3, *old.input_shape), generator=torch.Generator().manual_seed(1))
    assert new.spec.class_names == (*old.spec.class_names, *NAMES)
    with torch.no_grad():
        expected = old(pixels)
        made = new.eval()(pixels)
        assert made.shape == (3, count + len(NAMES))
        torch.testing.assert_close(made[:, :count], expected, rtol=0, atol=rounding(expected))
        assert not torch.equal(made[:, count], made[:, count + 1])
        path.write_bytes(encode_classifier(new))
        assert torch.equal(load_classifier(path)(pixels), made)
        assert torch.equal(first_classes(new, count)(pixels), made[:, :count])


@pytest.mark.parametrize("name", ["lenet", "lenet5_bn", "hinton800", "resnet18", "mobilenet_v2", "kegnet_mlp"])
@pytest.mark.parametrize("num_classes", [2, 10])
def test_old_answers_stay(name: str, num_classes: int, tmp_path: Path) -> None:
    old = ours(name, num_classes)
    before = {key: value.clone() for key, value in old.network.state_dict().items()}
    require_same_answers(old, with_more_classes(old, NAMES), tmp_path / "model.safetensors")
    assert all(torch.equal(value, before[key]) for key, value in old.network.state_dict().items())


def test_a_thousand_classes_and_one_more() -> None:
    old = ours("lenet", 1000)
    new = with_more_classes(old, ("new",))
    assert new.num_classes == 1001
    assert torch.equal(list(new.network.parameters())[-2][:1000], list(old.network.parameters())[-2])


@pytest.mark.parametrize("layer", ["conv2", "logits"])
def test_a_decomposed_network_stays_one(layer: str, tmp_path: Path) -> None:
    """Also if the last layer itself is decomposed: its outputs are those of the last part."""
    old = ours("lenet5", 4, ((layer, 3, 3),))
    require_same_answers(old, with_more_classes(old, NAMES), tmp_path / "model.safetensors")


@pytest.mark.parametrize(
    ("parameters", "spelled"),
    [("num_classes=4", "num_classes=7"), ("n_classes=4", "n_classes=7"), ("num_labels", "num_labels=7")],
)
def test_a_function_with_an_argument_for_the_classes(
    parameters: str, spelled: str, tmp_path: Path, state: Path
) -> None:
    path = tmp_path / "model.py"
    path.write_text(BUILD.format(parameters=parameters, classes=parameters.partition("=")[0], last=""))
    argument = "" if "=" in parameters else "(num_labels=4)"
    old = imported(path, argument, tmp_path)
    new = with_more_classes(old, NAMES)
    assert new.spec.architecture == f"model.py:build({spelled})"
    require_same_answers(old, new, tmp_path / "model.safetensors")


def test_probabilities_stay_probabilities(tmp_path: Path, state: Path) -> None:
    path = tmp_path / "model.py"
    path.write_text(BUILD.format(parameters="num_classes=4", classes="num_classes", last=", nn.Softmax(1)"))
    old = imported(path, "", tmp_path)
    new = with_more_classes(old, NAMES).eval()
    assert new.spec.head.kind == old.spec.head.kind == "probabilities"
    pixels = torch.rand(2, 1, 16, 16)
    with torch.no_grad():
        kept = new(pixels)[:, :4].softmax(1)
        torch.testing.assert_close(kept, old(pixels).softmax(1))


@pytest.mark.parametrize(
    ("parameters", "classes", "says"),
    [("", "4", "no argument for the number of its classes"), ("num_classes=4", "4", "not .* with a larger last layer")],
)
def test_other_functions_are_refused(parameters: str, classes: str, says: str, tmp_path: Path, state: Path) -> None:
    path = tmp_path / "model.py"
    path.write_text(BUILD.format(parameters=parameters, classes=classes, last=""))
    with pytest.raises(ConfigError, match=says):
        with_more_classes(imported(path, "", tmp_path), NAMES)


def imported(path: Path, arguments: str, tmp_path: Path) -> Classifier:
    """Import a function as the teacher of a run, with random weights."""
    namespace: dict[str, object] = {}
    exec(path.read_text(), namespace)
    torch.manual_seed(3)
    network = namespace["build"](*([4] if arguments else []))  # type: ignore[operator]
    torch.save(network.state_dict(), tmp_path / "weights.pth")
    made = api.import_model(
        model=f"{path}:build{arguments}",
        weights=str(tmp_path / "weights.pth"),
        input_size="1x16x16",
        run=tmp_path / "run",
        threads=1,
    )
    return load_classifier(made.directory)


def test_torchvision_networks_have_the_argument(tmp_path: Path) -> None:
    import torchvision

    spec = ClassifierSpec(
        "torchvision/squeezenet1_1(num_classes=4)", (3, 64, 64), tuple("abcd"), (0.5,) * 3, (0.5,) * 3
    )
    torch.manual_seed(0)
    old = Classifier(spec, torchvision.models.squeezenet1_1(num_classes=4)).eval()
    new = with_more_classes(old, NAMES)
    assert new.spec.architecture == "torchvision/squeezenet1_1(num_classes=7)"
    require_same_answers(old, new, tmp_path / "model.safetensors")


def test_one_output_for_two_classes_is_refused() -> None:
    old = ours("lenet", 2)
    old.spec = replace(old.spec, head=Head((), "logit"))
    with pytest.raises(ConfigError, match="one output for its two classes"):
        with_more_classes(old, NAMES)


def test_a_program_is_refused() -> None:
    spec = ClassifierSpec("program", (1, 8, 8), ("a", "b"), (0.5,), (0.5,))
    with pytest.raises(ConfigError, match="no argument for the number"):
        with_more_classes(Classifier(spec, nn.Linear(1, 1)), NAMES)
