"""Every command, in one shape: the command line and Python are made from this list."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from .benchmark.command import BenchmarkConfig, benchmark, print_benchmark, refuse_failures
from .config import OptionSet
from .inspection import COMMANDS as LOOKS
from .looks import Json, Look
from .notebook import Record
from .options import OutputOptions
from .outcome import Outcome
from .progress import Reporter
from .report.tables import print_line, print_outcome
from .stage_runner import Stage, run_stage
from .stages import STAGES
from .stages.demo import DemoConfig, DemoResult, demo


@dataclass(frozen=True)
class Command:
    """A command of `kdx`, and a function of `kdextract.api`.

    `call` does it and returns its result, of which `returns` says what it is; `show` prints the result for people,
    `record` is the document that `--json` prints; `check` judges it after it was shown, and raises what the exit code
    is to be.
    """

    config: type[OptionSet]
    returns: str
    call: Callable[[Any, Reporter], Any]
    show: Callable[[Any, Any, OutputOptions], None]
    record: Callable[[Any], Json]
    check: Callable[[Any, Any], None] = lambda config, result: None


def _of_stage(stage: Stage[Any, Any]) -> Command:
    def show(config: Any, outcome: Outcome, output: OutputOptions) -> None:
        if output.quiet:
            print_line(str(outcome.directory))
        else:
            print_outcome(stage.name, outcome)

    return Command(
        stage.config,
        "Outcome: where the artifact is, its manifest, metrics, files, and what they hold.",
        lambda config, reporter: run_stage(stage, config, reporter),
        show,
        lambda outcome: {"command": stage.name, **outcome.record()},
        stage.check,
    )


def _of_look(look: Look) -> Command:
    def call(config: Any, reporter: Reporter) -> Record:
        return Record(look.gather(config))

    return Command(look.config, "Record: the dict that --json prints.", call, look.show, dict, look.check)


def _show_demo(config: DemoConfig, result: DemoResult, output: OutputOptions) -> None:
    if output.quiet:
        print_line(str(config.run))
    else:
        result.print()


COMMANDS: dict[str, Command] = {
    **{name: _of_stage(stage) for name, stage in STAGES.items()},
    "demo": Command(
        DemoConfig,
        "DemoResult: the Outcome of every stage, by its name.",
        demo,
        _show_demo,
        lambda result: {"command": "demo", **result.record()},
    ),
    "benchmark": Command(
        BenchmarkConfig,
        "Results: the dict that --json prints.",
        benchmark,
        print_benchmark,
        dict,
        refuse_failures,
    ),
    **{name: _of_look(look) for name, look in LOOKS.items()},
}
