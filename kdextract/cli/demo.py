"""`kdx demo`: the whole pipeline on scikit-learn's digits, and the anchors (ceiling and floor) of the student."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..options.declare import RunConfig, option
from ..options.entries import OutputOptions
from ..stages import compute_stats, evaluate, optimize_dataset, train
from ..stages.distill import command as distill
from ..stages.running.figures import figure
from ..stages.running.html import image_html, table_html
from ..stages.running.runner import Outcome, Stage, run_stage
from ..training.progress import Reporter
from .command import Command
from .printing import print_line, print_table

STUDENT, CEILING, FLOOR = "lenet_half", "ceiling", "floor"
DISTILL_STEPS = 1000


@dataclass(frozen=True, kw_only=True)
class DemoConfig(RunConfig):
    """Run the pipeline on small real digits, offline.

    It takes about a minute: train, compute-stats, optimize-dataset, distill, evaluate; then the same student from real
    data (ceiling) and from noise (floor), with the same number of steps. Finished stages are not run again.

    Examples:

      kdx demo
      kdx demo --run runs/mine --seed 1
    """

    run: Path = option(
        Path("runs/demo"), "Run directory.", env="KDX_RUN", recorded=False, metavar="DIR", panel="Output"
    )
    seed: int = option(0, "Seed of all random numbers.", minimum=0, maximum=2**31 - 1, panel="Compute")
    device: str = option("auto", "auto, cpu, cuda or cuda:N.", panel="Compute")
    threads: int | None = option(None, "CPU threads.", minimum=1, panel="Compute", otherwise="one per core")
    force: bool = option(False, "Replace artifacts that exist.", recorded=False, panel="Output")


@dataclass(frozen=True)
class DemoResult:
    """The outcomes of all stages, by name; `seconds` is the wall-clock time of the whole demo."""

    run: Path
    seed: int
    outcomes: dict[str, Outcome]
    seconds: float

    def metrics(self, name: str) -> dict[str, Any]:
        """Summary metrics of one outcome."""
        manifest = self.outcomes[name].manifest
        assert manifest is not None
        return manifest.metrics

    def record(self) -> dict[str, Any]:
        """Return what `--json` prints."""
        scores = {name: self.metrics(f"evaluate {name}") for name in ("teacher", STUDENT, CEILING, FLOOR)}
        return {
            "run": str(self.run),
            "seed": self.seed,
            "seconds": round(self.seconds, 1),
            "accuracy": {name: score["accuracy"] for name, score in scores.items()},
            "agreement": {name: score["agreement"] for name, score in scores.items()},
            "grid": str(self.outcomes["optimize-dataset"].directory / "grid.png"),
        }

    def _repr_html_(self) -> str:
        record = self.record()
        rows = [[name, *[figure(k, record[k][name]) for k in ("accuracy", "agreement")]] for name in record["accuracy"]]
        table = table_html(["classifier", "accuracy", "agreement"], rows, f"{self.run}, seed {self.seed}")
        return table + image_html(Path(record["grid"]).read_bytes(), record["grid"])

    def print(self) -> None:
        """Print the closing table."""
        scores = {name: self.metrics(f"evaluate {name}") for name in ("teacher", STUDENT, CEILING, FLOOR)}
        teacher, statistics = self.metrics("train"), self.metrics("compute-stats")
        images, student = self.metrics("optimize-dataset"), self.metrics("distill")
        ratio = teacher["num_parameters"] / student["num_parameters"]
        results = {
            "train": f"teacher {teacher['model']}, {teacher['num_parameters']:,} parameters, "
            f"{teacher['num_images']:,} real images",
            "compute-stats": f"{figure('bytes_handed_over', statistics['bytes_handed_over'])} of statistics, "
            f"smallest class {statistics['smallest_class']} images",
            "optimize-dataset": f"{images['num_images']:,} images, teacher confidence "
            f"{figure('mean_confidence', images['mean_confidence'])}",
            "distill": f"student {student['student']}, {student['num_parameters']:,} parameters ({ratio:.1f}x fewer)",
        }
        rows = [[name, text, self._seconds(name), self._place(name)] for name, text in results.items()]
        rows.insert(2, ["", "---- no real data is opened from here on ----", "", ""])
        rows.append(["", "---- real test images opened, for scoring only ----", "", ""])
        print_table(["stage", "result", "seconds", "artifact"], rows)
        labels = {
            "teacher": "teacher",
            CEILING: "student, distilled on the real training images (ceiling)",
            STUDENT: "student, distilled without data",
            FLOOR: "student, distilled on noise (floor)",
        }
        scored = [
            [text, *[figure(k, scores[name][k]) for k in ("accuracy", "agreement", "num_parameters")]]
            for name, text in labels.items()
        ]
        print_table(
            [f"on {scores['teacher']['num_images']} test images", "accuracy", "agreement", "parameters"], scored
        )
        print_line(f"seed {self.seed}, last weights, {self.seconds:.0f} s in total")
        print_line(f"images: {self.outcomes['optimize-dataset'].directory / 'grid.png'}")
        print_line(f"next: kdx show --run {self.run} | kdx verify --run {self.run} | kdx distill --help")

    def _seconds(self, name: str) -> str:
        outcome = self.outcomes[name]
        assert outcome.manifest is not None
        return "cached" if outcome.status == "cached" else f"{outcome.manifest.budget['seconds']['total']:.1f}"

    def _place(self, name: str) -> str:
        return str(self.outcomes[name].directory.relative_to(self.run))


def demo(config: DemoConfig, reporter: Reporter) -> DemoResult:
    """Run every stage and return the outcomes."""
    common: dict[str, Any] = {
        "run": config.run,
        "seed": config.seed,
        "device": config.device,
        "threads": config.threads,
        "force": config.force,
    }
    started = time.monotonic()
    outcomes: dict[str, Outcome] = {}

    def run(label: str, stage: Stage[Any, Any], **options: Any) -> None:
        outcomes[label] = run_stage(stage, stage.config(**common, **options), reporter)

    budget = {"student": STUDENT, "steps": DISTILL_STEPS}
    run("train", train.STAGE)
    run("compute-stats", compute_stats.STAGE)
    run("optimize-dataset", optimize_dataset.STAGE, images_per_class=200)
    run("distill", distill.STAGE, **budget)
    run("distill ceiling", distill.STAGE, **budget, name=CEILING, data="digits")
    run("distill floor", distill.STAGE, **budget, name=FLOOR, data="noise:normal")
    for name in ("teacher", STUDENT, CEILING, FLOOR):
        run(f"evaluate {name}", evaluate.STAGE, artifact=name)
    return DemoResult(config.run, config.seed, outcomes, time.monotonic() - started)


def print_demo(config: DemoConfig, result: DemoResult, output: OutputOptions) -> None:
    """Print the tables of the demo; quietly, the run directory."""
    if output.quiet:
        print_line(str(config.run))
    else:
        result.print()


DEMO = Command(
    DemoConfig,
    demo,
    print_demo,
    record=lambda result: {"command": "demo", **result.record()},
    returns="DemoResult: the Outcome of every stage, by its name.",
)
