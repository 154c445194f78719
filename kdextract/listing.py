"""The commands that list the network architectures and the methods."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from .config import OptionSet, RunConfig
from .looks import Command, Json
from .methods import every_method
from .notebook import Record
from .options import OutputOptions
from .progress import Reporter
from .report.tables import figure, print_line, print_table
from .run_dir import RUN_FILE, RunDir


@dataclass(frozen=True, kw_only=True)
class ListConfig(OptionSet):
    """List the network architectures: parameters and multiply-adds at their own input size and ten classes.

    Examples:

      kdx models

      kdx models --json
    """


@dataclass(frozen=True, kw_only=True)
class MethodsConfig(RunConfig):
    """List the synthesis methods: what each matches, what it needs, where it comes from.

    In a run directory, the column `missing` says what a run has to have before the method can be used.

    Examples:

      kdx methods

      kdx methods --run runs/photos

      kdx methods --json
    """


def models(config: ListConfig, reporter: Reporter) -> Record:
    """Return every architecture with its size."""
    import torch

    from .hooks import count_multiply_adds
    from .models import architecture, model_names

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


def show_models(config: ListConfig, record: Json, output: OutputOptions) -> None:
    """Print a row per architecture."""
    rows = record["models"]
    if output.quiet:
        print_line("\n".join(row["model"] for row in rows))
    else:
        print_table(list(rows[0]), [[figure(k, v) for k, v in row.items()] for row in rows])


def methods(config: MethodsConfig, reporter: Reporter) -> Record:
    """Return every method with the option that chooses it and, for a run, what is missing there to use it."""
    from .stages.materials import missing_inputs

    rows = [
        {"command": command, "method": m.name, "does": m.summary, "needs": m.needs, "source": m.source}
        for command, m in every_method()
    ]
    if (config.run / RUN_FILE).is_file():
        run = RunDir(config.run)
        rows = [{**row, "missing": missing_inputs(m, run)} for row, (_, m) in zip(rows, every_method(), strict=True)]
    return Record(methods=rows)


def show_methods(config: MethodsConfig, record: Json, output: OutputOptions) -> None:
    """Print a row per method."""
    rows = record["methods"]
    if output.quiet:
        print_line("\n".join(dict.fromkeys(row["method"] for row in rows)))
    else:
        print_table(list(rows[0]), [list(row.values()) for row in rows])


COMMANDS = {
    "models": Command(ListConfig, models, show_models),
    "methods": Command(MethodsConfig, methods, show_methods),
}
