"""Turns a config dataclass into a command, or into what a Python call takes: its options are defined once."""

from __future__ import annotations

import dataclasses
import functools
import inspect
import types
import typing
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import MISSING
from typing import Annotated, Any

import typer

from .config import (
    DataAccess,
    MethodStageConfig,
    NamedStageConfig,
    NetworkConfig,
    OptionInfo,
    OptionSet,
    VerifierConfig,
    coerced,
    option,
    option_fields,
    option_info,
    spelling,
)
from .errors import ReaderGone, UsageError, did_you_mean

Parameter = inspect.Parameter


@dataclasses.dataclass(frozen=True, kw_only=True)
class OutputOptions(OptionSet):
    """How a command speaks; every command has these."""

    json: bool = option(False, "Print one JSON document on stdout.")
    quiet: bool = option(False, "Print nothing but paths or names of results, and errors.")
    verbose: bool = option(False, "Show where an error comes from.")


_COMMON = {
    declared.name for options in (NamedStageConfig, DataAccess, OutputOptions) for declared in option_fields(options)
}
_SHARED = {declared.name for options in (NetworkConfig, VerifierConfig) for declared in option_fields(options)}


def _place_in_help(name: str, common: bool) -> int:
    """Return 0 for what a command is about, 1 for what several of them can have, 2 for common options."""
    return 2 if common or name in _COMMON else int(name in _SHARED)


@contextmanager
def reader_may_leave() -> Iterator[None]:
    """Turn a closed stdout into `ReaderGone`."""
    try:
        yield
    except BrokenPipeError as error:
        raise ReaderGone from error


@dataclasses.dataclass(frozen=True)
class Entry:
    """One option of a command, as the command line and Python offer it.

    `kind` is its type; `default` is `MISSING` where it has to be given, and None for an option of a method, where it
    stands for the method's own; `of_method` says that it is one of these.
    """

    declared: dataclasses.Field[Any]
    kind: Any
    default: Any
    help: str
    of_method: bool = False

    @property
    def name(self) -> str:
        """Its name in Python."""
        return self.declared.name

    @property
    def info(self) -> OptionInfo:
        """What it says about itself."""
        return option_info(self.declared)


def entries(config_type: type[OptionSet]) -> list[Entry]:
    """Return every option of a command: its own, those of its methods, each of which says who takes it, common ones."""
    own = [_entry(declared, config_type) for declared in option_fields(config_type)]
    methods = config_type.methods() if issubclass(config_type, MethodStageConfig) else {}
    entries = own + _method_entries(methods)
    return sorted(entries, key=lambda entry: _place_in_help(entry.name, option_info(entry.declared).common))


def command_function(config_type: type[OptionSet], run: Callable[[Any, OutputOptions], None]) -> Callable[..., None]:
    """Return a function whose signature typer turns into a command with `config_type`'s options.

    Args:
        run: called with the config that was typed, and how to speak.
    """
    speech = [_entry(declared, OutputOptions) for declared in option_fields(OutputOptions)]
    taken = entries(config_type)

    def command(**values: Any) -> None:
        output = OutputOptions(**{entry.name: values.pop(entry.name) for entry in speech})
        chosen = {e.name: values.pop(e.name) for e in taken if e.of_method}
        if issubclass(config_type, MethodStageConfig):
            values["method_options"] = {name: value for name, value in chosen.items() if value is not None}
        with reader_may_leave():
            run(config_type(**values), output)

    ordered = [_parameter(entry) for entry in taken + speech]
    command.__signature__ = inspect.Signature(ordered)  # type: ignore[attr-defined]
    command.__annotations__ = {parameter.name: parameter.annotation for parameter in ordered}
    command.__doc__ = _paragraphs(config_type.__doc__ or "")
    return command


def _paragraphs(docstring: str) -> str:
    """Return a docstring with each paragraph on one line, for the terminal to wrap; indented ones stay as they are."""
    parts = inspect.cleandoc(docstring).split("\n\n")
    return "\n\n".join(part if part.startswith(" ") else " ".join(part.split()) for part in parts)


def _entry(declared: dataclasses.Field[Any], owner: type[OptionSet]) -> Entry:
    return Entry(declared, _type(declared, owner), declared.default, _help(option_info(declared)))


def _help(info: OptionInfo) -> str:
    return info.help if info.choices is None else f"{info.help} One of: {', '.join(info.choices())}."


def _parameter(entry: Entry) -> Parameter:
    default = ... if entry.default is MISSING else entry.default  # typer's word for required
    kind: Any = entry.kind
    annotation = Annotated[kind, _typer_option(entry)]
    return Parameter(entry.name, Parameter.KEYWORD_ONLY, default=default, annotation=annotation)


