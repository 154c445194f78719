"""Untrusted code does not run, whatever a received file names; users can still run their own code."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import corpus
import pytest
import torch
from conftest import environment, sha256s

import kdextract
from kdextract import api
from kdextract.cli.commands import COMMANDS
from kdextract.errors import ArtifactError, ConfigError, KdxError, UsageError
from kdextract.models.classifier import load_classifier, read_spec
from kdextract.models.external import consent
from kdextract.models.external.blueprint import Blueprint
from kdextract.models.external.definitions import module_file
from kdextract.models.external.names import parse_name
from kdextract.models.external.user_code import function_of, read_code
from kdextract.storage.artifacts import read_manifest, write_manifest
from kdextract.storage.run_dir import MODEL_FILE
from kdextract.storage.tensor_files import encode_safetensors, read_safetensors
from kdextract.training.progress import Reporter

pytestmark = pytest.mark.usefixtures("state")
MINE = """
import functools
import torch
from torch import nn
from torch.hub import load_state_dict_from_url

fetch = torch.hub.load_state_dict_from_url
quietly = functools.partial(torch.hub.load_state_dict_from_url, progress=False)
run = exec


class Net(nn.Sequential):
    @staticmethod
    def restore(path):
        return torch.load(path, weights_only=False)


def restore(path):
    return torch.load(path, weights_only=False)


def build(num_classes=3, width=8, start=None):
    if start is not None:
        restore(start)
    return Net(nn.Flatten(), nn.Linear(64, width), nn.ReLU(), nn.Linear(width, num_classes))
"""
FETCH = "(model_dir='{folder}', url='file://{folder}/trap.pth')"
NOT_DEFINED = {
    "imported": f"model.py:load_state_dict_from_url{FETCH}",
    "alias": f"model.py:fetch{FETCH}",
    "partial": f"model.py:quietly{FETCH}",
    "alias of a builtin": "model.py:run(source='import os')",
    "builtins": "model.py:__builtins__(get='exec')",
    "builtin": "model.py:exec",
    "import": "model.py:__import__(name='trap_of_a_test')",
    "imported module": "model.py:torch(path='{folder}/trap.pth')",
    "dotted": f"model.py:torch.hub.load_state_dict_from_url{FETCH}",
    "class attribute": "model.py:Net.restore(path='{folder}/trap.pth')",
    "no such name": "model.py:nothing",
}
"""What the code does not define by itself: it is not called even where everything is allowed."""
NOT_ALLOWED = {
    "other function": "model.py:restore(path='{folder}/trap.pth')",
    "other arguments": "model.py:build(num_classes=3, start='{folder}/trap.pth')",
    "other numbers": "model.py:build(num_classes=3, width=9)",
    "module": f"torch.hub:load_state_dict_from_url{FETCH}",
    "module that runs": "trap_of_a_test.inner:build",
    "package above it": "trap_of_a_test:build",
}
"""What the code or an installed package defines, but was not allowed."""
ATTACKS = NOT_DEFINED | NOT_ALLOWED


@pytest.fixture
def mine(tmp_path: Path) -> Path:
    """A run whose teacher was imported from the user's own model.py."""
    (tmp_path / "model.py").write_text(MINE)
    api.import_model(model=f"{tmp_path}/model.py:build", input_size="1x8x8", run=tmp_path / "mine", threads=1)
    return tmp_path / "mine"


