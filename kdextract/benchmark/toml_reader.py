"""Typed reading of a TOML table; each error message names the table and the key."""

from __future__ import annotations

import math
from typing import Any

from ..errors import UsageError, did_you_mean
from ..options.declare import coerced


class Table:
    """One table of a TOML file; `where` is its name in error messages. Keys that were read count as known."""

    def __init__(self, record: dict[str, Any], where: str) -> None:
        self._record = record
        self._asked: list[str] = []
        self.where = where

    def _get(self, name: str, kind: type, default: Any = None, required: bool = False) -> Any:
        self._asked.append(name)
        if name not in self._record:
            if required:
                raise UsageError(f"{self._place(name)} is missing")
            return default
        return coerced(self._place(name), self._record[name], kind)

    def _place(self, name: str) -> str:
        return f"{self.where}: {name}" if self.where else name

    def text(self, name: str, default: str | None = None) -> str:
        """Return a string. Without a default, it is required and must not be empty."""
        value = self._get(name, str, default, required=default is None)
        if default is None and not value.strip():
            raise UsageError(f"{self._place(name)} is empty")
        return str(value)

    def flag(self, name: str) -> bool:
        """Return true or false; false if the key is missing."""
        return bool(self._get(name, bool, False))

    def integer(self, name: str, default: int | None, minimum: int) -> int | None:
        """Return a whole number of at least `minimum`."""
        value = self._get(name, int, default)
        if value is not None and value < minimum:
            raise UsageError(f"{self._place(name)} must be at least {minimum}, got {value}")
        return None if value is None else int(value)

    def number(self, name: str, minimum: float, maximum: float) -> float:
        """Return a number in [minimum, maximum]; required."""
        value = float(self._get(name, float, required=True))
        if math.isnan(value) or not minimum <= value <= maximum:
            raise UsageError(f"{self._place(name)} must be in [{minimum:g}, {maximum:g}], got {value:g}")
        return value

    def integers(self, name: str) -> tuple[int, ...] | None:
        """Return a list of different whole numbers of at least 0; None if the key is missing."""
        values = self._get(name, list)
        if values is None:
            return None
        if not values or any(type(value) is not int or value < 0 for value in values):
            raise UsageError(f"{self._place(name)} must be a list of whole numbers such as [0, 1, 2], got {values!r}")
        if len(set(values)) < len(values):
            raise UsageError(f"{self._place(name)} contains a number twice: {values!r}")
        return tuple(values)

    def names(self, name: str, known: list[str], or_one: bool = False) -> tuple[str, ...] | None:
        """Return a list of names out of `known`; with `or_one`, one string is accepted. None if the key is missing."""
        one = or_one and isinstance(self._record.get(name), str)
        values = [self._get(name, str)] if one else self._get(name, list)
        if values is None:
            return None
        if not values or not all(isinstance(value, str) for value in values):
            raise UsageError(f"{self._place(name)} must be a list of names, got {values!r}")
        for value in values:
            if value not in known:
                raise UsageError(f"{self._place(name)}: unknown name {value!r}.{did_you_mean(value, known)}")
        return tuple(dict.fromkeys(values))

    def table(self, name: str) -> Table | None:
        """Return a table inside this one; None if the key is missing. Hyphens are accepted for underscores."""
        self._asked.append(name)
        spelled = name.replace("_", "-")
        if name not in self._record and spelled in self._record:
            name = spelled
        value = self._get(name, dict)
        return None if value is None else Table(value, f"{self.where}, {name}")

    def tables(self, kind: str) -> list[tuple[str, Table]]:
        """Return every table `[kind.NAME]` with its name, in the order of the file."""
        entries = self._get(kind, dict, {})
        for name, entry in entries.items():
            if not isinstance(entry, dict):
                raise UsageError(f"{kind}.{name} must be a table, got {entry!r}")
        return [(name, Table(entry, f"[{kind}.{name}]")) for name, entry in entries.items()]

    def list_of_tables(self, name: str) -> list[Table]:
        """Return every table `[[name]]`, in the order of the file."""
        entries = self._get(name, list, [])
        for entry in entries:
            if not isinstance(entry, dict):
                raise UsageError(f"{name} must be a list of tables, [[{name}]], got {entry!r}")
        return [Table(entry, f"[[{name}]] {number}") for number, entry in enumerate(entries, start=1)]

    def rest(self) -> dict[str, Any]:
        """Return the keys that were not read, with their values."""
        return {name: value for name, value in self._record.items() if name not in self._asked}

    def close(self) -> None:
        """Raise `UsageError` for a key that was not read."""
        for name in self.rest():
            raise UsageError(f"unknown key {name!r}{' in ' + self.where if self.where else ''}."
                             f"{did_you_mean(name, self._asked)}")  # fmt: skip
