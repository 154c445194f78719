"""The shipped examples run."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

EXAMPLES = Path(__file__).parent.parent / "examples"


def test_a_student_is_used_from_python(finished_run: Path, tmp_path: Path) -> None:
    model = finished_run / "students" / "lenet_half" / "model.safetensors"
    command = [sys.executable, str(EXAMPLES / "load_student.py"), str(model)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    answers = [line.split() for line in done.stdout.splitlines()]
    assert len(answers) == 4
    for digit, probability in answers:
        assert digit in "0123456789"
        assert 0.1 <= float(probability) <= 1


def test_the_pipeline_script_is_sound_shell() -> None:
    assert subprocess.run(["sh", "-n", str(EXAMPLES / "digits.sh")], check=False).returncode == 0