@pytest.fixture
def sprung(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The file that a trap makes; `trap.pth`, and the package `trap_of_a_test`, are traps."""
    sentinel = tmp_path / "sprung"
    (tmp_path / "trap.pth").write_bytes(corpus.HOSTILE["os.system"](str(sentinel)))
    package = tmp_path / "installed" / "trap_of_a_test"
    package.mkdir(parents=True)
    for name in ("__init__.py", "inner.py"):
        (package / name).write_text(f"open({str(sentinel)!r}, 'w').close()\ndef build(): pass\n")
    monkeypatch.syspath_prepend(str(package.parent))
    yield sentinel
    for name in ("trap_of_a_test", "trap_of_a_test.inner"):
        sys.modules.pop(name, None)


def received(mine: Path, architecture: str, **changes: Any) -> Path:
    """Return a received run: like the user's own, except for the code that its teacher names."""
    run = mine.parent / "received"
    shutil.copytree(mine, run)
    path = run / "teacher" / MODEL_FILE
    tensors, metadata = read_safetensors(path)
    named = metadata["classifier"] | {"architecture": architecture.format(folder=mine.parent)} | changes
    path.write_bytes(encode_safetensors(tensors, {"classifier": named}))
    manifest = read_manifest(path.parent)
    outputs = tuple(
        replace(output, sha256=sha256s(path.parent)[MODEL_FILE], bytes=path.stat().st_size)
        for output in manifest.outputs
    )
    write_manifest(path.parent, replace(manifest, outputs=outputs))
    return run


def check_teacher(**options: Any) -> Any:
    command = COMMANDS["check-teacher"]
    return command.run(command.config(**options), Reporter(quiet=True))


LIVE: dict[str, Any] = {"data": "noise:uniform", "steps": 1, "batch_size": 4, "threads": 1}
ROUTES: dict[str, Callable[[Path, Path], Any]] = {
    "import-model FILE": lambda run, own: api.import_model(
        model=str(run / "teacher" / MODEL_FILE), run=run.parent / "new", threads=1
    ),
    "import-model RUN": lambda run, own: api.import_model(model=str(run), run=run.parent / "new", threads=1),
    "--teacher RUN": lambda run, own: api.distill(run=run.parent / "new", teacher=str(run), **LIVE),
    "distill --student FILE": lambda run, own: api.distill(run=own, student=str(run / "teacher" / MODEL_FILE), **LIVE),
    "distill --student half": lambda run, own: api.distill(run=run, student="half", **LIVE),
    "distill": lambda run, own: api.distill(run=run, student="hinton800", **LIVE),
    "check-teacher": lambda run, own: check_teacher(run=run),
    "check-teacher FILE": lambda run, own: check_teacher(model=str(run / "teacher" / MODEL_FILE)),
    "evaluate": lambda run, own: api.evaluate("teacher", run=run, data="digits", threads=1),
    "export": lambda run, own: api.export("teacher", run=run, format="safetensors", threads=1),
    "optimize-dataset": lambda run, own: api.optimize_dataset(
        run=run, objective="structured_noise", images_per_class=1, threads=1
    ),
    "load_classifier": lambda run, own: load_classifier(run / "teacher"),
    "api.load_classifier": lambda run, own: kdextract.load_classifier(run / "teacher" / MODEL_FILE),
}
"""Ways of a received run into a process."""


def test_the_traps_make_their_file_when_they_run(mine: Path, sprung: Path) -> None:
    with pytest.raises(RuntimeError):  # what the pickle gives is no checkpoint, but by then it has run
        torch.hub.load_state_dict_from_url(f"file://{mine.parent}/trap.pth", str(mine.parent))
    assert sprung.exists()
    sprung.unlink()
    with pytest.raises(RuntimeError):
        torch.load(mine.parent / "trap.pth", weights_only=False)
    assert sprung.exists()
    sprung.unlink()
    __import__("trap_of_a_test.inner")
    assert sprung.exists()


@pytest.mark.parametrize(
    ("attack", "route"),
    [
        (attack, route)
        for attack in ATTACKS
        for route in ROUTES
        if route == "load_classifier" or attack in ("imported", "other arguments", "module that runs")
    ],
)
def test_what_a_received_file_names_is_not_called(mine: Path, sprung: Path, attack: str, route: str) -> None:
    run = received(mine, ATTACKS[attack])
    modules = set(sys.modules)
    with pytest.raises(KdxError) as caught:
        ROUTES[route](run, mine)
    assert not sprung.exists()
    assert "\n" not in str(caught.value)
    assert not {name for name in set(sys.modules) - modules if "trap" in name}
    if attack not in ("dotted", "class attribute"):  # which are no names of functions
        assert isinstance(caught.value, ArtifactError)
        assert "was not allowed" in str(caught.value)


@pytest.mark.parametrize("attack", ATTACKS)
def test_the_error_names_what_a_file_would_call(mine: Path, attack: str) -> None:
    call = parse_name(ATTACKS[attack].format(folder=mine.parent))
    if not call.function:
        pytest.skip("no name of a function")
    with pytest.raises(ArtifactError) as caught:
        load_classifier(received(mine, ATTACKS[attack]) / "teacher")
    said = str(caught.value)
    assert f"calls {str(call).removeprefix('model.py:')}, which was not allowed on this machine" in said
    assert "kdx check-teacher FILE --trust-code" in said
    assert ("another call of the same code was allowed" in said) == (call.kind == "file")


@pytest.mark.parametrize("everything", [False, True])
@pytest.mark.parametrize("attack", NOT_DEFINED)
def test_what_code_does_not_define_is_not_called_even_if_it_is_trusted(
    mine: Path, sprung: Path, monkeypatch: pytest.MonkeyPatch, attack: str, everything: bool
) -> None:
    run = received(mine, NOT_DEFINED[attack])
    if everything:
        monkeypatch.setenv(consent.TRUST_ALL, "1")
    for trusting in (
        lambda: check_teacher(model=str(run), trust_code=not everything),
        lambda: check_teacher(run=run, trust_code=not everything),
        lambda: api.import_model(model=str(run), run=run.parent / "new", trust_code=not everything),
        lambda: load_classifier(run / "teacher"),
    ):
        with pytest.raises(KdxError) as caught:
            trusting()
        assert "\n" not in str(caught.value)
        assert not sprung.exists()


def test_trusting_a_file_allows_just_what_it_names(mine: Path, state: Path) -> None:
    run = received(mine, "model.py:build(num_classes=3, width=8)")
    shutil.rmtree(state)
    check_teacher(model=str(run), trust_code=True)
    load_classifier(run / "teacher")
    (calls,) = json.loads((state / "kdx" / "allowed-code.json").read_text())["allowed"].values()
    assert list(calls) == ["build(num_classes=3, width=8)"]
    shutil.rmtree(state)
    check_teacher(run=run, trust_code=True)
    load_classifier(run / "teacher")
    with pytest.raises(ArtifactError, match="calls build, which was not allowed"):
        load_classifier(mine / "teacher")


def test_a_files_function_of_a_module_can_be_trusted(mine: Path, sprung: Path) -> None:
    run = received(mine, NOT_ALLOWED["module that runs"], code=None)
    with pytest.raises(KdxError, match=r"not a torch\.nn\.Module"):
        check_teacher(model=str(run), trust_code=True)
    assert sprung.exists()


def test_a_file_without_the_code_that_it_names_is_refused(mine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = received(mine, f"{mine.parent}/model.py:build", code=None)
    monkeypatch.setenv(consent.TRUST_ALL, "1")
    for trusting in (lambda: load_classifier(run / "teacher"), lambda: check_teacher(model=str(run), trust_code=True)):
        with pytest.raises(ArtifactError, match="does not contain the code"):
            trusting()


def test_values_that_are_equal_are_not_the_same_arguments(tmp_path: Path) -> None:
    first, code = parse_name("model.py:build(depth=1, kinds={'b', 'a'})"), b"def build(): pass"
    consent.allow(code, first, tmp_path / "model.py")
    assert consent.require(code, parse_name("model.py:build(kinds={'a', 'b'}, depth=1)")) == tmp_path / "model.py"
    for other in ("depth=True", "depth=1.0", "depth='1'", "depth=[1]", "depth=(1,)", "depth=None"):
        with pytest.raises(ArtifactError, match="was not allowed"):
            consent.require(code, parse_name(f"model.py:build({other}, kinds={{'a', 'b'}})"))
    for other in ("package:build(depth=1, kinds={'b', 'a'})", "program"):
        with pytest.raises(ArtifactError, match="was not allowed"):
            consent.require(code, parse_name(other))


def test_an_error_shows_no_control_characters_and_ends(tmp_path: Path) -> None:
    name = parse_name("model\x1b[2K\r.py:build").with_arguments(depth="x" * 5000)
    with pytest.raises(ArtifactError) as caught:
        consent.require(b"", name)
    assert str(caught.value).isprintable()
    assert "more characters" in str(caught.value)
    assert len(str(caught.value)) < 1000


# What a user names


LEGITIMATE = """
import functools
from torch import nn
import torch.nn.functional as F
from beside_of_a_test import deep, Layer


def make_builder(width):
    def build(num_classes=3):
        return nn.Linear(width, num_classes)
    return build


class Net(nn.Module):
    def __init__(self, depth=1):
        super().__init__()
        self.depth = depth

    @classmethod
    def of_three(cls):
        return cls(3)


class Builder:
    def __call__(self):
        return nn.Linear(1, 1)


@functools.lru_cache
def cached():
    return nn.Linear(1, 1)


three = functools.partial(functools.partial(Net), depth=3)
closure = make_builder(8)
short = lambda: nn.Linear(1, 1)
bound = Net.of_three
object_of_mine = Builder()
Alias = Net
made, other = nn.Linear(2, 2), 3
typed: nn.Module = nn.Linear(2, 2)
if True:
    def inside():
        return nn.Linear(1, 1)
try:
    import nothing_of_this_name
except ImportError:
    class Fallback(nn.Linear):
        def __init__(self):
            super().__init__(1, 1)
_private = three
library = nn.Linear
foreign = functools.partial(deep)
relu = F.relu
layer = Layer
made_there = deep
setting = {"width": 3}
"""


@pytest.fixture
def legitimate(tmp_path: Path) -> Path:
    (tmp_path / "beside_of_a_test.py").write_text("class Layer: pass\ndef deep(): pass\n")
    path = tmp_path / "model.py"
    path.write_text(LEGITIMATE)
    return path


@pytest.mark.parametrize(
    "function",
    [
        "Net",
        "three",
        "closure",
        "short",
        "bound",
        "object_of_mine",
        "Alias",
        "made",
        "typed",
        "inside",
        "Fallback",
        "cached",
        "_private",
        "make_builder",
    ],
)
def test_what_a_file_defines_can_be_named(legitimate: Path, function: str) -> None:
    name = parse_name(f"{legitimate}:{function}" + ("(width=3)" if function == "make_builder" else ""))
    found = function_of(name, read_code(name))
    if function == "make_builder":
        found = found(width=3)
    assert isinstance(found if isinstance(found, torch.nn.Module) else found(), torch.nn.Module)


@pytest.mark.parametrize(
    ("function", "error", "match"),
    [
        ("library", ConfigError, r"library is Linear of torch\.nn\.modules\.linear, which .*model\.py does not define"),
        ("foreign", ConfigError, r"foreign is deep of beside_of_a_test, which"),
        ("relu", ConfigError, r"relu is relu of torch\.nn\.functional, which"),
        ("layer", ConfigError, r"layer is Layer of beside_of_a_test, which"),
        ("made_there", ConfigError, "write a function in .*model.py that calls it"),
        ("setting", ConfigError, "neither a function nor a network, but of type dict"),
        (
            "deep",
            UsageError,
            r"model.py imports deep from beside_of_a_test; name it there: .*/beside_of_a_test.py:deep",
        ),
        ("F", UsageError, r"imports the module torch.nn.functional; .*module: torch.nn.functional:FUNCTION"),
        ("nn", UsageError, r"imports nn from torch; name it there: torch:nn"),
        ("build", UsageError, r"no 'build'.*Did you mean 'Builder'"),
        ("__name__", UsageError, "begin with __"),
    ],
)
def test_what_a_file_does_not_define_is_explained(
    legitimate: Path, function: str, error: type[Exception], match: str
) -> None:
    name = parse_name(f"{legitimate}:{function}")
    with pytest.raises(error, match=match) as caught:
        function_of(name, read_code(name))
    assert "\n" not in str(caught.value)


def test_names_that_the_text_does_not_define_are_refused_before_anything_runs(tmp_path: Path) -> None:
    sentinel, path = tmp_path / "ran", tmp_path / "model.py"
    path.write_text(f"open({str(sentinel)!r}, 'w').close()\nfrom os import system as run\nfrom os import *\n")
    for function, match in (("run", "name it there: os:system"), ("system", "if os defines it, name it there")):
        with pytest.raises(UsageError, match=match):
            read_code(parse_name(f"{path}:{function}"))
    assert not sentinel.exists()


def test_imports_within_a_package_of_ones_own_are_pointed_at(tmp_path: Path) -> None:
    package = tmp_path / "package"
    package.mkdir()
    (package / "nets.py").write_text("class Net: pass\n")
    path = package / "model.py"
    path.write_text("from .nets import Net as Network\nfrom . import nets\n")
    with pytest.raises(UsageError, match=r"imports Net from \.nets; name it there: .*/package/nets\.py:Net"):
        read_code(parse_name(f"{path}:Network"))
    with pytest.raises(UsageError, match=r"imports the module nets; .*: .*/package/nets\.py:FUNCTION"):
        read_code(parse_name(f"{path}:nets"))


def test_a_package_may_export_functions_of_its_own_modules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "handing_of_a_test"
    (package / "deep").mkdir(parents=True)
    (package / "__init__.py").write_text(
        "from .deep import *\nfrom .deep.net import build as made\nfrom os import system\n"
    )
    (package / "deep" / "__init__.py").write_text("from .net import build, gone\nfrom . import net\n")
    (package / "deep" / "net.py").write_text("from torch.nn import Linear as gone\ndef build(): return 7\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    for function in ("build", "made"):
        name = parse_name(f"handing_of_a_test:{function}")
        with pytest.raises(ArtifactError, match="was not allowed"):
            function_of(name, None)
        assert read_code(name) is None
        assert "handing_of_a_test" not in sys.modules or function == "made"
        assert function_of(name, None)() == 7
    with pytest.raises(UsageError, match="imports system from os; name it there: os:system"):
        read_code(parse_name("handing_of_a_test:system"))
    for function in ("gone", "net", "nothing"):
        with pytest.raises(UsageError):
            read_code(parse_name(f"handing_of_a_test:{function}"))
    (package / "__init__.py").write_text("def build(): return 8\n")
    with pytest.raises(ArtifactError, match="was not allowed"):
        function_of(parse_name("handing_of_a_test:build"), None)


def test_modules_are_found_without_importing_what_is_above_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for folder in ("above_of_a_test/inner", "bare_of_a_test/inner/deeper"):
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / "net.py").write_text("def build(): return 5\n")
    for folder in ("above_of_a_test", "above_of_a_test/inner"):
        (tmp_path / folder / "__init__.py").write_text("")
    monkeypatch.syspath_prepend(str(tmp_path))
    for place in ("above_of_a_test.inner.net", "bare_of_a_test.inner.deeper.net"):
        assert module_file(place) == tmp_path / Path(*place.split(".")).with_suffix(".py")
    for place in (
        "above_of_a_test.none",
        "above_of_a_test.inner.net.none",
        "bare_of_a_test.inner",
        "sys",
        "__main__.x",
    ):
        assert module_file(place) is None
    assert not {name for name in sys.modules if name.startswith(("above_of", "bare_of"))}
    for place in ("above_of_a_test.inner.net", "bare_of_a_test.inner.deeper.net"):
        name = parse_name(f"{place}:build")
        read_code(name)
        assert function_of(name, None)() == 5


def test_code_files_import_others_of_their_folder_where_all_code_is_allowed(
    legitimate: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(consent.TRUST_ALL, "1")
    name = parse_name(f"{legitimate}:Net")
    assert callable(function_of(name, read_code(name)))


def test_arguments_that_kdx_adds_are_allowed_with_those_of_the_user(tmp_path: Path, state: Path) -> None:
    (tmp_path / "model.py").write_text(MINE)
    name = parse_name(f"{tmp_path}/model.py:build")
    typed = Blueprint(name, read_code(name))
    for derived in (
        typed.with_inferred_arguments((1, 8, 8), 5),
        typed.narrowed(0.5),
        typed.with_inferred_arguments(None, 5).narrowed(0.25),
    ):
        derived.build((1, 8, 8), 5)
    with pytest.raises(ArtifactError, match=r"build\(num_classes=6\), which was not allowed"):
        Blueprint(name.with_arguments(num_classes=6), typed.code).with_inferred_arguments((1, 8, 8), 6)
    shutil.rmtree(state)
    for deriving in (lambda: typed.with_inferred_arguments(None, 5), lambda: typed.narrowed(0.5)):
        with pytest.raises(ArtifactError, match="was not allowed"):
            deriving()


def test_students_of_a_received_teacher_need_its_authors_code_allowed(mine: Path, state: Path) -> None:
    run = received(mine, "model.py:build(num_classes=3, width=8)")
    shutil.rmtree(state)
    with pytest.raises(ArtifactError, match="was not allowed"):
        api.distill(run=run, student="half", **LIVE)
    check_teacher(run=run, trust_code=True)
    made = api.distill(run=run, student="half", **LIVE)
    assert read_spec(made.directory / MODEL_FILE).architecture == "model.py:build(num_classes=3, width=4)"
    load_classifier(made.directory)


def test_files_that_kdx_has_written_load_in_another_process(mine: Path) -> None:
    model = mine.parent / "model.py"
    specs = {
        "a": "half",
        "b": "width:0.25",
        "c": f"half:{model}:build(width=6)",
        "d": f"{model}:build(width=5)",
    }
    for name, spec in specs.items():
        api.distill(run=mine, student=spec, name=name, **LIVE)
    api.export("students/a", run=mine, format="safetensors", threads=1)
    model.write_text("raise SystemExit('edited since')")
    named = "torchvision.models:squeezenet1_1(num_classes=3)"
    api.import_model(model=named, input_size="3x40x40", run=mine / "of a module", threads=1)
    files = [str(path) for path in mine.rglob("*.safetensors")]
    assert len(files) == 7
    loading = "import sys, kdextract\nfor path in sys.argv[1:]: kdextract.load_classifier(path)"
    subprocess.run([sys.executable, "-c", loading, *files], env=environment(), check=True)


# What was allowed is kept


WRITER = """
import sys
from pathlib import Path
from kdextract.models.external import consent
from kdextract.models.external.names import parse_name

sys.stdin.read()
for number in range(20):
    consent.allow(b"code", parse_name(f"model.py:build(writer={sys.argv[1]}, number={number})"), Path("/model.py"))
"""


def test_no_entry_is_lost_when_several_processes_write(state: Path) -> None:
    writers = [
        subprocess.Popen([sys.executable, "-c", WRITER, str(number)], stdin=subprocess.PIPE, env=environment())
        for number in range(8)
    ]
    for writer in writers:  # they begin together
        assert writer.stdin is not None
        writer.stdin.close()
    assert [writer.wait(120) for writer in writers] == [0] * 8
    record = json.loads((state / "kdx" / "allowed-code.json").read_text())
    (calls,) = record["allowed"].values()
    assert len(calls) == 160
    assert sorted(path.name for path in (state / "kdx").iterdir()) == ["allowed-code.json", "allowed-code.lock"]


@pytest.mark.parametrize(
    "text",
    [
        "[]",
        "{",
        '"x"',
        "",
        "[" * 100_000,
        '{"version": 2}',
        '{"version": 2, "allowed": [1]}',
        '{"version": 2, "allowed": {"CODE": 1}}',
        '{"version": 2, "allowed": {"CODE": {"build": null}}}',
        '{"version": 3, "allowed": {"CODE": {"build": "/model.py"}}}',
        '{"CODE": "/model.py"}',
    ],
)
def test_a_store_that_is_damaged_or_of_another_version_allows_nothing(state: Path, tmp_path: Path, text: str) -> None:
    store, name, code = state / "kdx" / "allowed-code.json", parse_name("model.py:build"), b"def build(): pass"
    store.parent.mkdir(parents=True)
    store.write_text(text.replace("CODE", consent.code_sha256(code)))
    with pytest.raises(ArtifactError, match="was not allowed"):
        consent.require(code, name)
    consent.allow(code, name, tmp_path / "model.py")
    assert consent.require(code, name) == tmp_path / "model.py"
