"""What code defines by itself, as its text says: a name that it only imports is not called.

The text decides before anything runs or is looked up; `require_own` then checks what was found under the name.
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
    """The names that the text of a module gives values to at its top level, inside `if`, `try` and `with` as well.

    `own` are functions, classes and assigned names; `imported` has name -> (module, name there, or '' for a module
    itself); `stars` are the modules of `from module import *`. A relative module begins with its dots.
    """

    own: list[str] = field(default_factory=list)
    imported: dict[str, tuple[str, str]] = field(default_factory=dict)
    stars: list[str] = field(default_factory=list)


def definitions(source: str | bytes) -> Definitions:
    """Return what this text defines. Raises `SyntaxError` or `ValueError` when it is no Python."""
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
    """Check that the file with this text defines the function, class or network by itself.

    Args:
        folder: where the file is, so that an error can say where to find what it imports; None if it is nowhere.

    Raises:
        UsageError: it does not; the sentence says where the name comes from.
    """
    _refuse_special(name)
    found = definitions(source)
    if name.function in found.own:
        return
    if name.function in found.imported:
        raise UsageError(_imported_from(name, *found.imported[name.function], folder))
    if found.stars:
        modules = " or ".join(dict.fromkeys(found.stars))
        raise UsageError(f"{name.place} does not define {name.function!r}; if it comes from {modules}, name it there")
    raise UsageError(f"{name.place} has no {name.function!r}.{did_you_mean(name.function, _public(found))}")


def require_module_defines(name: NetworkName) -> Path:
    """Check that a module, or what it imports from its own package, defines the function; return the module's file.

    Nothing is imported for it, no package above the module either.

    Raises:
        UsageError: there is no such module, or the function is another package's.
    """
    _refuse_special(name)
    file = module_file(name.place)
    if file is None:
        raise UsageError(
            f"there is no module {name.place!r} of Python code, neither installed nor in this folder; its file can be "
            f"named instead: {name.place.replace('.', '/')}.py:{name.function}"
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
        return f"{name.place} imports the module {bare}; name a function of it there: {place}:FUNCTION"
    return f"{name.place} imports {there} from {module}; name it there: {place}:{there}"


def module_file(place: str) -> Path | None:
    """Return the file of a module's Python code; None if there is none. No package is imported to find it."""
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
    """Return a module's whole name; '' if its dots go above the package."""
    try:
        return importlib.util.resolve_name(module, package)
    except ImportError:
        return ""


def require_own(found: Any, name: NetworkName, home: str) -> None:
    """Check what the code has under the name: it is called only if the code itself has defined it.

    A network that the code has made is copied, not called, so that its class may be a library's. Of everything else
    `__module__` says which code defined it: of a function or a method its own, of an object that of its class. A
    `functools.partial` calls what it wraps, and is judged by that.

    Args:
        home: the module's name; what any module of the same package has defined is the code's own, too.

    Raises:
        ConfigError: it is another module's, or nothing that could be called.
    """
    from torch import nn

    if isinstance(found, nn.Module):
        return
    if not callable(found):
        raise ConfigError(f"{name} is neither a function nor a network, but {type(found).__name__}")
    called = found
    while isinstance(called, functools.partial):
        called = called.func
    module = str(getattr(called, "__module__", None))
    if module.partition(".")[0] != home.partition(".")[0]:
        there = getattr(called, "__qualname__", type(called).__qualname__)
        raise ConfigError(
            f"{name.target} is {there} of {module}, which {name.place} does not define, so that it is not called; a "
            f"function in {name.place} that calls it can be named"
        )
