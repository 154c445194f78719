"""The options of a command for help, command line and Python, and configs from the options of Python calls."""

from __future__ import annotations

import dataclasses
import functools
import inspect
import re
import types
import typing
from collections.abc import Iterable
from dataclasses import MISSING
from typing import Any

from ..errors import UsageError, did_you_mean
from .declare import (
    PANELS,
    MethodStageConfig,
    OptionInfo,
    OptionSet,
    coerced,
    option,
    option_fields,
    option_info,
)
from .former import what_became_of

Parameter = inspect.Parameter


@dataclasses.dataclass(frozen=True, kw_only=True)
class OutputOptions(OptionSet):
    """Output options shared by all commands."""

    json: bool = option(False, "Print one JSON document on stdout.", panel="Output")
    quiet: bool = option(False, "Print only paths or names of results, and errors.", panel="Output")
    verbose: bool = option(False, "Print the traceback of an error.", panel="Output")


@dataclasses.dataclass(frozen=True)
class Entry:
    """One option of a command, for the command line and for Python.

    `kind` is its type. `default` is `MISSING` for a required option, and None for an option of methods: the default of
    the chosen method applies. `default_text` is the default as help shows it, None if help shows none. `of_method` is
    true for an option of methods.
    """

    declared: dataclasses.Field[Any]
    kind: Any
    default: Any
    help: str
    default_text: str | None
    of_method: bool = False

    @property
    def name(self) -> str:
        """Its name in Python."""
        return self.declared.name

    @property
    def info(self) -> OptionInfo:
        """Its declared properties."""
        return option_info(self.declared)

    @property
    def kinds(self) -> tuple[Any, ...]:
        """The types that its value may have; `NoneType` is one of them for an optional value."""
        return typing.get_args(self.kind) if _is_union(self.kind) else (self.kind,)


def entries(config_type: type[OptionSet]) -> list[Entry]:
    """Return every option of a command, in the order of `declare.PANELS`; within a panel, its own options come
    before shared ones. The help text of an option of some methods names these methods."""
    methods = config_type.methods() if issubclass(config_type, MethodStageConfig) else {}
    found = entries_of(config_type) + _method_entries(methods)
    own = inspect.get_annotations(config_type)
    return sorted(found, key=lambda entry: (PANELS.index(entry.info.panel), entry.name not in own))


def entries_of(options: type[OptionSet]) -> list[Entry]:
    """Return the options of one class, in the order in which they are declared."""
    return [_option_entry(declared, options) for declared in option_fields(options)]


def _option_entry(declared: dataclasses.Field[Any], owner: type[OptionSet]) -> Entry:
    info = option_info(declared)
    said = _default_text(declared)
    text = info.help if info.otherwise is None else f"{info.help} Default: {info.otherwise}."
    return Entry(declared, _option_type(declared, owner), declared.default, text + choices_text(info), said)


def choices_text(info: OptionInfo) -> str:
    """Return the allowed values as a sentence, '' where the help text names each of them or the command that does."""
    choices = [] if info.choices is None else info.choices()
    named = all(re.search(rf"\b{re.escape(choice)}\b", info.help) for choice in choices)
    return "" if named or "` lists them" in info.help else f" One of: {', '.join(choices)}."


def _default_text(declared: dataclasses.Field[Any]) -> str | None:
    """Return the default as help shows it; None for a required option, a switch that is off, and no default."""
    default = declared.default
    if default is None:
        return option_info(declared).otherwise
    return None if default is MISSING or default is False else value_text(default)


def _option_type(declared: dataclasses.Field[Any], owner: type[OptionSet]) -> Any:
    known: Any = owner
    return _option_types(known)[declared.name]


@functools.cache
def _option_types(owner: Any) -> dict[str, Any]:
    return typing.get_type_hints(owner)


def with_negative(entry: Entry) -> bool:
    """Return whether the option is a switch with a form `--no-NAME`."""
    default = entry.declared.default
    return default is True or (default is None and bool in entry.kinds)


