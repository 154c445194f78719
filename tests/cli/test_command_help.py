"""Help: options in panels, options of a method with the method, plain text of 80 columns."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from conftest import kdx
from typer.main import get_command
from typer.testing import CliRunner

from kdextract import api
from kdextract.cli import app as cli
from kdextract.cli.command_help import HelpRow, panels
from kdextract.cli.commands import COMMANDS
from kdextract.errors import UsageError
from kdextract.methods import every_method, live_method
from kdextract.options.declare import PANELS, MethodStageConfig
from kdextract.options.entries import OutputOptions, entries, entries_of

CLICK = get_command(cli.app).commands  # type: ignore[attr-defined]
MOST_LINES = 40
WITH_METHODS = {
    name: command.config for name, command in COMMANDS.items() if issubclass(command.config, MethodStageConfig)
}
METHODS = [(command, method) for command, config in WITH_METHODS.items() for method in config.methods()]


def names(rows: list[HelpRow]) -> set[str]:
    """Return the names of options of these rows, spelled as in Python."""
    typed = [re.sub(r"^-\w, ", "", typed).split()[0].replace("[no-]", "") for typed, _ in rows]
    return {name.removeprefix("--").replace("-", "_").lower() for name in typed} - {"help"}


def named(command: str, method: str) -> list[str]:
    """Return the arguments that select a method of a command."""
    options = {"distill": "--method", "extend": "--method", "prune": "--method", "optimize-dataset": "--objective"}
    return [*([options[command]] if command in options else []), method]


@pytest.mark.parametrize("command", COMMANDS)
def test_general_help_has_few_options_and_loses_none(command: str) -> None:
    config = COMMANDS[command].config
    rows = [row for _, rows in panels(config) for row in rows]
    methods = config.methods() if issubclass(config, MethodStageConfig) else {}
    in_methods = {entry.name for options in methods.values() for entry in entries_of(options)}
    everything = {entry.name for entry in entries(config) + entries_of(OutputOptions)}
    assert names(rows) | in_methods == everything
    own = {entry.name for entry in entries_of(config)} | {entry.name for entry in entries_of(OutputOptions)}
    for name in names(rows) - own:
        assert all(name in {entry.name for entry in entries_of(options)} for options in methods.values()), name


@pytest.mark.parametrize("command", COMMANDS)
def test_the_options_of_the_general_help_take_few_lines(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    blocks = CliRunner().invoke(cli.app, [command, "--help"]).stdout.split("\n\n")
    options = [block.splitlines()[1:] for block in blocks if block.split(":")[0] in PANELS]
    lines = [line for block in options for line in block]
    assert lines
    assert max(map(len, lines)) <= 80
    assert len(lines) <= MOST_LINES


@pytest.mark.parametrize("command", COMMANDS)
def test_every_option_has_a_panel(command: str) -> None:
    own = {entry.name for entry in entries_of(COMMANDS[command].config)}
    for parameter in CLICK[command].params:
        if parameter.name == "help":
            continue
        assert parameter.rich_help_panel in PANELS, parameter.name
        if parameter.name in own:
            assert parameter.rich_help_panel != "Method", f"{parameter.name} has no panel of its own"


@pytest.mark.parametrize(("command", "method"), METHODS)
def test_the_options_of_a_method_are_shown_with_it(command: str, method: str) -> None:
    config = WITH_METHODS[command]
    taken = {entry.name for entry in entries_of(config.methods()[method])}
    found = dict(panels(config, method))
    assert names(found[f"Options of {method}"]) == taken
    listed = "distill" if command in ("extend", "prune") else command  # they take the same methods
    (row,) = [row for row in api.methods(method)["methods"] if row["command"].startswith(listed)]
    assert [(entry["option"], entry["effect"]) for entry in row["options"]] == found[f"Options of {method}"]
    others = {name for options in config.methods().values() for name in (e.name for e in entries_of(options))}
    own = {entry.name for entry in entries_of(config)}
    assert not names([row for rows in found.values() for row in rows]) & (others - taken - own)


@pytest.mark.parametrize("way", ["{} {}", "{}={}"])
def test_help_of_a_method_gives_its_own_defaults(tmp_path: Path, way: str) -> None:
    general = kdx("distill", "--help", cwd=tmp_path).stdout
    shown = kdx("distill", *way.format("--method", "dfq").split(), "--help", cwd=tmp_path).stdout
    flat = " ".join(shown.split())
    assert "--student-steps N Student steps per generator step. [default: 10]" in flat
    assert f"[default: {live_method('dfq').settings['temperature']:g}]" in flat.split("--temperature N")[1][:150]
    assert "--student-steps" not in general
    assert "or by method" in " ".join(general.split())
    assert "--repeat" not in shown
    assert "kdx distill --method NAME --help, or kdx methods NAME." in " ".join(general.split())


def test_the_positional_method_is_found(tmp_path: Path) -> None:
    general = kdx("train-generator", "--help", cwd=tmp_path).stdout
    shown = kdx("train-generator", "--samples", "10", "keflow", "--help", cwd=tmp_path).stdout
    assert "  --flow NAME" in shown
    assert "  --flow NAME" not in general
    assert "--generators" in general, "every method takes it"


def test_help_of_an_unknown_method_is_an_error(tmp_path: Path) -> None:
    done = kdx("distill", "--method", "dfqq", "--help", cwd=tmp_path)
    assert done.returncode == 2
    assert "Did you mean 'dfq'" in done.stderr
    assert done.stdout == ""
    with pytest.raises(UsageError, match="Did you mean 'dfq'"):
        api.methods("dfqq")


@pytest.mark.parametrize(("columns", "least"), [("80", 70), ("120", 100)])
def test_piped_help_is_plain_text_of_the_width(tmp_path: Path, columns: str, least: int) -> None:
    text = kdx("distill", "--method", "deep_inversion", "--help", cwd=tmp_path, env={"COLUMNS": columns}).stdout
    widths = [len(line) for line in text.splitlines()]
    assert least <= max(widths) <= int(columns)
    assert not re.search("[\u2500-\u257f\x1b]", text)
    assert text.endswith("\n")
    assert not any(line.endswith(" ") for line in text.splitlines())


def test_methods_lists_one_with_its_options(tmp_path: Path) -> None:
    done = kdx("methods", "dafl", cwd=tmp_path, env={"COLUMNS": "80"})
    assert done.returncode == 0
    assert "kdx train-generator dafl" in done.stdout
    assert "kdx distill --method dafl" in done.stdout
    assert "  defaults                --loss kl --temperature 1 --shift 0 --warp 0\n" in done.stdout
    assert re.search(r"^  --act N +Weight", done.stdout, re.MULTILINE)
    document = json.loads(kdx("methods", "dafl", "--json", cwd=tmp_path).stdout)
    assert {row["method"] for row in document["methods"]} == {"dafl"}
    everything = json.loads(kdx("methods", "--json", cwd=tmp_path).stdout)["methods"]
    assert len(everything) == len(every_method())
    assert "options" not in everything[0]
