"""Records of the commands of a benchmark that are not in manifests: wall-clock seconds, failures, the machine."""

from __future__ import annotations

import fcntl
import json
import os
import platform
import re
import shlex
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ..errors import ConfigError, RunLockedError
from ..storage.artifacts import write_file

FOLDER, LOCK = "commands", ".lock"
_ABSOLUTE_WORD = re.compile(r"(folder:|npz:|npy:|hf:)?(/.*)")
_ABSOLUTE = re.compile(r"(?<![\w./~-])/(?:[\w.+@~-]+/)*([\w.+@~-]+)")


@dataclass(frozen=True)
class LedgerEntry:
    """One command as it was run.

    `command` is its line with RUN and DIR for the run and data directories; `seconds` the wall-clock time of its
    process, imports included; `exit_code` 0 or that of the failure, with the error `message`; `identity` that of the
    artifact it made. `side_by_side` is the number of commands that could run at the same time. `resumed` is true if an
    earlier attempt was interrupted; the manifest has the seconds of that attempt.
    """

    command: str
    seconds: float
    exit_code: int
    message: str
    identity: str
    side_by_side: int
    resumed: bool
    cpus: int
    cpu: str


class Ledger:
    """The entries of one run, by command label, in a JSON file of the work directory that is replaced atomically."""

    def __init__(self, work: Path, run: str) -> None:
        self._path = work / FOLDER / f"{run}.json"
        self._lock = threading.Lock()
        self._entries: dict[str, Any] = {}
        try:
            record = json.loads(self._path.read_text(encoding="utf-8"))
            self._entries = record if isinstance(record, dict) else {}
        except (OSError, ValueError):
            pass  # missing or unreadable: only seconds are lost, no results

    def entry(self, label: str) -> LedgerEntry | None:
        """Return the entry of a finished command, None if it never finished."""
        try:
            return LedgerEntry(**self._entries[label])
        except (KeyError, TypeError):
            return None

    def start(self, label: str) -> bool:
        """Record the start of a command, and return whether an earlier attempt was interrupted."""
        cut_short = self._entries.get(label) == {}
        self._write(label, {})
        return cut_short

    def end(self, label: str, entry: LedgerEntry) -> None:
        """Record the end of a command."""
        self._write(label, asdict(entry))

    def restore(self, label: str, entry: LedgerEntry | None) -> None:
        """Restore the entry from before `start`, because the artifact existed already."""
        self._write(label, asdict(entry) if entry else None)

    def _write(self, label: str, value: dict[str, Any] | None) -> None:
        with self._lock:
            self._entries[label] = value
            known = {name: entry for name, entry in self._entries.items() if entry is not None}
            self._path.parent.mkdir(parents=True, exist_ok=True)
            write_file(self._path, (json.dumps(known, indent=1) + "\n").encode())


@contextmanager
def work_lock(work: Path) -> Iterator[None]:
    """Hold the lock of the work directory; the kernel releases it when the process ends.

    Raises:
        RunLockedError: another benchmark runs there.
        ConfigError: it is a file.
    """
    try:
        work.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as error:
        raise ConfigError(f"{work} is a file, or inside one, and cannot be a work directory") from error
    with (work / LOCK).open("a+", encoding="utf-8") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise RunLockedError(
                f"another benchmark is running in {work}; wait until it ends, or use another --work"
            ) from error
        yield


def processor() -> str:
    """Return the model name of the processor, '' if unknown."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return platform.processor()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), "")


def num_cpus() -> int:
    """Return how many processors this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def shell_line(words: list[str], places: dict[str, str]) -> str:
    """Return a command line in shell syntax, without paths of this machine; see `without_paths`."""
    plain = []
    for word in words:
        absolute = _ABSOLUTE_WORD.fullmatch(word)
        names = ",".join(Path(part).name for part in absolute[2].split(",")) if absolute else ""
        shortened = f"{absolute[1] or ''}{names}" if absolute else word
        plain.append(places.get(word, shortened))
    return shlex.join(plain)


def without_paths(text: str, places: dict[str, str]) -> str:
    """Return a text without paths of this machine.

    Args:
        places: path -> its replacement, longer paths first. Any other absolute path is reduced to its last part.
    """
    for path, name in places.items():
        text = text.replace(path, name)
    return _ABSOLUTE.sub(r"\1", text)
