"""Artifacts: published completely or not at all, and checked whenever they are read."""

from __future__ import annotations

import dataclasses
import io
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from helpers import repeatable
from hypothesis import given, settings
from hypothesis import strategies as st

from kdextract.errors import ArtifactError
from kdextract.storage import artifacts
from kdextract.storage.artifacts import (
    FORMAT_VERSION,
    MANIFEST,
    MAX_MANIFEST_BYTES,
    Input,
    Manifest,
    Output,
    file_sha256,
    publish,
    read_manifest,
    recover,
    replaced_path,
    staged_path,
    verify_artifact,
    verify_file,
    write_file,
    write_manifest,
)

MANY = settings(repeatable, max_examples=150)


def build(files: dict[str, bytes]) -> Callable[[Path], Manifest]:
    """Return a function that writes `files` into a directory and describes them, as `publish` requires."""

    def write(directory: Path) -> Manifest:
        for name, content in files.items():
            write_file(directory / name, content)
        return manifest_of(directory, *files)

    return write


def manifest_of(directory: Path, *names: str, **changes: Any) -> Manifest:
    outputs = tuple(Output(n, file_sha256(directory / n), (directory / n).stat().st_size) for n in names)
    fields = {
        "kind": "student",
        "label": "students/small",
        "stage": "distill",
        "kdx_version": "0.1.0",
        "config": {"seed": 0, "lr": 0.002, "name": None, "text": "größer"},
        "inputs": (Input("teacher", "teacher", "ab" * 32), Input("transfer-set", "transfer-sets/a", "cd" * 32)),
        "outputs": outputs,
        "needs": "teacher+statistics",
        "real_data": ({"spec": "digits", "split": "train", "purpose": "training"},),
        "environment": {"python": "3"},
        "budget": {"images": 40, "seconds": {"total": 1.5}},
        "metrics": {"loss": 0.5},
    }
    return Manifest(**{**fields, **changes})


OLD = {"model.bin": b"old weights", "metrics.jsonl": b"{}\n"}
NEW = {"model.bin": b"new and longer weights", "extra.bin": b"only in the new one"}


def content_of(directory: Path) -> dict[str, bytes] | None:
    """Return the verified payload of an artifact, or None if there is none. Raises if it is incomplete."""
    if not directory.exists():
        return None
    manifest = verify_artifact(directory)
    assert {p.name for p in directory.iterdir()} == {MANIFEST, *(output.file for output in manifest.outputs)}
    return {output.file: (directory / output.file).read_bytes() for output in manifest.outputs}


@pytest.fixture
def published(tmp_path: Path) -> Path:
    target = tmp_path / "students" / "small"
    publish(target, build(OLD))
    return target


# ---- publishing ------------------------------------------------------------------------------------------------


def test_publishing_writes_payload_and_manifest_and_nothing_else(tmp_path: Path) -> None:
    target = tmp_path / "students" / "small"
    manifest = publish(target, build(OLD))
    assert content_of(target) == OLD
    assert read_manifest(target) == manifest
    assert [p.name for p in target.parent.iterdir()] == ["small"]


def test_publishing_again_replaces_everything(published: Path) -> None:
    publish(published, build(NEW))
    assert content_of(published) == NEW
    assert [p.name for p in published.parent.iterdir()] == ["small"]


@pytest.mark.parametrize("error", [RuntimeError("bug"), OSError(28, "full"), KeyboardInterrupt()])
def test_a_failing_build_keeps_the_old_artifact(published: Path, error: BaseException) -> None:
    def fail(directory: Path) -> Manifest:
        write_file(directory / "model.bin", b"half")
        raise error

    with pytest.raises(type(error)):
        publish(published, fail)
    assert content_of(published) == OLD
    assert [p.name for p in published.parent.iterdir()] == ["small"]


def test_files_of_a_killed_build_are_not_in_the_next_one(published: Path) -> None:
    staged_path(published).mkdir()
    (staged_path(published) / "stale.bin").write_bytes(b"stale")
    publish(published, build(NEW))
    assert content_of(published) == NEW


