"""The run directory: places of artifacts, the write lock, finished artifacts, and the files that a command reads."""

from __future__ import annotations

import fcntl
import json
import os
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from ..errors import ArtifactError, ConfigError, RunLockedError, UsageError, did_you_mean
from ..options.declare import difference
from ..storage.version import __version__
from .artifacts import FORMAT_VERSION, Input, Manifest, file_sha256, read_manifest, recover, verify_artifact, write_file

RUN_FILE = "run.json"
LOCK_FILE = ".lock"
PLACES = {  # kind -> its folder; a folder that ends in / contains any number of named artifacts
    "teacher": "teacher",
    "statistics": "statistics",
    "generator": "generators/",
    "transfer-set": "transfer-sets/",
    "compressed": "compressed/",
    "pruned": "pruned/",
    "student": "students/",
    "extended": "extended/",
    "quantized": "quantized/",
    "evaluation": "evaluations/",
    "neighbours": "neighbours/",
    "export": "exports/",
}
MODEL_FILE = "model.safetensors"
"""The file of a classifier in its artifact."""
ONNX_FILE = "model.onnx"
"""The file of a quantized classifier in its artifact."""

ContentT = TypeVar("ContentT")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


@dataclass(frozen=True)
class ArtifactRef:
    """The place of an artifact in a run: its kind, its name, and its directory, which may not exist."""

    kind: str
    name: str
    directory: Path

    @property
    def label(self) -> str:
        """Its name for users: `teacher`, `students/lenet_half`."""
        place = PLACES[self.kind]
        return place + self.name if place.endswith("/") else place


@dataclass(frozen=True)
class FileState:
    """Properties that change when a file is replaced or written: inode number, size, time of the last change (ns)."""

    number: int
    size: int
    changed_at: int

    @staticmethod
    def of(path: Path) -> FileState | None:
        """Return the state of a file, None if it does not exist."""
        try:
            found = path.stat()
        except (FileNotFoundError, NotADirectoryError):
            return None
        return FileState(found.st_ino, found.st_size, found.st_mtime_ns)


@dataclass(frozen=True)
class InputFile:
    """A file that a command reads: its sha256, and the state that it had before it was hashed."""

    path: Path
    sha256: str
    state: FileState

    def input(self, role: str) -> Input:
        """Return the file as an input of a stage."""
        return Input(role, str(self.path), self.sha256)

    def read(self, reader: Callable[[Path], ContentT]) -> ContentT:
        """Return what `reader` makes of the file. Raises `ArtifactError` if these are not the bytes of the sha256."""
        content = reader(self.path)
        self.require_unchanged()
        return content

    def require_unchanged(self) -> None:
        """Raise `ArtifactError` if the file was replaced, removed or written to since it was hashed."""
        if FileState.of(self.path) != self.state:
            raise ArtifactError(f"{self.path} was changed while the command ran; nothing was written. Run it again")


@dataclass(frozen=True)
class Artifact:
    """A published result whose files agree with its manifest.

    `label` is its place in the run, or the path of its directory if it is of another run; `files` are its payload
    files by name.
    """

    directory: Path
    label: str
    manifest: Manifest
    files: dict[str, InputFile]

    @property
    def kind(self) -> str:
        """One of the keys of `PLACES`."""
        return self.manifest.kind

    @property
    def name(self) -> str:
        """Its name in its run."""
        return self.directory.name

    def file(self, name: str) -> InputFile:
        """Return one payload file. Raises `ArtifactError` when there is none of this name."""
        return self.files[self.manifest.output(name).file]

    def input(self, role: str) -> Input:
        """Return the artifact as an input of a stage."""
        return Input(role, self.label, self.manifest.identity)


