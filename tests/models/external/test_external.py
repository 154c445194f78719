"""Networks that are not of kdx: their names, permission to run their code, their inputs and outputs."""

from __future__ import annotations

import io
import sys
from collections import namedtuple
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from kdextract.errors import ArtifactError, ConfigError, UsageError
from kdextract.models.external import consent, libraries
from kdextract.models.external.blueprint import Blueprint, unwrapped
from kdextract.models.external.exported_program import Program
from kdextract.models.external.head import Head, find_head
from kdextract.models.external.names import (
    HALF,
    NetworkName,
    Share,
    parse_input_size,
    parse_name,
    parse_narrower,
    parse_share,
)
from kdextract.models.external.probe import probe
from kdextract.models.external.user_code import Code, as_file, function_of, narrowed, read_code, with_inferred_arguments

pytestmark = pytest.mark.usefixtures("state")
NAME = NetworkName("net")


@pytest.mark.parametrize(
    ("text", "kind", "place", "function"),
    [
        ("lenet5", "registered", "lenet5", ""),
        ("lenet5(width=0.5)", "registered", "lenet5", ""),
        ("torchvision/resnet18", "torchvision", "resnet18", ""),
        ("timm/vit_tiny_patch16_224.augreg_in21k", "timm", "vit_tiny_patch16_224.augreg_in21k", ""),
        ("model.py:build", "file", "model.py", "build"),
        ("../a b/model.py:build(depth=3)", "file", "../a b/model.py", "build"),
        ("package.module:function", "module", "package.module", "function"),
        ("out/program.pt2", "program", "out/program.pt2", ""),
        ("half", "registered", "half", ""),
    ],
)
def test_kinds_of_names_are_distinguished(text: str, kind: str, place: str, function: str) -> None:
    name = parse_name(text)
    assert (name.kind, name.place, name.function) == (kind, place, function)
    assert name.is_foreign == (kind != "registered")


@given(
    st.dictionaries(
        st.from_regex(r"[a-z_]{1,8}", fullmatch=True).filter(lambda n: n not in ("in", "is", "or", "if", "as")),
        st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
        max_size=4,
    )
)
def test_a_name_with_arguments_comes_back_as_it_was(arguments: dict[str, Any]) -> None:
    import keyword

    arguments = {key: value for key, value in arguments.items() if not keyword.iskeyword(key)}
    name = NetworkName("model.py:build").with_arguments(**arguments)
    assert parse_name(str(name)) == name


@pytest.mark.parametrize("text", ["f(1)", "f(a=b)", "f(a=open('x'))", "f(**{})", "f(a=1", "f(a=1))", "f((a=1)"])
def test_arguments_that_are_no_plain_values_are_refused(text: str) -> None:
    if not text.endswith(")"):
        assert parse_name(text).arguments == ()
        return
    with pytest.raises(UsageError, match="plain values"):
        parse_name(text)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("half", (None, 0.5)),
        ("half:TEACHER", (None, 0.5)),
        ("half:lenet5", ("lenet5", 0.5)),
        ("half:model.py:build(width=8)", ("model.py:build(width=8)", 0.5)),
        ("width:0.25", (None, 0.25)),
        ("width:0.25:torchvision/mobilenet_v2", ("torchvision/mobilenet_v2", 0.25)),
        ("lenet_half", None),
    ],
)
def test_narrower_networks(text: str, expected: Any) -> None:
    assert parse_narrower(text) == expected


@pytest.mark.parametrize("text", ["width:0", "width:-1", "width:x", "width:nan", "width:9"])
def test_widths_that_are_none_are_refused(text: str) -> None:
    with pytest.raises(UsageError, match="a width is a number"):
        parse_narrower(text)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("half", HALF),
        ("half:Teacher", HALF),
        ("0.25", Share("width", 0.25)),
        ("width:0.25", Share("width", 0.25)),
        ("width:0.25:TEACHER", Share("width", 0.25)),
        ("macs:1e-3", Share("macs", 1e-3)),
        ("width:0.25:lenet5", None),
        ("half:lenet5", None),
        ("lenet5", None),
        ("0.25.safetensors", None),
    ],
)
def test_shares_of_the_teacher(text: str, expected: Share | None) -> None:
    assert parse_share(text) == expected