def _type(declared: dataclasses.Field[Any], owner: type[OptionSet]) -> Any:
    known: Any = owner
    return _types(known)[declared.name]


@functools.cache
def _types(owner: Any) -> dict[str, Any]:
    return typing.get_type_hints(owner)


def _typer_option(entry: Entry) -> Any:
    name, info, default = entry.name, entry.info, entry.declared.default
    if info.positional:
        return typer.Argument(help=info.help, metavar=name.upper(), show_default=False)
    names = [spelling(name)]
    if name in ("quiet", "verbose"):
        names.append(f"-{name[0]}")
    if default is True or (default is None and bool in typing.get_args(entry.kind)):
        names = [f"{spelling(name)}/--no-{name.replace('_', '-')}"]
    panel = "Common options" if _place_in_help(name, info.common) == 2 else None
    return typer.Option(
        *names,
        help=entry.help,
        metavar=info.metavar,
        envvar=info.env,
        show_default=entry.default is not None,
        rich_help_panel=panel,
    )


def _method_entries(methods: dict[str, type[OptionSet]]) -> list[Entry]:
    """Return one optional entry per option of any method; two methods' options of one name must agree in type, but
    for None, where one of them has no default of its own."""
    takers: dict[str, list[str]] = {}
    declared_as: dict[str, tuple[dataclasses.Field[Any], Any]] = {}
    defaults: dict[str, dict[str, str]] = {}
    for method_name, options in methods.items():
        for declared in option_fields(options):
            kind = _type(declared, options)
            known = declared_as.setdefault(declared.name, (declared, kind))
            assert _required(known[1]) == _required(kind), f"{declared.name} has two types"
            takers.setdefault(declared.name, []).append(method_name)
            said = option_info(declared).otherwise if declared.default is None else _spell(declared.default)
            if said is not None:
                defaults.setdefault(declared.name, {})[method_name] = said
    return [
        _method_entry(declared, kind, takers[name], defaults.get(name, {}), len(methods))
        for name, (declared, kind) in declared_as.items()
    ]


def _method_entry(
    declared: dataclasses.Field[Any], kind: Any, takers: list[str], defaults: dict[str, str], num_methods: int
) -> Entry:
    help_text = option_info(declared).help
    if len(takers) < num_methods:
        help_text += f" Only for {', '.join(takers)}."
    if defaults:
        help_text += f" Default: {_describe(defaults)}."
    choices = option_info(declared).choices
    if choices is not None:
        help_text += f" One of: {', '.join(choices())}."
    return Entry(declared, kind if _is_optional(kind) else kind | None, None, help_text, of_method=True)


def _describe(defaults: dict[str, str]) -> str:
    """Say the usual default, and which methods have another."""
    said = list(defaults.values())
    usual = max(said, key=said.count)
    others = [text for text in dict.fromkeys(said) if text != usual]
    return "; ".join([usual, *(f"{', '.join(name for name in defaults if defaults[name] == t)}: {t}" for t in others)])


def _spell(value: Any) -> str:
    if isinstance(value, bool):
        return "on" if value else "off"
    return f"{value:g}" if isinstance(value, float) else str(value)


def _required(kind: Any) -> Any:
    """Return a type without its None."""
    return next(part for part in typing.get_args(kind) if part is not type(None)) if _is_optional(kind) else kind


def _is_union(kind: Any) -> bool:
    return isinstance(kind, types.UnionType)


def _is_optional(kind: Any) -> bool:
    return _is_union(kind) and type(None) in typing.get_args(kind)


def config_from_options(config_type: type[OptionSet], options: dict[str, Any]) -> Any:
    """Build a config from keyword arguments of a Python call; what a method takes is told apart by name.

    Texts do for paths, paths for texts, and whole numbers for numbers.

    Raises:
        UsageError: an option that the command does not have, one that is missing, or a value of another type.
    """
    taken = {entry.name: entry for entry in entries(config_type)}
    for name in options:
        if name not in taken:
            raise UsageError(f"unknown option {name!r}.{did_you_mean(name, taken)}")
    for name, entry in taken.items():
        if entry.default is MISSING and name not in options:
            raise UsageError(f"{name} is missing")
    values = {name: coerced(name, value, taken[name].kind) for name, value in options.items()}
    own = {name: value for name, value in values.items() if not taken[name].of_method}
    if issubclass(config_type, MethodStageConfig):
        chosen = {name: value for name, value in values.items() if name not in own and value is not None}
        return config_type(**own, method_options=chosen)
    return config_type(**own)
