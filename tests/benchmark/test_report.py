"""Means and deviations over seeds, and their display in tables and in the HTML page."""

from __future__ import annotations

import re
import statistics
from dataclasses import replace
from html.parser import HTMLParser
from typing import Any

import pytest

from kdextract.benchmark.cell_results import CellFailure, CellFigures, CellResult, CellSeconds
from kdextract.benchmark.ledger import shell_line, without_paths
from kdextract.benchmark.report.curves import accuracy_curves
from kdextract.benchmark.report.html import benchmark_html
from kdextract.benchmark.report.markdown import benchmark_markdown
from kdextract.benchmark.report.tables import BEST, commands, sections
from kdextract.benchmark.results import condense, spread

Json = dict[str, Any]


def point(step: int, accuracy: float) -> Json:
    return {"step": step, "seconds": step / 10, "accuracy": accuracy, "agreement": accuracy}


def cell(method: str, seed: int, accuracy: float | None, anchor: bool = False, **more: Any) -> CellResult:
    """Return the result of a cell; without an accuracy, of a cell that was not run. `more` are further fields."""
    lines = [f"kdx compute-stats --seed {seed} --run RUN", f"kdx distill --name {method} --seed {seed} --run RUN"]
    missing = CellResult("big", "small", "1k", method, anchor, seed, lines)
    if accuracy is None:
        return missing
    figures = CellFigures(
        accuracy=accuracy,
        agreement=accuracy,
        teacher_accuracy=0.99,
        gap=0.99 - accuracy,
        best_snapshot_on_test_data={"step": 5, "accuracy": accuracy + 0.01},
        estimated_accuracy=None,
        estimated_accuracy_error=None,
        estimate_off_by=None,
        num_parameters=1000,
        teacher_parameters=4000,
        num_images=500,
        teacher_queries=12000,
        student_steps=9,
        needs="teacher",
        seconds=CellSeconds(synthesis=10.0 + seed, distillation=20.0, evaluation=0.5, end_to_end=60.0),
        peak_memory_mb=900 + seed,
        peak_gpu_memory_mb=None,
        curve=[point(3, accuracy - 0.2), point(5, accuracy + 0.01), point(9, accuracy)],
    )
    return replace(missing, figures=replace(figures, **more))


def failed(method: str, seed: int) -> CellResult:
    return replace(cell(method, seed, None), failure=CellFailure("distill", 6, "the loss is <not> finite"))


CELLS = [
    *[cell("good", seed, accuracy) for seed, accuracy in enumerate((0.9, 0.92, 0.97))],
    cell("partly", 0, 0.8),
    failed("partly", 1),
    cell("partly", 2, None),
    failed("wild", 0),
    cell("never", 0, None),
    cell("ceiling", 0, 0.98, anchor=True),
    cell("floor", 0, 0.1, anchor=True),
]


def document(cells: list[CellResult] = CELLS, **suite: Any) -> Json:
    return {
        "schema_version": 1,
        "suite": {"name": "s", "title": "A <b>title</b>", "data": "digits", "seeds": [0, 1, 2], "snapshots": 3} | suite,
        "kdx_version": "0.1.0",
        "environments": [{"kdx": "0.1.0", "python": "3", "torch": "2", "numpy": "2", "threads": 1, "device": "cpu",
                          "platform": "Linux"}],
        "machines": [{"cpus": 2, "cpu": "a processor"}],
        "measured": ["2026-01-01T00:00:00Z"],
        "side_by_side": 1,
        "resumed": 0,
        "counts": {"done": 6, "failed": 2, "not run": 2},
        "teachers": [{"teacher": "big", "model": "lenet", "num_parameters": 4000, "accuracy": spread([0.99]),
                      "seconds": spread([30.0]), "commands": ["kdx train --seed 0"]}],
        "rows": condense(cells),
        "published": [{"student": "small", "accuracy": 91.5, "text": "they | them", "source": "Table 1"},
                      {"student": "other", "accuracy": 1.0, "text": "no row", "source": "Table 2"}],
        "cells": [entry.record() for entry in cells],
    }  # fmt: skip


def row(name: str, cells: list[CellResult] = CELLS) -> Json:
    return next(row for row in condense(cells) if row["method"] == name)


