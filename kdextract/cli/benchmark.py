"""`kdx benchmark`: run the unfinished cells of a suite, and write the results as JSON, Markdown and HTML."""

from __future__ import annotations

import json
from dataclasses import MISSING, dataclass
from pathlib import Path
from typing import Any

from ..benchmark.cell_results import DONE, FAILED
from ..benchmark.cells import Run, plan_runs
from ..benchmark.ledger import work_lock
from ..benchmark.results import collect
from ..benchmark.runner import Runner, Setting, check_names, select
from ..benchmark.suite import Suite, read_suite
from ..errors import ArtifactError, BenchmarkError, ConfigError
from ..options.declare import DataAccess, option
from ..options.entries import OutputOptions
from ..stages.running.html import Record, table_html
from ..storage.artifacts import write_file
from ..training.progress import Reporter
from .command import Command
from .printing import print_line, print_table

RESULT_FILES = ("results.json", "results.md", "report.html")
WORK_FOLDER = Path("runs/benchmarks")
STATES = {DONE: "cached", "not run": "to run"}


@dataclass(frozen=True, kw_only=True)
class BenchmarkConfig(DataAccess):
    """Run a suite of methods and report its results.

    A suite has teachers, students, methods, budgets and seeds; the report has means and standard deviations over seeds,
    floor and ceiling. Every cell is made by the ordinary commands, each in its own process, in one run directory per
    teacher and seed. Finished cells are not run again, so an interrupted benchmark continues; a cell that fails is
    listed, and the others are run. The exit code is that of the first failed cell. Writes results.json, results.md and
    report.html.

    Examples:

      kdx benchmark benchmarks/digits.toml
      kdx benchmark benchmarks/mnist_cpu.toml --data-dir ~/data --only 'lenet_half/*'
      kdx benchmark benchmarks/digits.toml --report-only --out results
    """

    suite: Path = option(MISSING, "Suite file (TOML).", positional=True)
    work: Path | None = option(
        None, "Directory of the runs.", metavar="DIR", panel="Output", otherwise="runs/benchmarks/SUITE"
    )
    out: Path | None = option(
        None, "Directory of the results.", metavar="DIR", panel="Output", otherwise="the --work directory"
    )
    only: list[str] | None = option(
        None,
        "Run only cells whose method, student or student/method matches; separate several by commas, or repeat --only.",
        metavar="GLOB",
        panel="Suite",
    )
    jobs: int = option(1, "Runs in parallel; they share the threads, which changes times.", minimum=1, panel="Compute")
    force: bool = option(False, "Overwrite artifacts made with different options.", panel="Output")
    dry_run: bool = option(False, "List the cells and which are finished; run nothing.", panel="Output")
    report_only: bool = option(False, "Report the finished cells; run nothing.", panel="Output")

    def patterns(self) -> list[str]:
        """The patterns of `--only`."""
        return [pattern.strip() for text in self.only or [] for pattern in text.split(",") if pattern.strip()]


class Results(Record):
    """The document that `--json` prints: the results and their directory, or with `--dry-run` the cells."""

    def _repr_html_(self) -> str:
        from ..benchmark.report.tables import sections

        if self.planned:
            return super()._repr_html_()
        tables = [
            table_html(section.columns, [line.cells for line in section.lines], f"{section.title}: {section.facts}")
            for section in sections(self)
        ]
        return "".join(tables)

    @property
    def planned(self) -> bool:
        """Whether the cells are only listed (`--dry-run`)."""
        return self.get("status") == "planned"


def benchmark(config: BenchmarkConfig, reporter: Reporter) -> Results:
    """Run the unfinished cells of a suite, then collect and write the results.

    Raises:
        UsageError, ArtifactError: the suite file is invalid or missing; see `read_suite`.
        Interrupted: the process received a signal; the same command continues the benchmark.
    """
    suite = read_suite(config.suite)
    work = (config.work or WORK_FOLDER / suite.name).resolve()
    runs = plan_runs(suite)
    chosen = select(runs, config.patterns())
    setting = Setting(
        work, config.data_dir.resolve(), config.download, suite.threads, suite.device, config.jobs, config.force
    )
    if config.report_only and not work.is_dir():
        raise ArtifactError(
            f"{config.work or WORK_FOLDER / suite.name} has no results; run without --report-only first"
        )
    if config.dry_run:
        return Results(command="benchmark", status="planned", cells=_states(suite, chosen, setting))
    if not config.report_only:
        with work_lock(work):
            _run_unfinished(suite, chosen, setting, reporter)
    results = collect(suite, runs, setting)
    _write(results, config.out or work)
    return Results(command="benchmark", directory=str(config.out or config.work or WORK_FOLDER / suite.name), **results)


