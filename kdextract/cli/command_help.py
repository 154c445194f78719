"""The help of a command: options in panels, and those of a method if the command line names one."""

from __future__ import annotations

import shutil
import textwrap
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any, ClassVar

import typer
from typer.core import TyperCommand

from ..errors import UsageError, did_you_mean
from ..options.declare import PANELS, MethodStageConfig, OptionSet, spelling
from ..options.entries import Entry, OutputOptions, choices_text, entries, entries_of, value_text, with_negative
from ..options.former import what_became_of

HelpRow = tuple[str, str]
"""An option as it is typed, and its help text."""

LEFT = 22
"""Width of the column of options; a longer option is put on a separate line."""
WIDEST = 120
"""Maximum width of the help text, in columns."""
_TYPED_WORDS = "kdx.words"
_HELP = ("-h, --help", "Show this help.")


def command_class(config_type: type[OptionSet]) -> type[TyperCommand]:
    """Return the class of the command that has the options of `config_type`."""
    return type("Command", (_CommandWithPanels,), {"config_type": config_type})


class _CommandWithPanels(TyperCommand):
    config_type: ClassVar[type[OptionSet]]

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        ctx.meta[_TYPED_WORDS] = list(args)
        try:
            return super().parse_args(ctx, args)
        except Exception as error:
            became = what_became_of(getattr(error, "option_name", None) or "")
            if became is None:
                raise
            raise UsageError(became) from error

    def format_options(self, ctx: Any, formatter: Any) -> None:
        method = _method_in(self.config_type, ctx.meta.get(_TYPED_WORDS, []))
        for panel, rows in panels(self.config_type, method):
            formatter.write("\n" + typer.style(f"{panel}:", bold=True) + "\n" + layout(rows) + "\n")
        if method is None and issubclass(self.config_type, MethodStageConfig):
            hint = _method_help_hint(ctx.command_path, self.config_type)
            formatter.write("\n" + textwrap.fill(hint, _width(), break_on_hyphens=False) + "\n")


def panels(config_type: type[OptionSet], method: str | None = None) -> list[tuple[str, list[HelpRow]]]:
    """Return the options of a command's help by panel: those of the command and those that all its methods take.

    Args:
        method: a method of the command, whose options form one more panel; None for no method.
    """
    shown = [entry for entry in entries(config_type) if entry.info.panel != "Method"]
    shown += entries_of(OutputOptions)
    own: list[Entry] = []
    if method is not None:
        assert issubclass(config_type, MethodStageConfig)
        own = entries_of(config_type.methods().get(method, OptionSet))
        of_method = {entry.name for entry in own}
        shown = [entry for entry in shown if not entry.of_method or entry.name not in of_method]
        usual = {name: value_text(value) for name, value in config_type.method_defaults(method).items()}
        shown = [replace(entry, default_text=usual.get(entry.name, entry.default_text)) for entry in shown]
    found = [(panel, [_help_row(entry) for entry in shown if entry.info.panel == panel]) for panel in PANELS]
    if own:
        found.insert(PANELS.index("Method"), (f"Options of {method}", option_rows(own)))
    return [(panel, [*rows, _HELP] if panel == "Output" else rows) for panel, rows in found if rows]


def option_rows(shown: Sequence[Entry]) -> list[HelpRow]:
    """Return options as help lists them."""
    return [_help_row(entry) for entry in shown]


def layout(rows: Sequence[HelpRow]) -> str:
    """Return options in two columns, as wide as the terminal, or 80 columns without a terminal."""
    indent = " " * (LEFT + 4)
    lines = []
    for typed, text in rows:
        wrapped = textwrap.wrap(text, _width() - len(indent), break_on_hyphens=False) or [""]
        if len(typed) > LEFT:
            lines += [f"  {typed}", indent + wrapped[0]]
        else:
            lines += [f"  {typed:<{LEFT}}  {wrapped[0]}".rstrip()]
        lines += [indent + line for line in wrapped[1:]]
    return "\n".join(lines)


def _width() -> int:
    return max(60, min(shutil.get_terminal_size().columns, WIDEST))


def _help_row(entry: Entry) -> HelpRow:
    typed, text = _option_as_typed(entry), entry.info.help
    short = f"{spelling(entry.name)} {'|'.join(entry.info.choices())}" if entry.info.choices is not None else ""
    if short and len(short) <= LEFT and not entry.info.positional:
        typed = short
    else:
        text += choices_text(entry.info)
    notes = [] if entry.default_text is None else [f"default: {entry.default_text}"]
    notes += [] if entry.info.env is None else [f"or {entry.info.env}"]
    return typed, text + (f" [{'; '.join(notes)}]" if notes else "")


def _option_as_typed(entry: Entry) -> str:
    """Return an option as it is typed: `--lr N`, `--[no-]flip`, `-q, --quiet`, `ARTIFACT`."""
    name, info = entry.name, entry.info
    if info.positional:
        return name.upper()
    if name in ("quiet", "verbose"):
        return f"-{name[0]}, {spelling(name)}"
    if bool in entry.kinds:
        return f"--[no-]{name.replace('_', '-')}" if with_negative(entry) else spelling(name)
    usual = {int: "N", float: "N", Path: "PATH"}
    return f"{spelling(name)} {info.metavar or next((usual[k] for k in entry.kinds if k in usual), 'NAME')}"


def _method_in(config_type: type[OptionSet], words: list[str]) -> str | None:
    """Return the method that the arguments name, None if they name none.

    Raises:
        UsageError: there is no such method.
    """
    if not issubclass(config_type, MethodStageConfig):
        return None
    (chooser,) = [entry for entry in entries_of(config_type) if entry.name == config_type.chooser]
    typed = spelling(chooser.name)
    if chooser.info.positional:
        return next((word for word in words if word in config_type.methods()), None)
    given = [word.removeprefix(f"{typed}=") for word in words if word.startswith(f"{typed}=")]
    given += [value for word, value in pairwise(words) if word == typed]
    assert chooser.info.choices is not None
    known = chooser.info.choices()
    if given and given[-1] not in known:
        raise UsageError(f"unknown value {given[-1]!r} of {typed}.{did_you_mean(given[-1], known)}")
    return given[-1] if given else None


def _method_help_hint(command: str, config_type: type[MethodStageConfig]) -> str:
    chooser = config_type.chooser
    positional = any(entry.info.positional for entry in entries_of(config_type) if entry.name == chooser)
    named = "METHOD" if positional else f"{spelling(chooser)} NAME"
    return f"For the options of one method: {command} {named} --help, or kdx methods NAME."
