"""Makes typer functions from the options of commands."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import MISSING
from typing import Annotated, Any

import typer

from ..errors import StdoutClosed
from ..options.declare import MethodStageConfig, OptionSet, spelling
from ..options.entries import Entry, OutputOptions, Parameter, entries, entries_of, with_negative


@contextmanager
def closed_stdout_as_error() -> Iterator[None]:
    """Raise `StdoutClosed` when the reader of stdout has closed the pipe."""
    try:
        yield
    except BrokenPipeError as error:
        raise StdoutClosed from error


def command_function(config_type: type[OptionSet], run: Callable[[Any, OutputOptions], None]) -> Callable[..., None]:
    """Return a function whose signature typer turns into a command with `config_type`'s options.

    Args:
        run: called with the config that the command line gives, and the output options.
    """
    output_entries = entries_of(OutputOptions)
    taken = entries(config_type)

    def command(**values: Any) -> None:
        output = OutputOptions(**{entry.name: values.pop(entry.name) for entry in output_entries})
        chosen = {e.name: values.pop(e.name) for e in taken if e.of_method}
        if issubclass(config_type, MethodStageConfig):
            values["method_options"] = {name: value for name, value in chosen.items() if value is not None}
        with closed_stdout_as_error():
            run(config_type(**values), output)

    ordered = [_typer_parameter(entry) for entry in taken + output_entries]
    command.__signature__ = inspect.Signature(ordered)  # type: ignore[attr-defined]
    command.__annotations__ = {parameter.name: parameter.annotation for parameter in ordered}
    command.__doc__ = _paragraphs(config_type.__doc__ or "")
    return command


def _paragraphs(docstring: str) -> str:
    """Return a docstring with each paragraph on one line, for the terminal to wrap, and the examples line by line."""
    text, _, examples = inspect.cleandoc(docstring).partition("Examples:")
    parts = [" ".join(part.split()) for part in text.strip().split("\n\n")]
    lines = [line for line in examples.splitlines() if line]
    return "\n\n".join([*parts, *(["\b\nExamples:\n" + "\n".join(lines)] if lines else [])])


def _typer_parameter(entry: Entry) -> Parameter:
    default = ... if entry.default is MISSING else entry.default  # typer's value for required
    kind: Any = entry.kind
    annotation = Annotated[kind, _typer_option(entry)]
    return Parameter(entry.name, Parameter.KEYWORD_ONLY, default=default, annotation=annotation)


def _typer_option(entry: Entry) -> Any:
    name, info = entry.name, entry.info
    if info.positional:
        return typer.Argument(help=entry.help, metavar=name.upper(), show_default=False, rich_help_panel=info.panel)
    names = [spelling(name)]
    if name in ("quiet", "verbose"):
        names.append(f"-{name[0]}")
    if with_negative(entry):
        names = [f"{spelling(name)}/--no-{name.replace('_', '-')}"]
    return typer.Option(
        *names,
        help=entry.help,
        metavar=info.metavar,
        envvar=info.env,
        show_default=entry.default is not None and entry.default is not MISSING,
        rich_help_panel=info.panel,
    )
