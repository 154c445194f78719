"""Measure every statistics objective on real MNIST: one teacher, statistics, five students, ceiling and floor per seed.

    python benchmarks/staged.py lenet --seeds 0 1 2 --data-dir DIR --threads 2
    python benchmarks/staged.py hinton --seeds 0 1 2 --data-dir DIR --threads 2
    python benchmarks/staged.py --tables

Each run is a run directory below --work, so an interrupted benchmark goes on where it stopped. What the commands print
as JSON is collected in benchmarks/results/staged_PAIR_SEED.json, together with the commands themselves; --tables prints
Markdown from all of these files. Nothing is selected: the last weights of each student are scored once.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"
OBJECTIVES = ["top_layer", "all_layers", "all_layers_dropout", "spectral_all_layers", "spectral_layer_pairs"]
PAIRS: dict[str, dict[str, Any]] = {
    "lenet": {"train": ["--model", "lenet"], "images": [], "student": ["--student", "lenet_half"]},
    "hinton": {
        "train": ["--model", "hinton1200", "--lr", "1e-3", "--shift", "0", "--warp", "0"],
        "images": ["--images-per-class", "500"],
        "student": ["--student", "hinton800", "--lr", "1e-3", "--steps", "2000"],
    },
}


def kdx(commands: list[str], *arguments: str) -> dict[str, Any]:
    """Run one command with --json, keep its spelling in `commands`, and return what it printed."""
    commands.append("kdx " + " ".join(arguments))
    print(commands[-1], file=sys.stderr, flush=True)
    done = subprocess.run([sys.executable, "-m", "kdextract", *arguments, "--json"], stdout=subprocess.PIPE, text=True)
    if done.returncode:
        raise SystemExit(f"exit code {done.returncode}: {done.stdout}")
    return json.loads(done.stdout)


def measure(pair: str, seed: int, data_dir: str, work: Path, threads: int) -> None:
    """Run the whole chain for one teacher and write its JSON file."""
    commands: list[str] = []
    setup = PAIRS[pair]
    common = ["--run", str(work / f"{pair}-{seed}")]
    made = [*common, "--seed", str(seed), "--threads", str(threads)]
    data = ["--data-dir", data_dir]
    results: dict[str, Any] = {"pair": pair, "seed": seed, "students": {}}
    results["train"] = kdx(commands, "train", "--data", "mnist", *setup["train"], *made, *data)
    results["teacher"] = kdx(commands, "evaluate", "teacher", *made, *data)
    results["compute-stats"] = kdx(commands, "compute-stats", *made, *data)
    for name in [*OBJECTIVES, "ceiling", "floor"]:
        entry: dict[str, Any] = {}
        source = {"ceiling": "mnist", "floor": "noise:normal"}.get(name, name)
        if name in OBJECTIVES:
            images = ["--objective", name, *setup["images"]]
            entry["optimize-dataset"] = kdx(commands, "optimize-dataset", *images, *made)
        entry["distill"] = kdx(commands, "distill", *setup["student"], "--data", source, "--name", name, *made, *data)
        entry["evaluate"] = kdx(commands, "evaluate", f"students/{name}", *made, *data)
        results["students"][name] = entry
    results["environment"] = kdx(commands, "show", "teacher", *common)["environment"]
    text = json.dumps({**results, "commands": commands}, indent=1)
    text = text.replace(str(work) + "/", "").replace(data_dir, "DIR")
    (RESULTS / f"staged_{pair}_{seed}.json").write_text(text + "\n", encoding="utf-8")


def seconds(entry: dict[str, Any]) -> float:
    """Wall-clock seconds that a stage took when it was made."""
    return float(entry["budget"]["seconds"]["total"])


def table(pair: str) -> str:
    """Return the Markdown table of one pair: mean and standard deviation over the seeds that were run."""
    runs = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(RESULTS.glob(f"staged_{pair}_*.json"))]
    seeds = ", ".join(str(run["seed"]) for run in runs)
    lines = [
        f"{PAIRS[pair]['train'][1]} -> {PAIRS[pair]['student'][1]}, seeds {seeds}",
        "",
        "| images from | accuracy % | agreement % | images | seconds: synthesis | distillation | with statistics |",
        "|---|---|---|---|---|---|---|",
    ]

    def spread(values: list[float]) -> str:
        deviation = statistics.stdev(values) if len(values) > 1 else 0.0
        return f"{100 * statistics.mean(values):.2f} +- {100 * deviation:.2f}"

    for name in runs[0]["students"]:
        entries = [run["students"][name] for run in runs]
        accuracy = spread([entry["evaluate"]["accuracy"] for entry in entries])
        agreement = spread([entry["evaluate"]["agreement"] for entry in entries])
        distillation = statistics.mean(seconds(entry["distill"]) for entry in entries)
        images = f"{entries[0]['distill']['num_images']:,}"
        made = [seconds(entry["optimize-dataset"]) for entry in entries if "optimize-dataset" in entry]
        recorded = statistics.mean(seconds(run["compute-stats"]) for run in runs)
        synthesis = f"{statistics.mean(made):.0f}" if made else "-"
        total = f"{statistics.mean(made) + distillation + recorded:.0f}" if made else "-"
        lines.append(f"| {name} | {accuracy} | {agreement} | {images} | {synthesis} | {distillation:.0f} | {total} |")
    teachers = spread([run["teacher"]["accuracy"] for run in runs])
    training = statistics.mean(seconds(run["train"]) for run in runs)
    stages = [run["train"] for run in runs] + [run["compute-stats"] for run in runs]
    stages += [part for run in runs for entry in run["students"].values() for part in entry.values()]
    memory = max(stage["budget"]["peak_memory_mb"] for stage in stages)
    handed = statistics.mean(run["compute-stats"]["bytes_handed_over"] for run in runs) / 1e6
    recorded = statistics.mean(seconds(run["compute-stats"]) for run in runs)
    lines += [
        "",
        f"Teacher {teachers} %, trained in {training:.0f} s; statistics {handed:.1f} MB in {recorded:.0f} s; "
        f"{runs[0]['environment']['threads']} thread(s), {runs[0]['environment']['platform']}, "
        f"torch {runs[0]['environment']['torch']}; no stage held more than {memory} MB.",
    ]
    return "\n".join(lines)


def main() -> None:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pair", nargs="?", choices=list(PAIRS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--data-dir", default="data")
    parser.add_argument("--work", type=Path, default=Path("runs/benchmarks"))
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--tables", action="store_true")
    arguments = parser.parse_args()
    RESULTS.mkdir(exist_ok=True)
    if arguments.pair:
        for seed in arguments.seeds:
            measure(arguments.pair, seed, arguments.data_dir, arguments.work, arguments.threads)
    if arguments.tables:
        print("\n\n".join(table(pair) for pair in PAIRS if list(RESULTS.glob(f"staged_{pair}_*.json"))))


if __name__ == "__main__":
    main()
