"""The `Command` class: options, function and printing of one command."""

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
        run: does the work and returns the result; may raise any `KdxError`.
        show: prints the result as text: in full, or with --quiet paths and names only.
        check: raises an error if the result is not acceptable; called after the result was printed.
        record: returns the document that `--json` prints of the result.
        returns: describes the result, for the docstring in Python.
    """

    config: type[OptionSet]
    run: Callable[[Any, Reporter], Any]
    show: Callable[[Any, Any, OutputOptions], None]
    check: Callable[[Any, Any], None] = lambda config, result: None
    record: Callable[[Any], Json] = dict
    returns: str = "Record: the dict that --json prints."
