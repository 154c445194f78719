"""Takes every stranger through kdx: `python benchmarks/strangers/run.py --out benchmarks/results`.

Each one is trained in plain PyTorch on scikit-learn's digits and saved in its author's format. After that, only
commands are typed: import-model, check-teacher, distill with default method, evaluate. A stranger whose row is in
strangers.json is not run again, unless --only names it.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import subprocess
import sys
import time
from datetime import date
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
os.environ["OMP_NUM_THREADS"] = "1"  # before torch comes
sys.path.insert(0, str(HERE))

import torch  # noqa: E402
import training  # noqa: E402
from catalogue import STRANGERS, Stranger  # noqa: E402

Row = dict[str, Any]
KDX = str(Path(sys.executable).with_name("kdx"))
PLAIN = ("classes:", "output: logits (", "mean: 0 (default", "std: 1 (default")
"""How lines of what was found begin that the table can do without."""
COMMANDS = ("import-model", "check-teacher", "distill", "evaluate")


def kdx(command: str, *arguments: str, work: Path) -> Row:
    """Run a command of kdx beside the strangers' files; return its exit code, seconds, document and last lines."""
    environment = {**os.environ, "XDG_STATE_HOME": str(work / "state"), "COLUMNS": "200", "NO_COLOR": "1"}
    started = time.perf_counter()
    done = subprocess.run(
        [KDX, command, *arguments, "--json"], cwd=HERE, env=environment, capture_output=True, text=True, check=False
    )
    seconds = round(time.perf_counter() - started, 1)
    try:
        document = json.loads(done.stdout)
    except json.JSONDecodeError:
        document = {}
    lines = done.stderr.replace(f"{work}/", "").splitlines()
    said = [line for line in lines if line.strip() and " loss " not in line]
    return {"exit": done.returncode, "seconds": seconds, "said": said[-12:], "document": document}


def arguments_of(stranger: Stranger, files: list[str], run: Path, data: str, options: argparse.Namespace) -> Row:
    """Return command -> what is typed after it."""
    place, once = ["--run", str(run)], ["--threads", "1", "--seed", str(options.seed)]
    model = str(run.parent / stranger.file) if stranger.form == "program" else stranger.model
    steps = ["--steps", str(options.steps), "--batch-size", "64"]
    return {
        "import-model": [model, *files, *stranger.options, *place, *once],
        "check-teacher": [*place, "--data", data],
        "distill": [*place, "--student", "networks.py:small_cnn", *steps, *once],
        "evaluate": [*place, "--data", data, "--threads", "1"],
    }


def take(stranger: Stranger, options: argparse.Namespace) -> Row:
    """Train a stranger, save it, and type every command until one fails; return its row."""
    directory = options.work / stranger.name
    directory.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(options.seed)
    started = time.perf_counter()
    data, network = training.DATA[stranger.data](), stranger.build()
    training.train(stranger, network, data, options.seed)
    row: Row = {"name": stranger.name, "what": stranger.what, "train_seconds": round(time.perf_counter() - started, 1)}
    row["own_accuracy"] = round(training.accuracy(stranger, network, data), 6)
    spec = "digits"
    if stranger.data != "digits":
        training.save_npz(data, options.work / f"{stranger.data}.npz")
        spec = f"npz:{options.work / stranger.data}.npz"
    files = training.save(stranger, network, directory)
    typed = arguments_of(stranger, files, directory / "run", spec, options)
    for command in COMMANDS:
        force = [] if command in ("check-teacher", "evaluate") else ["--force"]
        outcome = kdx(command, *typed[command], *force, work=options.work)
        outcome["typed"] = shlex.join(["kdx", command, *typed[command]]).replace(f"{options.work}/", "")
        row[command] = outcome
        if outcome["exit"]:
            break
    return summed_up(row)


