"""The results of a benchmark as Markdown."""

from __future__ import annotations

from .tables import Json, Section, TableLine, failures, header, notes, sections


def benchmark_markdown(results: Json) -> str:
    """Return the Markdown of a results document: header, a table for each teacher, student and budget, notes."""
    lines = [f"# {_escaped(results['suite']['title'])}", ""]
    lines += [f"- {name}: {_escaped(text)}" for name, text in header(results)]
    for section in sections(results):
        lines += ["", *_table_lines(section)]
    failed = failures(results)
    if failed:
        lines += ["", "## Failed", "", *[f"- {_escaped(text)}" for text in failed]]
    lines += ["", "## How to read this", "", *[f"- {note}" for note in notes(results)], ""]
    lines.append("Every command as it was run is in `results.json` (`RUN`: the run directory of a teacher and seed).")
    return "\n".join(lines) + "\n"


def _table_lines(section: Section) -> list[str]:
    lines = [f"## {_escaped(section.title)}", "", f"{_escaped(section.facts)}.", ""]
    lines.append(f"| {' | '.join(section.columns)} |")
    lines.append("|---" + "|--:" * (len(section.columns) - 1) + "|")
    return lines + [f"| {' | '.join(_cell_texts(line))} |" for line in section.lines]


def _cell_texts(line: TableLine) -> list[str]:
    cells = [_escaped(cell) for cell in line.cells]
    if line.kind == "published":
        return [f"*{cell}*" if cell else "" for cell in cells]
    return [f"`{cells[0]}`{' (anchor)' if line.kind == 'anchor' else ''}", *cells[1:]]


def _escaped(text: str) -> str:
    """Return a text with the special characters of Markdown escaped."""
    for character in "\\*<|[]":
        text = text.replace(character, f"\\{character}")
    return " ".join(text.split())