# ---- means and deviations ------------------------------------------------------------------------------------------


def test_mean_and_sample_standard_deviation() -> None:
    values = [0.9, 0.92, 0.97]
    accuracy = row("good")["accuracy"]
    assert accuracy == {"mean": 0.93, "sd": round(statistics.stdev(values), 6), "n": 3}
    assert spread([0.5]) == {"mean": 0.5, "sd": None, "n": 1}
    assert spread([0.5, None]) == {"mean": 0.5, "sd": None, "n": 1}
    assert spread([None]) is None
    assert row("good")["best_snapshot_on_test_data"]["mean"] == pytest.approx(0.94)
    assert row("good")["seconds"]["synthesis"]["mean"] == 11
    assert row("good")["peak_memory_mb"] == 902


def test_cells_that_failed_or_did_not_run_are_counted_but_not_averaged() -> None:
    partly = row("partly")
    assert partly["status"] == {"done": 1, "failed": 1, "not run": 1}
    assert (partly["seeds"], partly["accuracy"]["n"], partly["exit_codes"]) == ([0], 1, [6])
    for name in ("wild", "never"):
        assert row(name)["accuracy"] is None
        assert row(name)["curve"] == []
        assert row(name)["seconds"]["end_to_end"] is None


def test_a_missing_wall_clock_is_not_zero() -> None:
    unknown = CellSeconds(synthesis=10.0, distillation=20.0, evaluation=0.5, end_to_end=None)
    cells = [cell("good", 0, 0.9, seconds=unknown), cell("good", 1, 0.9)]
    assert condense(cells)[0]["seconds"]["end_to_end"] == {"mean": 60.0, "sd": None, "n": 1}


def test_unequal_curves_are_aligned_and_end_in_the_last_weights() -> None:
    cells = [cell("good", 0, 0.9), cell("good", 1, 0.8, curve=[point(5, 0.81), point(9, 0.8)])]
    curve = condense(cells)[0]["curve"]
    assert len(curve) == 2
    assert curve[-1]["accuracy"]["mean"] == pytest.approx(0.85)


def test_anchors_are_last_and_the_rest_in_the_order_of_the_suite() -> None:
    assert [row["method"] for row in condense(CELLS)] == ["good", "partly", "wild", "never", "ceiling", "floor"]


def test_paths_are_removed() -> None:
    places = {"/home/me/runs/a-0": "RUN", "/home/me/data": "DIR"}
    text = (
        "kdx train --run /home/me/runs/a-0 --data folder:/srv/secret/photos: /home/me/data/x.npz is gone, 1/2 or a / b"
    )
    expected = "kdx train --run RUN --data folder:photos: DIR/x.npz is gone, 1/2 or a / b"
    assert without_paths(text, places) == expected


def test_command_lines_are_removed_too() -> None:
    words = ["kdx", "train", "--data", "folder:/home/A B/my photos", "--run", "RUN", "--student", "/x/y/a.safetensors"]
    assert shell_line(words, {}) == "kdx train --data 'folder:my photos' --run RUN --student a.safetensors"


# ---- Markdown ------------------------------------------------------------------------------------------------------


def test_markdown() -> None:
    lines = benchmark_markdown(document()).splitlines()
    table = [line for line in lines if line.startswith("|")]
    widths = {len(re.split(r"(?<!\\)\|", line)) for line in table}
    assert len(widths) == 1, "every row has every column"
    assert table[2].startswith("| `good` | 93.00 +- 3.61 | 93.00 +- 3.61 | 6.00 +- 3.61 | 3 | 500 | 12,000 |")
    assert table[3].startswith("| `partly` | 80.00 | 80.00 | 19.00 | 1 of 3: 1 failed (6) and 1 not run |")
    assert table[4].startswith("| `wild` | failed (6) | - |")
    assert table[5].startswith("| `never` | not run | - |")
    assert [line.split(" | ")[0] for line in table[6:8]] == ["| `ceiling` (anchor)", "| `floor` (anchor)"]
    assert table[8].startswith(r"| *published: they \| them; source: Table 1* | *91.50* |")
    assert "no row" not in "\n".join(lines), "published figures of other students"
    assert table[0].endswith(f"| {BEST} |"), "on the far side of the result"
    assert r"# A \<b>title\</b>" in lines
    assert any("exit code 6: the loss is" in line for line in lines)