def summed_up(row: Row) -> Row:
    """Add the figures of the table to a row, and leave the documents out."""
    documents = {command: row.get(command, {}).pop("document", {}) for command in COMMANDS}
    methods = documents["check-teacher"].get("methods", [])
    counts = {answer: sum(method["applies"] == answer for method in methods) for answer in ("yes", "with data", "no")}
    checks = {check["check"]: check["result"] for check in documents["check-teacher"].get("checks", [])}
    scores = documents["evaluate"]
    return row | {
        "found": documents["import-model"].get("found", []),
        "batch_norm_layers": documents["import-model"].get("batch_norm_layers"),
        "num_parameters": documents["import-model"].get("num_parameters"),
        "input_size": documents["import-model"].get("input_size"),
        "num_classes": documents["import-model"].get("num_classes"),
        "applies": counts,
        "not_ok": [c for c in documents["check-teacher"].get("checks", []) if c["result"] != "ok"],
        "checks": checks,
        "method": documents["distill"].get("source"),
        **{name: scores.get(name) for name in ("accuracy", "agreement", "teacher_accuracy")},
        "failed_at": next((c for c in COMMANDS if row.get(c, {}).get("exit")), None),
        "seconds": round(sum(row.get(c, {}).get("seconds", 0.0) for c in COMMANDS), 1),
    }


def machine() -> str:
    """Return the processor's name, if the system tells."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"one thread of an {names[0]}" if names else "one thread"


def percent(share: float | None) -> str:
    """Return a share in percent."""
    return "-" if share is None else f"{100 * share:.1f}"


def table(results: Row) -> str:
    """Return the results as Markdown."""
    rows = results["strangers"]
    whole = [row for row in rows if row["failed_at"] is None]
    same = [row for row in whole if abs(row["teacher_accuracy"] - row["own_accuracy"]) < 0.0061]
    lines = [
        "# Classifiers of strangers", "", f"`{results['command']}`, {results['machine']}, {results['date']}, "
        f"torch {results['torch']}, seed {results['seed']}, {results['steps']} steps of 64 images.", "",
        f"{len(whole)} of {len(rows)} pass import-model, check-teacher, distill and evaluate; {len(same)} of these "
        "have the test accuracy in kdx that they have in plain PyTorch (within two images).", "",
        "`methods` counts those that apply, apply with statistics of real data, and do not. `seconds` are those of the "
        "four commands together by the clock, whatever else ran beside them. "
        "Students learned from the teacher's file alone, with default options and few steps, "
        "so that all of it takes minutes: these are not the best students.", "",
        "| stranger | what it is | found | BN | methods | used | teacher % | in PyTorch % | agreement % | seconds |",
        "|---|---|---|--:|---|---|--:|--:|--:|--:|",
    ]  # fmt: skip
    for row in rows:
        found = "; ".join(line.partition(" (")[0] for line in row["found"] if not line.startswith(PLAIN)) or "-"
        if row["failed_at"]:
            found = f"**{row['failed_at']}: exit {row[row['failed_at']]['exit']}**"
        counts = "/".join(str(count) for count in row["applies"].values())
        figures = [percent(row[name]) for name in ("teacher_accuracy", "own_accuracy", "agreement")]
        norms = "-" if row["batch_norm_layers"] is None else str(row["batch_norm_layers"])
        cells = [row["name"], row["what"], found, norms, counts, row["method"] or "-", *figures]
        cells.append(f"{row['seconds']:.0f}")
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Run who is not in the results yet; write the results after each one."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, default=HERE.parent / "results", help="where strangers.json and .md go")
    parser.add_argument("--work", type=Path, default=Path("runs/strangers"), help="where weights and runs go")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="these strangers, again if they are there")
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    options.work = options.work.resolve()
    options.out.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    file = options.out / "strangers.json"
    kept = json.loads(file.read_text())["strangers"] if file.exists() else []
    rows = {row["name"]: row for row in kept}
    for stranger in STRANGERS:
        if stranger.name not in options.only if options.only else stranger.name in rows:
            continue
        rows[stranger.name] = row = take(stranger, options)
        failed = f"{row['failed_at']}: {row[row['failed_at']]['said'][-1:]}" if row["failed_at"] else "passed"
        print(f"{stranger.name}: {failed}, {row['seconds']} s, agreement {percent(row['agreement'])} %", flush=True)
        results = {
            "command": "python benchmarks/strangers/run.py",
            "seed": options.seed,
            "steps": options.steps,
            "machine": machine(),
            "date": date.today().isoformat(),
            "torch": torch.__version__,
            "strangers": [rows[each.name] for each in STRANGERS if each.name in rows],
        }
        file.write_text(json.dumps(results, indent=1) + "\n")
        (options.out / "strangers.md").write_text(table(results))


if __name__ == "__main__":
    main()
