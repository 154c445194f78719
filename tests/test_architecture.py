"""Rules of the package: modules import only lower layers, files and functions are short, nothing is unpickled."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import ROOT

import kdextract

PACKAGE = Path(kdextract.__file__).parent
FILES = sorted(PACKAGE.rglob("*.py"))
MAX_FUNCTION_LINES = 60
MAX_FILE_LINES = 400

# Each package may import from those after it, and no others; `training` and `data` do not know each other.
LAYERS = [
    ["api"],
    ["cli"],
    ["benchmark"],
    ["stages"],
    ["methods"],
    ["synthesis"],
    ["training", "data"],
    ["models"],
    ["storage"],
    ["options"],
    ["errors"],
]
# The same within two packages whose inner packages read downward.
INNER = {
    "stages": [["distill"], ["outputs"], ["inputs"], ["running"]],
    "models": [["external"], ["architectures"]],
}
ENTRY_POINTS = {"", "__main__"}  # the package itself loads what is asked for, when it is asked for
MAX_TOP_LEVEL = 12  # beside __init__.py, __main__.py and py.typed


def module_name(path: Path) -> str:
    """Return `stages.train` for kdextract/stages/train.py, `stages` for its __init__, '' for the package itself."""
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(part for part in parts if part != "__init__")


MODULES = {module_name(path): path for path in FILES}


def layer_of(module: str) -> int:
    """Return the number of a module's layer, 0 being the highest."""
    return next(number for number, layer in enumerate(LAYERS) if module.split(".")[0] in layer)


def running_code(tree: ast.AST) -> Iterator[ast.AST]:
    """Walk all nodes except the bodies of `if TYPE_CHECKING:`."""
    for child in ast.iter_child_nodes(tree):
        if isinstance(child, ast.If) and isinstance(child.test, ast.Name) and child.test.id == "TYPE_CHECKING":
            for branch in child.orelse:
                yield branch
                yield from running_code(branch)
            continue
        yield child
        yield from running_code(child)


def imports_of(module: str, source: str, is_package: bool) -> set[str]:
    """Return the modules of this package that a module imports, also inside functions."""
    found = set()
    for node in running_code(ast.parse(source)):
        if isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.split(".")[0] == "kdextract":
                    found.add(alias.name.removeprefix("kdextract").lstrip("."))
        elif isinstance(node, ast.ImportFrom):
            if node.level:
                parts = module.split(".") if module else []
                base = parts[: len(parts) - node.level + is_package]
                target = ".".join([*base, *(node.module.split(".") if node.module else [])])
            elif node.module and node.module.split(".")[0] == "kdextract":
                target = node.module.removeprefix("kdextract").lstrip(".")
            else:
                continue
            for alias in node.names:
                inner = f"{target}.{alias.name}".lstrip(".")
                if alias.name != "__version__":
                    found.add(inner if inner in MODULES else target)
    return found


IMPORTS = {
    name: imports_of(name, path.read_text(encoding="utf-8"), path.name == "__init__.py")
    for name, path in MODULES.items()
}


def test_imports_are_read_as_they_are_written() -> None:
    assert imports_of("stages.train", "from ..config import option", False) == {"config"}
    assert imports_of("stages", "from . import train", True) == {"stages.train"}
    assert imports_of("stages.demo", "from . import train, distill", False) == {"stages.train", "stages.distill"}
    assert imports_of("stages.train", "from .inputs import teacher_data", False) == {"stages.inputs"}
    assert imports_of("cli", "from . import __version__\nfrom .errors import KdxError", False) == {"errors"}
    assert imports_of("cli", "import kdextract.data\nfrom kdextract.errors import KdxError", False) == {
        "data",
        "errors",
    }
    assert imports_of(
        "run_dir", "if TYPE_CHECKING:\n    from .cli import main\nelse:\n    from . import data", False
    ) == {"data"}
    assert imports_of("run_dir", "def f():\n    from .cli import main", False) == {"cli"}
    assert IMPORTS["storage.version"] == set()
    assert {"methods.registry", "synthesis.options", "synthesis.interface"} < IMPORTS["methods.all_layers"]


