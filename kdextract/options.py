"""Turns a config dataclass into a command: its options are defined once, in the dataclass."""

from __future__ import annotations

import dataclasses
import inspect
import types
import typing
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

from .config import (
    DataAccess,
    MethodStageConfig,
    NamedStageConfig,
    OptionInfo,
    OptionSet,
    option,
    option_fields,
    option_info,
    spelling,
)
from .errors import ReaderGone, UsageError
from .progress import Reporter
from .stage_runner import Outcome, Stage, run_stage

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


@contextmanager
def reader_may_leave() -> Iterator[None]:
    """Turn a closed stdout into `ReaderGone`."""
    try:
        yield
    except BrokenPipeError as error:
        raise ReaderGone from error


def command_function(
    config_type: type[OptionSet],
    run: Callable[[Any, OutputOptions], None],
    methods: dict[str, type[OptionSet]] | None = None,
) -> Callable[..., None]:
    """Return a function whose signature typer turns into a command with `config_type`'s options.

    Args:
        run: called with the config that was typed, and how to speak.
        methods: for a `MethodStageConfig`, each method's options; they are offered together, and the help of each
            says which methods take it.
    """
    parameters = [_parameter(declared, config_type) for declared in option_fields(config_type)]
    own = {parameter.name for parameter in parameters}
    extra = _method_parameters(methods or {})
    extra += [_parameter(declared, OutputOptions) for declared in option_fields(OutputOptions)]

    def command(**values: Any) -> None:
        output = OutputOptions(
            **{declared.name: values.pop(declared.name) for declared in option_fields(OutputOptions)}
        )
        given = {name: values.pop(name) for name in list(values) if name not in own}
        chosen = {name: value for name, value in given.items() if value is not None}
        if issubclass(config_type, MethodStageConfig):
            values["method_options"] = chosen
        with reader_may_leave():
            run(config_type(**values), output)

    ordered = sorted(parameters + extra, key=lambda parameter: parameter.name in _COMMON)
    command.__signature__ = inspect.Signature(ordered)  # type: ignore[attr-defined]
    command.__annotations__ = {parameter.name: parameter.annotation for parameter in ordered}
    command.__doc__ = _paragraphs(config_type.__doc__ or "")
    return command


def _paragraphs(docstring: str) -> str:
    """Return a docstring with each paragraph on one line, for the terminal to wrap; indented ones stay as they are."""
    parts = inspect.cleandoc(docstring).split("\n\n")
    return "\n\n".join(part if part.startswith(" ") else " ".join(part.split()) for part in parts)


def _parameter(declared: dataclasses.Field[Any], owner: type[OptionSet]) -> Parameter:
    info = option_info(declared)
    kind: Any = _type(declared, owner)
    default = ... if declared.default is dataclasses.MISSING else declared.default  # typer's word for required
    annotation = Annotated[kind, _typer_option(declared.name, info, kind, default, info.help)]
    return Parameter(declared.name, Parameter.KEYWORD_ONLY, default=default, annotation=annotation)


def _type(declared: dataclasses.Field[Any], owner: type[OptionSet]) -> Any:
    return typing.get_type_hints(owner)[declared.name]


def _typer_option(name: str, info: OptionInfo, kind: Any, default: Any, help_text: str) -> Any:
    if info.positional:
        return typer.Argument(help=help_text, metavar=name.upper(), show_default=False)
    names = [spelling(name)]
    if name in ("quiet", "verbose"):
        names.append(f"-{name[0]}")
    if default is True or (default is None and bool in typing.get_args(kind)):
        names = [f"{spelling(name)}/--no-{name.replace('_', '-')}"]
    if info.choices is not None:
        help_text = f"{help_text} One of: {', '.join(info.choices())}."
    panel = "Common options" if name in _COMMON else None
    return typer.Option(
        *names,
        help=help_text,
        metavar=info.metavar,
        envvar=info.env,
        show_default=default is not None,
        rich_help_panel=panel,
    )


