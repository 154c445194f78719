"""The errors that users can get, with the exit code of each.

| code | class | meaning |
|---|---|---|
| 2 | `UsageError` | the arguments are invalid: an unknown name, a value out of range |
| 3 | `ConfigError` | the arguments do not fit the run: a missing input, different options, a wrong shape |
| 4 | `ArtifactError`, `DataError` | an artifact or data set is missing, corrupt or untrusted |
| 5 | `GateError` | `--min-accuracy`, `--min-agreement` or `--atol` was not met |
| 6 | `DivergedError` | a loss or a gradient is not finite |
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
    """Invalid arguments: a name that does not exist, or a value that is never accepted."""

    exit_code = 2


class ConfigError(KdxError, ValueError):
    """Arguments that do not fit the run: a missing input, different options, a wrong shape."""

    exit_code = 3


class ArtifactError(KdxError):
    """An artifact is missing, truncated, changed, or of a format that this version cannot read."""

    exit_code = 4


class DataError(KdxError):
    """A real data set is missing or unreadable."""

    exit_code = 4


class GateError(KdxError):
    """A quality gate was not met."""

    exit_code = 5


class DivergedError(KdxError):
    """A loss or a gradient is not finite."""

    exit_code = 6


class OutOfMemoryError(KdxError):
    """Not enough memory, on the host or on the device."""

    exit_code = 7


class StorageError(KdxError):
    """The disk is full or read-only, or input/output failed."""

    exit_code = 8


class RunLockedError(KdxError):
    """Another process holds the run's lock."""

    exit_code = 9


class Interrupted(KdxError):
    """The process received the signal `signal_number`, SIGINT or SIGTERM."""

    def __init__(self, signal_number: int) -> None:
        self.exit_code = 128 + signal_number
        super().__init__(f"stopped by {signal.Signals(signal_number).name}; run the same command again to continue")


class BenchmarkError(KdxError):
    """Commands of a benchmark failed; `exit_code` is that of the first one."""

    def __init__(self, message: str, exit_code: int) -> None:
        self.exit_code = exit_code
        super().__init__(message)


class StdoutClosed(Exception):
    """The reader of stdout has closed the pipe. Not an `OSError`, because typer turns that into exit code 1."""


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return the end of an error message: the most similar known name, and the list of known names."""
    known = list(known)
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    return f"{hint} Known: {', '.join(known)}."


def from_os_error(error: OSError) -> KdxError:
    """Return the `KdxError` for an error of the operating system."""
    where = f" ({error.filename})" if error.filename else ""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return StorageError(f"the disk is full{where}; free some space and run the same command again")
    if error.errno in (errno.EROFS, errno.EACCES, errno.EPERM):
        return StorageError(f"no permission to write or read{where}: {error.strerror}")
    return StorageError(f"input/output failed{where}: {error.strerror or error}")
