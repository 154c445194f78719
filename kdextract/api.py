"""kdx in Python and in notebooks: one function per command, with its name and options.

    import kdextract.api as kdx

    kdx.train(run="runs/a", epochs=10)
    kdx.optimize_dataset(run="runs/a", objective="deep_inversion")  # a notebook displays the images
    kdx.show("teacher", run="runs/a")

Commands that write an artifact return an `Outcome`, the others the dict that `--json` prints. A call prints nothing,
changes only files, and raises the errors of `kdextract.errors`. The functions are generated from the commands, so that
their names and options are the same.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import MISSING
from pathlib import Path
from typing import Any

from .cli.command import Command
from .cli.commands import COMMANDS
from .errors import UsageError, did_you_mean
from .options.entries import Entry, config_from_options, entries
from .stages.running.outcome import load_classifier as load_classifier
from .training.progress import Reporter

Parameter = inspect.Parameter


def _python_function(name: str, command: Command) -> Callable[..., Any]:
    """Return a command as a function; its positional argument comes first and may also be given by name."""
    taken = sorted(entries(command.config), key=lambda entry: not entry.info.positional)
    positional = [entry.name for entry in taken if entry.info.positional]

    def function(*values: Any, **options: Any) -> Any:
        if len(values) > len(positional):
            raise UsageError(f"{name} takes at most {len(positional)} argument(s) without a name, got {len(values)}")
        given = dict(zip(positional, values, strict=False))
        for twice in given.keys() & options.keys():
            raise UsageError(f"{twice} is given twice")
        config = config_from_options(command.config, given | options)
        result = command.run(config, Reporter(quiet=True))
        command.check(config, result)
        return result

    function.__name__ = function.__qualname__ = name
    function.__module__ = __name__
    function.__signature__ = inspect.Signature([_python_parameter(entry) for entry in taken])  # type: ignore[attr-defined]
    function.__annotations__ = {entry.name: entry.kind for entry in taken}
    function.__doc__ = _docstring(command, taken)
    return function


def _python_parameter(entry: Entry) -> Parameter:
    kind = Parameter.POSITIONAL_OR_KEYWORD if entry.info.positional else Parameter.KEYWORD_ONLY
    default = Parameter.empty if entry.default is MISSING else entry.default
    return Parameter(entry.name, kind, default=default, annotation=entry.kind)


def _docstring(command: Command, taken: list[Entry]) -> str:
    about = inspect.cleandoc(command.config.__doc__ or "").split("Examples:")[0].rstrip()
    arguments = ["", "Args:", *(f"    {_argument_line(entry)}" for entry in taken)] if taken else []
    return "\n".join([about, *arguments, "", "Returns:", f"    {command.returns}"])


def _argument_line(entry: Entry) -> str:
    kind = entry.kind.__name__ if isinstance(entry.kind, type) else str(entry.kind).replace("pathlib.", "")
    default = "required" if entry.default is MISSING else f"default {_python_literal(entry.default)}"
    return f"{entry.name} ({kind}, {default}): {entry.help}"


def _python_literal(value: Any) -> str:
    return repr(str(value) if isinstance(value, Path) else value)


_FUNCTIONS: dict[str, Callable[..., Any]] = {
    name.replace("-", "_"): _python_function(name.replace("-", "_"), command) for name, command in COMMANDS.items()
}
__all__ = ["load_classifier", *_FUNCTIONS]


def __getattr__(name: str) -> Any:
    if name in _FUNCTIONS:
        return _FUNCTIONS[name]
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}.{did_you_mean(name, __all__)}")


def __dir__() -> list[str]:
    return sorted(__all__)
