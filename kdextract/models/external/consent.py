"""Whose code may run: what a user has allowed, kept between processes.

Allowed is a call: a function of a piece of code, which is known by its sha256, with its keyword arguments. Whoever
types `model.py:build(depth=3)` allows this call, and with it the calls that kdx derives from it by filling in numbers.
What a file of weights names is not called before just that was allowed here, or `KDX_TRUST_CODE=1` is set.
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
"""1 was a plain dictionary from the sha256 of a file to its path: it says of no call that it was allowed."""
MAX_SHOWN = 600
"""Characters of a call that an error shows."""

Calls = dict[str, dict[str, str]]
"""sha256 of the code -> call -> the file that the code came from."""


def code_sha256(content: bytes) -> str:
    """Return what a piece of code is known by."""
    return hashlib.sha256(content).hexdigest()


def call_of(name: NetworkName) -> str:
    """Return what is called, as it is kept: `build(depth=3)` of a file, `package.module:build`, '' of a program."""
    if name.kind == "program":
        return ""
    target = name.function if name.kind == "file" else name.target
    return str(NetworkName(target).with_arguments(**dict(name.arguments)))


def allow(content: bytes, name: NetworkName, origin: Path) -> None:
    """Keep the user's word that this code may make the call that `name` spells, and the file that it came from.

    Raises:
        ConfigError: there is no place to keep it.
    """
    store, code, call, entry = _store(), code_sha256(content), call_of(name), str(origin.resolve())
    if _allowed_calls(store).get(code, {}).get(call) == entry:
        return
    try:
        _add(store, code, call, entry)
    except OSError as error:
        if not _trusts_all():
            raise ConfigError(
                f"cannot keep in {store} that this code may run; name another place with XDG_STATE_HOME, or set "
                f"{TRUST_ALL}=1 where everything that runs is yours"
            ) from error


def allow_inferred(content: bytes, name: NetworkName, derived: NetworkName) -> None:
    """Allow a call with arguments that kdx has filled in, if the call that it comes from was allowed."""
    origin = _allowed_calls(_store()).get(code_sha256(content), {}).get(call_of(name))
    if origin is not None:
        allow(content, derived, Path(origin))


def require(content: bytes, name: NetworkName) -> Path | None:
    """Return the file that the code came from, if it may make the call that `name` spells; None if that is not known.

    Raises:
        ArtifactError: nobody has allowed this call here.
    """
    calls = _allowed_calls(_store()).get(code_sha256(content), {})
    origin = calls.get(call_of(name))
    if origin is None and not _trusts_all():
        known = f"the code of {name.place} (sha256 {code_sha256(content)[:16]})"
        if name.kind == "program":
            raise _refusal(f"it is a .pt2 program (sha256 {code_sha256(content)[:16]}), which can run anything")
        other = "; of the same code, another call was allowed" if calls else ""
        raise _refusal(f"it runs {known} and calls {call_of(name)}", other)
    return None if origin is None else Path(origin)


def require_call(name: NetworkName) -> None:
    """Raise `ArtifactError` unless the call of a module's function was allowed, whatever its code was at that time.

    It is asked before the module is looked for.
    """
    call = call_of(name)
    if not _trusts_all() and not any(call in calls for calls in _allowed_calls(_store()).values()):
        raise _refusal(f"it imports {name.place} and calls {call}")


def _refusal(what: str, other: str = "") -> ArtifactError:
    text = what if len(what) <= MAX_SHOWN else f"{what[:MAX_SHOWN]}... ({len(what) - MAX_SHOWN} more characters)"
    shown = "".join(char if char.isprintable() else ascii(char)[1:-1] for char in text)
    return ArtifactError(
        f"{shown}, which nobody has allowed on this machine{other}; if you trust it, allow it with: "
        f"kdx check-teacher FILE --trust-code ({TRUST_ALL}=1 allows everything)"
    )


def _trusts_all() -> bool:
    return os.environ.get(TRUST_ALL, "") not in ("", "0")


def _store() -> Path:
    state = os.environ.get("XDG_STATE_HOME") or os.path.join(os.path.expanduser("~"), ".local", "state")
    return Path(state) / "kdx" / "allowed-code.json"


def _add(store: Path, code: str, call: str, origin: str) -> None:
    """Add an entry; other processes and threads that add one wait meanwhile."""
    store.parent.mkdir(parents=True, exist_ok=True)
    with store.with_suffix(".lock").open("a+", encoding="utf-8") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        allowed = _allowed_calls(store)
        allowed.setdefault(code, {})[call] = origin
        record = {"version": STORE_VERSION, "allowed": allowed}
        write_file(store, (json.dumps(record, indent=2) + "\n").encode())


def _allowed_calls(store: Path) -> Calls:
    """Return what was allowed; nothing if the file is damaged, or of another version."""
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
