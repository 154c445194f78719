"""`kdx benchmark` as a whole: interrupted and resumed, cached, failing, partly done."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import json
import platform
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from conftest import HANGS_AFTER, ROOT, environment, kdx
from helpers import add_snapshots

from kdextract.benchmark.ledger import Ledger, work_lock
from kdextract.benchmark.runner import Runner
from kdextract.cli import app as cli
from kdextract.storage.artifacts import read_manifest, write_manifest
from kdextract.storage.run_dir import RunDir

DIGITS = ROOT / "benchmarks" / "digits.toml"
FILES = ("results.json", "results.md", "report.html")
QUICK = (
    ("epochs = 12", "epochs = 2"),
    ("[budgets.100]\nsteps = 100", "[budgets.100]\nsteps = 20"),
    ("steps = 40, batch_size = 100", "steps = 4, batch_size = 200"),
)
ONE_SEED = ("seeds = [0, 1]", "seeds = [0]")
CELL = "lenet_half.all_layers.100"
FORKED_COMMANDS = """
import os
from pathlib import Path
from forked import Kdx
from kdextract.benchmark.runner import Runner

def call(self, words):
    done = Kdx(words[3:], Path.cwd(), dict(os.environ)).wait(600)
    return done.returncode, done.stdout, done.stderr

