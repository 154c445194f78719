"""Training on few real images, with and without generated ones.

    python benchmarks/augmentation.py RUN... --data-dir DIR

Each run has a teacher and generators. For several numbers of real images per class, a classifier is trained on these
images alone, and on them together with a transfer set of the run's generators, whose labels are the teacher's
predictions (soft) or the classes for which the images were generated (hard). All classifiers are trained for the same
number of steps. The last weights are evaluated on the test images. The last row of the table has no real images: its
classifiers are distilled.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from statistics import mean, stdev
from tempfile import TemporaryDirectory
from typing import Any

from kdextract import api
from kdextract.storage.artifacts import read_manifest
from kdextract.storage.run_dir import RunDir

BATCH = 128
CLASSES = 10


@dataclass(frozen=True)
class Cell:
    """One classifier: `images_per_class` real images, and the transfer set that is added to them."""

    images_per_class: int
    generators: str | None
    labels: str | None
    seed: int

    @property
    def column(self) -> str:
        """Heading of the column that contains the cell."""
        return "real images alone" if self.generators is None else f"+ {self.generators}, {self.labels}"


def train(cell: Cell, run: Path, data_dir: Path, model: str, steps: int) -> tuple[Cell, float]:
    """Return the cell and the test accuracy of its classifier, in percent.

    With 0 real images per class, all images of a batch are generated.
    """
    data = read_manifest(RunDir(run).existing("teacher", "kdx train").directory).config["data"]
    shots = max(1, cell.images_per_class)
    epochs = math.ceil(steps / max(1, shots * CLASSES // BATCH))
    added: dict[str, Any] = {}
    if cell.generators is not None:
        added = {"augment": str(run / "transfer-sets" / cell.generators), "augment_labels": cell.labels}
        added["augment_share"] = 0.5 if cell.images_per_class else 1.0
    with TemporaryDirectory() as directory:
        common: dict[str, Any] = {"run": directory, "data_dir": data_dir, "threads": 1}
        few = {"shots": shots, "epochs": epochs, "batch_size": BATCH, "validation": 0.0}
        api.train(data=data, model=model, seed=cell.seed, **few, **added, **common)
        outcome = api.evaluate(artifact="teacher", data=data, **common)
        return cell, 100 * float(outcome.manifest.metrics["accuracy"])


def table(results: dict[Cell, float]) -> str:
    """Return a table in Markdown of the mean and standard deviation over seeds."""
    columns = list(dict.fromkeys(cell.column for cell in results))
    lines = [f"| images per class | {' | '.join(columns)} |", "|--:" * (len(columns) + 1) + "|"]
    for count in dict.fromkeys(cell.images_per_class for cell in results):
        figures = []
        for column in columns:
            own = [value for cell, value in results.items() if (cell.images_per_class, cell.column) == (count, column)]
            spread = f" +- {stdev(own):.2f}" if len(own) > 1 else ""
            figures.append(f"{mean(own):.2f}{spread}" if own else "-")
        lines.append(f"| {count} | {' | '.join(figures)} |")
    return "\n".join(lines) + "\n"


def cells_of(counts: Sequence[int], generators: Sequence[str], seed: int) -> list[Cell]:
    """Return the cells of one seed."""
    added = [(name, labels) for name in generators for labels in ("soft", "hard")]
    cells = [Cell(count, *which, seed) for count in counts for which in [(None, None), *added]]
    return cells + [Cell(0, *which, seed) for which in added]


def main() -> None:
    """Generate the transfer sets that do not exist yet, train all classifiers, print and write the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("runs", nargs="+", type=Path, help="run directories, one per seed")
    parser.add_argument("--data-dir", type=Path, required=True)
    parser.add_argument("--generators", nargs="+", default=["kegnet", "keflow_10"])
    parser.add_argument("--images-per-class", nargs="+", type=int, default=[1, 5, 10, 50, 100])
    parser.add_argument("--model", default="lenet5")
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--out", type=Path, help="JSON file for the accuracies; the table is written beside it as .md")
    arguments = parser.parse_args()
    for run in arguments.runs:
        for name in arguments.generators:
            api.generate(run=run, generator=name, images_per_class=500, threads=1)
    results: dict[Cell, float] = {}
    with ProcessPoolExecutor(arguments.jobs, mp_context=get_context("spawn")) as pool:
        work = [
            pool.submit(train, cell, run, arguments.data_dir, arguments.model, arguments.steps)
            for seed, run in enumerate(arguments.runs)
            for cell in cells_of(arguments.images_per_class, arguments.generators, seed)
        ]
        for future in work:
            cell, accuracy = future.result()
            results[cell] = accuracy
            print(f"{cell.images_per_class} per class, {cell.column}, seed {cell.seed}: {accuracy:.2f}", flush=True)
    text = table(results)
    print(text)
    if arguments.out:
        figures = [{**vars(cell), "accuracy": round(accuracy, 2)} for cell, accuracy in results.items()]
        record = {"model": arguments.model, "steps": arguments.steps, "batch_size": BATCH, "classifiers": figures}
        arguments.out.write_text(json.dumps(record, indent=1) + "\n")
        arguments.out.with_suffix(".md").write_text(text)


if __name__ == "__main__":
    main()
