"""The commands that list the network architectures and the methods."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ..errors import UsageError, did_you_mean
from ..methods import LiveMethod, SynthesisMethod, every_method
from ..options.declare import OptionSet, RunConfig, option, spelling
from ..options.entries import OutputOptions, entries_of, value_text
from ..stages.running.figures import figure
from ..stages.running.html import Record
from ..storage.run_dir import RUN_FILE, RunDir
from ..training.progress import Reporter
from .command import Command, Json
from .command_help import layout, option_rows
from .printing import print_line, print_table


@dataclass(frozen=True, kw_only=True)
class ModelsConfig(OptionSet):
    """List the network architectures.

    Parameters and multiply-adds are for the architecture's own input size and ten classes.

    Examples:

      kdx models
      kdx models --json
    """


@dataclass(frozen=True, kw_only=True)
class MethodsConfig(RunConfig):
    """List the methods, or the options of one.

    Listed are what a method does, what it needs, its source and, in a run directory, what is missing there before the
    method can be used.

    Examples:

      kdx methods
      kdx methods dfq
      kdx methods --run runs/photos --json
    """

    method: str | None = option(None, "Method whose options are listed; default: all methods.", positional=True)


def models(config: ModelsConfig, reporter: Reporter) -> Record:
    """Return every architecture with its size."""
    import torch

    from ..models.architectures import architecture, model_names
    from ..models.hooks import count_multiply_adds

    rows: list[dict[str, Any]] = []
    for name in model_names():
        entry = architecture(name)
        with torch.device("meta"):
            network = entry.build(entry.input_shape, 10)
            multiply_adds = count_multiply_adds(network, torch.zeros(1, *entry.input_shape))
        rows.append(
            {
                "model": name,
                "input": "x".join(map(str, entry.input_shape)),
                "num_parameters": sum(p.numel() for p in network.parameters()),
                "multiply_adds": multiply_adds,
                "source": entry.source,
            }
        )
    return Record(models=rows)


def show_models(config: ModelsConfig, record: Json, output: OutputOptions) -> None:
    """Print a row per architecture."""
    rows = record["models"]
    if output.quiet:
        print_line("\n".join(row["model"] for row in rows))
    else:
        print_table(list(rows[0]), [[figure(k, v) for k, v in row.items()] for row in rows])


def methods(config: MethodsConfig, reporter: Reporter) -> Record:
    """Return every method with the command that uses it and, for a run, the missing inputs; with `config.method`, only
    this method, with its options.

    Raises:
        UsageError: no method has the name.
    """
    from ..stages.inputs.method_inputs import missing_inputs

    known = {method.name for _, method in every_method()}
    if config.method is not None and config.method not in known:
        raise UsageError(f"unknown method {config.method!r}.{did_you_mean(config.method, sorted(known))}")
    run = RunDir(config.run) if (config.run / RUN_FILE).is_file() else None
    rows: list[Json] = []
    for command, method in every_method():
        if config.method not in (None, method.name):
            continue
        row: Json = {
            "command": command,
            "method": method.name,
            "does": method.summary,
            "needs": method.needs,
            "source": method.source,
        }
        row |= {} if run is None else {"missing": missing_inputs(method, run)}
        if config.method is not None:
            if isinstance(method, LiveMethod) and method.settings:
                row["defaults"] = method.settings
            row["options"] = _options_of(method)
        rows.append(row)
    return Record(methods=rows)


def _options_of(method: SynthesisMethod) -> list[Json]:
    """Return the options of a method as help lists them."""
    return [{"option": typed, "effect": text} for typed, text in option_rows(entries_of(method.config))]


def show_methods(config: MethodsConfig, record: Json, output: OutputOptions) -> None:
    """Print a row per method, or each use of one method with its options."""
    rows = record["methods"]
    if output.quiet:
        print_line("\n".join(dict.fromkeys(row["method"] for row in rows)))
    elif config.method is None:
        print_table(list(rows[0]), [list(row.values()) for row in rows])
    else:
        for number, row in enumerate(rows):
            print_line(("\n" if number else "") + f"kdx {row['command']} {row['method']}")
            for name in ("does", "needs", "source", "missing"):
                if row.get(name):
                    print_line(layout([(name, row[name])]))
            if "defaults" in row:
                words = [f"{spelling(name)} {value_text(value)}" for name, value in row["defaults"].items()]
                print_line(layout([("defaults", " ".join(words))]))
            print_line(layout([(entry["option"], entry["effect"]) for entry in row["options"]]))


MODELS = Command(ModelsConfig, models, show_models)
METHODS = Command(MethodsConfig, methods, show_methods)