Runner._call = call
"""


@dataclass(frozen=True)
class Finished:
    """The finished digits suite with few steps, and the results of its interrupted and its resumed run."""

    suite: Path
    work: Path
    first: subprocess.CompletedProcess[str]
    second: subprocess.CompletedProcess[str]

    @property
    def results(self) -> dict[str, Any]:
        """The content of results.json."""
        return read(self.work)


def read(folder: Path) -> dict[str, Any]:
    results = json.loads((folder / "results.json").read_text(encoding="utf-8"))
    assert isinstance(results, dict)
    return results


def tree(root: Path) -> dict[str, int]:
    """Return every file below `root` except the reports, with the time of its last change."""
    found = {str(path.relative_to(root)): path.stat().st_mtime_ns for path in root.rglob("*") if path.is_file()}
    return {name: changed for name, changed in found.items() if name not in FILES and "lock" not in name}


Bench = Callable[..., subprocess.CompletedProcess[str]]


def here(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """`kdx` inside this process."""
    out, err, old = io.StringIO(), io.StringIO(), sys.argv
    sys.argv = ["kdx", *map(str, arguments)]
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), pytest.raises(SystemExit) as stopped:
            cli.main()
    finally:
        sys.argv = old
    return subprocess.CompletedProcess(list(arguments), int(stopped.value.code or 0), out.getvalue(), err.getvalue())


def benchmark_here(suite: Path, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """`kdx benchmark` and its commands inside this process; `.args` of the result lists the commands that it ran."""
    ran: list[list[str]] = []

    def command(runner: Runner, words: list[str]) -> tuple[int, str, str]:
        ran.append(words[3:])
        done = here(*words[3:])
        return done.returncode, done.stdout, done.stderr

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Runner, "_call", command)
        done = here("benchmark", suite, *arguments)
    return subprocess.CompletedProcess(ran, done.returncode, done.stdout, done.stderr)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    """Start the suite, stop it after its first command, and resume it. Tests only read the result.

    The interrupted run starts commands as it does for a user. The resumed run starts them as processes that need not
    import anything; the remaining commands run inside this process.
    """
    folder = tmp_path_factory.mktemp("benchmark")
    suite, work = changed_suite(folder), folder / "work"
    command = [sys.executable, "-m", "kdextract", "benchmark", str(suite), "--work", str(work)]
    process = subprocess.Popen(
        command, cwd=folder, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    deadline = time.monotonic() + HANGS_AFTER
    while process.poll() is None and not Ledger(work, "lenet-0").entry("train"):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=HANGS_AFTER)
    first = subprocess.CompletedProcess(command, process.returncode, out, err)
    one_seed = changed_suite(folder / "one", ONE_SEED)
    options = ("--jobs", "2", "--only", "all_layers")
    second = kdx("benchmark", one_seed, "--work", work, *options, cwd=folder, first=FORKED_COMMANDS)
    assert benchmark_here(suite, "--work", work).returncode == 0
    return Finished(suite, work, first, second)


@pytest.fixture
def suite(finished: Finished) -> Path:
    """The file of the finished suite."""
    return finished.suite


@pytest.fixture
def work(finished: Finished, tmp_path: Path) -> Path:
    """A copy of the finished work directory that the test may change."""
    return shutil.copytree(finished.work, tmp_path / "work")


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Bench:
    """`benchmark_here`, in an empty directory."""
    monkeypatch.chdir(tmp_path)
    return benchmark_here


def changed_suite(tmp_path: Path, *changes: tuple[str, str], more: str = "") -> Path:
    """Return the file of a variant of the digits suite with few steps and the same name."""
    text = DIGITS.read_text(encoding="utf-8")
    for old, new in (*QUICK, *changes):
        assert old in text
        text = text.replace(old, new)
    tmp_path.mkdir(exist_ok=True)
    path = tmp_path / "suite.toml"
    path.write_text(text + more, encoding="utf-8")
    return path


# ---- the whole suite -----------------------------------------------------------------------------------------------


def test_interrupted_and_resumed(finished: Finished) -> None:
    assert finished.first.returncode == 143, finished.first.stderr
    assert finished.first.stderr.splitlines()[-1].startswith("kdx: error: stopped by SIGTERM")
    assert "Traceback" not in finished.first.stderr
    assert finished.second.returncode == 0, finished.second.stderr
    assert "lenet seed 0: train" not in finished.second.stderr.splitlines(), "what was finished is not made again"
    assert "lenet seed 0: lenet_half all_layers 100: evaluate" in finished.second.stderr.splitlines()
    assert finished.results["counts"] == {"done": 8, "failed": 0, "not run": 0}
    assert finished.results["side_by_side"] == 2


def test_the_results_contain_scores_and_costs(finished: Finished) -> None:
    results = finished.results
    assert results["schema_version"] == 1
    assert [row["method"] for row in results["rows"]] == ["all_layers", "structured_noise", "ceiling", "floor"]
    for row in results["rows"]:
        assert row["seeds"] == [0, 1]
        assert 0 < row["accuracy"]["mean"] <= 1
        assert row["accuracy"]["n"] == 2
        assert row["accuracy"]["sd"] >= 0
        teacher = results["teachers"][0]["accuracy"]["mean"]
        assert row["gap"]["mean"] == pytest.approx(teacher - row["accuracy"]["mean"], abs=2e-6)
        assert row["num_parameters"] == 35820
        assert row["teacher_parameters"] == 61706
        assert 100 < row["peak_memory_mb"] < 10000
    method, live, ceiling, floor = results["rows"]
    assert floor["accuracy"]["mean"] < ceiling["accuracy"]["mean"]
    assert method["seconds"]["synthesis"]["mean"] > ceiling["seconds"]["synthesis"]["mean"]
    assert method["num_images"]["mean"] == 200
    assert live["needs"] == "teacher"
    for cell in results["cells"]:
        seconds = cell["seconds"]
        assert seconds["end_to_end"] > seconds["synthesis"] + seconds["distillation"] + seconds["evaluation"]
        manifest = json.loads(
            (finished.work / f"lenet-{cell['seed']}/students/lenet_half.{cell['method']}.100/manifest.json").read_text()
        )
        scores = json.loads(
            (
                finished.work / f"lenet-{cell['seed']}/evaluations/lenet_half.{cell['method']}.100/scores.json"
            ).read_text()
        )
        assert cell["accuracy"] == scores["accuracy"], "the last weights"
        assert cell["teacher_queries"] >= manifest["budget"]["teacher_queries"]
    assert results["machines"][0]["cpus"] >= 1
    assert results["environments"][0]["torch"]


def test_the_commands_are_those_that_ran(finished: Finished) -> None:
    cell = finished.results["cells"][0]
    assert [line.split()[1] for line in cell["commands"]] == [
        "compute-stats",
        "optimize-dataset",
        "distill",
        "evaluate",
    ]
    assert cell["commands"][2].startswith("kdx distill ")
    assert "--data all_layers --snapshots 4 --student lenet_half --steps 20" in cell["commands"][2]
    assert "--run RUN --data-dir DIR --threads 1" in cell["commands"][2]


def test_the_files_contain_no_path_of_this_machine(finished: Finished) -> None:
    secrets = [str(finished.work.parent), str(ROOT), str(Path.home()) + "/", platform.node(), sys.prefix]
    for name in FILES:
        text = (finished.work / name).read_text(encoding="utf-8")
        assert [secret for secret in secrets if len(secret) > 3 and secret in text] == [], name


def test_a_finished_benchmark_is_cached(bench: Bench, suite: Path, work: Path) -> None:
    before, reports = tree(work), {name: (work / name).read_bytes() for name in FILES}
    done = bench(suite, "--work", work)
    assert done.returncode == 0, done.stderr
    assert done.args == [], "no command was run"
    assert "8 cells, 8 of them finished" in done.stderr
    assert tree(work) == before
    assert {name: (work / name).read_bytes() for name in FILES} == reports, "and its report is the same to the byte"


def test_a_finished_benchmark_is_reported_without_torch(finished: Finished, tmp_path: Path) -> None:
    script = (
        "import sys\nfrom kdextract.cli.app import main\n"
        f"sys.argv = ['kdx', 'benchmark', {str(finished.suite)!r}, '--work', {str(finished.work)!r}, '--report-only', "
        f"'--out', {str(tmp_path / 'out')!r}]\n"
        "try:\n    main()\nexcept SystemExit as stopped:\n    assert not stopped.code, stopped.code\n"
        "assert 'torch' not in sys.modules"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], env=environment(), capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert read(tmp_path / "out") == finished.results


@pytest.mark.slow
def test_the_shipped_suite_runs_from_end_to_end(bench: Bench, tmp_path: Path) -> None:
    done = bench(DIGITS, "--work", tmp_path / "work")
    assert done.returncode == 0, done.stderr
    results = read(tmp_path / "work")
    assert results["counts"] == {"done": 8, "failed": 0, "not run": 0}
    rows = {row["method"]: row for row in results["rows"]}
    assert rows["floor"]["accuracy"]["mean"] < rows["ceiling"]["accuracy"]["mean"]
    assert rows["all_layers"]["num_images"]["mean"] == 200


# ---- missing artifacts ---------------------------------------------------------------------------------------------


def test_report_only_lists_what_was_not_run(bench: Bench, suite: Path, work: Path, tmp_path: Path) -> None:
    shutil.rmtree(work / "lenet-1" / "students" / CELL)
    shutil.rmtree(work / "lenet-0" / "evaluations" / "lenet_half.floor.100")
    before = tree(work)
    done = bench(suite, "--work", work, "--report-only", "--out", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    assert done.args == []
    assert tree(work) == before
    results = read(tmp_path / "out")
    assert results["counts"] == {"done": 6, "failed": 0, "not run": 2}
    row = results["rows"][0]
    assert (row["seeds"], row["accuracy"]["n"], row["accuracy"]["sd"]) == ([0], 1, None)
    assert "1 of 2: 1 not run" in (tmp_path / "out" / "results.md").read_text()


def test_only_missing_artifacts_are_made(bench: Bench, suite: Path, work: Path) -> None:
    old = read(work)
    shutil.rmtree(work / "lenet-1" / "students" / CELL)
    done = bench(suite, "--work", work)
    assert done.returncode == 0, done.stderr
    assert [words[0] for words in done.args] == ["distill"], "an evaluation of the same bytes holds"
    new = read(work)
    assert [cell["accuracy"] for cell in new["cells"]] == [cell["accuracy"] for cell in old["cells"]]


def test_a_changed_input_is_an_error(bench: Bench, work: Path) -> None:
    shutil.rmtree(work / "lenet-0" / "transfer-sets" / "all_layers")
    suite = changed_suite(work.parent, ONE_SEED, ("images_per_class = 20", "images_per_class = 21"))
    done = bench(suite, "--work", work, "--only", "all_layers")
    assert done.returncode == 3, "the student was made from another transfer set"
    assert "--force" in done.stderr.splitlines()[-1]
    results = read(work)
    assert [cell["status"] for cell in results["cells"]] == ["failed", "done", "done", "done"]
    again = bench(suite, "--work", work, "--only", "all_layers", "--force")
    assert again.returncode == 0, again.stderr
    assert read(work)["rows"][0]["num_images"]["mean"] == 210


def test_another_number_of_threads_keeps_the_results_cached(bench: Bench, work: Path) -> None:
    done = bench(changed_suite(work.parent, ("threads = 1", "threads = 2")), "--work", work)
    assert (done.returncode, done.args) == (0, [])


def test_dry_run_lists_cells_and_changes_nothing(bench: Bench, suite: Path, work: Path, tmp_path: Path) -> None:
    shutil.rmtree(work / "lenet-1" / "students" / CELL)
    before = tree(work)
    done = bench(suite, "--work", work, "--dry-run", "--json")
    document = json.loads(done.stdout)
    states = {(cell["seed"], cell["method"]): cell["status"] for cell in document["cells"]}
    assert states.pop((1, "all_layers")) == "to run"
    assert set(states.values()) == {"cached"}
    text = bench(suite, "--work", work, "--dry-run").stdout
    assert "8 cells, 7 of them cached" in text
    assert tree(work) == before
    fresh = bench(suite, "--work", tmp_path / "fresh", "--dry-run", "-q")
    assert fresh.stdout.splitlines()[0] == "lenet-0 lenet_half.all_layers.100"
    assert not (tmp_path / "fresh").exists()


def test_only_runs_what_matches(bench: Bench, suite: Path, work: Path) -> None:
    for run in ("lenet-0", "lenet-1"):
        shutil.rmtree(work / run / "evaluations")
    done = bench(suite, "--work", work, "--only", "lenet_half/c*,nothing*", "--only", "floor")
    assert done.returncode == 2
    assert "--only 'nothing*' matches no cell" in done.stderr
    done = bench(suite, "--work", work, "--only", "lenet_half/c*", "--only", "floor", "--dry-run", "--json")
    assert {cell["method"] for cell in json.loads(done.stdout)["cells"]} == {"ceiling", "floor"}
    done = bench(suite, "--work", work, "--only", "ceil*")
    assert done.returncode == 0, done.stderr
    evaluated = [words[1] for words in done.args if words[0] == "evaluate"]
    assert evaluated == ["teacher", "students/lenet_half.ceiling.100"] * 2
    assert read(work)["counts"] == {"done": 2, "failed": 0, "not run": 6}


# ---- failures ------------------------------------------------------------------------------------------------------

WILD = '\n[methods.wild]\ndistill = { data = "noise:uniform", lr = 1e30 }\n'


def test_a_cell_that_fails_is_recorded_and_the_others_run(bench: Bench, work: Path, tmp_path: Path) -> None:
    shutil.rmtree(work / "lenet-0" / "evaluations" / "lenet_half.floor.100")
    suite = changed_suite(tmp_path, ONE_SEED, more=WILD)
    done = bench(suite, "--work", work)
    assert done.returncode == 6
    error = done.stderr.splitlines()[-1]
    assert error.startswith("kdx: error: 1 of 5 cells failed, first lenet seed 0: lenet_half wild 100: distill")
    assert "Traceback" not in done.stderr
    results = read(work)
    assert results["counts"] == {"done": 4, "failed": 1, "not run": 0}
    cell = next(cell for cell in results["cells"] if cell["method"] == "wild")
    assert (cell["exit_code"], cell["failed_at"]) == (6, "distill")
    assert "not finite" in cell["message"]
    assert "| `wild` | failed (6) |" in (work / "results.md").read_text()
    assert str(work) not in (work / "results.json").read_text()

    again = bench(suite, "--work", work)
    assert (again.returncode, again.args) == (6, []), "what diverged once would diverge again"
    shown = bench(suite, "--work", work, "--report-only", "--json")
    assert shown.returncode == 6
    assert json.loads(shown.stdout)["error"]["exit_code"] == 6
    planned = bench(suite, "--work", work, "--dry-run", "--json")
    assert "failed (6)" in [cell["status"] for cell in json.loads(planned.stdout)["cells"]]
    assert bench(suite, "--work", work, "--only", "floor").returncode == 0, "the cells that were asked for are well"
    repaired = changed_suite(tmp_path, ONE_SEED, more=WILD.replace("1e30", "1e-3"))
    assert bench(repaired, "--work", work).returncode == 0


def test_without_a_teacher_its_cells_fail(bench: Bench, tmp_path: Path) -> None:
    suite = changed_suite(tmp_path, ONE_SEED, ("epochs = 2", "epochs = 1\nlr = 1e30"))
    done = bench(suite, "--work", tmp_path / "work")
    assert done.returncode == 6
    assert [words[0] for words in done.args] == ["train"]
    results = read(tmp_path / "work")
    assert [cell["failed_at"] for cell in results["cells"]] == ["train"] * 4
    assert results["teachers"][0]["accuracy"] is None
    assert "failed (6)" in (tmp_path / "work" / "report.html").read_text()


REFUSED = {
    "unknown model": (('model = "lenet"', 'model = "lenett"'), 2, "Did you mean 'lenet'?"),
    "unknown student": (('student = "lenet_half"', 'student = "lenet-half"'), 2, "Did you mean 'lenet_half'?"),
    "unknown data": (('data = "digits"\nseeds', 'data = "digit"\nseeds'), 2, "Did you mean 'digits'?"),
    "unknown source": (('"noise:normal"', '"noise:norml"'), 2, "Did you mean 'noise:normal'?"),
    "data that is not there": (('data = "digits"\nseeds', 'data = "npz:none.npz"\nseeds'), 4, "none.npz"),
    "a mistake": (("steps = 20", "step = 200"), 2, "Did you mean 'steps'?"),
}


@pytest.mark.parametrize(("change", "code", "says"), REFUSED.values(), ids=REFUSED.keys())
@pytest.mark.parametrize("way", [(), ("--dry-run",)])
def test_invalid_requests_are_refused_before_a_command_runs(
    bench: Bench, tmp_path: Path, change: tuple[str, str], code: int, says: str, way: tuple[str, ...]
) -> None:
    done = bench(changed_suite(tmp_path, change), "--work", tmp_path / "work", *way)
    assert (done.returncode, done.args) == (code, [])
    assert says in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "work" / "lenet-0").exists()


def test_exit_codes_of_the_command_itself(bench: Bench, suite: Path, tmp_path: Path) -> None:
    assert bench(tmp_path / "none.toml").returncode == 4
    assert bench(suite, "--work", tmp_path / "none", "--report-only").returncode == 4
    (tmp_path / "file").write_text("")
    assert bench(suite, "--work", tmp_path / "file").returncode == 3
    assert bench(suite, "--jobs", "0").returncode == 2
    assert "SUITE" in here("benchmark").stderr.upper()
    with work_lock(tmp_path / "busy"):
        done = bench(suite, "--work", tmp_path / "busy")
    assert done.returncode == 9
    assert "another benchmark" in done.stderr
    document = json.loads(bench(tmp_path / "none.toml", "--json").stdout)
    assert document["error"]["exit_code"] == 4


def test_a_run_locked_by_another_process_stops_the_benchmark(bench: Bench, suite: Path, work: Path) -> None:
    shutil.rmtree(work / "lenet-1" / "evaluations" / "lenet_half.floor.100")
    with RunDir(work / "lenet-1").lock():
        done = bench(suite, "--work", work)
    assert done.returncode == 9
    assert "is being written to by process" in done.stderr.splitlines()[-1]
    assert bench(suite, "--work", work).returncode == 0
    assert read(work)["counts"]["done"] == 8


# ---- output --------------------------------------------------------------------------------------------------------


def test_json_is_the_results(bench: Bench, suite: Path, work: Path) -> None:
    done = bench(suite, "--work", work, "--json")
    document = json.loads(done.stdout)
    assert document.pop("command") == "benchmark"
    assert document.pop("directory") == str(work)
    assert document == read(work)
    assert bench(suite, "--work", work, "-q").stdout == f"{work}\n"


def test_the_table_on_the_terminal(finished: Finished) -> None:
    lines = [line.split() for line in finished.second.stdout.splitlines()]
    table = [words for words in lines if words and words[0] in ("all_layers", "structured_noise", "ceiling", "floor")]
    assert len(table) == 8, "what it reaches, and what it costs"
    assert [words[1:3] == ["not", "run"] for words in table[:4]] == [False, True, True, True]
    assert "report.html" in finished.second.stdout


def test_snapshots_become_a_curve(finished: Finished) -> None:
    results = finished.results
    for cell in results["cells"]:
        curve = cell["curve"]
        assert [point["step"] for point in curve] == [4, 8, 12, 16, 20]
        assert [point["seconds"] for point in curve] == sorted(point["seconds"] for point in curve)
        assert curve[0]["seconds"] > cell["seconds"]["synthesis"]
        total = cell["seconds"]["synthesis"] + cell["seconds"]["distillation"]
        assert curve[-1]["seconds"] == pytest.approx(total, abs=0.02)
        assert curve[-1]["accuracy"] == cell["accuracy"], "the last weights are the result"
        best = cell["best_snapshot_on_test_data"]
        assert best["accuracy"] == max(point["accuracy"] for point in curve)
    for row in results["rows"]:
        assert [point["accuracy"]["n"] for point in row["curve"]] == [2] * 5
        assert row["best_snapshot_on_test_data"]["mean"] >= row["accuracy"]["mean"]
    assert "picked on test data, not a result" in (finished.work / "results.md").read_text()


def test_a_curve_shows_a_snapshot_that_is_better_than_the_last_weights(bench: Bench, suite: Path, work: Path) -> None:
    """A student of noise is far less accurate than its teacher; the file of the teacher is used as a snapshot."""
    for run in ("lenet-0", "lenet-1"):
        student = work / run / "students" / "lenet_half.floor.100"
        for old in student.glob("snapshot-*"):
            old.unlink()
        manifest = read_manifest(student)
        outputs = tuple(output for output in manifest.outputs if not output.file.startswith("snapshot-"))
        write_manifest(student, dataclasses.replace(manifest, outputs=outputs))
        add_snapshots(student, (15,), [work / run / "teacher" / "model.safetensors"])
    done = bench(suite, "--work", work)
    assert done.returncode == 0, done.stderr
    assert [words[0] for words in done.args] == ["evaluate"] * 2
    cell = next(cell for cell in read(work)["cells"] if cell["method"] == "floor")
    assert [point["step"] for point in cell["curve"]] == [15, 20]
    assert cell["best_snapshot_on_test_data"] == {"step": 15, "accuracy": cell["teacher_accuracy"]}
    assert cell["accuracy"] < cell["teacher_accuracy"]
    assert cell["seconds"]["end_to_end"] is None, "the student is not what the command of the books made"
