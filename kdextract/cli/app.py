"""The `kdx` command line: a command per stage, results on stdout, progress and errors on stderr."""

from __future__ import annotations

import json
import os
import sys
import traceback
from collections.abc import Callable
from functools import cache
from typing import Any

import typer
from typer.main import get_command

from ..errors import Interrupted, KdxError, StdoutClosed, from_os_error
from ..options.entries import OutputOptions
from ..storage.version import __version__
from ..training.progress import Reporter
from .arguments import closed_stdout_as_error, command_function
from .command import Command
from .command_help import WIDEST, command_class
from .commands import COMMANDS
from .printing import print_line

# What the parser raises for a mistake in the arguments. The class itself has no public name that every allowed version
# of typer has: in older ones it belongs to the package click, in newer ones to a private module. Its subclass has one.
_UsageMistake: Any = typer.BadParameter.__base__

app = typer.Typer(
    name="kdx",
    help="Distil a trained classifier into a smaller one without its training data.",
    epilog="Start with: kdx demo. Exit codes: 0 done, 2 usage, 3 does not fit the run, 4 artifact or data missing or "
    "damaged, 5 gate not met, 6 diverged, 7 out of memory, 8 disk, 9 run locked, 130/143 stopped.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # plain text, equal in a pipe and in a terminal
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": WIDEST},
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


def _typer_function(command: Command) -> Callable[..., None]:
    def run(config: Any, output: OutputOptions) -> None:
        result = command.run(config, Reporter(quiet=output.quiet))
        if output.json:  # an error of `check` replaces the document: --json prints exactly one
            command.check(config, result)
            print(json.dumps(command.record(result), indent=2))
        else:
            command.show(config, result, output)
            command.check(config, result)

    return command_function(command.config, run)


for _name, _command in COMMANDS.items():
    app.command(_name, cls=command_class(_command.config))(_typer_function(_command))


@cache
def _parser() -> Any:
    """Return the parser of all commands, which programs that call `main` often make once."""
    return get_command(app)


def main() -> None:
    """Entry point of `kdx`: run a command and exit with its code."""
    arguments = sys.argv[1:]
    as_json, verbose = "--json" in arguments, bool({"-v", "--verbose"} & set(arguments))
    try:
        code = _parser().main(args=arguments, prog_name="kdx", standalone_mode=False)
        with closed_stdout_as_error():
            sys.stdout.flush()
    except KdxError as error:
        code = _report(error, error.exit_code, as_json, verbose)
    except _UsageMistake as error:
        if type(error).__name__ == "NoArgsIsHelpError":
            print(error.format_message())
            sys.exit(0)
        code = _report(error, 2, as_json, verbose, error.format_message())
    except (KeyboardInterrupt, typer.Abort):
        code = _report(Interrupted(2), 130, as_json, verbose)
    except StdoutClosed:
        code = _discard_stdout()
    except OSError as error:
        code = _report(from_os_error(error), 8, as_json, verbose)
    except Exception as error:
        code = _report(error, 1, as_json, True, f"{type(error).__name__}: {error} (a bug; please report it)")
    sys.exit(code if isinstance(code, int) else 0)


def _report(error: BaseException, code: int, as_json: bool, verbose: bool, message: str | None = None) -> int:
    """Print one line (with `verbose` the traceback, too) on stderr, and with `as_json` a JSON document on stdout."""
    text = message or str(error)
    if verbose:
        traceback.print_exception(error, file=sys.stderr)
    print(f"kdx: error: {' '.join(text.split())}", file=sys.stderr)
    if as_json:
        document = {"error": {"type": type(error).__name__, "message": text, "exit_code": code}}
        try:
            print(json.dumps(document, indent=2), flush=True)
        except OSError:
            _discard_stdout()  # the error is on stderr, too
    return code


def _discard_stdout() -> int:
    """Send further output to /dev/null, and return SIGPIPE's exit code: stdout was closed (`kdx ... | head`)."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 141
