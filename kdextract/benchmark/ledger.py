"""What a benchmark writes down about its commands that no manifest holds: wall-clock seconds, failures, the machine."""

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

    `command` is its line with RUN and DIR for the run and data directories; `seconds` the wall clock of its process
    from start to end, imports included; `exit_code` 0 or that of its failure, whose sentence is `message`; `identity`
    that of the artifact it made. `side_by_side` is the number of commands that could run at the same time, and
    `resumed` says that an earlier attempt was cut short, whose seconds the manifest has.
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
            pass  # none yet, or not readable: seconds will be missing, results will not

    def entry(self, label: str) -> LedgerEntry | None:
        """Return what is known about a command that ended; None for one that never did."""
        try:
            return LedgerEntry(**self._entries[label])
        except (KeyError, TypeError):
            return None

    def start(self, label: str) -> bool:
        """Note that a command starts, and say whether an earlier attempt of it never came to an end."""
        cut_short = self._entries.get(label) == {}
        self._write(label, {})
        return cut_short

    def end(self, label: str, entry: LedgerEntry) -> None:
        """Note how a command ended."""
        self._write(label, asdict(entry))

    def restore(self, label: str, entry: LedgerEntry | None) -> None:
        """Put back what was known before `start`: the command found its result made already."""
        self._write(label, asdict(entry) if entry else None)

    def _write(self, label: str, value: dict[str, Any] | None) -> None:
        with self._lock:
            self._entries[label] = value
            known = {name: entry for name, entry in self._entries.items() if entry is not None}
            self._path.parent.mkdir(parents=True, exist_ok=True)
            write_file(self._path, (json.dumps(known, indent=1) + "\n").encode())


@contextmanager
def work_lock(work: Path) -> Iterator[None]:
    """Hold the work directory; the kernel frees it when the process ends.

    Raises:
        RunLockedError: another benchmark runs there.
        ConfigError: it is a file.
    """
    try:
        work.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as error:
        raise ConfigError(f"{work} is a file, or below one, and cannot be a work directory") from error
    with (work / LOCK).open("a+", encoding="utf-8") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise RunLockedError(f"another benchmark is running in {work}; wait for it or use --work") from error
        yield


def processor() -> str:
    """Return the name of the processor's model, or '' where it cannot be known."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return platform.processor()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), "")


def num_cpus() -> int:
    """Return how many processors this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def shell_line(words: list[str], places: dict[str, str]) -> str:
    """Return a command line as a shell takes it, without paths of this machine; see `without_paths`."""
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
        places: path -> what stands for it, longest first where one is below another. Any other absolute path is cut
            down to its last part.
    """
    for path, name in places.items():
        text = text.replace(path, name)
    return _ABSOLUTE.sub(r"\1", text)
