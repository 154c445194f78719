"""Whose code may run: a user's word for a piece of code, kept by its sha256.

A file of weights may name code that builds its network. Whoever types `model.py:build` allows the code of that file;
what merely stands in a file does not run before it was allowed here, or `KDX_TRUST_CODE=1` is set.
"""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

from ..artifacts import write_file
from ..errors import ArtifactError, ConfigError

TRUST_ALL = "KDX_TRUST_CODE"


def fingerprint(content: bytes) -> str:
    """Return what a piece of code is known by."""
    return hashlib.sha256(content).hexdigest()


def allow(content: bytes, origin: Path) -> None:
    """Keep the user's word for this code, and where it came from.

    Raises:
        ConfigError: there is no place to keep it.
    """
    if _trusts_all():
        return
    store = _store()
    known = _read(store)
    entry = str(origin.resolve())
    if known.get(fingerprint(content)) == entry:
        return
    try:
        store.parent.mkdir(parents=True, exist_ok=True)
        write_file(store, (json.dumps({**known, fingerprint(content): entry}, indent=2) + "\n").encode())
    except OSError as error:
        raise ConfigError(
            f"cannot keep in {store} that this code may run; name another place with XDG_STATE_HOME, or set "
            f"{TRUST_ALL}=1 where everything that runs is yours"
        ) from error


def require(content: bytes, name: str) -> Path | None:
    """Return where code came from that may run; None where that is not known.

    Args:
        name: how the user knows the code, for the error.

    Raises:
        ArtifactError: nobody has allowed it here.
    """
    origin = _read(_store()).get(fingerprint(content))
    if origin is None and not _trusts_all():
        raise ArtifactError(
            f"it runs the code of {name} (sha256 {fingerprint(content)[:16]}), which nobody has allowed on this "
            f"machine; if you trust it, import the file with --trust-code, or set {TRUST_ALL}=1"
        )
    return None if origin is None else Path(origin)


def _trusts_all() -> bool:
    return os.environ.get(TRUST_ALL, "") not in ("", "0")


def _store() -> Path:
    state = os.environ.get("XDG_STATE_HOME") or os.path.join(os.path.expanduser("~"), ".local", "state")
    return Path(state) / "kdx" / "allowed-code.json"


def _read(store: Path) -> dict[str, str]:
    try:
        known = json.loads(store.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return {str(key): str(value) for key, value in known.items()} if isinstance(known, dict) else {}