def test_the_package_has_few_entries_and_each_has_its_layer() -> None:
    top = {name.split(".")[0] for name in MODULES} - ENTRY_POINTS
    assert top == {entry for layer in LAYERS for entry in layer}
    assert len(top) <= MAX_TOP_LEVEL


def test_the_page_about_the_architecture_has_this_table() -> None:
    page = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `([a-z]+)(?:\.py)?` \|", page, flags=re.MULTILINE)
    assert rows == [entry for layer in LAYERS for entry in layer]


@pytest.mark.parametrize("module", [name for name in MODULES if name not in ENTRY_POINTS])
def test_imports_go_down_only(module: str) -> None:
    for imported in sorted(IMPORTS[module]):
        assert imported not in ENTRY_POINTS, f"{module} imports the package itself"
        same = imported.split(".")[0] == module.split(".")[0]
        assert same or layer_of(imported) > layer_of(module), f"{module} imports {imported}, which is not below it"


@pytest.mark.parametrize("package", INNER)
def test_inner_packages_go_down_only(package: str) -> None:
    number = {f"{package}.{name}": level for level, names in enumerate(INNER[package]) for name in names}
    for module, imports in IMPORTS.items():
        for imported in imports:
            above, below = (".".join(name.split(".")[:2]) for name in (module, imported))
            if above != below and above in number and below in number:
                assert number[above] < number[below], f"{module} imports {imported}"


def test_no_modules_import_each_other() -> None:
    """There are no import cycles of any length."""
    left = {module: imports & MODULES.keys() - {module} for module, imports in IMPORTS.items()}
    while free := [module for module, imports in left.items() if not imports]:
        left = {module: imports - set(free) for module, imports in left.items() if module not in free}
    assert not left


def packages_without_docstring() -> list[str]:
    """Return the packages without a docstring."""
    inits = [path for path in FILES if path.name == "__init__.py"]
    return [module_name(path) for path in inits if not ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))]


def test_every_package_has_a_docstring_of_what_belongs_in_it() -> None:
    assert packages_without_docstring() == []


def methods_of_the_package() -> list[str]:
    """Return the modules of methods."""
    return [
        name for name in MODULES if name.startswith("methods.") and name not in ("methods.registry", "methods.auto")
    ]


@pytest.mark.parametrize("module", methods_of_the_package())
def test_a_method_imports_no_other_method_no_artifacts_and_no_data(module: str) -> None:
    of_its_package = {name for name in IMPORTS[module] if name.startswith("methods")}
    assert of_its_package <= {"methods.registry"}
    assert not {name.split(".")[0] for name in IMPORTS[module]} & {"data", "stages", "storage"}


@pytest.mark.parametrize("module", [name for name in MODULES if name.startswith("models.architectures.")])
def test_a_model_family_imports_no_other(module: str) -> None:
    shared = {f"models.architectures.{name}" for name in ("registry", "initialization", "pooling")}
    assert IMPORTS[module] <= {"errors", "options.registry", *shared}


def commands_of_stages() -> list[str]:
    """Return the modules of `stages` that contain a command."""
    own = {"distill", "inputs", "outputs", "running"}
    return [name for name in MODULES if name.count(".") == 1 and name.startswith("stages.") and name[7:] not in own]


@pytest.mark.parametrize("module", [*commands_of_stages(), "stages.distill.command"])
def test_stages_import_no_other_stage(module: str) -> None:
    assert not IMPORTS[module] & {*commands_of_stages(), "stages.distill.command"}


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_files_and_functions_are_short(path: Path) -> None:
    source = path.read_text(encoding="utf-8")
    assert len(source.splitlines()) <= MAX_FILE_LINES
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            assert node.end_lineno is not None
            assert node.end_lineno - node.lineno < MAX_FUNCTION_LINES, f"{node.name} is too long"


def dotted(node: ast.expr) -> str:
    """Return `a.b.c` for a chain of attributes; an expression that is not a name becomes `?`."""
    if isinstance(node, ast.Attribute):
        return f"{dotted(node.value)}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else "?"