@pytest.mark.parametrize(
    "text", ["width:0", "width:1", "width:1.5", "width:x", "macs:", "macs:nan", "7", "-0.5", "1..2"]
)
def test_shares_that_are_none_are_refused(text: str) -> None:
    with pytest.raises(UsageError, match=r"above 0 and below 1, such as (width|macs):0.5"):
        parse_share(text)


def test_input_sizes() -> None:
    assert parse_input_size("3x32x40") == (3, 32, 40)
    with pytest.raises(UsageError, match="3x32x32"):
        parse_input_size("32x32")


def test_short_names_can_be_names_of_artifacts() -> None:
    for text in ("m.py:build(depth=3)", "timm/a.b", "a/b c/x.pt2", "torchvision/resnet18(num_classes=10)"):
        assert all(c.isalnum() or c in "._-" for c in parse_name(text).short), text


# Whose code may run


def write_code(folder: Path, text: str = "") -> Path:
    path = folder / "model.py"
    path.write_text(
        text
        or "from torch import nn\nRAN = []\ndef build(num_classes=4, width=6):\n"
        "    return nn.Sequential(nn.Flatten(), nn.Linear(9, width), nn.Linear(width, num_classes))\n"
    )
    return path


def test_code_runs_only_where_it_was_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sentinel = tmp_path / "ran"
    source = f"open({str(sentinel)!r}, 'w').close()\ndef build(): pass\n"
    stranger = Code("model.py", source)
    name = NetworkName("model.py:build")
    with pytest.raises(ArtifactError, match="was not allowed"):
        function_of(name, stranger)
    assert not sentinel.exists()
    path = write_code(tmp_path, source)
    code = read_code(NetworkName(f"{path}:build"))
    assert code == stranger
    assert callable(function_of(name, code))
    assert sentinel.exists()
    with pytest.raises(ArtifactError, match="was not allowed"):
        function_of(name, Code("model.py", source + "\n"))
    monkeypatch.setenv(consent.TRUST_ALL, "1")
    assert callable(function_of(name, Code("model.py", source + "\n")))


def test_an_unwritable_state_directory_is_reported(
    state: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    state.write_text("a file, not a folder")
    with pytest.raises(ConfigError, match="XDG_STATE_HOME"):
        consent.allow(b"a", NetworkName("model.py:build"), tmp_path)
    monkeypatch.setenv(consent.TRUST_ALL, "1")
    consent.allow(b"a", NetworkName("model.py:build"), tmp_path)
    assert consent.require(b"a", NetworkName("model.py:build")) is None


def test_code_may_import_files_of_its_folder(tmp_path: Path) -> None:
    package = tmp_path / "outer" / "inner"
    package.mkdir(parents=True)
    for folder in (package, package.parent):
        (folder / "__init__.py").write_text("")
    (package / "layers.py").write_text("WIDTH = 3\n")
    path = package / "net.py"
    path.write_text("from .layers import WIDTH\nfrom outer.inner import layers\ndef build(): return WIDTH\n")
    before = list(sys.path)
    name = NetworkName(f"{path}:build")
    assert function_of(name, read_code(name))() == 3
    assert sys.path == before


@pytest.mark.parametrize(
    ("source", "error", "match"),
    [
        ("def bild(): pass", UsageError, "no 'build'.*Did you mean 'bild'"),
        ("raise ValueError('no')\ndef build(): pass", ConfigError, "ValueError: no"),
        ("import sys; sys.exit(3)\ndef build(): pass", ConfigError, "SystemExit: 3"),
        ("def build(:", ConfigError, "SyntaxError"),
        ("import nothing_of_this_name\ndef build(): pass", ConfigError, "nothing_of_this_name"),
    ],
)
def test_code_that_fails_is_one_line(tmp_path: Path, source: str, error: type[Exception], match: str) -> None:
    name = NetworkName(f"{write_code(tmp_path, source)}:build")
    with pytest.raises(error, match=match) as caught:
        function_of(name, read_code(name))
    assert "\n" not in str(caught.value)


def test_files_that_are_no_code_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.py"
    with pytest.raises(ArtifactError, match="cannot be read"):
        read_code(NetworkName(f"{path}:build"))
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ArtifactError, match="UTF-8"):
        read_code(NetworkName(f"{path}:build"))
    path.write_bytes(b"#" * 2**21)
    with pytest.raises(ArtifactError, match="limit"):
        read_code(NetworkName(f"{path}:build"))


