"""All commands of `kdx` by name. The command line and `kdextract.api` are made from this table.

A stage (`stages.running.runner.Stage`) writes an artifact; `command_of_stage` makes a `Command` of each. The other
commands are defined in this package.
"""

from __future__ import annotations

from typing import Any

from ..options.entries import OutputOptions
from ..stages import STAGES
from ..stages.running.outcome import Outcome
from ..stages.running.runner import Stage, run_stage
from .benchmark import BENCHMARK
from .check_teacher import CHECK_TEACHER
from .command import Command
from .demo import DEMO
from .listing import METHODS, MODELS
from .printing import print_line, print_outcome
from .show import RUNS, SHOW, VERIFY


def command_of_stage(stage: Stage[Any, Any]) -> Command:
    """Return the command that runs a stage."""

    def show(config: Any, outcome: Outcome, output: OutputOptions) -> None:
        if output.quiet:
            print_line(str(outcome.directory))
        else:
            print_outcome(stage.name, outcome)

    return Command(
        stage.config,
        lambda config, reporter: run_stage(stage, config, reporter),
        show,
        stage.check,
        lambda outcome: {"command": stage.name, **outcome.record()},
        "Outcome: the directory of the artifact, its manifest, metrics and files.",
    )


COMMANDS: dict[str, Command] = {
    **{name: command_of_stage(stage) for name, stage in STAGES.items()},
    "demo": DEMO,
    "benchmark": BENCHMARK,
    "show": SHOW,
    "runs": RUNS,
    "verify": VERIFY,
    "check-teacher": CHECK_TEACHER,
    "models": MODELS,
    "methods": METHODS,
}
