"""Results as HTML for notebooks: tables and pictures, with every text escaped."""

from __future__ import annotations

import base64
import re
from collections.abc import Sequence
from html import escape
from typing import Any

from .figures import figure, shown_metrics

_SHA256 = re.compile(r"[0-9a-f]{64}")


class Record(dict[str, Any]):
    """What a command prints with `--json`: a dict that a notebook displays as tables."""

    def _repr_html_(self) -> str:
        plain = {name: value for name, value in self.items() if not _is_rows(value)}
        parts = [table_html([], [[name, _cell_text(name, value)] for name, value in plain.items()])] if plain else []
        for name, rows in self.items():
            if _is_rows(rows):
                columns = list(dict.fromkeys(column for row in rows for column in row))
                cells = [[_cell_text(column, row.get(column)) for column in columns] for row in rows]
                parts.append(table_html(columns, cells, name))
        return "".join(parts)


def table_html(columns: Sequence[str], rows: Sequence[Sequence[str]], title: str | None = None) -> str:
    """Return a table of texts; it has a head if `columns` is not empty."""
    caption = "" if title is None else f"<caption>{escape(title)}</caption>"
    head = "".join(f"<th>{escape(column.replace('_', ' '))}</th>" for column in columns)
    body = "".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    thead = f"<thead><tr>{head}</tr></thead>" if head else ""
    return f"<table>{caption}{thead}<tbody>{body}</tbody></table>"


def image_html(png: bytes, title: str) -> str:
    """Return a PNG picture whose data is part of the page."""
    data = base64.b64encode(png).decode()
    return f'<img alt="{escape(title)}" title="{escape(title)}" src="data:image/png;base64,{data}">'


def _is_rows(value: Any) -> bool:
    return isinstance(value, list | tuple) and bool(value) and all(isinstance(row, dict) for row in value)


def _cell_text(name: str, value: Any) -> str:
    """Return the text of a cell: of a dict what fits on a line, of a hash the first 16 characters."""
    if isinstance(value, dict):
        return ", ".join(f"{key.replace('_', ' ')} {text}" for key, text in shown_metrics(value))
    if isinstance(value, str):
        return value[:16] if _SHA256.fullmatch(value) else value
    return figure(name, value)
