"""What is known about the commands of one run: the manifests of their artifacts, and the entries of the ledger."""

from __future__ import annotations

from ..storage.artifacts import Manifest
from ..storage.run_dir import RunDir
from .cells import PlannedCommand, Run
from .ledger import Ledger, LedgerEntry, shell_line
from .runner import Setting


class RunRecords:
    """The manifests of the finished commands of one run, and its ledger. Each manifest is read once."""

    def __init__(self, run: Run, setting: Setting) -> None:
        self._place = RunDir(setting.work / run.name)
        self._ledger = Ledger(setting.work, run.name)
        self._setting, self._run = setting, run
        self._manifests: dict[str, Manifest | None] = {}
        self.used: list[LedgerEntry] = []

    @property
    def manifests(self) -> list[Manifest]:
        """The manifests that were read."""
        return [manifest for manifest in self._manifests.values() if manifest is not None]

    @property
    def attempts(self) -> list[tuple[bool, int | None]]:
        """Of each manifest that was read: whether the ledger has an interruption, and the number of attempts."""
        results = []
        for label, manifest in self._manifests.items():
            if manifest is not None:
                entry = self._ledger.entry(label)
                known = entry is not None and entry.identity == manifest.identity and entry.resumed
                results.append((known, manifest.budget.get("attempts")))
        return results

    def manifest(self, command: PlannedCommand) -> Manifest | None:
        """Return the manifest of a command, None if it is not finished."""
        if command.label not in self._manifests:
            self._manifests[command.label] = command.finished(self._place)
            if self._manifests[command.label] is not None and (entry := self._entry(command)) is not None:
                self.used.append(entry)
        return self._manifests[command.label]

    def _entry(self, command: PlannedCommand) -> LedgerEntry | None:
        """Return the entry of the process that made the artifact, None if unknown."""
        entry, manifest = self._ledger.entry(command.label), self._manifests[command.label]
        return entry if entry is not None and manifest is not None and entry.identity == manifest.identity else None

    def seconds(self, command: PlannedCommand) -> float | None:
        """Return the wall-clock seconds of the process that made the artifact, with those of interrupted attempts.

        None if the artifact was not made by this benchmark.
        """
        manifest, entry = self.manifest(command), self._entry(command)
        if manifest is None or entry is None:
            return None
        return entry.seconds + float(manifest.budget["seconds"].get("earlier_attempts", 0.0))

    def failure(self, command: PlannedCommand) -> LedgerEntry | None:
        """Return the entry of a command whose last run failed, None otherwise."""
        entry = self._ledger.entry(command.label)
        return entry if entry is not None and entry.exit_code and self._same(entry, command) else None

    def line(self, command: PlannedCommand) -> str:
        """Return the line of a command, as it was run or would be run."""
        manifest, entry = self.manifest(command), self._ledger.entry(command.label)
        if entry is not None and self._same(entry, command):
            return entry.command
        threads = self._setting.threads_each if manifest is None else manifest.config.get("threads")
        return self._spelled(command.line(threads, self._setting.device))

    def _same(self, entry: LedgerEntry, command: PlannedCommand) -> bool:
        """Return whether an entry is of this command, with any number of threads and on any device."""
        return f"{entry.command} ".startswith(self._spelled(command.line(None, None)) + " ")

    def _spelled(self, words: list[str]) -> str:
        return shell_line(["kdx", *words], self._setting.places(self._run))