def _method_parameters(methods: dict[str, type[OptionSet]]) -> list[Parameter]:
    """Return one optional parameter per option of any method; two methods' options of one name must agree in type, but
    for None, where one of them has no default of its own."""
    takers: dict[str, list[str]] = {}
    declared_as: dict[str, tuple[dataclasses.Field[Any], Any]] = {}
    defaults: dict[str, dict[str, Any]] = {}
    for method_name, options in methods.items():
        for declared in option_fields(options):
            kind = _type(declared, options)
            known = declared_as.setdefault(declared.name, (declared, kind))
            assert _required(known[1]) == _required(kind), f"{declared.name} has two types"
            takers.setdefault(declared.name, []).append(method_name)
            defaults.setdefault(declared.name, {})[method_name] = declared.default
    return [
        _method_parameter(declared, kind, takers[name], defaults[name], len(methods))
        for name, (declared, kind) in declared_as.items()
    ]


def _method_parameter(
    declared: dataclasses.Field[Any], kind: Any, takers: list[str], defaults: dict[str, Any], num_methods: int
) -> Parameter:
    info = option_info(declared)
    help_text = info.help
    if len(takers) < num_methods:
        help_text += f" Only for {', '.join(takers)}."
    if any(value is not None for value in defaults.values()):
        help_text += f" Default: {_describe(defaults)}."
    option = _typer_option(declared.name, info, kind, declared.default, help_text)
    option.show_default = False
    optional: Any = kind if _is_optional(kind) else kind | None
    return Parameter(declared.name, Parameter.KEYWORD_ONLY, default=None, annotation=Annotated[optional, option])


def _describe(defaults: dict[str, Any]) -> str:
    """Say the usual default, and which methods have another."""
    values = list(defaults.values())
    usual = max(values, key=values.count)
    others = [f"{name}: {_spell(value)}" for name, value in defaults.items() if value != usual]
    return "; ".join([_spell(usual), *others])


def _spell(value: Any) -> str:
    return {True: "on", False: "off"}[value] if isinstance(value, bool) else str(value)


def _required(kind: Any) -> Any:
    """Return a type without its None."""
    return next(part for part in typing.get_args(kind) if part is not type(None)) if _is_optional(kind) else kind


def _is_optional(kind: Any) -> bool:
    return isinstance(kind, types.UnionType) and type(None) in typing.get_args(kind)


def config_from_options(config_type: type[OptionSet], options: dict[str, Any]) -> Any:
    """Build a config from keyword arguments of a Python call; what a method takes is told apart by name.

    Raises:
        UsageError: an option that the command does not have.
    """
    declared = {d.name: d for d in option_fields(config_type)}
    own = {name: value for name, value in options.items() if name in declared}
    rest = {name: value for name, value in options.items() if name not in declared}
    for name, value in own.items():
        if declared[name].type in ("Path", Path) and isinstance(value, str):
            own[name] = Path(value)
    for name, field in declared.items():
        if field.default is dataclasses.MISSING and name not in own:
            raise UsageError(f"{name} is missing")
    if issubclass(config_type, MethodStageConfig):
        own["method_options"] = rest
    elif rest:
        raise UsageError(f"unknown option {next(iter(rest))!r}; known: {', '.join(declared)}")
    return config_type(**own)


def stage_function(stage: Stage[Any]) -> Callable[..., Outcome]:
    """Return the Python function of a stage: the command's options as keyword arguments, an `Outcome` as result."""

    def call(**options: Any) -> Outcome:
        config = config_from_options(stage.config, options)
        outcome = run_stage(stage, config, Reporter(quiet=True))
        stage.check(config, outcome)
        return outcome

    call.__name__ = stage.name.replace("-", "_")
    call.__doc__ = inspect.cleandoc(stage.config.__doc__ or "")
    return call
