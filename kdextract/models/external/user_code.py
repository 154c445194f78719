"""Functions in a user's code that build networks: finding them, running their code, storing it with the weights."""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import inspect
import linecache
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import Any

from ...errors import ArtifactError, ConfigError, KdxError, UsageError, did_you_mean
from . import consent
from .definitions import module_file, require_defined, require_module_defines, require_own
from .names import NetworkName

MAX_SOURCE_BYTES = 2**20


@dataclass(frozen=True)
class Code:
    """The whole text of the file with a user's function, so that the weights can be used without that file.

    `beside` has (path from its folder, sha256) of the files in the same folder that it imports. They are not stored and
    must not change.
    """

    name: str
    source: str
    beside: tuple[tuple[str, str], ...] = ()

    @property
    def content(self) -> bytes:
        """The bytes whose calls are allowed (see `consent`)."""
        return self.source.encode()


def as_file(name: NetworkName) -> NetworkName:
    """Return `module:function` as `FILE.py:function` if the module is in the current folder and not installed.

    Other names are returned unchanged.
    """
    file = Path(*name.place.split(".")).with_suffix(".py")
    if name.kind != "module" or not file.is_file() or module_file(name.place) is not None:
        return name
    return NetworkName(f"{file}:{name.function}", name.arguments)


