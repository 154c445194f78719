"""Every command, in one shape: the command line and Python are made from this list."""

from __future__ import annotations

from typing import Any

from ..options.entries import OutputOptions
from ..stages import STAGES
from ..stages.running.outcome import Outcome
from ..stages.running.runner import Stage, run_stage
from .benchmark import BenchmarkConfig, benchmark, print_benchmark, refuse_failures
from .command import Command
from .demo import DemoConfig, DemoResult, demo
from .printing import print_line, print_outcome
from .show import COMMANDS as INSPECTING


def of_stage(stage: Stage[Any, Any]) -> Command:
    """Return the command that runs a stage, and so writes an artifact."""

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
        "Outcome: where the artifact is, its manifest, metrics, files, and what they hold.",
    )


def _show_demo(config: DemoConfig, result: DemoResult, output: OutputOptions) -> None:
    if output.quiet:
        print_line(str(config.run))
    else:
        result.print()


COMMANDS: dict[str, Command] = {
    **{name: of_stage(stage) for name, stage in STAGES.items()},
    "demo": Command(
        DemoConfig,
        demo,
        _show_demo,
        record=lambda result: {"command": "demo", **result.record()},
        returns="DemoResult: the Outcome of every stage, by its name.",
    ),
    "benchmark": Command(
        BenchmarkConfig,
        benchmark,
        print_benchmark,
        refuse_failures,
        returns="Results: the dict that --json prints.",
    ),
    **INSPECTING,
}