def test_missing_modules_are_refused() -> None:
    with pytest.raises(UsageError, match=r"no module 'no\.such'.*no/such\.py:build"):
        read_code(NetworkName("no.such:build"))
    with pytest.raises(UsageError, match="no module 'sys'"):
        read_code(NetworkName("sys:exit"))


def test_modules_of_this_folder_are_their_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "folder_of_a_test"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "parts.py").write_text("SIZE = 5\n")
    (package / "net.py").write_text("from .parts import SIZE\ndef build(): return SIZE\n")
    monkeypatch.chdir(tmp_path)
    name = as_file(parse_name("folder_of_a_test.net:build"))
    assert str(name) == "folder_of_a_test/net.py:build"
    assert function_of(name, read_code(name))() == 5
    for other in ("folder_of_a_test.none:build", "torchvision.models:resnet18", "lenet5"):
        assert str(as_file(parse_name(other))) == other


def test_functions_of_modules_are_found() -> None:
    name = NetworkName("torchvision.models:squeezenet1_1").with_arguments(num_classes=3)
    assert read_code(name) is None
    assert isinstance(Blueprint(name).build(None, None), nn.Module)


# Arguments


def test_parameters_are_filled_in_by_their_names() -> None:
    def build(num_classes: int, in_chans: int, img_size: int = 8, depth: int = 2, input_shape: Any = None) -> None: ...

    name = with_inferred_arguments(NetworkName("m.py:build").with_arguments(img_size=4), build, (3, 16, 16), 5)
    assert dict(name.arguments) == {"num_classes": 5, "in_chans": 3, "img_size": 4, "input_shape": (3, 16, 16)}
    oblong = with_inferred_arguments(NAME, lambda img_size=(8, 8): None, (3, 16, 20), None)
    assert dict(oblong.arguments) == {"img_size": (16, 20)}
    assert with_inferred_arguments(NAME, lambda img_size=8: None, (3, 16, 20), None) == NAME, "one number is no oblong"
    assert with_inferred_arguments(NAME, lambda *args, **rest: None, (3, 8, 8), 5) == NAME
    assert with_inferred_arguments(NAME, nn.Linear(1, 1), (3, 8, 8), 5) == NAME


def test_parameters_that_are_left_are_named() -> None:
    with pytest.raises(UsageError, match=r"net\(depth=..., kind=...\)"):
        with_inferred_arguments(NAME, lambda depth, kind, width=3: None, None, None)
    with pytest.raises(UsageError, match=r"no parameter 'dept'.*'depth'"):
        with_inferred_arguments(NAME.with_arguments(dept=3), lambda depth=1: None, None, None)


def test_widths_are_multiplied() -> None:
    assert narrowed(NAME, lambda width=64: None, 0.5) == NAME.with_arguments(width=32)
    assert narrowed(NAME.with_arguments(width=10), lambda width=64: None, 0.25) == NAME.with_arguments(width=2)
    assert narrowed(NAME, lambda width_mult=1.0: None, 0.5) == NAME.with_arguments(width_mult=0.5)
    for function in (lambda depth=3: None, lambda width: None, lambda width=None: None):
        with pytest.raises(ConfigError, match="no width"):
            narrowed(NAME, function, 0.5)


def test_narrower_networks_of_each_kind() -> None:
    half = Blueprint(parse_name("lenet5")).narrowed(0.5)
    assert str(half.name) == "lenet5(width=0.5)"
    assert str(half.narrowed(0.5).name) == "lenet5(width=0.25)"
    sizes = [
        sum(p.numel() for p in Blueprint(parse_name(name)).build((1, 32, 32), 10).parameters())
        for name in ("lenet5_half", "lenet5(width=0.5)")
    ]
    assert sizes[0] == sizes[1]
    mobile = Blueprint(parse_name("torchvision/mobilenet_v2")).narrowed(0.5)
    assert str(mobile.name) == "torchvision/mobilenet_v2(width_mult=0.5)"
    for name in ("torchvision/resnet18", "program.pt2"):
        with pytest.raises(ConfigError, match="no width"):
            Blueprint(parse_name(name)).narrowed(0.5)