def read_code(name: NetworkName) -> Code | None:
    """Return the code of the file that a user has named, and allow this call of it from now on; None for a module.

    Raises:
        ArtifactError: the file cannot be read, is not UTF-8 or larger than `MAX_SOURCE_BYTES`.
        UsageError: there is no such module, or the code does not itself define the function.
    """
    if name.kind == "module":
        allow_call(name, None, Path())
        return None
    path = Path(name.place)
    try:
        content = path.read_bytes()
        if len(content) > MAX_SOURCE_BYTES:
            raise ArtifactError(f"{path} has {len(content)} bytes; the limit for a file of code is {MAX_SOURCE_BYTES}")
        code = Code(path.name, content.decode())
    except OSError as error:
        raise ArtifactError(f"{path} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ArtifactError(f"{path} is not UTF-8 text") from error
    with failing_as(name):
        require_defined(name, code.source, path.parent)
    allow_call(name, code, path)
    return code


def allow_call(name: NetworkName, code: Code | None, origin: Path) -> None:
    """Allow the call `name` of the code, because the user has typed it, or trusts the file that names it.

    Args:
        code: the code of a file's function; None for a module's, whose file is looked up.
        origin: the file that the code came from; not used for a module's function.

    Raises:
        ArtifactError: the name is that of a file's function, and `code` is None.
        UsageError: the code does not itself define the function, or there is no such module.
        ConfigError: the permission cannot be stored.
    """
    with failing_as(name):
        if name.kind == "module":
            file = require_module_defines(name)
            consent.allow(file.read_bytes(), name, file)
        else:
            require_defined(name, _held(name, code).source)
            consent.allow(_held(name, code).content, name, origin)


def allow_inferred_call(name: NetworkName, derived: NetworkName, code: Code | None) -> None:
    """Allow `derived`, the call `name` with arguments that kdx has filled in, if `name` was allowed."""
    if name != derived:
        content = _held(name, code).content if name.kind == "file" else require_module_defines(name).read_bytes()
        consent.allow_inferred(content, name, derived)


def _held(name: NetworkName, code: Code | None) -> Code:
    if code is None:
        raise ArtifactError(f"it names {name}, but does not contain the code of {name.place}")
    return code


def function_of(name: NetworkName, code: Code | None) -> Any:
    """Return the function, class or network `name`, if the call was allowed and the code itself defines it.

    Both are checked before code is run or imported.

    Raises:
        ArtifactError: the call was not allowed on this machine.
        UsageError: the code does not define the name, or only imports it.
        ConfigError: the code fails, or the value of the name comes from another module.
    """
    if name.kind == "module":
        module = _imported(name)
        found = getattr(module, name.function, None)
    else:
        held = _held(name, code)
        origin = consent.require(held.content, name)
        with failing_as(name):
            require_defined(name, held.source)
        module = _load(held, origin, name).module
        found = vars(module).get(name.function)
    if found is None:
        raise UsageError(f"{name.place} did not define {name.function!r} when it ran")
    require_own(found, name, name.place if name.kind == "module" else module.__name__)
    return found


def _imported(name: NetworkName) -> ModuleType:
    """Return the imported module of a function. Raises `ArtifactError` if the call was not allowed."""
    consent.require_call(name)
    with failing_as(name):
        path = require_module_defines(name)
        consent.require(path.read_bytes(), name)
        module = importlib.import_module(name.place)
    if Path(str(module.__file__)).resolve() != path.resolve():
        raise ConfigError(f"{name.place} is {module.__file__} in this process, but {path} was allowed")
    return module


@contextlib.contextmanager
def failing_as(name: NetworkName) -> Iterator[None]:
    """Turn every exception of a user's code into a `ConfigError` of one line; its output goes to stderr."""
    try:
        with contextlib.redirect_stdout(sys.stderr):
            yield
    except KdxError:
        raise
    except (Exception, SystemExit) as error:
        reason = (str(error) or "no reason given").splitlines()[0]
        raise ConfigError(f"{name} failed: {type(error).__name__}: {reason}") from error


@dataclass(frozen=True)
class LoadedCode:
    """Code that has run in this process: its module, and the files in its folder that it imports.

    `beside` has (path from the folder, sha256), as in `Code`.
    """

    module: ModuleType
    beside: tuple[tuple[str, str], ...]


_LOADED: dict[str, LoadedCode] = {}
"""Module name -> code that has run in this process; like an imported module, it runs once."""


def _load(code: Code, origin: Path | None, name: NetworkName) -> LoadedCode:
    """Run the code as a module, if it has not run before in this process.

    Args:
        origin: the file that the code came from; modules in its folder can be imported. None if it is not known.
        name: what an error calls the code.

    Raises:
        ArtifactError: a file that the code imports from its folder is missing, or was changed.
        ConfigError: the code fails.
    """
    folder, package = _surroundings(origin)
    _require_unchanged(code, folder)
    module_name = _module_name(code)
    if module_name not in _LOADED:
        module = _new_module(module_name, code, origin, package)
        earlier = set(sys.modules)
        with _importable(module), _first_on_path(folder), failing_as(name):
            exec(compile(code.source, str(module.__file__), "exec"), vars(module))
        _LOADED[module_name] = LoadedCode(module, _imported_files(module, folder, {*sys.modules} - earlier))
    return _LOADED[module_name]


def _module_name(code: Code) -> str:
    return f"kdx_code_{consent.code_sha256(code.content)[:16]}"


def _new_module(module_name: str, code: Code, origin: Path | None, package: str) -> ModuleType:
    """Return an empty module for the code. `package` is what its relative imports start from."""
    module = ModuleType(module_name)  # without a __spec__: its parent would have to be the package
    module.__file__ = str(origin) if origin is not None else f"<{code.name}>"
    module.__package__ = package
    # Tracebacks and inspect.getsource show the text that runs, also where the file was edited since.
    linecache.cache[module.__file__] = (len(code.source), None, code.source.splitlines(True), module.__file__)
    return module


@contextlib.contextmanager
def _importable(module: ModuleType) -> Iterator[None]:
    """Put a module into `sys.modules`, where dataclasses look for it, and take it out again if the block fails."""
    sys.modules[module.__name__] = module
    try:
        yield
    except BaseException:
        del sys.modules[module.__name__]
        raise


@contextlib.contextmanager
def _first_on_path(folder: Path | None) -> Iterator[None]:
    """Let the block import modules of the folder before all others; `sys.path` is restored afterwards."""
    before = list(sys.path)
    if folder is not None:
        sys.path.insert(0, str(folder))
    try:
        yield
    finally:
        sys.path[:] = before


def with_imported_files(code: Code) -> Code:
    """Return code that has run in this process, with the files in its folder that it imports."""
    return replace(code, beside=_LOADED[_module_name(code)].beside)


def _imported_files(module: ModuleType, folder: Path | None, new: set[str]) -> tuple[tuple[str, str], ...]:
    """Return (path from `folder`, sha256) of the files in `folder` that the module imports.

    Args:
        new: names of the modules that were imported while it ran. Others that define a value of it count as well.
    """
    if folder is None:
        return ()
    root = folder.resolve()
    used = {getattr(value, "__module__", None) or getattr(value, "__name__", "") for value in vars(module).values()}
    found = {}
    for name in {*new, *(name for name in used if isinstance(name, str))} - {module.__name__}:
        file = getattr(sys.modules.get(name), "__file__", None)
        path = Path(file).resolve() if file else None
        if path and path.suffix == ".py" and path.is_file() and path.is_relative_to(root):
            relative = path.relative_to(root).as_posix()
            if "site-packages" not in relative:
                found[relative] = consent.code_sha256(path.read_bytes())
    return tuple(sorted(found.items()))


def _require_unchanged(code: Code, folder: Path | None) -> None:
    """Raise `ArtifactError` if a file that the code imports from its folder is missing or was changed."""
    for relative, known in code.beside:
        path = None if folder is None or ".." in Path(relative).parts or relative[:1] == "/" else folder / relative
        if path is None or path.suffix != ".py" or not path.is_file():
            raise ArtifactError(f"{code.name} imports {relative} from its folder, which is missing now")
        if consent.code_sha256(path.read_bytes()) != known:
            raise ArtifactError(f"{code.name} imports {relative} from its folder, which was changed; import it again")


def _surroundings(origin: Path | None) -> tuple[Path | None, str]:
    """Return the folder that the file's own imports start from, and the package that it is part of."""
    if origin is None or not origin.parent.is_dir():
        return None, ""
    folder = origin.parent
    packages: list[str] = []
    while (folder / "__init__.py").is_file():
        packages.insert(0, folder.name)
        folder = folder.parent
    return folder, ".".join(packages)


CLASSES = ("num_classes", "n_classes", "nclasses", "classes", "num_labels")
CHANNELS = ("in_channels", "in_chans", "input_channels", "num_channels", "n_channels")
SIZES = ("img_size", "image_size", "input_size", "resolution")
SHAPES = ("input_shape", "in_shape")
WIDTHS = ("width", "width_mult", "width_multiplier", "widen_factor", "base_width")
"""Usual names of parameters."""


def with_inferred_arguments(
    name: NetworkName, function: Callable[..., Any], shape: tuple[int, int, int] | None, classes: int | None
) -> NetworkName:
    """Return the name with arguments for the function's parameters of usual names: classes, channels and image size.

    Arguments of the name are kept. Values that are None are not filled in.

    Raises:
        UsageError: a parameter without a default has no value, or an argument of the name is not a parameter.
    """
    if not callable(function) or _is_network(function):
        return name
    try:
        parameters = inspect.signature(function).parameters
    except (TypeError, ValueError):
        return name
    given, added = dict(name.arguments), {}
    for parameter in parameters.values():
        value = _known_value(parameter, shape, classes)
        if value is not None and parameter.name not in given:
            added[parameter.name] = value
    takes_any = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    for argument in given:
        if argument not in parameters and not takes_any:
            raise UsageError(f"{name.target} has no parameter {argument!r}.{did_you_mean(argument, parameters)}")
    left = [
        p.name
        for p in parameters.values()
        if p.default is p.empty and p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL) and p.name not in {**given, **added}
    ]
    if left:
        spelled = ", ".join(f"{parameter}=..." for parameter in left)
        raise UsageError(f"{name.target} has parameters without a default; give their values: {name.target}({spelled})")
    return name.with_arguments(**added)


