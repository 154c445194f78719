"""Which names code defines itself, according to its text. Names that it only imports are not called.

The text is checked before code runs or is imported; `require_own` then checks the value of the name.
"""

from __future__ import annotations

import ast
import functools
import importlib.util
from collections.abc import Iterator
from dataclasses import dataclass, field
from importlib.machinery import PathFinder
from pathlib import Path
from typing import Any

from ...errors import ConfigError, UsageError, did_you_mean
from .names import NetworkName


@dataclass
class Definitions:
    """The names that the text of a module defines at its top level, including inside `if`, `try` and `with`.

    `own` has functions, classes and assigned names; `imported` maps a name to (module, name in it, or '' if the name is
    the module itself); `stars` has the modules of `from module import *`. Relative modules begin with dots.
    """

    own: list[str] = field(default_factory=list)
    imported: dict[str, tuple[str, str]] = field(default_factory=dict)
    stars: list[str] = field(default_factory=list)


def definitions(source: str | bytes) -> Definitions:
    """Return the names that this text defines. Raises `SyntaxError` or `ValueError` if it is not Python."""
    found = Definitions()
    for statement in _top_level(ast.parse(source)):
        if isinstance(statement, ast.FunctionDef | ast.ClassDef):
            found.own.append(statement.name)
        elif isinstance(statement, ast.Assign):
            found.own += [name for target in statement.targets for name in _assigned(target)]
        elif isinstance(statement, ast.AnnAssign) and statement.value is not None:
            found.own += _assigned(statement.target)
        elif isinstance(statement, ast.Import):
            for alias in statement.names:
                module = alias.name if alias.asname else alias.name.partition(".")[0]
                found.imported[alias.asname or module] = (module, "")
        elif isinstance(statement, ast.ImportFrom):
            module = "." * statement.level + (statement.module or "")
            for alias in statement.names:
                if alias.name == "*":
                    found.stars.append(module)
                else:
                    found.imported[alias.asname or alias.name] = (module, alias.name)
    return found


def _top_level(tree: ast.Module) -> Iterator[ast.stmt]:
    waiting: list[ast.AST] = [tree]
    while waiting:
        for child in ast.iter_child_nodes(waiting.pop()):
            if isinstance(child, ast.If | ast.Try | ast.With | ast.ExceptHandler):
                waiting.append(child)
            elif isinstance(child, ast.stmt):
                yield child


def _assigned(target: ast.expr) -> list[str]:
    return [node.id for node in ast.walk(target) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)]


def require_defined(name: NetworkName, source: str, folder: Path | None = None) -> None:
    """Check that the text of a file itself defines the function, class or network.

    Args:
        folder: the folder of the file, so that an error can name the file that defines it; None if there is no file.

    Raises:
        UsageError: it does not define the name; the message says which module the name is imported from.
    """
    _refuse_special(name)
    found = definitions(source)
    if name.function in found.own:
        return
    if name.function in found.imported:
        raise UsageError(_imported_from(name, *found.imported[name.function], folder))
    if found.stars:
        modules = " or ".join(dict.fromkeys(found.stars))
        raise UsageError(f"{name.place} does not define {name.function!r}; if {modules} defines it, name it there")
    raise UsageError(f"{name.place} has no {name.function!r}.{did_you_mean(name.function, _public(found))}")


def require_module_defines(name: NetworkName) -> Path:
    """Check that a module, or a module of its package that it imports from, defines the function; return its file.

    Neither the module nor the packages above it are imported for this check.

    Raises:
        UsageError: there is no such module, or another package defines the function.
    """
    _refuse_special(name)
    file = module_file(name.place)
    if file is None:
        raise UsageError(
            f"there is no module {name.place!r} of Python code, neither installed nor in this folder; or name its "
            f"file, as in {name.place.replace('.', '/')}.py:{name.function}"
        )
    if not _defines(name.place, name.function, set()):
        found = definitions(file.read_bytes())
        if name.function in found.imported:
            raise UsageError(_imported_from(name, *found.imported[name.function], None))
        raise UsageError(f"{name.place} has no {name.function!r}.{did_you_mean(name.function, _public(found))}")
    return file


def _refuse_special(name: NetworkName) -> None:
    if name.function.startswith("__"):
        raise UsageError(f"{name.function!r} of {name.place} is no network: names that begin with __ are Python's own")


def _public(found: Definitions) -> list[str]:
    return [name for name in dict.fromkeys(found.own) if not name.startswith("_")]


def _imported_from(name: NetworkName, module: str, there: str, folder: Path | None) -> str:
    bare = module.lstrip(".")
    if not bare:  # from . import nets
        bare, there = there, ""
    file = Path(*bare.split(".")).with_suffix(".py")
    place = str(file) if module.startswith(".") else bare
    if folder is not None and not module.startswith("..") and (folder / file).is_file():
        place = str(folder / file)
    if not there:
        return f"{name.place} imports the module {bare}; name a function of that module: {place}:FUNCTION"
    return f"{name.place} imports {there} from {module}; name it there: {place}:{there}"


def module_file(place: str) -> Path | None:
    """Return the `.py` file of a module; None if there is none. No package is imported to find it."""
    first, *rest = place.split(".")
    try:
        spec = importlib.util.find_spec(first)
        for part in rest:
            if spec is None or spec.submodule_search_locations is None:
                return None
            spec = PathFinder.find_spec(part, list(spec.submodule_search_locations))
    except (ImportError, ValueError):
        return None
    path = None if spec is None or spec.origin is None else Path(spec.origin)
    return path if path is not None and path.suffix == ".py" and path.is_file() else None


def _defines(place: str, function: str, seen: set[tuple[str, str]]) -> bool:
    """Whether the module defines the function, or imports it from a module of its package that does."""
    file = module_file(place)
    if file is None or (place, function) in seen:
        return False
    seen.add((place, function))
    try:
        found = definitions(file.read_bytes())
    except (SyntaxError, ValueError):
        return False
    if function in found.own:
        return True
    package = place if file.name == "__init__.py" else place.rpartition(".")[0]
    named = [found.imported[function]] if function in found.imported else [(star, function) for star in found.stars]
    for module, there in named:
        origin = _absolute(module, package)
        if there and origin.partition(".")[0] == place.partition(".")[0] and _defines(origin, there, seen):
            return True
    return False


def _absolute(module: str, package: str) -> str:
    """Return the absolute name of a module; '' if a relative one leaves the package."""
    try:
        return importlib.util.resolve_name(module, package)
    except ImportError:
        return ""


def require_own(found: Any, name: NetworkName, home: str) -> None:
    """Check the value of a name: it may be called only if the code itself defines it.

    A network is copied, not called, so its class may be a library's. For other values, `__module__` says which code
    defined them: the function or method itself, or the class of an object. For a `functools.partial`, the wrapped
    function is checked.

    Args:
        found: the value.
        name: the name in the user's text, for errors.
        home: name of the module; values of any module in the same top-level package are accepted.

    Raises:
        ConfigError: another module defines the value, or it is neither callable nor a network.
    """
    from torch import nn

    if isinstance(found, nn.Module):
        return
    if not callable(found):
        raise ConfigError(f"{name} is neither a function nor a network, but of type {type(found).__name__}")
    called = found
    while isinstance(called, functools.partial):
        called = called.func
    module = str(getattr(called, "__module__", None))
    if module.partition(".")[0] != home.partition(".")[0]:
        there = getattr(called, "__qualname__", type(called).__qualname__)
        raise ConfigError(
            f"{name.target} is {there} of {module}, which {name.place} does not define; write a function in "
            f"{name.place} that calls it, and name that function"
        )
