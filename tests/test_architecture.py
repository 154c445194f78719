"""The shape of the package: imports go down only, files and functions stay short, nothing unpickles."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import kdextract

PACKAGE = Path(kdextract.__file__).parent
FILES = sorted(PACKAGE.rglob("*.py"))
MAX_FUNCTION_LINES = 60
MAX_FILE_LINES = 400

# Every module may import from the levels above its own line, and no others. An entry that ends in a dot stands for
# what is in that package and has no entry of its own; modules of one such package may import each other.
LEVELS = [
    [
        "class_index",
        "errors",
        "former",
        "losses",
        "moments",
        "patterns",
        "pickles",
        "pixel_optimizer",
        "process_state",
        "progress",
        "queries",
        "report.",
        "soap",
        "spectra",
        "tables",
        "tucker",
    ],
    ["budget", "config", "headers", "hooks", "notebook", "npy", "records", "registry"],
    ["artifacts", "methods.options", "methods.registry", "models.", "options", "tensor_files", "weights"],
    ["attempts", "checkpoints", "command_help", "generators.", "images", "looks", "networks.", "run_dir"],
    ["classifier", "data."],
    ["auto", "examination", "exporting", "importing", "inheritance", "nearest", "outcome", "sources", "statistics"],
    ["augmentation", "generator_source", "inversion", "memory", "stage_runner"],
    ["inversion_pool", "training"],
    ["deep_inversion", "distillation", "fresh_pool", "generator_training", "observer"],
    ["structured_noise"],
    ["estimate", "game"],
    ["methods."],
    ["stages."],
    ["benchmark.", "listing"],
    ["inspection"],
    ["commands"],
    ["api", "cli"],
]
ENTRY_POINTS = {"", "__main__"}  # the package itself loads what is asked for, when it is asked for
REGISTRIES = {"methods.registry", "methods.options", "models.registry", "models.initialization"}


def module_name(path: Path) -> str:
    """Return `stages.train` for kdextract/stages/train.py, `stages` for its __init__, '' for the package itself."""
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(part for part in parts if part != "__init__")


MODULES = {module_name(path): path for path in FILES}


def entry_of(module: str) -> str:
    """Return the entry of `LEVELS` that a module belongs to."""
    entries = [entry for level in LEVELS for entry in level]
    if module in entries:
        return module
    package = module.split(".")[0] + "."
    assert package in entries, f"{module} has no place in the table of levels"
    return package


def level_of(module: str) -> int:
    entry = entry_of(module)
    return next(number for number, level in enumerate(LEVELS) if entry in level)


def running_code(tree: ast.AST) -> Iterator[ast.AST]:
    """Walk everything but the bodies of `if TYPE_CHECKING:`."""
    for child in ast.iter_child_nodes(tree):
        if isinstance(child, ast.If) and isinstance(child.test, ast.Name) and child.test.id == "TYPE_CHECKING":
            for branch in child.orelse:
                yield branch
                yield from running_code(branch)
            continue
        yield child
        yield from running_code(child)


def imports_of(module: str, source: str, is_package: bool) -> set[str]:
    """Return the modules of this package that a module imports at any time."""
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
    assert IMPORTS["run_dir"] == {"artifacts", "config", "errors"}
    assert IMPORTS["methods.all_layers"] == {"methods.options", "methods.registry", "inversion"}


def test_the_table_has_every_module_once() -> None:
    entries = [entry for level in LEVELS for entry in level]
    assert len(entries) == len(set(entries))
    used = {entry_of(module) for module in MODULES if module not in ENTRY_POINTS}
    assert used == set(entries)


@pytest.mark.parametrize("module", [name for name in MODULES if name not in ENTRY_POINTS])
def test_imports_go_down_only(module: str) -> None:
    for imported in sorted(IMPORTS[module]):
        assert imported not in ENTRY_POINTS, f"{module} imports the package itself"
        if entry_of(imported) == entry_of(module) and entry_of(module).endswith("."):
            continue
        assert level_of(imported) < level_of(module), f"{module} imports {imported}, which is not below it"


def test_no_module_could_move_down() -> None:
    """Each entry is as low as its imports allow, so the table says what is, and a new upward import cannot hide."""
    for number, level in enumerate(LEVELS[1:], start=1):
        for entry in level:
            members = [m for m in MODULES if m not in ENTRY_POINTS and entry_of(m) == entry]
            below = [level_of(i) for m in members for i in IMPORTS[m] if entry_of(i) != entry]
            lowest = max(below, default=0) + 1
            assert number == max(1, lowest), f"{entry} belongs to level {lowest}"


@pytest.mark.parametrize("module", [name for name in MODULES if name.startswith("methods.")])
def test_a_method_knows_no_other_method_no_artifacts_and_no_data(module: str) -> None:
    if module in REGISTRIES:
        assert IMPORTS[module] <= {"config", "errors", "registry"}
        return
    of_its_package = {name for name in IMPORTS[module] if name.startswith("methods")}
    assert of_its_package <= {"methods.registry", "methods.options"}
    assert not {name.split(".")[0] for name in IMPORTS[module]} & {
        "artifacts",
        "data",
        "run_dir",
        "stage_runner",
        "tensor_files",
    }


@pytest.mark.parametrize("module", [name for name in MODULES if name.startswith("models.")])
def test_a_model_family_knows_no_other(module: str) -> None:
    assert IMPORTS[module] <= {"errors", "registry", "models.registry", "models.initialization", "models.pooling"}


@pytest.mark.parametrize("module", [name for name in MODULES if name.startswith("stages.")])
def test_stages_meet_only_through_artifacts(module: str) -> None:
    others = {name for name in IMPORTS[module] if name.startswith("stages.")} - {
        "stages.classifiers",
        "stages.distill_budget",
        "stages.distill_estimate",
        "stages.distill_loop",
        "stages.distill_settings",
        "stages.inputs",
        "stages.lineage",
        "stages.materials",
        "stages.own_model",
        "stages.stored",
        "stages.student_source",
        "stages.student_start",
        "stages.transfer_sets",
    }
    assert others == set() or module == "stages.demo"


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_files_and_functions_are_short(path: Path) -> None:
    source = path.read_text(encoding="utf-8")
    assert len(source.splitlines()) <= MAX_FILE_LINES
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            assert node.end_lineno is not None
            assert node.end_lineno - node.lineno < MAX_FUNCTION_LINES, f"{node.name} is too long"


def dotted(node: ast.expr) -> str:
    """Return `a.b.c` for an attribute chain, as far as it is one."""
    if isinstance(node, ast.Attribute):
        return f"{dotted(node.value)}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else "?"


def unsafe_uses(source: str) -> list[str]:
    """Return every use of what runs code on reading."""
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
    """Return every call that opens a file for writing from scratch, or writes one in a single call."""
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


def test_the_scans_find_what_they_are_for() -> None:
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
    "weights": ["torch.load of tensors"],  # after the pickle was followed without being run
    "networks.code": ["exec"],  # what the user has named, or allowed before
    "networks.program": ["torch.export.load"],  # the same
    "exporting": ["torch.export.load"],  # the bytes that it has just made itself
}
"""The only modules that run what they read, and how."""


@pytest.mark.parametrize("module", MODULES)
def test_nothing_is_unpickled_or_run(module: str) -> None:
    assert unsafe_uses(MODULES[module].read_text(encoding="utf-8")) == READERS.get(module, [])


def test_one_module_writes_files() -> None:
    writers = [module for module, path in MODULES.items() if writing_calls(path.read_text(encoding="utf-8"))]
    assert writers == ["artifacts"]
