"""The `kdx` command line: a command per stage, results on stdout, progress and errors on stderr."""

from __future__ import annotations

import json
import os
import sys
import traceback
from collections.abc import Callable
from typing import Any

import typer
from typer._click.exceptions import ClickException
from typer.main import get_command

from . import __version__
from .benchmark.command import BenchmarkConfig, benchmark
from .config import MethodStageConfig
from .errors import Interrupted, KdxError, ReaderGone, from_os_error
from .inspection import COMMANDS
from .options import OutputOptions, command_function, reader_may_leave
from .progress import Reporter
from .report.tables import print_line, print_outcome
from .stage_runner import Stage, run_stage
from .stages import STAGES
from .stages.demo import DemoConfig, demo

app = typer.Typer(
    name="kdx",
    help="Distil a trained classifier into a smaller one without its training data.",
    epilog="Start with: kdx demo. Exit codes: 0 done, 2 usage, 3 does not fit the run, 4 artifact or data missing or "
    "damaged, 5 gate not met, 6 diverged, 7 out of memory, 8 disk, 9 run locked, 130/143 stopped.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _show_version(value: bool) -> None:
    if value:
        print_line(f"kdx {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: bool = typer.Option(False, "--version", callback=_show_version, is_eager=True, help="Print the version."),
) -> None:
    pass


def _stage_command(stage: Stage[Any]) -> Callable[..., None]:
    def run(config: Any, output: OutputOptions) -> None:
        outcome = run_stage(stage, config, Reporter(quiet=output.quiet))
        if output.json:
            stage.check(config, outcome)
            print(json.dumps({"command": stage.name, **outcome.record()}, indent=2))
            return
        if output.quiet:
            print_line(str(outcome.directory))
        else:
            print_outcome(stage.name, outcome)
        stage.check(config, outcome)

    methods = stage.config.methods() if issubclass(stage.config, MethodStageConfig) else None
    return command_function(stage.config, run, methods)


def _demo_command(config: DemoConfig, output: OutputOptions) -> None:
    result = demo(config, Reporter(quiet=output.quiet))
    if output.json:
        print(json.dumps({"command": "demo", **result.record()}, indent=2))
    elif output.quiet:
        print_line(str(config.run))
    else:
        result.print()


def _inspection_command(name: str) -> Callable[..., None]:
    config_type, inspect = COMMANDS[name]

    def run(config: Any, output: OutputOptions) -> None:
        inspect(config, output)

    return command_function(config_type, run)


for _stage in STAGES.values():
    app.command(_stage.name)(_stage_command(_stage))
app.command("demo")(command_function(DemoConfig, _demo_command))
app.command("benchmark")(command_function(BenchmarkConfig, benchmark))
for _name in COMMANDS:
    app.command(_name)(_inspection_command(_name))


def main() -> None:
    """Entry point of `kdx`: run a command and exit with its code."""
    arguments = sys.argv[1:]
    as_json, verbose = "--json" in arguments, bool({"-v", "--verbose"} & set(arguments))
    try:
        code = get_command(app).main(args=arguments, prog_name="kdx", standalone_mode=False)
        with reader_may_leave():
            sys.stdout.flush()
    except KdxError as error:
        code = _report(error, error.exit_code, as_json, verbose)
    except ClickException as error:
        if type(error).__name__ == "NoArgsIsHelpError":
            print(error.format_message())
            sys.exit(0)
        code = _report(error, 2, as_json, verbose, error.format_message())
    except (KeyboardInterrupt, typer.Abort):
        code = _report(Interrupted(2), 130, as_json, verbose)
    except ReaderGone:
        code = _reader_is_gone()
    except OSError as error:
        code = _report(from_os_error(error), 8, as_json, verbose)
    except Exception as error:
        code = _report(error, 1, as_json, True, f"{type(error).__name__}: {error} (a bug; please report it)")
    sys.exit(code if isinstance(code, int) else 0)


def _report(error: BaseException, code: int, as_json: bool, verbose: bool, message: str | None = None) -> int:
    """Print one line (and the traceback, if asked for) on stderr, and a JSON document on stdout if asked for."""
    text = message or str(error)
    if verbose:
        traceback.print_exception(error, file=sys.stderr)
    print(f"kdx: error: {' '.join(text.split())}", file=sys.stderr)
    if as_json:
        document = {"error": {"type": type(error).__name__, "message": text, "exit_code": code}}
        try:
            print(json.dumps(document, indent=2), flush=True)
        except OSError:
            _reader_is_gone()  # stderr and the exit code say it all the same
    return code


def _reader_is_gone() -> int:
    """Whoever read stdout has closed it (`kdx ... | head`): write no more, and return SIGPIPE's exit code."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 141
