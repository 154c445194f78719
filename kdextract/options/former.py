"""Options of earlier versions: the present names of renamed ones, and what replaced removed ones.

Former names in suites and manifests are replaced by the present names. On the command line
and in Python, a former name is refused with a sentence from `what_became_of`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

RENAMED = {"course": "preset", "remix": "redraw"}
"""Former name -> present name, both as names of fields; the values are the same."""


@dataclass(frozen=True)
class Removed:
    """An option that was removed.

    `always` is the value whose behaviour is now fixed; `decided` describes this behaviour or names the option that
    controls it.
    """

    always: Any
    decided: str


_PRESET = Removed(None, "--preset decides it")
REMOVED = {
    "beta1": _PRESET,
    "beta2": _PRESET,
    "clip": Removed(True, "pixels are always kept in [0, 1] after every step"),
    "coarse_steps": _PRESET,
    "first_bn": _PRESET,
    "l2": _PRESET,
    "schedule": Removed("cosine", "the learning rate always falls along a cosine"),
    "spectral_order": Removed("energy", "eigenvectors are always those whose eigenvalues are farthest from 1"),
    "temperature_scaling": Removed(True, "kl and ce are always multiplied by the squared temperature"),
    "tv_l1": _PRESET,
}


def present_names(options: dict[str, Any]) -> dict[str, Any]:
    """Return options under their present names, in the same order."""
    return {RENAMED.get(name, name): value for name, value in options.items()}


def present_record(record: dict[str, Any]) -> dict[str, Any]:
    """Return the options that a manifest recorded, under their present names.

    A removed option is left out if its value is the behaviour that is now fixed, so that the artifact counts as made
    with equal options; any other value is kept.
    """
    return {
        name: value
        for name, value in present_names(record).items()
        if name not in REMOVED or value != REMOVED[name].always
    }


def what_became_of(name: str) -> str | None:
    """Return a message about an option of earlier versions, None for any other name.

    Args:
        name: a field's spelling or the command line's: `course`, `--course`, `--no-clip`.
    """
    field = name.removeprefix("--").removeprefix("no-").replace("-", "_")
    typed = "--" + field.replace("_", "-")
    if field in RENAMED:
        return f"{typed} is called --{RENAMED[field].replace('_', '-')} now"
    return f"{typed} was removed: {REMOVED[field].decided}" if field in REMOVED else None