def print_benchmark(config: BenchmarkConfig, results: Results, output: OutputOptions) -> None:
    """Print the cells of a dry run, or the tables."""
    if results.planned:
        _print_cells(results["cells"], output)
    elif output.quiet:
        print_line(results["directory"])
    else:
        _print_results(results)


def _run_unfinished(suite: Suite, runs: list[Run], setting: Setting, reporter: Reporter) -> None:
    """Run the unfinished cells; the names in the suite are checked before the first command."""
    cells = collect(suite, runs, setting)["cells"]
    finished = sum(cell["status"] == DONE for cell in cells)
    reporter.line(f"benchmark {suite.name}: {len(cells)} cells, {finished} of them finished")
    if finished < len(cells):
        check_names(runs, setting)
        Runner(setting, reporter).run(runs)


def _states(suite: Suite, runs: list[Run], setting: Setting) -> list[dict[str, Any]]:
    """Return every cell with its state: cached, to run, or failed (with the exit code)."""
    cells = collect(suite, runs, setting)["cells"]
    if any(cell["status"] != DONE for cell in cells):
        check_names(runs, setting)
    names = ("teacher", "seed", "student", "budget", "method")
    return [
        {name: cell[name] for name in names}
        | {"status": STATES.get(cell["status"], f"failed ({cell.get('exit_code')})"), "commands": cell["commands"]}
        for cell in cells
    ]


def _write(results: dict[str, Any], out: Path) -> None:
    from ..benchmark.report.html import benchmark_html
    from ..benchmark.report.markdown import benchmark_markdown

    try:
        out.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as error:
        raise ConfigError(f"{out} is a file, or inside one, and cannot be the directory of results") from error
    texts = (json.dumps(results, indent=1) + "\n", benchmark_markdown(results), benchmark_html(results))
    for name, text in zip(RESULT_FILES, texts, strict=True):
        write_file(out / name, text.encode())


def _print_cells(cells: list[dict[str, Any]], output: OutputOptions) -> None:
    if output.quiet:
        for cell in cells:
            print_line(f"{cell['teacher']}-{cell['seed']} {cell['student']}.{cell['method']}.{cell['budget']}")
        return
    names = ("teacher", "seed", "student", "method", "budget", "status")
    print_table(list(names), [[str(cell[name]) for name in names] for cell in cells])
    cached = sum(cell["status"] == STATES[DONE] for cell in cells)
    print_line(f"{len(cells)} cells, {cached} of them cached")


def _print_results(results: Results) -> None:
    from ..benchmark.report.tables import sections

    for section in sections(results):
        for title, numbers in ((f"{section.title}: {section.facts}", section.reached), (None, section.costs)):
            lines = [line for line in section.lines if line.kind != "published"]
            rows = [[line.cells[number] for number in numbers] for line in lines]
            print_table([section.columns[number] for number in numbers], rows, title)
    print_line(f"figures of the last weights; full report: {Path(results['directory']) / RESULT_FILES[2]}")


def refuse_failures(config: BenchmarkConfig, results: Results) -> None:
    """Raise `BenchmarkError` for the first of the chosen cells that failed, with its exit code."""
    if results.planned or not results["counts"][FAILED]:
        return
    chosen = select(plan_runs(read_suite(config.suite)), config.patterns())
    asked = {(c.teacher.name, c.seed, c.student.name, c.budget.name, c.method.name) for r in chosen for c in r.cells}
    names = ("teacher", "seed", "student", "budget", "method")
    failed = [c for c in results["cells"] if c["status"] == FAILED and tuple(c[name] for name in names) in asked]
    if failed:
        first = failed[0]
        cell = f"{first['teacher']} seed {first['seed']}: {first['student']} {first['method']} {first['budget']}"
        raise BenchmarkError(
            f"{len(failed)} of {len(results['cells'])} cells failed, first {cell}: {first['failed_at']}: "
            f"{first['message']} (all of them: {Path(results['directory']) / RESULT_FILES[1]})",
            first["exit_code"],
        )


BENCHMARK = Command(
    BenchmarkConfig, benchmark, print_benchmark, refuse_failures, returns="Results: the dict that --json prints."
)