def _method_entries(methods: dict[str, type[OptionSet]]) -> list[Entry]:
    """Return one optional entry per option of any method; options of the same name must have the same
    type, except that None may be allowed for only some of the methods."""
    takers: dict[str, list[str]] = {}
    declared_as: dict[str, tuple[dataclasses.Field[Any], Any]] = {}
    defaults: dict[str, dict[str, str]] = {}
    for method_name, options in methods.items():
        for declared in option_fields(options):
            kind = _option_type(declared, options)
            known = declared_as.setdefault(declared.name, (declared, kind))
            assert _required(known[1]) == _required(kind), f"{declared.name} has two types"
            takers.setdefault(declared.name, []).append(method_name)
            said = option_info(declared).otherwise if declared.default is None else value_text(declared.default)
            if said is not None:
                defaults.setdefault(declared.name, {})[method_name] = said
    return [
        _method_entry(declared, kind, takers[name], defaults.get(name, {}), len(methods))
        for name, (declared, kind) in declared_as.items()
    ]


def _method_entry(
    declared: dataclasses.Field[Any], kind: Any, takers: list[str], defaults: dict[str, str], num_methods: int
) -> Entry:
    info, said = option_info(declared), _defaults_text(defaults) if defaults else None
    text = info.help if len(takers) == num_methods else f"{info.help} Only for {', '.join(takers)}."
    text += "" if said is None else f" Default: {said}."
    optional = kind if _is_optional(kind) else kind | None
    return Entry(declared, optional, None, text + choices_text(info), said, of_method=True)


def _defaults_text(defaults: dict[str, str]) -> str:
    """Return the most frequent default, and the methods with a different one."""
    said = list(defaults.values())
    usual = max(said, key=said.count)
    others = [text for text in dict.fromkeys(said) if text != usual]
    return "; ".join([usual, *(f"{', '.join(name for name in defaults if defaults[name] == t)}: {t}" for t in others)])


def value_text(value: Any) -> str:
    """Return a default as help shows it."""
    if isinstance(value, bool):
        return "on" if value else "off"
    return f"{value:g}" if isinstance(value, float) else str(value)


def _required(kind: Any) -> Any:
    """Return a type without None."""
    return next(part for part in typing.get_args(kind) if part is not type(None)) if _is_optional(kind) else kind


def _is_union(kind: Any) -> bool:
    return isinstance(kind, types.UnionType)


def _is_optional(kind: Any) -> bool:
    return _is_union(kind) and type(None) in typing.get_args(kind)


def config_from_options(config_type: type[OptionSet], options: dict[str, Any]) -> Any:
    """Build a config from keyword arguments of a Python call; options of methods are recognized by name.

    Values are converted as by `coerced`.

    Raises:
        UsageError: an unknown option, a missing option, or a value of the wrong type.
    """
    taken = {entry.name: entry for entry in entries(config_type)}
    for name in options:
        if name not in taken:
            raise unknown_option(name, taken)
    for name, entry in taken.items():
        if entry.default is MISSING and name not in options:
            raise UsageError(f"{name} is missing")
    values = {name: coerced(name, value, taken[name].kind) for name, value in options.items()}
    own = {name: value for name, value in values.items() if not taken[name].of_method}
    if issubclass(config_type, MethodStageConfig):
        chosen = {name: value for name, value in values.items() if name not in own and value is not None}
        return config_type(**own, method_options=chosen)
    return config_type(**own)


def unknown_option(name: str, known: Iterable[str], where: str = "") -> UsageError:
    """Return the error for an option that is not in `known`; for an option of an earlier version, what replaced it.

    Args:
        where: follows the name of the option in the message, such as ` of kdx train`.
    """
    became = what_became_of(name)
    return UsageError(became or f"unknown option {name!r}{where}.{did_you_mean(name, list(known))}")
