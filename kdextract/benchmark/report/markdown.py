"""The results of a benchmark as Markdown."""

from __future__ import annotations

from .tables import Json, Line, Section, failures, header, notes, sections


def benchmark_markdown(results: Json) -> str:
    """Return the Markdown of a results document: header, a table per teacher, student and budget, how to read it."""
    lines = [f"# {_plain(results['suite']['title'])}", ""]
    lines += [f"- {name}: {_plain(text)}" for name, text in header(results)]
    for section in sections(results):
        lines += ["", *_table(section)]
    failed = failures(results)
    if failed:
        lines += ["", "## Failed", "", *[f"- {_plain(text)}" for text in failed]]
    lines += ["", "## How to read this", "", *[f"- {note}" for note in notes(results)], ""]
    lines.append("Every command as it was run is in `results.json` (`RUN`: the run directory of a teacher and seed).")
    return "\n".join(lines) + "\n"


def _table(section: Section) -> list[str]:
    lines = [f"## {_plain(section.title)}", "", f"{_plain(section.facts)}.", ""]
    lines.append(f"| {' | '.join(section.columns)} |")
    lines.append("|---" + "|--:" * (len(section.columns) - 1) + "|")
    return lines + [f"| {' | '.join(_cells(line))} |" for line in section.lines]


def _cells(line: Line) -> list[str]:
    cells = [_plain(cell) for cell in line.cells]
    if line.kind == "published":
        return [f"*{cell}*" if cell else "" for cell in cells]
    return [f"`{cells[0]}`{' (anchor)' if line.kind == 'anchor' else ''}", *cells[1:]]


def _plain(text: str) -> str:
    """Return a text that Markdown takes as it is, inside a table too."""
    for character in "\\*<|[]":
        text = text.replace(character, f"\\{character}")
    return " ".join(text.split())
