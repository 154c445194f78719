"""Functions of a user's that build networks: found, called, and kept beside the weights."""

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
_BESIDE = "__kdx_beside__"


@dataclass(frozen=True)
class Code:
    """The file that holds a user's function, kept whole, so that weights can be used where the file is not.

    `beside` has (path from its folder, sha256) of the files there that it imports; these have to stay as they are.
    """

    name: str
    source: str
    beside: tuple[tuple[str, str], ...] = ()

    @property
    def content(self) -> bytes:
        """What consent is given to."""
        return self.source.encode()


def as_file(name: NetworkName) -> NetworkName:
    """Return a function of a module that is in this folder, and not installed, as that of its file; others as is."""
    file = Path(*name.place.split(".")).with_suffix(".py")
    if name.kind != "module" or not file.is_file() or module_file(name.place) is not None:
        return name
    return NetworkName(f"{file}:{name.function}", name.arguments)


def read_code(name: NetworkName) -> Code | None:
    """Return the file that a user has named; None for a function of a module. Its code may make this call from now on.

    Raises:
        ArtifactError: there is no such file, or it is no text.
        UsageError: there is no such module, or it does not define the function by itself.
    """
    if name.kind == "module":
        allow_call(name, None, Path())
        return None
    path = Path(name.place)
    try:
        content = path.read_bytes()
        if len(content) > MAX_SOURCE_BYTES:
            raise ArtifactError(f"{path} has {len(content)} bytes, more than a file of code (limit {MAX_SOURCE_BYTES})")
        code = Code(path.name, content.decode())
    except OSError as error:
        raise ArtifactError(f"{path} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ArtifactError(f"{path} is not a text in UTF-8") from error
    with failing_as(name):
        require_defined(name, code.source, path.parent)
    allow_call(name, code, path)
    return code


def allow_call(name: NetworkName, code: Code | None, origin: Path) -> None:
    """Let code make the call that `name` spells, because the user has named it, or trusts the file that names it.

    Args:
        origin: the file that the code is from; that of a module's function is found.

    Raises:
        ArtifactError: there is no code.
        UsageError: the code does not define the function by itself, or there is no such module.
        ConfigError: there is no place to keep it.
    """
    with failing_as(name):
        if name.kind == "module":
            file = require_module_defines(name)
            consent.allow(file.read_bytes(), name, file)
        else:
            require_defined(name, _held(name, code).source)
            consent.allow(_held(name, code).content, name, origin)


def allow_inferred_call(name: NetworkName, derived: NetworkName, code: Code | None) -> None:
    """Let code that may call `name` make the same call with arguments that kdx has filled in."""
    if name != derived:
        content = _held(name, code).content if name.kind == "file" else require_module_defines(name).read_bytes()
        consent.allow_inferred(content, name, derived)


def _held(name: NetworkName, code: Code | None) -> Code:
    if code is None:
        raise ArtifactError(f"it names {name}, but does not hold the code of {name.place}")
    return code


def function_of(name: NetworkName, code: Code | None) -> Any:
    """Return what `name` names, a function, class or network that the code itself defines, if this call was allowed.

    Nothing is run, imported or looked up before both are known.

    Raises:
        ArtifactError: nobody has allowed the call here.
        UsageError: the code has nothing of this name, or only imports it.
        ConfigError: the code fails, or what it has under the name is not its own.
    """
    if name.kind == "module":
        module = _imported(name)
        found = getattr(module, name.function, None)
    else:
        held = _held(name, code)
        origin = consent.require(held.content, name)
        with failing_as(name):
            require_defined(name, held.source)
        module = _module_of(held, origin, name)
        found = vars(module).get(name.function)
    if found is None:
        raise UsageError(f"{name.place} has no {name.function!r} when it runs")
    require_own(found, name, name.place if name.kind == "module" else module.__name__)
    return found


def _imported(name: NetworkName) -> ModuleType:
    """Import the module of a function, after the checks."""
    consent.require_call(name)
    with failing_as(name):
        path = require_module_defines(name)
        consent.require(path.read_bytes(), name)
        module = importlib.import_module(name.place)
    if Path(str(module.__file__)).resolve() != path.resolve():
        raise ConfigError(f"{name.place} is {module.__file__} in this process, and not {path}, which was allowed")
    return module


@contextlib.contextmanager
def failing_as(name: NetworkName) -> Iterator[None]:
    """Turn whatever a user's code raises into one line; what it prints goes to stderr."""
    try:
        with contextlib.redirect_stdout(sys.stderr):
            yield
    except KdxError:
        raise
    except (Exception, SystemExit) as error:
        reason = (str(error) or "no reason given").splitlines()[0]
        raise ConfigError(f"{name} failed: {type(error).__name__}: {reason}") from error


def _module_of(code: Code, origin: Path | None, name: NetworkName) -> ModuleType:
    """Run the code as a module, once in a process; what stands beside its file can be imported."""
    known = f"kdx_code_{consent.code_sha256(code.content)[:16]}"
    folder, package = _surroundings(origin)
    _require_unchanged(code, folder)
    if known in sys.modules:
        return sys.modules[known]
    module = ModuleType(known)
    module.__file__ = str(origin) if origin is not None else f"<{code.name}>"
    module.__package__ = package
    linecache.cache[module.__file__] = (len(code.source), None, code.source.splitlines(True), module.__file__)
    sys.modules[known] = module
    before, there = list(sys.path), set(sys.modules)
    try:
        if folder is not None:
            sys.path.insert(0, str(folder))
        with failing_as(name):
            exec(compile(code.source, module.__file__, "exec"), vars(module))
    except BaseException:
        del sys.modules[known]
        raise
    finally:
        sys.path[:] = before
    vars(module)[_BESIDE] = _beside(module, folder, {*sys.modules} - there)
    return module


def with_what_it_imports(code: Code) -> Code:
    """Return code that has run with the files beside it that it imports."""
    module = sys.modules[f"kdx_code_{consent.code_sha256(code.content)[:16]}"]
    return replace(code, beside=vars(module)[_BESIDE])


def _beside(module: ModuleType, folder: Path | None, new: set[str]) -> tuple[tuple[str, str], ...]:
    """Return (path from `folder`, sha256) of the files there whose modules were new, or are used by name."""
    if folder is None:
        return ()
    used = {getattr(value, "__module__", None) or getattr(value, "__name__", "") for value in vars(module).values()}
    found = {}
    for name in {*new, *(name for name in used if isinstance(name, str))} - {module.__name__}:
        file = getattr(sys.modules.get(name), "__file__", None)
        path = Path(file).resolve() if file else None
        if path and path.suffix == ".py" and path.is_file() and path.is_relative_to(folder.resolve()):
            relative = path.relative_to(folder.resolve()).as_posix()
            if "site-packages" not in relative:
                found[relative] = consent.code_sha256(path.read_bytes())
    return tuple(sorted(found.items()))


def _require_unchanged(code: Code, folder: Path | None) -> None:
    """Raise `ArtifactError` unless what the code imports from its folder is there, and as it was."""
    for relative, known in code.beside:
        path = None if folder is None or ".." in Path(relative).parts or relative[:1] == "/" else folder / relative
        if path is None or path.suffix != ".py" or not path.is_file():
            raise ArtifactError(f"{code.name} imports {relative} beside it, which is not there any more")
        if consent.code_sha256(path.read_bytes()) != known:
            raise ArtifactError(f"{code.name} imports {relative} beside it, which was changed since; import it again")


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
"""What parameters are usually called."""


def with_inferred_arguments(
    name: NetworkName, function: Callable[..., Any], shape: tuple[int, int, int] | None, classes: int | None
) -> NetworkName:
    """Return the name with the arguments that the function has parameters for: classes, channels and size, if given.

    Raises:
        UsageError: a parameter without a default is left, or an argument is not a parameter.
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
        raise UsageError(f"{name.target} has parameters without a default; give them: {name.target}({spelled})")
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
    """Return the name with its width multiplied.

    Raises:
        ConfigError: the function has no parameter for its width, or one without a default number.
    """
    with contextlib.suppress(TypeError, ValueError):
        for parameter in inspect.signature(function).parameters.values():
            usual = dict(name.arguments).get(parameter.name, parameter.default)
            if parameter.name in WIDTHS and isinstance(usual, int | float):
                value = usual * width if isinstance(usual, float) else max(1, round(usual * width))
                return name.with_arguments(**{parameter.name: value})
    raise ConfigError(
        f"{name.target} has no width: no parameter with a number as its default called {', '.join(WIDTHS[:-1])} or "
        f"{WIDTHS[-1]}"
    )


def _is_network(value: Any) -> bool:
    from torch import nn

    return isinstance(value, nn.Module)