def unsafe_uses(source: str) -> list[str]:
    """Return every use of a function that runs code when it reads a file."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found += [a.name for a in node.names if a.name.split(".")[0] in ("pickle", "dill", "joblib", "shelve")]
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in ("pickle", "dill", "joblib"):
            found.append(str(node.module))
        elif isinstance(node, ast.ImportFrom) and node.module == "torch" and any(a.name == "load" for a in node.names):
            found.append("torch.load")
        elif isinstance(node, ast.Call):
            name = dotted(node.func)
            tensors_only = any(
                k.arg == "weights_only" and getattr(k.value, "value", None) is True for k in node.keywords
            )
            if name == "torch.load" and tensors_only:
                found.append("torch.load of tensors")
            elif name in ("torch.load", "torch.save", "torch.jit.load", "torch.export.load", "eval", "exec"):
                found.append(name)
            for keyword in node.keywords:
                is_false = isinstance(keyword.value, ast.Constant) and keyword.value.value is False
                if keyword.arg == "allow_pickle" and not is_false:
                    found.append("allow_pickle")
    return found


def writing_calls(source: str) -> list[str]:
    """Return every call that opens a file for writing, or writes a file in a single call."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Call):
            continue
        name = dotted(node.func).split(".")[-1]
        modes = [node.args[0 if isinstance(node.func, ast.Attribute) else 1 :], [k.value for k in node.keywords]]
        texts = [a.value for part in modes for a in part if isinstance(a, ast.Constant) and isinstance(a.value, str)]
        if name in ("open", "fdopen") and any(set(text) <= set("wxbt+") and set(text) & set("wx") for text in texts):
            found.append(f"{name} for writing")
        if name in ("write_text", "write_bytes", "savez", "savetxt", "tofile", "save_file"):
            found.append(name)
    return found


def test_the_scans_find_unsafe_code_and_writing_calls() -> None:
    for source in (
        "import pickle",
        "from pickle import loads",
        "import torch\ntorch.load(x)",
        "from torch import load",
        "np.load(x, allow_pickle=True)",
        "np.load(x, allow_pickle=flag)",
        "eval(x)",
    ):
        assert unsafe_uses(source), source
    for source in ("torch.load(x, weights_only=False)", "torch.load(x, weights_only=flag)", "torch.load(x)"):
        assert unsafe_uses(source) == ["torch.load"]
    assert unsafe_uses("torch.load(x, weights_only=True)") == ["torch.load of tensors"]
    assert unsafe_uses("np.load(x, allow_pickle=False)\nself.eval()\nmodel.load(x)") == []
    for source in ("open(x, 'w')", "open(x, mode='wb')", "path.open('w')", "path.open('xb')", "path.write_text(x)"):
        assert writing_calls(source), source
    assert writing_calls("open(x)\nopen(x, 'rb')\npath.open('a+')\nImage.open(x)\nopen('w')") == []


READERS = {
    "models.external.weights": ["torch.load of tensors"],  # after the pickle was followed without being run
    "models.external.user_code": ["exec"],  # what the user has named, or allowed before
    "models.external.exported_program": ["torch.export.load"],  # the same
    "models.exporter": ["torch.export.load"],  # the bytes that it has just made itself
}
"""The only modules that run what they read, and how."""


@pytest.mark.parametrize("module", MODULES)
def test_nothing_is_unpickled_or_run(module: str) -> None:
    assert unsafe_uses(MODULES[module].read_text(encoding="utf-8")) == READERS.get(module, [])


def test_one_module_writes_files() -> None:
    writers = [module for module, path in MODULES.items() if writing_calls(path.read_text(encoding="utf-8"))]
    assert writers == ["storage.artifacts"]


def test_every_test_file_is_in_the_folder_of_the_package_that_it_tests() -> None:
    """Tests of one package are in a folder of its name; tests of several packages are in `tests` itself."""
    tests = Path(__file__).parent
    folders = {path.parent.relative_to(tests) for path in tests.rglob("test_*.py")}
    assert [str(folder) for folder in sorted(folders) if not (PACKAGE / folder / "__init__.py").is_file()] == []
