"""Artifacts: one directory per published result, described by `manifest.json`, checked whenever it is read."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from ..errors import ArtifactError
from ..options.former import present_record
from .safetensors_header import ARTIFACT_TYPES, METADATA_KEY, check_safetensors_file, own_metadata

FORMAT_VERSION = 1
MANIFEST = "manifest.json"
MAX_MANIFEST_BYTES = 4 * 2**20
BATCH_NORM_KEY = "batch_norm"
"""Key in a classifier's header: whether the network has batch normalization with running statistics."""

Json = dict[str, Any]
_FILE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
_SHA256 = re.compile(r"[0-9a-f]{64}")


NEW_DATA = "+new-data"
NEEDS = (
    "",
    "teacher",
    f"teacher{NEW_DATA}",
    "teacher+statistics",
    f"teacher+statistics{NEW_DATA}",
    "teacher+samples",
    f"teacher+samples{NEW_DATA}",
    "teacher+data",
)
"""What a result was made from, from the least access to the teacher's training data to the most. With `NEW_DATA` at the
end, real images of classes that the teacher does not have were used as well."""


def strongest(*needs: str) -> str:
    """Return the value of `NEEDS` with the most access."""
    return max(needs, key=NEEDS.index)


def with_new_data(*needs: str) -> str:
    """Return the strongest of these values of `NEEDS`, with the access to real images of classes that are added."""
    most = strongest("teacher", *(value.removesuffix(NEW_DATA) for value in needs))
    return most if most == "teacher+data" else most + NEW_DATA


@dataclass(frozen=True)
class Input:
    """A file or artifact that a stage read: its `role` in the stage, its path, and its sha256."""

    role: str
    path: str
    sha256: str


@dataclass(frozen=True)
class Output:
    """A payload file of an artifact."""

    file: str
    sha256: str
    bytes: int


@dataclass(frozen=True)
class Manifest:
    """The content of `manifest.json`.

    `kind` is one of the keys of `run_dir.PLACES`; `label` its place in the run; `stage` the command that made it;
    `config` its recorded options; `needs` is one of `NEEDS`, '' for an artifact made from real data; `real_data` lists
    every opening of real data ({spec, split, purpose}); `budget` has the numbers of images, teacher queries and student
    steps, and the seconds of each phase; `metrics` is the summary of the stage.
    """

    kind: str
    label: str
    stage: str
    kdx_version: str
    config: Json
    inputs: tuple[Input, ...]
    outputs: tuple[Output, ...]
    needs: str = ""
    real_data: tuple[Json, ...] = ()
    environment: Json = field(default_factory=dict)
    budget: Json = field(default_factory=dict)
    metrics: Json = field(default_factory=dict)
    format_version: int = FORMAT_VERSION

    def output(self, name: str) -> Output:
        """Return the entry of one payload file. Raises `ArtifactError` when there is none."""
        for output in self.outputs:
            if output.file == name:
                return output
        raise ArtifactError(f"the {self.kind} has no file {name}")

    @property
    def identity(self) -> str:
        """One sha256 over all payload files: equal results have equal identities."""
        digest = hashlib.sha256()
        for output in sorted(self.outputs, key=lambda o: o.file):
            digest.update(f"{output.file}\0{output.sha256}\n".encode())
        return digest.hexdigest()


def read_manifest(directory: Path) -> Manifest:
    """Return the manifest of an artifact directory, its options under their present names.

    Raises:
        ArtifactError: it is missing or malformed, or of a newer format than this version reads.
    """
    path = directory / MANIFEST
    try:
        if path.stat().st_size > MAX_MANIFEST_BYTES:
            raise ArtifactError(f"{path} is larger than {MAX_MANIFEST_BYTES} bytes")
        record = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError) as error:
        raise ArtifactError(f"{directory} is not an artifact: it has no {MANIFEST}") from error
    except IsADirectoryError as error:
        raise ArtifactError(f"{path} is a directory, not a file") from error
    except (ValueError, RecursionError) as error:
        raise ArtifactError(f"{path} is not valid JSON: {error}") from error
    try:
        version = record["format_version"]
        if type(version) is not int or version < 1:
            raise ArtifactError(f"{path} has the unknown format version {version!r}")
        if version > FORMAT_VERSION:
            raise ArtifactError(
                f"{path} has format {version}, made by kdx {record['kdx_version']}; this version reads formats up "
                f"to {FORMAT_VERSION}: upgrade kdx"
            )
        inputs = tuple(Input(**entry) for entry in record.pop("inputs"))
        outputs = tuple(Output(**entry) for entry in record.pop("outputs"))
        real_data = tuple(record.pop("real_data"))
        manifest = Manifest(inputs=inputs, outputs=outputs, real_data=real_data, **record)
    except (KeyError, TypeError, AttributeError) as error:
        raise ArtifactError(f"{path} is malformed: {error}") from error
    _check_types(path, manifest)
    return replace(manifest, config=present_record(manifest.config))


