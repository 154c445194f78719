"""Options of commands in a suite: checked against the commands, and converted to command lines."""

from __future__ import annotations

from typing import Any

from ..errors import UsageError
from ..options.declare import (
    DataAccess,
    MethodStageConfig,
    NamedStageConfig,
    OptionSet,
    option_fields,
    option_info,
    spelling,
)
from ..options.entries import config_from_options, unknown_option
from ..options.former import present_names
from ..stages import STAGES

Options = dict[str, Any]
OWN = {declared.name for group in (NamedStageConfig, DataAccess) for declared in option_fields(group)}


def stage_options(stage: str, given: dict[str, Any], where: str) -> Options:
    """Return the options of a command from a table of the suite, by their names with underscores.

    Args:
        given: names, with underscores or hyphens, and TOML values; a renamed option may have its former name.
        where: the table, as an error names it.

    Raises:
        UsageError: an option that the command does not have, or that the benchmark itself sets; a value of the wrong
            type, or one that the command refuses.
    """
    options = present_names({name.replace("-", "_"): value for name, value in given.items()})
    config_type = STAGES[stage].config
    for name in OWN & options.keys():
        raise UsageError(f"{where}: {name} is set by the benchmark itself, for every {stage}")
    own = [declared.name for declared in option_fields(config_type) if declared.name not in OWN]
    try:
        config = config_from_options(config_type, {name: value for name, value in options.items() if name in own})
        of_method = option_fields(config.chosen_method()[1]) if isinstance(config, MethodStageConfig) else []
        known = [*own, *(declared.name for declared in of_method)]
        for name in options:
            if name not in known:
                raise unknown_option(name, known, f" of kdx {stage}")
        stage_config(stage, options)
    except UsageError as error:
        raise UsageError(f"{where}: {error}") from error
    return options


def stage_config(stage: str, options: Options) -> Any:
    """Return the config of a command with these options. Raises `UsageError` as the command does."""
    config = config_from_options(STAGES[stage].config, options)
    if isinstance(config, MethodStageConfig):
        config.method_config()
    return config


def arguments(config: OptionSet, options: Options) -> list[str]:
    """Return options as arguments: `--lr 0.001 --flip --no-spectral`; `config` is made from them."""
    positional = {declared.name for declared in option_fields(config) if option_info(declared).positional}
    defaults = {declared.name: declared.default for declared in option_fields(config)}
    if isinstance(config, MethodStageConfig):
        defaults |= {declared.name: declared.default for declared in option_fields(config.method_config())}
    words: list[str] = []
    for name, value in options.items():
        if name in positional:
            words.insert(0, str(value))
        elif isinstance(value, bool):
            if value:
                words.append(spelling(name))
            elif defaults[name] is not False:  # a switch that is off by default has no --no- form
                words.append(f"--no-{name.replace('_', '-')}")
        else:
            words += [spelling(name), str(value)]
    return words
