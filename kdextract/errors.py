"""The errors a user can meet, each with its exit code.

| code | class | meaning |
|---|---|---|
| 2 | `UsageError` | what was typed is wrong by itself: an unknown name, a value out of range |
| 3 | `ConfigError` | what was typed does not fit this run: a missing input, another config, a wrong shape |
| 4 | `ArtifactError`, `DataError` | an artifact or data set is missing, corrupt or untrusted |
| 5 | `GateError` | `--min-accuracy`, `--min-agreement` or `--atol` was not met |
| 6 | `DivergedError` | a loss stopped being finite |
| 7 | `OutOfMemoryError` | the machine or the device ran out of memory |
| 8 | `StorageError` | disk full, read-only, or another I/O failure |
| 9 | `RunLockedError` | another process is writing to the run |
| 130, 143 | `Interrupted` | stopped by SIGINT or SIGTERM |
"""

from __future__ import annotations

import difflib
import errno
import signal
from collections.abc import Iterable


class KdxError(Exception):
    """Base of every error that is reported as one line. `exit_code` is the process's exit status."""

    exit_code = 1


class UsageError(KdxError, ValueError):
    """A name that does not exist, or a value that no run could accept."""

    exit_code = 2


class ConfigError(KdxError, ValueError):
    """A request that does not fit the run: missing input, differing config, wrong shape."""

    exit_code = 3


class ArtifactError(KdxError):
    """An artifact is missing, truncated, tampered with, or of a format this version cannot read."""

    exit_code = 4


class DataError(KdxError):
    """A real data set is missing or unreadable."""

    exit_code = 4


class GateError(KdxError):
    """A quality gate was not met."""

    exit_code = 5


class DivergedError(KdxError):
    """A loss or a gradient stopped being finite."""

    exit_code = 6


class OutOfMemoryError(KdxError):
    """Memory ran out, on the host or on the device."""

    exit_code = 7


class StorageError(KdxError):
    """The disk is full, read-only, or failed."""

    exit_code = 8


class RunLockedError(KdxError):
    """Another process holds the run's lock."""

    exit_code = 9


class Interrupted(KdxError):
    """The process was told to stop; `signal_number` is SIGINT or SIGTERM."""

    def __init__(self, signal_number: int) -> None:
        self.exit_code = 128 + signal_number
        super().__init__(f"stopped by {signal.Signals(signal_number).name}; run the same command again to go on")


class BenchmarkError(KdxError):
    """Commands of a benchmark failed; `exit_code` is that of the first one."""

    def __init__(self, message: str, exit_code: int) -> None:
        self.exit_code = exit_code
        super().__init__(message)


class ReaderGone(Exception):
    """Whoever read stdout has closed it. Not an `OSError`, which typer would turn into exit code 1."""


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return the end of an error sentence: the nearest known name, and the list of all of them."""
    known = list(known)
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    return f"{hint} Known: {', '.join(known)}."


def from_os_error(error: OSError) -> KdxError:
    """Translate an operating-system failure into the error that a user meets."""
    where = f" ({error.filename})" if error.filename else ""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return StorageError(f"the disk is full{where}; free some space and run the same command again")
    if error.errno in (errno.EROFS, errno.EACCES, errno.EPERM):
        return StorageError(f"no permission to write or read{where}: {error.strerror}")
    return StorageError(f"input/output failed{where}: {error.strerror or error}")
