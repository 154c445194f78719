"""Fits the linear model of `kdextract/synthesis/estimate.py`.

    python benchmarks/calibration.py RUN... --data-dir DIR [--out FILE]

Compares every student of the runs with its teacher, on structured noise and on the real test images of the teacher's
data set. The model predicts the agreement on real images from that on structured noise. Each teacher has the same
weight in the fit. The spread is computed from models that were fitted without the teacher whose students are estimated,
so it holds for new teachers.
"""

from __future__ import annotations

import argparse
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import torch

from kdextract.data.load import load_data
from kdextract.models.classifier import load_classifier
from kdextract.models.pixels import fit_images
from kdextract.storage.artifacts import read_manifest
from kdextract.storage.run_dir import RunDir
from kdextract.synthesis.estimate import (
    FEWEST_STEPS,
    LEAST_AGREEMENT,
    CalibrationLine,
    Estimate,
    TeacherAccuracy,
    estimate,
    logit,
    structured_agreement,
)
from kdextract.training.supervised import predict

Row = dict[str, Any]
FEATURES = ("intercept", "disagreement", "teacher_error", "other_images")


def measure(run: RunDir, data_dir: Path) -> list[Row]:
    """Return one row per student of a run: agreement on structured noise; accuracy and agreement on real images."""
    place = run.existing("teacher", "kdx train")
    teacher = load_classifier(place.directory / "model.safetensors").frozen()
    data_name = read_manifest(place.directory).config["data"]
    data = load_data(data_name, "test", data_dir)
    answers = predict(teacher, fit_images(data.images, teacher.input_shape)).argmax(1)
    rows = []
    for ref in run.artifacts("student"):
        student = load_classifier(ref.directory / "model.safetensors").frozen()
        manifest = read_manifest(ref.directory)
        own = predict(student, fit_images(data.images, student.input_shape)).argmax(1)
        batch = manifest.metrics["settings"]["batch_size"]
        rows.append(
            {
                "teacher": run.root.name,
                "teacher_model": teacher.spec.architecture,
                "data": data_name.partition(":")[0],
                "student": student.spec.architecture,
                "name": ref.name,
                "images": re.sub(r"^(folder|npz):.*", r"\1", manifest.metrics["source"]),
                "steps": manifest.metrics["steps"],
                "structured": is_structured(manifest.metrics["source"], run),
                "structured_agreement": structured_agreement(teacher, student, manifest.metrics["steps"] * batch),
                "teacher_accuracy": share(answers == data.labels),
                "accuracy": share(own == data.labels),
                "agreement": share(own == answers),
            }
        )
        print(".", end="", flush=True)
    return rows


def is_structured(source: str, run: RunDir) -> bool:
    """Return whether the images for a student were structured noise, or were optimized from it."""
    from kdextract.methods import live_method, live_names
    from kdextract.stages.inputs.image_source import TransferSetImages

    if source in live_names():
        return live_method(source).structured
    refs = [ref for ref in run.artifacts("transfer-set") if ref.name == source]
    return bool(refs) and TransferSetImages.of(run.artifact(refs[0])).structured


def share(equal: torch.Tensor) -> float:
    """Return the share of elements that are True."""
    return round(float(equal.float().mean()), 6)


def fit(rows: list[Row]) -> dict[str, float]:
    """Return the coefficients, fitted by least squares to the log odds of the disagreements on real images."""
    features = np.array(
        [
            [1, logit(1 - r["structured_agreement"]), logit(1 - r["teacher_accuracy"]), not r["structured"]]
            for r in rows
        ],
        dtype=np.float64,
    )
    targets = np.array([logit(1 - row["agreement"]) for row in rows])
    teachers = [row["teacher"] for row in rows]
    weights = np.array([teachers.count(teacher) ** -0.5 for teacher in teachers])
    solution = np.linalg.lstsq(features * weights[:, None], targets * weights, rcond=None)[0]
    return dict(zip(FEATURES, map(float, solution), strict=True))


def lines_without(rows: list[Row]) -> dict[str, dict[str, float]]:
    """Return, for each teacher, the coefficients that are fitted to the students of all other teachers."""
    return {name: fit([row for row in rows if row["teacher"] != name]) for name in {row["teacher"] for row in rows}}


def residual(row: Row, line: dict[str, float]) -> float:
    """Return the measured minus the estimated log odds of a student's disagreement."""
    estimated = CalibrationLine(**line, spread=0.0).log_odds(
        row["structured_agreement"], row["teacher_accuracy"], row["structured"]
    )
    return logit(1 - row["agreement"]) - estimated


def estimate_of(row: Row, line: CalibrationLine) -> Estimate | None:
    """Return the estimate for a student, computed with the measured accuracy of its teacher and an error of 0."""
    teacher = TeacherAccuracy(row["teacher_accuracy"], 0.0)
    return estimate(row["structured_agreement"], teacher, row["structured"], line)


def is_near(row: Row, line: CalibrationLine) -> bool:
    """Return whether the estimated accuracy is within 1.0 point of the measured one."""
    estimated = estimate_of(row, line)
    return estimated is not None and abs(estimated.accuracy - row["accuracy"]) <= 0.01


def main() -> None:
    """Measure the students or read their rows, fit the model, print the estimates, and write the file."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("runs", nargs="*", type=Path, help="run directories; without any, rows of --out are used")
    parser.add_argument("--data-dir", type=Path, default=Path("."))
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "calibration.json")
    options = parser.parse_args()
    if options.runs:
        rows = [row for run in options.runs for row in measure(RunDir(run), options.data_dir)]
    else:
        rows = json.loads(options.out.read_text())["students"]
    used = [row for row in rows if row["structured_agreement"] >= LEAST_AGREEMENT and row["steps"] >= FEWEST_STEPS]
    others = lines_without(used)
    residuals = [residual(row, others[row["teacher"]]) for row in used]
    counts = [sum(row["teacher"] == other["teacher"] for other in used) for row in used]
    spread = float(np.sqrt(np.average(np.square(residuals), weights=1 / np.array(counts))))
    line = {name: round(value, 2) for name, value in {**fit(used), "spread": spread}.items()}
    print("\n| teacher | student | images | steps | accuracy % | estimate % | difference |")
    print("|---|---|---|---|---|---|---|")
    for row in rows:
        estimated = estimate_of(row, CalibrationLine(**line))
        cells = [row["teacher"], row["student"], row["images"], str(row["steps"]), f"{100 * row['accuracy']:.2f}"]
        if estimated is None:
            cells += ["none", ""]
        else:
            difference = 100 * (estimated.accuracy - row["accuracy"])
            accuracy = f"{100 * estimated.accuracy:.2f} +- {100 * estimated.accuracy_error:.2f}"
            cells += [accuracy, f"{difference:+.2f}"]
        print("| " + " | ".join(cells) + " |")
    near = sum(is_near(row, CalibrationLine(**line)) for row in used)
    near_without = sum(is_near(row, CalibrationLine(**others[row["teacher"]], spread=spread)) for row in used)
    print(f"\nwithin 1.0 point: {near} of {len(used)} estimates; {near_without} if fitted without the teacher; {line}")
    options.out.write_text(json.dumps({"line": line, "students": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
