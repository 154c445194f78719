"""The shape of a command that only looks: what it finds, and how it says so."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from .config import OptionSet
from .options import OutputOptions

Json = dict[str, Any]


@dataclass(frozen=True)
class Look:
    """One command that makes no artifact.

    `gather` returns the record that `--json` prints and a Python call returns; it may raise any user error. `show`
    prints it for people, in full or quietly. `check` judges it after it was shown, and raises what the exit code is to
    be.
    """

    config: type[OptionSet]
    gather: Callable[[Any], Json]
    show: Callable[[Any, Json, OutputOptions], None]
    check: Callable[[Any, Json], None] = lambda config, record: None