# Libraries


def test_names_of_libraries_are_checked() -> None:
    libraries.check_library_name(parse_name("torchvision/resnet18"))
    with pytest.raises(UsageError, match="Did you mean 'resnet18'"):
        libraries.check_library_name(parse_name("torchvision/resnet81"))
    with pytest.raises(UsageError, match="torchvision has no classifier 'fcn_resnet50'"):
        libraries.check_library_name(parse_name("torchvision/fcn_resnet50"))


def test_the_input_of_torchvisions_networks_is_known() -> None:
    facts = libraries.facts(parse_name("torchvision/inception_v3"))
    assert facts is not None
    assert facts.input_shape == (3, 299, 299)
    assert facts.mean == (0.485, 0.456, 0.406)
    assert facts.class_names is not None
    assert len(set(facts.class_names)) == 1000
    filled = libraries.with_inferred_arguments(parse_name("torchvision/vit_b_16"), (3, 32, 32), 7)
    assert dict(filled.arguments) == {"num_classes": 7, "image_size": 32}
    with pytest.raises(ConfigError, match="takes images of 3 channels"):
        libraries.with_inferred_arguments(parse_name("torchvision/resnet18"), (1, 32, 32), 7)
    with pytest.raises(ConfigError, match="cannot be built"):
        libraries.build(parse_name("torchvision/resnet18(no_such=1)"))


def test_a_librarys_own_weights_are_loaded_only_on_request(monkeypatch: pytest.MonkeyPatch) -> None:
    import torchvision

    asked: list[Any] = []
    monkeypatch.setattr(torchvision.models, "get_model", lambda name, weights, **rest: asked.append((name, weights)))
    name = parse_name("torchvision/resnet18")
    libraries.build(name)
    libraries.build(name, pretrained=True)
    assert asked == [("resnet18", None), ("resnet18", "DEFAULT")]


def test_the_input_of_timms_networks_is_known() -> None:
    pytest.importorskip("timm")
    facts = libraries.facts(parse_name("timm/vit_tiny_patch16_224"))
    assert facts is not None
    assert facts.input_shape == (3, 224, 224)
    filled = libraries.with_inferred_arguments(
        parse_name("timm/vit_tiny_patch16_224(depth=2, patch_size=8)"), (1, 32, 32), 7
    )
    assert dict(filled.arguments) == {"num_classes": 7, "img_size": 32, "in_chans": 1, "depth": 2, "patch_size": 8}
    network = libraries.build(filled)
    assert network(torch.zeros(2, 1, 32, 32)).shape == (2, 7)
    own = libraries.facts(filled)
    assert own is not None
    assert own.input_shape == (1, 32, 32), "what its name says goes before the usual size"
    assert dict(libraries.with_inferred_arguments(parse_name("timm/resnet18"), (3, 64, 64), 5).arguments) == {
        "num_classes": 5
    }
    with pytest.raises(UsageError, match="timm has no 'resnet81'"):
        libraries.check_library_name(parse_name("timm/resnet81"))
    for name in ("timm/hf-hub:someone/model", "timm/hf_hub:x"):
        with pytest.raises(UsageError, match="timm has no"):
            libraries.check_library_name(parse_name(name))


@pytest.mark.parametrize("argument", ["weights='x'", "weights_backbone='x'", "pretrained=True", "checkpoint_path='x'"])
@pytest.mark.parametrize("library", ["torchvision", "timm"])
def test_a_name_makes_no_library_open_a_file(library: str, argument: str) -> None:
    if library == "timm":
        pytest.importorskip("timm")
    with pytest.raises(UsageError, match="weights are given with --weights"):
        libraries.build(parse_name(f"{library}/resnet18({argument})"))
    with pytest.raises(UsageError, match="has no"):
        libraries.build(parse_name(f"{library}/hf-hub:someone/model"))


