"""Runs `kdx` in copies of a process that has imported PyTorch and all other modules of the commands.

Importing takes longer than most commands of the tests. A copy has settings, signals, files and memory of its own like
any other process. All copies have one order of sets, since the seed of hashes is drawn when the first process starts.
"""

from __future__ import annotations

import multiprocessing
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

IMPORTED_BEFORE = (
    "kdextract.cli.app",
    "kdextract.training.loop",
    "kdextract.models.exporter",
    "kdextract.data",
    "sklearn.datasets",
    "torchvision",
    "torch._inductor.config",  # which PyTorch imports when it is to compute deterministically
)
_WITH_FORK = "forkserver" in multiprocessing.get_all_start_methods() and sys.platform == "linux"
_context = multiprocessing.get_context("forkserver" if _WITH_FORK else "spawn")


def _run(words: Sequence[str], first: str, cwd: str, env: Mapping[str, str], outputs: tuple[str, str]) -> None:
    """Run `kdx` with these arguments, after the Python code `first`; `outputs` are the files for stdout and stderr."""
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(env)
    for number, path in enumerate(outputs, start=1):
        os.dup2(os.open(path, os.O_WRONLY), number)
    sys.stdout, sys.stderr = (os.fdopen(number, "w", encoding="utf-8", closefd=False) for number in (1, 2))
    sys.argv = ["kdx", *words]
    exec(first, {})
    from kdextract.cli.app import main

    main()


class Kdx:
    """A running `kdx`."""

    def __init__(self, words: Sequence[str], cwd: Path, env: Mapping[str, str], first: str = "") -> None:
        if _WITH_FORK:
            _start_server(env)
        self._words = ["kdx", *words]
        self._files = [tempfile.NamedTemporaryFile(mode="r", encoding="utf-8") for _ in range(2)]  # noqa: SIM115
        outputs = (self._files[0].name, self._files[1].name)
        self._process = _context.Process(target=_run, args=(words, first, str(cwd), dict(env), outputs))
        self._process.start()

    @property
    def pid(self) -> int:
        """Id of the process."""
        assert self._process.pid is not None
        return self._process.pid

    def ended(self) -> bool:
        """Whether the process has ended."""
        return self._process.exitcode is not None

    def wait(self, timeout: float) -> subprocess.CompletedProcess[str]:
        """Return exit code and outputs; after so many seconds the process is killed, and TimeoutExpired raised."""
        self._process.join(timeout)
        if not self.ended():
            self._process.kill()
            self._process.join()
            raise subprocess.TimeoutExpired(self._words, timeout)
        out, err = (file.read() for file in self._files)
        for file in self._files:
            file.close()
        assert self._process.exitcode is not None
        return subprocess.CompletedProcess(self._words, self._process.exitcode, out, err)


def _start_server(env: Mapping[str, str]) -> None:
    """Start the process that is copied, unless it runs already; it imports with this environment."""
    from multiprocessing import forkserver

    before = dict(os.environ)
    _context.set_forkserver_preload(list(IMPORTED_BEFORE))
    os.environ.update(env)
    try:
        forkserver.ensure_running()
    finally:
        os.environ.clear()
        os.environ.update(before)