def test_a_column_without_figures_is_left_out() -> None:
    assert "estimate" not in benchmark_markdown(document(CELLS[:3]))
    estimates = {"estimated_accuracy": 0.9, "estimated_accuracy_error": 0.02, "estimate_off_by": 0.03}
    cells = [cell("good", seed, 0.9, best_snapshot_on_test_data=None, **estimates) for seed in range(3)]
    text = benchmark_markdown(document(cells))
    assert "| estimate without data % | its stated error | it is off by (mean) |" in text
    assert "| 90.00 +- 0.00 | 2.00 +- 0.00 | 3.00 |" in text
    assert "picked on test data" not in text


def test_attempts_and_images_that_were_not_counted_are_flagged() -> None:
    plain = benchmark_markdown(document())
    assert "attempts:" not in plain
    assert "- teacher queries:" not in plain
    text = benchmark_markdown(document() | {"several_attempts": 3, "partly_counted": 2})
    assert "- attempts: 3 of the commands took several; their seconds are the sum" in text
    assert "- teacher queries: of 2 students without held-out images" in text


def test_times_of_parallel_and_resumed_runs_are_flagged() -> None:
    plain = benchmark_markdown(document())
    assert "side by side" not in plain
    text = benchmark_markdown(document() | {"side_by_side": 4, "resumed": 2})
    assert "up to 4 commands side by side" in text
    assert "2 of the commands; the seconds before the interruption are missing" in text


# ---- HTML ----------------------------------------------------------------------------------------------------------


class Page(HTMLParser):
    """Collects tags and attributes."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))


def test_the_page_refers_to_no_other_file() -> None:
    text = benchmark_html(document())
    page = Page(text)
    names = {tag for tag, _ in page.tags}
    assert not names & {"script", "link", "img", "iframe", "object", "embed", "image", "base", "form"}
    for _, attributes in page.tags:
        for name, value in attributes.items():
            assert name not in ("src", "srcset", "action", "data", "onload", "onclick")
            if name in ("href", "xlink:href"):
                assert (value or "").startswith("#")
    outside = {url for url in re.findall(r"https?://[^\s\"'<>]+", text) if not url.startswith("http://www.w3.org/")}
    assert outside == set()
    assert "@import" not in text
    assert not re.search(r"url\((?!#)", text)
    assert {"svg", "table", "details", "caption"} <= names


def test_the_page_escapes_texts_of_the_suite() -> None:
    text = benchmark_html(document(data="<script>alert(1)</script>"))
    assert "<script>" not in text
    assert "&lt;script&gt;" in text
    assert "the loss is &lt;not&gt; finite" in text


def test_the_page_is_the_same_in_every_byte() -> None:
    assert benchmark_html(document()) == benchmark_html(document())


def test_the_plot_shows_methods_teacher_and_anchors() -> None:
    (section,) = sections(document())
    svg = accuracy_curves(section)
    for label in ("good", "partly", "teacher", "ceiling", "floor"):
        assert f">{label}</text>" in svg
    assert "wild" not in svg, "nothing to draw"
    assert svg.startswith("<svg")
    assert svg.endswith("</svg>")
    assert svg.count("<title") == 0
    assert "<metadata" not in svg


def test_extreme_accuracies_can_be_drawn() -> None:
    for accuracy in (0.0, 1.0):
        cells = [cell("good", 0, accuracy, best_snapshot_on_test_data=None, curve=[point(9, accuracy)])]
        (section,) = sections(document(cells))
        assert not re.search(r"\b(nan|inf)\b", accuracy_curves(section))
    (section,) = sections(document([cell("never", 0, None)]))
    assert accuracy_curves(section) == ""


def test_commands_that_cells_share_are_listed_once() -> None:
    listed = [line for _, lines in commands(document()) for line in lines]
    assert listed.count("kdx compute-stats --seed 0 --run RUN") == 1
    assert listed.count("kdx distill --name good --seed 1 --run RUN") == 1
    assert listed[0] == "kdx train --seed 0"