def test_a_file_cannot_ask_for_more_memory_than_it_holds(tmp_path: Path) -> None:
    from kdextract.models.classifier import Classifier, ClassifierSpec, encode_classifier, load_classifier

    sound = ClassifierSpec("torchvision/squeezenet1_1(num_classes=2)", (3, 32, 32), ("a", "b"), (0.0,) * 3, (1.0,) * 3)
    content = encode_classifier(Classifier(sound))
    path = tmp_path / "model.safetensors"
    path.write_bytes(content)
    assert load_classifier(path).num_classes == 2
    path.write_bytes(content.replace(b"(num_classes=2)", b"(num_classes=9)"))
    with pytest.raises(ArtifactError, match="its tensors are not those of"):
        load_classifier(path)


def test_without_timm_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(ConfigError, match=r"kdextract\[timm\]"):
        libraries.check_library_name(parse_name("timm/resnet18"))


# Heads


@dataclass
class Output:
    loss: Any
    logits: torch.Tensor


Pair = namedtuple("Pair", "features classes")
SCORES = torch.randn(3, 5, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    ("answer", "head", "classes"),
    [
        (SCORES, Head(), 5),
        (SCORES[:, :, None, None], Head(), 5),
        ({"aux": SCORES[:, :2], "logits": SCORES}, Head(("logits",)), 5),
        ({"loss": torch.tensor(0.0), "whatever": SCORES}, Head(("whatever",)), 5),
        ((SCORES, torch.zeros(3, 7, 4, 4)), Head((0,)), 5),
        ([torch.zeros(3, 7, 4, 4), SCORES], Head((1,)), 5),
        (Output(None, SCORES), Head(("logits",)), 5),
        (Pair(torch.zeros(3, 2, 2), SCORES), Head((1,)), 5),
        (SCORES.softmax(1), Head((), "probabilities"), 5),
        ({"out": SCORES.softmax(1)}, Head(("out",), "probabilities"), 5),
        (SCORES.log_softmax(1), Head(), 5),
        (SCORES.sigmoid(), Head((), "sigmoids"), 5),
        (SCORES[:, :1], Head((), "logit"), 2),
        (SCORES[:, 0], Head((), "logit"), 2),
        (SCORES[:, :1].sigmoid(), Head((), "probability"), 2),
    ],
)
def test_kinds_of_outputs_are_detected(answer: Any, head: Head, classes: int) -> None:
    found, number = find_head([answer], 3)
    assert (found, number) == (head, classes)
    logits = found.logits(answer)
    assert logits.shape == (3, classes)
    if head.kind in ("logits", "probabilities"):
        torch.testing.assert_close(logits.softmax(1), SCORES.softmax(1))
    elif head.kind == "sigmoids":
        torch.testing.assert_close(logits, SCORES)
    else:
        torch.testing.assert_close(logits.softmax(1)[:, 1], SCORES[:, 0].sigmoid())
    assert head.description


@pytest.mark.parametrize(
    ("answer", "match"),
    [
        (torch.zeros(3, 5, 8, 8), r"shape \(3, 5, 8, 8\)"),
        (torch.zeros(5), r"shape \(5,\)"),
        (torch.zeros(3, 5, dtype=torch.int64), "not \\[batch, classes\\]"),
        ([{"boxes": torch.zeros(0, 4)}] * 3, "list .*0: dict"),
        ({}, "dict"),
        (None, "NoneType"),
        (SimpleNamespace(a=1), "SimpleNamespace .a: int."),
        (torch.full((3, 5), torch.nan), "not finite"),
    ],
)
def test_outputs_without_classes_are_refused(answer: Any, match: str) -> None:
    with pytest.raises(ConfigError, match=match):
        find_head([answer], 3)


def test_certain_probabilities_have_finite_logits_and_gradients() -> None:
    scores = torch.tensor([[200.0, 0.0, -200.0]], requires_grad=True)
    logits = Head((), "probabilities").logits(scores.softmax(1))
    assert logits.isfinite().all()
    F.cross_entropy(logits, torch.tensor([0])).backward()
    assert scores.grad is not None
    assert scores.grad.isfinite().all()


# Probing


class Fixed(nn.Module):
    def __init__(self, side: int, channels: int = 1, classes: int = 4) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, 2, 3)
        self.drop = nn.Dropout(0.9)
        self.fc = nn.Linear(2 * (side - 2) ** 2, classes)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.fc(self.drop(self.conv(images)).view(images.shape[0], -1))


