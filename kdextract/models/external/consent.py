"""Which code may run: the calls that the user has allowed, stored in a file of the user.

A permission is for one call: a function of a piece of code, which is identified by its sha256, with its keyword
arguments. A user who types `model.py:build(depth=3)` allows this call, and with it the calls that kdx derives from it
by filling in numbers. A call that a file of weights names is not made unless exactly this call was allowed before, or
`KDX_TRUST_CODE=1` is set.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
from pathlib import Path

from ...errors import ArtifactError, ConfigError
from ...storage.artifacts import write_file
from .names import NetworkName

TRUST_ALL = "KDX_TRUST_CODE"
STORE_VERSION = 2
"""Version 1 mapped the sha256 of a file to its path; it does not say which calls are allowed, so it is ignored."""
MAX_SHOWN = 600
"""Number of characters of a call that an error shows."""

Calls = dict[str, dict[str, str]]
"""sha256 of the code -> call -> the file that the code came from."""


def code_sha256(content: bytes) -> str:
    """Return the sha256, in hexadecimal digits, that identifies a piece of code."""
    return hashlib.sha256(content).hexdigest()


def call_of(name: NetworkName) -> str:
    """Return the call as it is stored: `build(depth=3)` for `file.py:build(depth=3)`, `package.module:build`, or '' for
    a program."""
    if name.kind == "program":
        return ""
    target = name.function if name.kind == "file" else name.target
    return str(NetworkName(target).with_arguments(**dict(name.arguments)))


def allow(content: bytes, name: NetworkName, origin: Path) -> None:
    """Store that the user allows the call `name` of this code, and the file that the code came from.

    Raises:
        ConfigError: the permission cannot be stored.
    """
    store, code, call, entry = _store(), code_sha256(content), call_of(name), str(origin.resolve())
    if _allowed_calls(store).get(code, {}).get(call) == entry:
        return
    try:
        _add(store, code, call, entry)
    except OSError as error:
        if not _trusts_all():
            raise ConfigError(
                f"cannot write to {store} that this code may run; set XDG_STATE_HOME to another folder, or set "
                f"{TRUST_ALL}=1 on a machine where all code is trusted"
            ) from error


def allow_inferred(content: bytes, name: NetworkName, derived: NetworkName) -> None:
    """Allow the call `derived`, which has arguments that kdx has filled in, if the call `name` was allowed."""
    origin = _allowed_calls(_store()).get(code_sha256(content), {}).get(call_of(name))
    if origin is not None:
        allow(content, derived, Path(origin))


def require(content: bytes, name: NetworkName) -> Path | None:
    """Check that the call `name` of this code was allowed; return the file that the code came from, None if unknown.

    Raises:
        ArtifactError: the call was not allowed on this machine.
    """
    calls = _allowed_calls(_store()).get(code_sha256(content), {})
    origin = calls.get(call_of(name))
    if origin is None and not _trusts_all():
        known = f"the code of {name.place} (sha256 {code_sha256(content)[:16]})"
        if name.kind == "program":
            raise _refusal(f"it is a .pt2 program (sha256 {code_sha256(content)[:16]}), which can run anything")
        other = "; another call of the same code was allowed" if calls else ""
        raise _refusal(f"it runs {known} and calls {call_of(name)}", other)
    return None if origin is None else Path(origin)


def require_call(name: NetworkName) -> None:
    """Raise `ArtifactError` unless the call of a module's function was allowed, with whatever code at that time.

    This is checked before the module is looked up; `require` then checks the code.
    """
    call = call_of(name)
    if not _trusts_all() and not any(call in calls for calls in _allowed_calls(_store()).values()):
        raise _refusal(f"it imports {name.place} and calls {call}")


def _refusal(what: str, other: str = "") -> ArtifactError:
    text = what if len(what) <= MAX_SHOWN else f"{what[:MAX_SHOWN]}... ({len(what) - MAX_SHOWN} more characters)"
    shown = "".join(char if char.isprintable() else ascii(char)[1:-1] for char in text)
    return ArtifactError(
        f"{shown}, which was not allowed on this machine{other}; if you trust it, allow it with: "
        f"kdx check-teacher FILE --trust-code ({TRUST_ALL}=1 allows everything)"
    )


def _trusts_all() -> bool:
    return os.environ.get(TRUST_ALL, "") not in ("", "0")


def _store() -> Path:
    state = os.environ.get("XDG_STATE_HOME") or os.path.join(os.path.expanduser("~"), ".local", "state")
    return Path(state) / "kdx" / "allowed-code.json"


def _add(store: Path, code: str, call: str, origin: str) -> None:
    """Add an entry under a lock, so that no entry of another process or thread is lost."""
    store.parent.mkdir(parents=True, exist_ok=True)
    with store.with_suffix(".lock").open("a+", encoding="utf-8") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        allowed = _allowed_calls(store)
        allowed.setdefault(code, {})[call] = origin
        record = {"version": STORE_VERSION, "allowed": allowed}
        write_file(store, (json.dumps(record, indent=2) + "\n").encode())


def _allowed_calls(store: Path) -> Calls:
    """Return the permissions in a file; none if it is damaged or has another version."""
    try:
        record = json.loads(store.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    if not isinstance(record, dict) or record.get("version") != STORE_VERSION:
        return {}
    allowed = record.get("allowed")
    return {
        code: {call: origin for call, origin in calls.items() if isinstance(origin, str)}
        for code, calls in (allowed.items() if isinstance(allowed, dict) else ())
        if isinstance(calls, dict)
    }
