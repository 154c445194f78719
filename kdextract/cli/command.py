"""The shape of a command: what it does, what comes back, and how that is shown."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ..options.declare import OptionSet
from ..options.entries import OutputOptions
from ..training.progress import Reporter

Json = dict[str, Any]


@dataclass(frozen=True)
class Command:
    """A command of `kdx`, and a function of `kdextract.api`.

    Attributes:
        config: its options.
        run: does the work and returns the result; it may raise any user error.
        show: prints the result for people, in full or quietly.
        check: judges the result after it was shown, and raises the error whose exit code the command ends with.
        record: returns the document that `--json` prints of the result.
        returns: says what the result is, for the documentation in Python.
    """

    config: type[OptionSet]
    run: Callable[[Any, Reporter], Any]
    show: Callable[[Any, Any, OutputOptions], None]
    check: Callable[[Any, Any], None] = lambda config, result: None
    record: Callable[[Any], Json] = dict
    returns: str = "Record: the dict that --json prints."
