"""Students whose channels were cut, without and with distillation: `python benchmarks/pruned_students.py RUN DATA`.

RUN has a teacher, DATA its real data, such as `mnist`. First every criterion of `kdx prune` is used once per share of
the multiply-adds and seed, with images of the first source. Then, for every source, the classifiers of the first
criterion are distilled for a time. Accuracy and agreement are those on the test images. Each row is printed as one
line of JSON; `--table FILE` prints the mean and the range over seeds of the rows in a file.

Example:

  python benchmarks/pruned_students.py runs/lenet mnist --criteria magnitude,fold --budget 60s >> rows.jsonl
  python benchmarks/pruned_students.py --table rows.jsonl
"""

from __future__ import annotations

import argparse
import json
import os
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import kdextract.api as kdx
from kdextract.methods import live_names

RANDOM, INHERITED = "random", "inherited"
"""Starts beside those of `kdx prune`: a cut network with new weights, and `kdx distill --student macs:N`."""


COMMON: dict[str, Any] = {"data_dir": Path(os.environ.get("KDX_DATA_DIR", "data")), "threads": 1}


def source_options(source: str) -> dict[str, str]:
    """Return the options of `kdx prune` and `kdx distill` for a live method, or for anything that --data takes."""
    return {"method": source} if source in live_names() else {"data": source}


def scores(run: Path, artifact: str, data: str) -> dict[str, float]:
    """Return accuracy and agreement on the test images."""
    metrics = kdx.evaluate(run=run, artifact=artifact, data=data, **COMMON).manifest.metrics
    return {name: metrics[name] for name in ("accuracy", "agreement")}


def prune(run: Path, macs: float, criterion: str, source: str, seed: int) -> tuple[str, dict[str, Any]]:
    """Return the label of a pruned classifier and the metrics of its manifest."""
    name = f"{criterion}-{source.replace(':', '-')}-{macs:g}-{seed}"
    options = {} if criterion == "fold" else source_options(source)
    made = kdx.prune(run=run, macs=macs, criterion=criterion, name=name, seed=seed, **COMMON, **options)
    return f"pruned/{name}", made.manifest.metrics


def student(run: Path, start: str, source: str, seed: int, more: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    """Distill a student; return its label and the metrics of its manifest."""
    name = f"{start.rpartition('/')[2].replace(':', '-')}-by-{source.replace(':', '-')}-{seed}-{len(more)}"
    made = kdx.distill(student=start, run=run, name=name, seed=seed, **COMMON, **source_options(source), **more)
    return f"students/{name}", made.manifest.metrics


def rows(asked: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Yield the rows of the table."""
    criteria, sources = asked.criteria.split(","), asked.sources.split(",")
    for seed in map(int, asked.seeds.split(",")):
        for macs in map(float, asked.macs.split(",")):
            starts = {}
            for criterion in criteria:
                starts[criterion], metrics = prune(asked.run, macs, criterion, sources[0], seed)
                left = metrics["multiply_adds"] / metrics["multiply_adds_before"]
                row = {"macs": macs, "left": round(left, 3), "start": criterion, "source": sources[0], "budget": ""}
                yield row | {"seed": seed} | scores(asked.run, starts[criterion], asked.data)
            if not asked.budget:
                continue
            for source in sources:
                more: dict[str, Any] = {"budget": asked.budget} | asked.set
                start = starts[criteria[0]]
                for origin in asked.starts.split(","):
                    if origin == RANDOM:
                        start, more = f"macs:{macs:g}", more | {"inherit": False}
                    elif origin == INHERITED:
                        start = f"macs:{macs:g}"
                    label, metrics = student(asked.run, start, source, seed, more)
                    row = {"macs": macs, "start": criteria[0] if origin == "pruned" else origin, "source": source}
                    row |= {"budget": asked.budget, "steps": metrics["steps"], "seed": seed}
                    yield row | {"held_out": metrics["held_out_agreement"]} | scores(asked.run, label, asked.data)


def table(file: Path) -> str:
    """Return the mean, minimum and maximum over seeds of the accuracy of the rows in a file, as Markdown."""
    found = defaultdict(list)
    for line in file.read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        found[row["macs"], row["start"], row["source"], row["budget"]].append(row)
    lines = [
        "| multiply-adds | start | source | distillation | accuracy | agreement | seeds |",
        "|---|---|---|---|---|---|---|",
    ]
    for (macs, start, source, budget), same in sorted(found.items(), key=lambda item: (-item[0][0], item[0][1:])):
        accuracy = [100 * row["accuracy"] for row in same]
        mean = sum(accuracy) / len(accuracy)
        spread = f"{mean:.2f} ({min(accuracy):.2f} to {max(accuracy):.2f})"
        agreement = 100 * sum(row["agreement"] for row in same) / len(same)
        lines.append(
            f"| {macs:g} | {start} | {source} | {budget or 'none'} | {spread} | {agreement:.2f} | {len(same)} |"
        )
    return "\n".join(lines)


def main() -> None:
    """Print the rows that the arguments ask for, or the table of a file of rows."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", nargs="?", type=Path)
    parser.add_argument("data", nargs="?", help="real data, of which only test images are read unless it is a source")
    parser.add_argument("--macs", default="0.63,0.29,0.1", help="shares of the multiply-adds")
    parser.add_argument("--criteria", default="magnitude,batch-norm,taylor,fold")
    parser.add_argument("--sources", default="structured_noise,noise:normal")
    parser.add_argument("--starts", default="pruned", help=f"of pruned, {INHERITED}, {RANDOM}")
    parser.add_argument("--budget", default="", help="time of each distillation; without it, none")
    parser.add_argument("--set", type=json.loads, default={}, metavar="JSON", help="other options of kdx.distill")
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--table", type=Path, metavar="FILE")
    asked = parser.parse_args()
    if asked.table is not None:
        print(table(asked.table))
        return
    if asked.run is None or asked.data is None:
        parser.error("give RUN and DATA")
    for row in rows(asked):
        print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