def _known_value(
    parameter: inspect.Parameter, shape: tuple[int, int, int] | None, classes: int | None
) -> int | tuple[int, ...] | None:
    if parameter.kind not in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY):
        return None
    if parameter.name in CLASSES:
        return classes
    if shape is None:
        return None
    if parameter.name in CHANNELS:
        return shape[0]
    if parameter.name in SHAPES:
        return shape
    if parameter.name in SIZES:
        if shape[1] == shape[2] and not isinstance(parameter.default, tuple | list):
            return shape[1]
        return None if isinstance(parameter.default, int) else shape[1:]
    return None


def narrowed(name: NetworkName, function: Callable[..., Any], width: float) -> NetworkName:
    """Return the name with the argument for its width multiplied by `width`; integers are rounded, at least 1.

    Raises:
        ConfigError: the function has no parameter named as in `WIDTHS` whose value or default is a number.
    """
    with contextlib.suppress(TypeError, ValueError):
        for parameter in inspect.signature(function).parameters.values():
            usual = dict(name.arguments).get(parameter.name, parameter.default)
            if parameter.name in WIDTHS and isinstance(usual, int | float):
                value = usual * width if isinstance(usual, float) else max(1, round(usual * width))
                return name.with_arguments(**{parameter.name: value})
    raise ConfigError(
        f"{name.target} has no width: it has no parameter {', '.join(WIDTHS[:-1])} or {WIDTHS[-1]} with a number as "
        "its default"
    )


def _is_network(value: Any) -> bool:
    from torch import nn

    return isinstance(value, nn.Module)
