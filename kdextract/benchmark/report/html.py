"""The results of a benchmark as one HTML page without scripts and without references to other files."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

from .curves import accuracy_curves
from .tables import Json, commands, failures, header, notes, sections

if TYPE_CHECKING:
    from markupsafe import Markup

TEMPLATE = "page.html"


def benchmark_html(results: Json) -> str:
    """Return the page of a results document: header, plots and tables, notes, commands."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined
    from markupsafe import Markup

    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    shown = sections(results)
    return environment.get_template(TEMPLATE).render(
        title=results["suite"]["title"],
        name=results["suite"]["name"],
        version=results["kdx_version"],
        header=header(results),
        sections=[(section, Markup(accuracy_curves(section))) for section in shown],
        failures=failures(results),
        notes=[_emphasized(note) for note in notes(results)],
        commands=commands(results),
    )


def _emphasized(note: str) -> Markup:
    """Return a note with its `code` and **stress** as HTML, everything else escaped."""
    from markupsafe import Markup, escape

    text = str(escape(note))
    text = re.sub(r"`([^`]+)`", r"<code>\1</code>", text)
    return Markup(re.sub(r"\*\*([^*]+)\*\*", r"<strong>\1</strong>", text))