def read_safetensors_header(path: Path) -> tuple[list[str], Json]:
    """Return the names of the tensors of a safetensors file and its metadata; quick, without PyTorch.

    Raises:
        ArtifactError: the file is missing or malformed.
    """
    tensors, metadata = check_safetensors_file(path, ARTIFACT_TYPES)
    if METADATA_KEY not in metadata:
        raise ArtifactError(f"{path} is a safetensors file, but not one of kdx")
    return list(tensors), own_metadata(path, metadata)


def _check_types(path: Path, manifest: Manifest) -> None:
    texts = [manifest.kind, manifest.label, manifest.stage, manifest.kdx_version, manifest.needs]
    texts += [text for entry in manifest.inputs for text in (entry.role, entry.path, entry.sha256)]
    texts += [text for entry in manifest.outputs for text in (entry.file, entry.sha256)]
    objects = [manifest.config, manifest.environment, manifest.budget, manifest.metrics, *manifest.real_data]
    plain = all(isinstance(text, str) for text in texts) and all(isinstance(entry, dict) for entry in objects)
    if not plain or any(type(output.bytes) is not int for output in manifest.outputs):
        raise ArtifactError(f"{path} is malformed: a field has the wrong type")
    hashes = [entry.sha256 for entry in manifest.inputs] + [entry.sha256 for entry in manifest.outputs]
    if not all(_SHA256.fullmatch(text) for text in hashes):
        raise ArtifactError(f"{path} is malformed: a sha256 is not 64 hexadecimal digits")
    for output in manifest.outputs:
        if output.file == MANIFEST or not _FILE_NAME.fullmatch(output.file):
            raise ArtifactError(f"{path} names the output {output.file!r}, which is not a plain file name")


def write_manifest(directory: Path, manifest: Manifest) -> None:
    """Write `manifest.json` atomically."""
    text = json.dumps(asdict(manifest), indent=2, ensure_ascii=False) + "\n"
    write_file(directory / MANIFEST, text.encode())


def verify_artifact(
    directory: Path, manifest: Manifest | None = None, sha256_of: Callable[[Path], str] | None = None
) -> Manifest:
    """Check every payload file against the manifest, by size and sha256, and return the manifest.

    Args:
        sha256_of: returns the sha256 of a file; by default the file is read.

    Raises:
        ArtifactError: a file is missing, changed, truncated or renamed; the message names it.
    """
    manifest = manifest or read_manifest(directory)
    for output in manifest.outputs:
        verify_file(directory, output, sha256_of)
    return manifest


def verify_file(directory: Path, output: Output, sha256_of: Callable[[Path], str] | None = None) -> Path:
    """Check one payload file and return its path. Raises `ArtifactError`."""
    path = directory / output.file
    if not path.is_file():
        raise ArtifactError(f"{path} is missing; make the artifact again with --force")
    size = path.stat().st_size
    if size != output.bytes:
        raise ArtifactError(f"{path} has {size} bytes, its manifest says {output.bytes}: truncated or changed")
    if (sha256_of or file_sha256)(path) != output.sha256:
        raise ArtifactError(f"{path} was changed: its sha256 differs from the manifest")
    return path


def file_sha256(path: Path) -> str:
    """Return the sha256 of a file, in hexadecimal."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def write_file(path: Path, content: bytes) -> None:
    """Write a file atomically: after a crash or power loss, `path` is the old file or the complete new one.

    A sibling is written, flushed to the disk, and renamed over `path`.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("xb") as stream:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync_directory(path.parent)


def sync_directory(directory: Path) -> None:
    """Write the renames in `directory` to the disk."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def publish(target: Path, build: Callable[[Path], Manifest]) -> Manifest:
    """Build an artifact in a hidden sibling directory, write its manifest, and rename it to `target`.

    After an interruption, `target` is the old artifact, or (between two renames) absent while the old one is in a
    sibling directory, from which `recover` restores it.
    """
    staged, old = staged_path(target), replaced_path(target)
    shutil.rmtree(staged, ignore_errors=True)
    staged.mkdir(parents=True)
    try:
        manifest = build(staged)
        write_manifest(staged, manifest)
    except BaseException:
        shutil.rmtree(staged, ignore_errors=True)
        raise
    if target.exists():
        shutil.rmtree(old, ignore_errors=True)
        os.rename(target, old)
    try:
        os.rename(staged, target)
    except OSError:
        if old.exists():
            os.rename(old, target)
        raise
    sync_directory(target.parent)
    shutil.rmtree(old, ignore_errors=True)
    return manifest


def recover(target: Path) -> None:
    """Clean up after an interrupted `publish`: restore the old artifact if there is no new one, remove the rest."""
    staged, old = staged_path(target), replaced_path(target)
    if old.exists() and not target.exists():
        os.rename(old, target)
    for leftover in (old, staged):
        if leftover.exists():
            shutil.rmtree(leftover)


def staged_path(target: Path) -> Path:
    """Return the directory in which an artifact is built before it is published."""
    return target.with_name(f".{target.name}.staged")


def replaced_path(target: Path) -> Path:
    """Return the directory of the old artifact while it is being replaced."""
    return target.with_name(f".{target.name}.replaced")


def partial_path(target: Path) -> Path:
    """Return the directory of the checkpoint of an unfinished stage."""
    return target.with_name(f".{target.name}.partial")