class Fault(OSError):
    """Raised by an injected failure."""


class Power(BaseException):
    """Power loss: all system calls from the k-th on fail."""


SYSTEM_CALLS = ("open", "fsync", "replace", "rename", "mkdir")


class Injector:
    """Makes the k-th of the counted system calls fail, and every later one too if `for_good`."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, error: type[BaseException], for_good: bool) -> None:
        self.calls, self.failing, self._error, self._for_good = 0, None, error, for_good
        for name in SYSTEM_CALLS:
            monkeypatch.setattr(os, name, self._counted(getattr(os, name)))
        monkeypatch.setattr(io, "open", self._counted(io.open))
        for name in ("unlink", "rmdir"):
            monkeypatch.setattr(os, name, self._dead_after_fault(getattr(os, name)))

    failing: int | None

    def _counted(self, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            self.calls += 1
            if self._fails():
                raise self._error
            return real(*arguments, **options)

        return call

    def _dead_after_fault(self, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            if self._for_good and self.failing is not None and self.calls >= self.failing:
                raise self._error
            return real(*arguments, **options)

        return call

    def _fails(self) -> bool:
        if self.failing is None:
            return False
        return self.calls >= self.failing if self._for_good else self.calls == self.failing


def number_of_calls(directory: Path, before: dict[str, bytes] | None) -> int:
    """Count the system calls of a publication without failures."""
    target = directory / "counted" / "small"
    if before is not None:
        publish(target, build(before))
    with pytest.MonkeyPatch.context() as patch:
        counter = Injector(patch, Fault, for_good=False)
        publish(target, build(NEW))
    return counter.calls


@pytest.mark.parametrize("error", [Fault, Power])
@pytest.mark.parametrize("before", [None, OLD], ids=["first", "replacing"])
def test_whatever_fails_the_artifact_is_old_or_new_and_whole(
    tmp_path: Path, before: dict[str, bytes] | None, error: type[BaseException]
) -> None:
    total = number_of_calls(tmp_path, before)
    assert total >= 10
    outcomes = []
    for k in range(1, total + 1):
        target = tmp_path / f"{k}" / "small"
        if before is not None:
            publish(target, build(before))
        with pytest.MonkeyPatch.context() as patch:
            Injector(patch, error, for_good=error is Power).failing = k
            try:
                publish(target, build(NEW))
            except (Fault, Power):
                pass
            else:
                assert error is Fault, "what power loss interrupts cannot report success"
        recover(target)
        found = content_of(target)
        assert found in (before, NEW), f"system call {k} of {total}"
        outcomes.append(found == NEW)
        if target.parent.exists():
            assert {p.name for p in target.parent.iterdir()} <= {"small"}, "recover leaves no rubbish"
        publish(target, build(NEW))
        assert content_of(target) == NEW, "and publishing works afterwards"
    assert not outcomes[0]
    assert outcomes == sorted(outcomes), "before some call the old one stays, after it the new one"


@pytest.mark.parametrize("error", [Fault, Power])
@pytest.mark.parametrize("before", [None, b"old"], ids=["first", "replacing"])
def test_whatever_fails_a_file_is_old_or_new_and_whole(
    tmp_path: Path, before: bytes | None, error: type[BaseException]
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        counter = Injector(patch, Fault, for_good=False)
        write_file(tmp_path / "counted", b"new")
    assert counter.calls >= 3
    for k in range(1, counter.calls + 1):
        path = tmp_path / str(k) / "file"
        path.parent.mkdir()
        if before is not None:
            path.write_bytes(before)
        with pytest.MonkeyPatch.context() as patch:
            Injector(patch, error, for_good=error is Power).failing = k
            with pytest.raises(error):
                write_file(path, b"new")
        found = path.read_bytes() if path.exists() else None
        assert found in (before, b"new")
        if error is Fault:
            assert {p.name for p in path.parent.iterdir()} <= {"file"}, "no temporary file stays"


def test_a_file_reaches_the_disk_before_its_name_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    events = []
    real_fsync, real_replace = os.fsync, os.replace

    def fsync(descriptor: int) -> None:
        events.append("directory" if os.path.isdir(f"/proc/self/fd/{descriptor}") else "file")
        real_fsync(descriptor)

    def replace(source: Any, target: Any) -> None:
        events.append("rename")
        real_replace(source, target)

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(os, "replace", replace)
    write_file(tmp_path / "a", b"content")
    assert [e for e in events if e != "directory" or os.path.isdir("/proc/self/fd")] == ["file", "rename", "directory"]


def test_a_file_is_never_open_under_its_own_name_while_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    monkeypatch.setattr(artifacts.os, "fsync", lambda descriptor: seen.append((tmp_path / "a").exists()))
    write_file(tmp_path / "a", b"content")
    assert seen[0] is False


@pytest.mark.parametrize("state", ["old only", "both", "staged only", "nothing", "target only"])
def test_recover(published: Path, state: str) -> None:
    staged, old = staged_path(published), replaced_path(published)
    if state == "old only":
        published.rename(old)
        staged.mkdir()
    elif state == "both":
        shutil.copytree(published, old)
        (old / "model.bin").write_bytes(b"older")
    elif state == "staged only":
        published.rename(staged)
    elif state == "nothing":
        shutil.rmtree(published)
    recover(published)
    assert content_of(published) == (None if state in ("staged only", "nothing") else OLD)
    assert not staged.exists()
    assert not old.exists()
    recover(published)


# ---- manifests ---------------------------------------------------------------------------------------------------


def test_a_manifest_comes_back_as_it_was(published: Path) -> None:
    manifest = manifest_of(published, *OLD)
    write_manifest(published, manifest)
    assert read_manifest(published) == manifest
    assert manifest.format_version == FORMAT_VERSION
    assert "größer" in (published / MANIFEST).read_text(encoding="utf-8")
    assert manifest.output("model.bin").bytes == len(OLD["model.bin"])
    with pytest.raises(ArtifactError, match=r"no file other\.bin"):
        manifest.output("other.bin")


def test_identity_is_of_the_payload_alone(published: Path) -> None:
    manifest = manifest_of(published, *OLD)
    again = dataclasses.replace(manifest, outputs=manifest.outputs[::-1], metrics={}, budget={}, label="students/b")
    assert again.identity == manifest.identity
    for changed in ({"file": "renamed.bin"}, {"sha256": "0" * 64}):
        outputs = (dataclasses.replace(manifest.outputs[0], **changed), *manifest.outputs[1:])
        assert dataclasses.replace(manifest, outputs=outputs).identity != manifest.identity
    assert dataclasses.replace(manifest, outputs=manifest.outputs[:1]).identity != manifest.identity


def change_manifest(directory: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    """Edit the JSON of the manifest."""
    path = directory / MANIFEST
    record = json.loads(path.read_text(encoding="utf-8"))
    change(record)
    path.write_text(json.dumps(record), encoding="utf-8")


def test_a_newer_format_is_refused_with_the_version_of_kdx_that_wrote_it(published: Path) -> None:
    def newer(record: dict[str, Any]) -> None:
        record |= {"format_version": FORMAT_VERSION + 1, "kdx_version": "7.8.9", "unheard_of": 1}

    change_manifest(published, newer)
    with pytest.raises(ArtifactError, match=rf"format {FORMAT_VERSION + 1}, made by kdx 7\.8\.9.*upgrade"):
        read_manifest(published)


BROKEN_MANIFESTS: dict[str, Callable[[dict[str, Any]], Any]] = {
    "version is text": lambda m: m.update(format_version="1"),
    "version is true": lambda m: m.update(format_version=True),
    "version is zero": lambda m: m.update(format_version=0),
    "version is a fraction": lambda m: m.update(format_version=1.0),
    "version is missing": lambda m: m.pop("format_version"),
    "kind is missing": lambda m: m.pop("kind"),
    "kind is a number": lambda m: m.update(kind=5),
    "label is null": lambda m: m.update(label=None),
    "unknown field": lambda m: m.update(surprise=1),
    "config is a list": lambda m: m.update(config=[]),
    "config is missing": lambda m: m.pop("config"),
    "metrics are text": lambda m: m.update(metrics="good"),
    "budget is null": lambda m: m.update(budget=None),
    "environment is a number": lambda m: m.update(environment=3),
    "real_data is a number": lambda m: m.update(real_data=3),
    "real_data is missing": lambda m: m.pop("real_data"),
    "real_data holds text": lambda m: m.update(real_data=["digits"]),
    "inputs are missing": lambda m: m.pop("inputs"),
    "inputs are null": lambda m: m.update(inputs=None),
    "inputs hold text": lambda m: m.update(inputs=["teacher"]),
    "an input lacks its sha256": lambda m: m["inputs"][0].pop("sha256"),
    "an input has a field more": lambda m: m["inputs"][0].update(bytes=1),
    "an input's path is a number": lambda m: m["inputs"][0].update(path=1),
    "outputs are missing": lambda m: m.pop("outputs"),
    "outputs are an object": lambda m: m.update(outputs={"a": 1}),
    "an output's size is text": lambda m: m["outputs"][0].update(bytes="11"),
    "an output's size is true": lambda m: m["outputs"][0].update(bytes=True),
    "an output's size is a fraction": lambda m: m["outputs"][0].update(bytes=11.0),
    "an output's sha256 is null": lambda m: m["outputs"][0].update(sha256=None),
    "an output's sha256 is half a surrogate": lambda m: m["outputs"][0].update(sha256="\ud800"),
    "an output's name is a number": lambda m: m["outputs"][0].update(file=7),
}


@pytest.mark.parametrize("change", BROKEN_MANIFESTS.values(), ids=BROKEN_MANIFESTS.keys())
def test_a_malformed_manifest_is_refused(published: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    change_manifest(published, change)
    with pytest.raises(ArtifactError, match=r"manifest\.json"):
        read_manifest(published)


UNSAFE_NAMES = [
    "",
    ".",
    "..",
    MANIFEST,
    "/etc/passwd",
    "../model.bin",
    "../../teacher/model.safetensors",
    "sub/model.bin",
    "model.bin/",
    "model.bin/..",
    "./model.bin",
    "/",
    "a\0b",
    "x" * 300,
    "\ud800",
]


@pytest.mark.parametrize("name", UNSAFE_NAMES, ids=lambda name: ascii(name[:20]))
def test_a_payload_is_a_plain_file_in_the_artifact(published: Path, name: str) -> None:
    change_manifest(published, lambda m: m["outputs"][0].update(file=name))
    with pytest.raises(ArtifactError, match=r"manifest\.json"):
        read_manifest(published)


BROKEN_TEXTS = {
    "empty": b"",
    "not JSON": b"{",
    "not UTF-8": b'{"kind": "\xff"}',
    "a list": b"[]",
    "a number": b"1",
    "null": b"null",
    "deeply nested": b"[" * 100_000,
    "a huge number": b'{"format_version": ' + b"9" * 5000 + b"}",
    "larger than any manifest": b" " * (MAX_MANIFEST_BYTES + 1),
}


@pytest.mark.parametrize("text", BROKEN_TEXTS.values(), ids=BROKEN_TEXTS.keys())
def test_what_is_not_a_manifest_is_refused(published: Path, text: bytes) -> None:
    (published / MANIFEST).write_bytes(text)
    with pytest.raises(ArtifactError):
        read_manifest(published)


def test_what_is_not_an_artifact_is_refused(published: Path, tmp_path: Path) -> None:
    (published / MANIFEST).unlink()
    for place in (published, published / "model.bin", tmp_path / "missing"):
        with pytest.raises(ArtifactError, match="is not an artifact"):
            read_manifest(place)
    (published / MANIFEST).mkdir()
    with pytest.raises(ArtifactError):
        read_manifest(published)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 2**70) | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=6,
)


@MANY
@given(data=st.data())
def test_any_change_of_a_manifest_is_read_or_refused(data: st.DataObject, tmp_path: Path) -> None:
    target = tmp_path / "students" / "small"
    if not target.exists():
        publish(target, build(OLD))
    record = json.loads((target / MANIFEST).read_text(encoding="utf-8"))
    place: Any = record
    for _ in range(data.draw(st.integers(0, 2))):
        keys = list(place) if isinstance(place, dict) else list(range(len(place)))
        inner = [key for key in keys if isinstance(place[key], dict | list) and place[key]]
        if not inner:
            break
        place = place[data.draw(st.sampled_from(inner))]
    keys = list(place) if isinstance(place, dict) else list(range(len(place)))
    place[data.draw(st.sampled_from(keys))] = data.draw(json_values)
    changed = tmp_path / "changed"
    changed.mkdir(exist_ok=True)
    (changed / MANIFEST).write_text(json.dumps(record), encoding="utf-8")
    try:
        manifest = read_manifest(changed)
    except ArtifactError:
        return
    assert len(manifest.identity) == 64
    with pytest.raises(ArtifactError):
        verify_artifact(changed, manifest) if manifest.outputs else manifest.output("model.bin")


# ---- payload -----------------------------------------------------------------------------------------------------


def flip_a_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(bytes(content))


PAYLOAD_DAMAGE: dict[str, tuple[Callable[[Path], Any], str]] = {
    "one bit": (flip_a_bit, "sha256 differs"),
    "truncated": (lambda p: p.write_bytes(p.read_bytes()[:-1]), "truncated or changed"),
    "emptied": (lambda p: p.write_bytes(b""), "truncated or changed"),
    "extended": (lambda p: p.write_bytes(p.read_bytes() + b"\0"), "truncated or changed"),
    "removed": (lambda p: p.unlink(), "is missing"),
    "renamed": (lambda p: p.rename(p.with_name("other.bin")), "is missing"),
    "a directory": (lambda p: (p.unlink(), p.mkdir()), "is missing"),
    "a dangling link": (lambda p: (p.unlink(), p.symlink_to("nowhere")), "is missing"),
}


@pytest.mark.parametrize("file", OLD)
@pytest.mark.parametrize(("damage", "says"), PAYLOAD_DAMAGE.values(), ids=PAYLOAD_DAMAGE.keys())
def test_a_damaged_payload_is_named(published: Path, file: str, damage: Callable[[Path], Any], says: str) -> None:
    assert verify_artifact(published).label == "students/small"
    damage(published / file)
    with pytest.raises(ArtifactError, match=says) as caught:
        verify_artifact(published)
    assert str(published / file) in str(caught.value)


def test_two_payload_files_cannot_be_exchanged(tmp_path: Path) -> None:
    target = tmp_path / "small"
    publish(target, build({"a.bin": b"1234", "b.bin": b"5678"}))
    (target / "a.bin").rename(target / "c.bin")
    (target / "b.bin").rename(target / "a.bin")
    (target / "c.bin").rename(target / "b.bin")
    with pytest.raises(ArtifactError, match="sha256 differs"):
        verify_artifact(target)


def test_one_file_is_verified_by_itself(published: Path) -> None:
    manifest = read_manifest(published)
    assert verify_file(published, manifest.output("model.bin")) == published / "model.bin"
    (published / "metrics.jsonl").unlink()
    assert verify_file(published, manifest.output("model.bin")).read_bytes() == OLD["model.bin"]
    with pytest.raises(ArtifactError):
        verify_file(published, manifest.output("metrics.jsonl"))
