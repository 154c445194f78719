"""Runs kdx on models written outside of it: `python benchmarks/external_models/run.py --out benchmarks/results`.

Each model is trained in plain PyTorch on scikit-learn's digits and saved in one of the common file formats. Then four
commands are run: import-model, check-teacher, distill with the default method, evaluate. A model that already has a row
in external_models.json is skipped, unless --only names it.
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
os.environ["OMP_NUM_THREADS"] = "1"  # before torch is imported
sys.path.insert(0, str(HERE))

import torch  # noqa: E402
import training  # noqa: E402
from catalogue import EXTERNAL_MODELS, ExternalModel  # noqa: E402

Row = dict[str, Any]
KDX = str(Path(sys.executable).with_name("kdx"))
PLAIN = ("classes:", "output: logits (", "mean: 0 (default", "std: 1 (default")
"""First words of the lines of `found` that the table leaves out, because they report defaults."""
COMMANDS = ("import-model", "check-teacher", "distill", "evaluate")


def kdx(command: str, *arguments: str, work: Path) -> Row:
    """Run a command of kdx in this directory; return its exit code, seconds, JSON document and last lines of stderr."""
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


def arguments_of(entry: ExternalModel, files: list[str], run: Path, data: str, options: argparse.Namespace) -> Row:
    """Return the arguments of each command."""
    place, once = ["--run", str(run)], ["--threads", "1", "--seed", str(options.seed)]
    model = str(run.parent / entry.file) if entry.form == "program" else entry.model
    steps = ["--steps", str(options.steps), "--batch-size", "64"]
    return {
        "import-model": [model, *files, *entry.options, *place, *once],
        "check-teacher": [*place, "--data", data],
        "distill": [*place, "--student", "networks.py:small_cnn", *steps, *once],
        "evaluate": [*place, "--data", data, "--threads", "1"],
    }


def take(entry: ExternalModel, options: argparse.Namespace) -> Row:
    """Train and save a model, then run the commands until one fails; return its row."""
    directory = options.work / entry.name
    directory.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(options.seed)
    started = time.perf_counter()
    data, network = training.DATA[entry.data](), entry.build()
    training.train(entry, network, data, options.seed)
    row: Row = {"name": entry.name, "what": entry.what, "train_seconds": round(time.perf_counter() - started, 1)}
    row["own_accuracy"] = round(training.accuracy(entry, network, data), 6)
    spec = "digits"
    if entry.data != "digits":
        training.save_npz(data, options.work / f"{entry.data}.npz")
        spec = f"npz:{options.work / entry.data}.npz"
    files = training.save(entry, network, directory)
    typed = arguments_of(entry, files, directory / "run", spec, options)
    for command in COMMANDS:
        force = [] if command in ("check-teacher", "evaluate") else ["--force"]
        outcome = kdx(command, *typed[command], *force, work=options.work)
        outcome["typed"] = shlex.join(["kdx", command, *typed[command]]).replace(f"{options.work}/", "")
        row[command] = outcome
        if outcome["exit"]:
            break
    return summed_up(row)


def summed_up(row: Row) -> Row:
    """Return a row with the values of the table added and the JSON documents removed."""
    documents = {command: row.get(command, {}).pop("document", {}) for command in COMMANDS}
    methods = documents["check-teacher"].get("methods", [])
    counts = {value: sum(method["applies"] == value for method in methods) for value in ("yes", "with data", "no")}
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
    """Return the processor's name, if the system reports it."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"one thread of an {names[0]}" if names else "one thread"


def percent(share: float | None) -> str:
    """Return a share in percent."""
    return "-" if share is None else f"{100 * share:.1f}"


def table(results: Row) -> str:
    """Return the results as Markdown."""
    rows = results["models"]
    whole = [row for row in rows if row["failed_at"] is None]
    same = [row for row in whole if abs(row["teacher_accuracy"] - row["own_accuracy"]) < 0.0061]
    lines = [
        "# Models written outside of kdx", "", f"`{results['command']}`, {results['machine']}, {results['date']}, "
        f"torch {results['torch']}, seed {results['seed']}, {results['steps']} steps of 64 images.", "",
        f"{len(whole)} of {len(rows)} pass import-model, check-teacher, distill and evaluate; {len(same)} of these "
        "have the same test accuracy in kdx as in plain PyTorch (within two images).", "",
        "`methods`: number of methods that apply / apply with recorded statistics / do not apply. `seconds`: wall "
        "clock of the four commands, while other processes used the machine too. "
        "Students were trained from the teacher's file alone, with default options and few steps, to keep the run "
        "short: longer training gives better students.", "",
        "| model | description | found | BN | methods | used | teacher % | in PyTorch % | agreement % | seconds |",
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
    """Run the models that have no row yet; write the results after each one."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "--out", type=Path, default=HERE.parent / "results", help="directory of external_models.json and .md"
    )
    parser.add_argument("--work", type=Path, default=Path("runs/external_models"), help="directory of weights and runs")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="run only these models, even if they have a row")
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    options.work = options.work.resolve()
    options.out.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    file = options.out / "external_models.json"
    kept = json.loads(file.read_text())["models"] if file.exists() else []
    rows = {row["name"]: row for row in kept}
    for entry in EXTERNAL_MODELS:
        if entry.name not in options.only if options.only else entry.name in rows:
            continue
        rows[entry.name] = row = take(entry, options)
        failed = f"{row['failed_at']}: {row[row['failed_at']]['said'][-1:]}" if row["failed_at"] else "passed"
        print(f"{entry.name}: {failed}, {row['seconds']} s, agreement {percent(row['agreement'])} %", flush=True)
        results = {
            "command": "python benchmarks/external_models/run.py",
            "seed": options.seed,
            "steps": options.steps,
            "machine": machine(),
            "date": date.today().isoformat(),
            "torch": torch.__version__,
            "models": [rows[each.name] for each in EXTERNAL_MODELS if each.name in rows],
        }
        file.write_text(json.dumps(results, indent=1) + "\n")
        (options.out / "external_models.md").write_text(table(results))


if __name__ == "__main__":
    main()
