"""The shipped examples run."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT
from PIL import Image

from kdextract import api

EXAMPLES = ROOT / "examples"


def test_a_student_is_used_from_python(finished_run: Path, tmp_path: Path) -> None:
    model = finished_run / "students" / "lenet_half" / "model.safetensors"
    command = [sys.executable, str(EXAMPLES / "load_student.py"), str(model)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    answers = [line.split() for line in done.stdout.splitlines()]
    assert len(answers) == 4
    for digit, probability in answers:
        assert digit in "0123456789"
        assert 0.1 <= float(probability) <= 1


@pytest.mark.parametrize("name", ["digits.sh", "two_dimensions.sh"])
def test_the_pipeline_scripts_are_valid_shell(name: str) -> None:
    assert subprocess.run(["sh", "-n", str(EXAMPLES / name)], check=False).returncode == 0


@pytest.mark.slow
def test_distances_of_flow_points_are_printed_beside_those_of_uniform_points(tmp_path: Path) -> None:
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = {**os.environ, "STEPS": "150", "OMP_NUM_THREADS": "1", "MPLBACKEND": "Agg", "PATH": path}
    script = ["sh", str(EXAMPLES / "two_dimensions.sh"), "pizza"]
    done = subprocess.run(script, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True)
    document = json.loads(done.stdout[done.stdout.index("{") :])
    assert document["data"] == "2d:pizza"
    baseline = "uniform points, sorted by the teacher"
    assert list(document) == ["data", "other real points", baseline, "alone", "aided"]
    best, sorted_points, worst = (document[name] for name in ("other real points", baseline, "alone"))
    assert sorted_points["agreement"] == 1.0
    for label in ("0", "1"):
        distances = [row["sliced_wasserstein"][label] for row in (best, sorted_points, worst)]
        assert 0 < distances[0] < 0.02, "drawn by NumPy, whatever the processor"
        assert distances[0] < distances[1] < 0.5 * distances[2]
    options = {"flow": "nice_affine", "width": 30, "noise_scale": 1.0, "steps": 1, "threads": 1}
    untrained = api.train_generator(run=tmp_path / "runs" / "2d-pizza", method="keflow", name="untrained", **options)
    of_untrained = 1 - untrained.manifest.metrics["teacher_agrees_with_label"]
    for name in ("alone", "aided"):
        assert 1 - document[name]["agreement"] < 0.5 * of_untrained
    assert Image.open(tmp_path / "runs" / "2d-pizza" / "points.png").size == (1600, 420)