class RunDir:
    """A run directory, as one command uses it. Reading needs no lock; writing needs `lock`.

    Each file that the command reads is hashed once.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self._files: dict[Path, InputFile] = {}
        self._artifacts: dict[Path, Artifact] = {}

    def file(self, path: Path) -> InputFile:
        """Return a file that the command reads. Raises `ArtifactError` if it does not exist."""
        known = self._files.get(path.resolve())
        if known is None:
            state = FileState.of(path)
            if state is None or not path.is_file():
                raise ArtifactError(f"{path} does not exist")
            known = self._files[path.resolve()] = InputFile(path, file_sha256(path), state)
        return InputFile(path, known.sha256, known.state)

    def artifact(self, ref: ArtifactRef) -> Artifact:
        """Return an artifact of the run, every file of it checked.

        Raises:
            ArtifactError: a file is missing or was changed, or the directory contains another artifact.
        """
        artifact = self.artifact_at(ref.directory)
        _require_place(ref, artifact.manifest)
        return artifact

    def artifact_at(self, directory: Path) -> Artifact:
        """Return the artifact of a directory, of this run or of another, every file of it checked.

        Raises:
            ArtifactError: a file is missing or was changed, or there is no artifact.
        """
        known = self._artifacts.get(directory.resolve())
        if known is not None:
            return known
        manifest = verify_artifact(directory, sha256_of=lambda path: self.file(path).sha256)
        inside = self.root.resolve() in (directory.parent.resolve(), directory.parent.parent.resolve())
        label = manifest.label if inside else str(directory)
        files = {output.file: self.file(directory / output.file) for output in manifest.outputs}
        artifact = self._artifacts[directory.resolve()] = Artifact(directory, label, manifest, files)
        return artifact

    def place(self, kind: str, name: str | None = None) -> ArtifactRef:
        """Return where an artifact of this kind and name belongs. Raises `UsageError` for an unsafe name."""
        folder = PLACES[kind]
        if not folder.endswith("/"):
            return ArtifactRef(kind, folder, self.root / folder)
        if name is None or not _NAME.fullmatch(name):
            raise UsageError(
                f"{name!r} is not a name for an artifact: letters, digits, '.', '_' and '-' (at most 64), "
                "starting with a letter or digit"
            )
        return ArtifactRef(kind, name, self.root / folder / name)

    def artifacts(self, *kinds: str) -> list[ArtifactRef]:
        """Return the artifacts of the run in the order of the pipeline, then by name; of all kinds if none is given."""
        found = []
        for kind in kinds or PLACES:
            folder = self.root / PLACES[kind]
            if not PLACES[kind].endswith("/"):
                candidates = [folder]
            else:
                candidates = sorted(folder.iterdir()) if folder.is_dir() else []
            found += [ArtifactRef(kind, p.name, p) for p in candidates if p.is_dir() and not p.name.startswith(".")]
        return found

    def existing(self, kind: str, made_by: str) -> ArtifactRef:
        """Return the run's artifact of a kind without names. Raises `ConfigError` naming the command that makes it."""
        ref = self.place(kind)
        if not ref.directory.is_dir():
            raise ConfigError(f"{self.root} has no {kind}; make one with: {made_by}")
        return ref

    def teacher(self) -> ArtifactRef:
        """Return the run's teacher. Raises `ConfigError` naming the commands that make one."""
        return self.existing("teacher", "kdx train, or kdx import-model SPEC for a model of your own")

    def find(self, label: str, *kinds: str) -> ArtifactRef:
        """Return the artifact with this label: `teacher`, `students/NAME` or only `NAME`.

        Raises:
            UsageError: there is no such artifact; the message names the most similar one.
            ConfigError: several artifacts have this name.
        """
        present = self.artifacts(*kinds)
        wanted = label.rstrip("/")
        matches = [ref for ref in present if ref.label == wanted] or [ref for ref in present if ref.name == wanted]
        if len(matches) > 1:
            labels = ", ".join(ref.label for ref in matches)
            raise ConfigError(f"{label!r} matches several artifacts; use one of: {labels}")
        if not matches:
            known = did_you_mean(label, [ref.label for ref in present]) if present else " The run has none."
            raise UsageError(f"{self.root} has no artifact {label!r}.{known}")
        return matches[0]

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the run's write lock; the kernel releases it when the process ends.

        Raises:
            RunLockedError: another process holds it.
            ArtifactError: `run.json` is malformed or was written by a newer kdx.
            ConfigError: the directory is not a run directory.
        """
        try:
            self.root.mkdir(parents=True, exist_ok=True)
        except (FileExistsError, NotADirectoryError) as error:
            raise ConfigError(f"{self.root} is a file, or inside one, and cannot be a run directory") from error
        self._check_run_file()
        with (self.root / LOCK_FILE).open("a+", encoding="utf-8") as stream:
            try:
                fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                stream.seek(0)
                holder = stream.read(400).strip() or "another process"
                raise RunLockedError(
                    f"{self.root} is being written to by {holder}; wait until it ends, or use another --run"
                ) from error
            stream.truncate(0)
            stream.write(f"process {os.getpid()} ({' '.join(['kdx', *sys.argv[1:]])[:300]})\n")
            stream.flush()
            if not (self.root / RUN_FILE).exists():
                record = {"format_version": FORMAT_VERSION, "kdx_version": __version__}
                write_file(self.root / RUN_FILE, (json.dumps(record, indent=2) + "\n").encode())
            try:
                yield
            finally:
                stream.truncate(0)

    def _check_run_file(self) -> None:
        path = self.root / RUN_FILE
        if not path.exists():
            others = [p.name for p in self.root.iterdir() if not p.name.startswith(".")]
            if others:
                raise ConfigError(f"{self.root} is not a run directory: it contains {others[0]} and no {RUN_FILE}")
            return
        try:
            version = json.loads(path.read_text(encoding="utf-8"))["format_version"]
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise ArtifactError(f"{path} is malformed: {error}") from error
        if type(version) is not int or not 1 <= version <= FORMAT_VERSION:
            raise ArtifactError(
                f"{path} has format {version}; this version reads formats up to {FORMAT_VERSION}: upgrade kdx"
            )

    def is_done(self, ref: ArtifactRef, config: dict[str, Any], inputs: tuple[Input, ...], force: bool) -> bool:
        """Return whether `ref` exists, is undamaged, and was made with this config from these inputs.

        Raises:
            ConfigError: it was made with other options or from other inputs, and `force` is not set; the message lists
                the differences.
            ArtifactError: it is damaged, and `force` is not set.
        """
        recover(ref.directory)
        if force or not ref.directory.exists():
            return False
        manifest = manifest_of(ref)
        changes = difference(manifest.config, config) + _changed_inputs(manifest, inputs)
        if changes:
            raise ConfigError(
                f"{ref.directory} already exists with different options or inputs ({'; '.join(changes)}). Use --force "
                f"to overwrite it, or {'--name' if PLACES[ref.kind].endswith('/') else 'another --run'} to keep both."
            )
        verify_artifact(ref.directory, manifest)
        return True


def manifest_of(ref: ArtifactRef) -> Manifest:
    """Return the manifest of an artifact. Raises `ArtifactError` if its directory contains another artifact."""
    manifest = read_manifest(ref.directory)
    _require_place(ref, manifest)
    return manifest


def _require_place(ref: ArtifactRef, manifest: Manifest) -> None:
    """Raise `ArtifactError` if the manifest is that of another artifact."""
    if manifest.kind != ref.kind or manifest.label != ref.label:
        raise ArtifactError(f"{ref.directory} contains the {manifest.kind} {manifest.label}: it was renamed or moved")


def verified_manifest(ref: ArtifactRef) -> Manifest:
    """Check every file of an artifact of the run and return its manifest. Raises `ArtifactError`."""
    return verify_artifact(ref.directory, manifest_of(ref))


def _changed_inputs(manifest: Manifest, inputs: tuple[Input, ...]) -> list[str]:
    old = {entry.role: entry for entry in manifest.inputs}
    new = {entry.role: entry for entry in inputs}
    changes = []
    for role in dict.fromkeys([*old, *new]):
        before, after = old.get(role), new.get(role)
        if before is None or after is None or before.sha256 != after.sha256:
            changes.append(f"{role}: {_input_text(before)} -> {_input_text(after)}")
    return changes


def _input_text(entry: Input | None) -> str:
    return f"{entry.path} {entry.sha256[:8]}" if entry else "none"