@pytest.mark.parametrize(
    ("network", "shape"),
    [
        (Fixed(28), (1, 28, 28)),
        (Fixed(64, 3), (3, 64, 64)),
        (nn.Sequential(nn.Flatten(), nn.Linear(784, 3)), (1, 28, 28)),
        (nn.Sequential(nn.Flatten(), nn.Linear(3072, 3)), (3, 32, 32)),
        (nn.Sequential(nn.Flatten(), nn.Linear(13, 3)), (1, 1, 13)),
        (Fixed(8).double(), (1, 8, 8)),
    ],
)
def test_input_sizes_are_found(network: nn.Module, shape: tuple[int, int, int]) -> None:
    before = torch.get_rng_state()
    assert probe(network, NAME, None).input_shape == shape
    assert network.training, "its mode is as it was"
    assert torch.equal(torch.get_rng_state(), before)


def test_sizes_that_cannot_be_detected_are_requested() -> None:
    pooled = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2))
    with pytest.raises(ConfigError, match=r"several sizes .*3x32x32.*--input-size"):
        probe(pooled, NAME, None)
    with pytest.raises(ConfigError, match="none of the usual image sizes"):
        probe(Fixed(37), NAME, None)
    assert probe(Fixed(37), NAME, (1, 37, 37)).num_classes == 4
    with pytest.raises(ConfigError, match="cannot take images of 1x28x28"):
        probe(Fixed(37), NAME, (1, 28, 28))


def test_wrappers_are_removed() -> None:
    network = Fixed(8)
    assert unwrapped(nn.DataParallel(network), NAME) is network
    assert unwrapped(torch.compile(network), NAME) is network
    with pytest.raises(ConfigError, match="TorchScript"):
        unwrapped(torch.jit.trace(network.eval(), torch.zeros(1, 1, 8, 8)), NAME)
    with pytest.raises(ConfigError, match="returns int"):
        unwrapped(3, NAME)


# Programs


def exported(network: nn.Module, *images: torch.Tensor, dynamic: bool = True) -> bytes:
    shapes = tuple({0: torch.export.Dim("batch")} for _ in images) if dynamic else None
    stream = io.BytesIO()
    torch.export.save(torch.export.export(network.eval(), images, dynamic_shapes=shapes), stream)
    return stream.getvalue()


class Normed(Fixed):
    def __init__(self) -> None:
        super().__init__(8)
        self.norm = nn.BatchNorm2d(1)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return super().forward(self.norm(images))


def test_a_program_returns_the_outputs_of_its_network_and_has_its_layers(tmp_path: Path) -> None:
    from copy import deepcopy

    from kdextract.models.hooks import batch_norm_layers, weighted_layers

    network = Normed()
    content = exported(network, torch.zeros(2, 1, 8, 8))
    with pytest.raises(ArtifactError, match="was not allowed"):
        Program(content)
    consent.allow(content, parse_name("x.pt2"), tmp_path / "x.pt2")
    program = Program(content)
    images = torch.rand(5, 1, 8, 8)
    torch.testing.assert_close(program.train()(images), network.eval()(images))
    assert program.input_shape == (1, 8, 8)
    assert batch_norm_layers(program) == ["body.norm"]
    assert list(weighted_layers(program, images)) == ["body.conv", "body.fc"]
    program.requires_grad_(False)
    twin = deepcopy(program)
    torch.testing.assert_close(twin(images), program(images))
    assert not any(p.requires_grad for p in twin.parameters())
    with torch.no_grad():
        next(twin.parameters()).add_(1)
    assert not torch.equal(twin(images), program(images))


def test_programs_that_are_none_are_refused(tmp_path: Path) -> None:
    network = Fixed(8)
    for content, match in (
        (b"PK\x05\x06" + bytes(18), "cannot load it as a program"),
        (exported(network, torch.zeros(2, 1, 8, 8), dynamic=False), "batches of 2 images only"),
        (exported(nn.Bilinear(3, 3, 2), torch.zeros(2, 3), torch.zeros(2, 3)), "one batch of images"),
    ):
        consent.allow(content, parse_name("x.pt2"), tmp_path)
        with pytest.raises((ArtifactError, ConfigError), match=match):
            Program(content)
