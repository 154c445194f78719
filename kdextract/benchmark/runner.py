"""Runs the commands of a suite, each in its own process, and continues an interrupted benchmark."""

from __future__ import annotations

import dataclasses
import json
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from ..errors import DivergedError, Interrupted, RunLockedError, UsageError, did_you_mean
from ..options.declare import DataAccess
from ..stages import STAGES
from ..stages.inputs.image_source import NOISE
from ..stages.running.runner import signals_to
from ..storage.run_dir import RunDir
from ..training.progress import Reporter, Task
from .cells import DATA, RUN, Cell, PlannedCommand, Run
from .ledger import Ledger, LedgerEntry, num_cpus, processor, shell_line, without_paths

INTERRUPTED = (128 + signal.SIGINT, 128 + signal.SIGTERM)


@dataclass(frozen=True)
class Setting:
    """Where and how commands run: `work` is the directory of runs, `data_dir` that of real data; `jobs` runs at a time.

    `threads` is per command, None for the default of kdx; `force` overwrites artifacts made with different options.
    """

    work: Path
    data_dir: Path
    download: bool
    threads: int | None
    device: str | None
    jobs: int
    force: bool

    @property
    def threads_each(self) -> int | None:
        """CPU threads of one command."""
        return self.threads if self.jobs == 1 else max(1, (self.threads or num_cpus()) // self.jobs)

    def places(self, run: Run) -> dict[str, str]:
        """Return the paths that are not recorded -> their replacements, longest path first."""
        places = {str(self.work / run.name): RUN, str(self.data_dir): DATA, str(self.work): "WORK"}
        places |= {str(Path(path).resolve()): name for path, name in places.items()}
        places[str(Path.home())] = "~"
        return dict(sorted(places.items(), key=lambda item: -len(item[0])))


def check_names(runs: list[Run], setting: Setting) -> None:
    """Raise the error of the first command with an unknown model, an unknown data set, or missing data."""
    from ..data.load import data_names, is_real_data
    from ..models.architectures import architecture

    place = RunDir(setting.work)
    for run in {run.teacher.name: run for run in runs}.values():
        train = dataclasses.replace(run.train.config, data_dir=setting.data_dir, download=setting.download)
        STAGES["train"].plan(train, RunDir(setting.work / run.name))
        for cell in run.cells:
            config = cell.distill.config
            if "/" not in config.student and not config.student.endswith(".safetensors"):
                architecture(config.student)
            spec = config.data
            own_set = any(spec in (command.name, command.place(place).label) for command in cell.before if command.name)
            known = spec is None or own_set or spec in NOISE or is_real_data(spec) or Path(spec).is_dir()
            if not known:
                raise UsageError(
                    f"[methods.{cell.method.name}]: data {spec!r} is neither noise nor a data set."
                    f"{did_you_mean(spec, [*NOISE, *data_names()])}"
                )


class Runner:
    """Runs unfinished commands. A failed command ends only its cell, or its run if there is no teacher."""

    def __init__(self, setting: Setting, reporter: Reporter) -> None:
        self._setting = setting
        self._reporter = reporter
        self._processes: set[subprocess.Popen[str]] = set()
        self._lock = threading.Lock()
        self._stop: int | None = None

    def run(self, runs: list[Run]) -> None:
        """Run every unfinished command, `jobs` runs at a time.

        Raises:
            Interrupted: the process received a signal; the running commands have stopped and kept their checkpoints.
            RunLockedError: something else is writing to one of the runs.
        """
        total = sum(len(run.cells) for run in runs)
        with (
            signals_to(self._stop_all),
            self._reporter.task("benchmark", total) as task,
            ThreadPoolExecutor(self._setting.jobs) as pool,
        ):
            futures = [pool.submit(self._run_one, run, task) for run in runs]
            try:
                for future in futures:
                    future.result()
            except BaseException:
                self._stop_all(signal.SIGTERM)
                raise
        if self._stop is not None:
            raise Interrupted(self._stop)

    def _run_one(self, run: Run, task: Task) -> None:
        place = RunDir(self._setting.work / run.name)
        ledger = Ledger(self._setting.work, run.name)
        failed: set[str] = set()

        def succeed(commands: tuple[PlannedCommand, ...], title: str) -> bool:
            for command in commands:
                if self._stop is not None or command.label in failed:
                    return False
                if command.finished(place) is None and not self._make(run, command, place, ledger, title):
                    failed.add(command.label)
                    return False
            return True

        have_teacher = succeed((run.train, run.evaluate), f"{run.teacher.name} seed {run.seed}")
        for cell in run.cells:
            if have_teacher:
                succeed(cell.commands, cell.title)
            if self._stop is None:
                with self._lock:
                    task.advance(1, cell.title)

    def _make(self, run: Run, command: PlannedCommand, place: RunDir, ledger: Ledger, title: str) -> bool:
        """Run one command, record it in the ledger, and return whether it succeeded."""
        line = command.line(self._setting.threads_each, self._setting.device)
        places = self._setting.places(run)
        line_as_run = shell_line(["kdx", *line], places)
        known = ledger.entry(command.label)
        diverged = known is not None and known.exit_code == DivergedError.exit_code and known.command == line_as_run
        if diverged and not self._setting.force:
            self._reporter.line(f"{title}: {command.stage} diverged in an earlier attempt; --force runs it again")
            return False
        self._reporter.line(f"{title}: {command.stage}")
        cut_short = ledger.start(command.label)
        started = time.monotonic()
        code, output, errors = self._call(self._real(line, command, place))
        seconds = round(time.monotonic() - started, 2)
        if code in INTERRUPTED:
            self._stop = self._stop or code - 128
            return False
        made = _document(output)
        if code == RunLockedError.exit_code:
            ledger.restore(command.label, known)
            raise RunLockedError(_message(code, made, errors))
        if code == 0 and made.get("status") == "cached":
            ledger.restore(command.label, known)
            return True
        message = _message(code, made, errors) if code else ""
        if code:
            self._reporter.line(f"{title}: {command.stage} failed with exit code {code}: {message}")
        ledger.end(
            command.label,
            LedgerEntry(
                command=line_as_run,
                seconds=seconds,
                exit_code=code,
                message=without_paths(message, places),
                identity=str(made.get("identity", "")),
                side_by_side=self._setting.jobs,
                resumed=cut_short,
                cpus=num_cpus(),
                cpu=processor(),
            ),
        )
        return code == 0

    def _real(self, line: list[str], command: PlannedCommand, place: RunDir) -> list[str]:
        """Return the arguments of the process, with the paths for `RUN` and `DIR`."""
        real = {RUN: str(place.root), DATA: str(self._setting.data_dir)}
        words = [real.get(word, word) for word in line]
        if self._setting.download and issubclass(STAGES[command.stage].config, DataAccess):
            words.append("--download")
        if self._setting.force:
            words.append("--force")
        return [sys.executable, "-m", "kdextract", *words, "--json"]

    def _call(self, words: list[str]) -> tuple[int, str, str]:
        """Run a process to its end and return its exit code, stdout and stderr; a signal N counts as 128 + N.

        It runs in its own session, so that Ctrl-C reaches it only once, through this process.
        """
        with self._lock:
            if self._stop is not None:
                return 128 + self._stop, "", ""
            process = subprocess.Popen(
                words,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                start_new_session=True,
            )
            self._processes.add(process)
        try:
            output, errors = process.communicate()
        finally:
            self._processes.discard(process)
        return process.returncode if process.returncode >= 0 else 128 - process.returncode, output, errors

    def _stop_all(self, signal_number: int, frame: FrameType | None = None) -> None:
        """Signal handler: send the signal to every process, and start no more."""
        self._stop = signal_number
        for process in list(self._processes):
            process.send_signal(signal_number)


def select(runs: list[Run], only: list[str]) -> list[Run]:
    """Return the runs with only the cells whose method, student or `student/method` matches one of the patterns.

    Raises:
        UsageError: a pattern that no cell matches.
    """
    from fnmatch import fnmatchcase

    def names(cell: Cell) -> list[str]:
        return [cell.method.name, cell.student.name, f"{cell.student.name}/{cell.method.name}"]

    known = dict.fromkeys(name for run in runs for cell in run.cells for name in names(cell))
    for pattern in only:
        if not any(fnmatchcase(name, pattern) for name in known):
            raise UsageError(f"--only {pattern!r} matches no cell.{did_you_mean(pattern, known)}")

    def chosen(cell: Cell) -> bool:
        return not only or any(fnmatchcase(name, pattern) for name in names(cell) for pattern in only)

    kept = [dataclasses.replace(run, cells=tuple(filter(chosen, run.cells))) for run in runs]
    return [run for run in kept if run.cells]


def _document(output: str) -> dict[str, object]:
    try:
        record = json.loads(output)
    except ValueError:
        return {}
    return record if isinstance(record, dict) else {}


def _message(code: int, document: dict[str, object], errors: str) -> str:
    """Return the error message of a failed command."""
    error = document.get("error")
    if isinstance(error, dict):
        return " ".join(str(error.get("message", "")).split())
    if code == 128 + signal.SIGKILL:
        return "killed by the system, possibly because memory ran out"
    lines = errors.strip().splitlines()
    return lines[-1] if lines else "no message"
