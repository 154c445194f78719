"""A registry: entries by name, such as architectures and methods."""

from __future__ import annotations

from typing import Generic, TypeVar

from ..errors import UsageError, did_you_mean

EntryT = TypeVar("EntryT")


class Registry(Generic[EntryT]):
    """Entries by name, in order of registration; `kind` is the word for an entry in error messages."""

    def __init__(self, kind: str) -> None:
        self._kind = kind
        self._entries: dict[str, EntryT] = {}

    def add(self, name: str, entry: EntryT) -> None:
        """Register an entry. Raises `ValueError` if the name is registered already."""
        if name in self._entries:
            raise ValueError(f"{self._kind} {name!r} is registered twice")
        self._entries[name] = entry

    def get(self, name: str) -> EntryT:
        """Return the entry called `name`. Raises `UsageError`, with the most similar name, if there is none."""
        if name not in self._entries:
            raise UsageError(f"unknown {self._kind} {name!r}.{did_you_mean(name, self._entries)}")
        return self._entries[name]

    def names(self) -> list[str]:
        """Return every name, in order of registration."""
        return list(self._entries)
