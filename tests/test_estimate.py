"""The estimate of accuracy: calibrated on recorded runs, honest about what it does not know, and free of real data."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import kdextract
from kdextract.classifier import Classifier, ClassifierSpec
from kdextract.estimate import (
    LEAST_AGREEMENT,
    LINE,
    Estimate,
    TeacherAccuracy,
    estimate,
    structured_agreement,
)

CALIBRATION = json.loads((Path(__file__).parents[1] / "benchmarks" / "results" / "calibration.json").read_text())
EXACT = TeacherAccuracy(0.99, 0.0)


def made(agreement: float, teacher: TeacherAccuracy = EXACT, structured: bool = True) -> Estimate:
    result = estimate(agreement, teacher, structured)
    assert result is not None
    return result


@given(st.floats(LEAST_AGREEMENT, 1), st.floats(0.1, 0.9999), st.booleans())
def test_figures_are_shares_and_no_student_beats_its_teacher(agreement: float, accuracy: float, ours: bool) -> None:
    result = made(agreement, TeacherAccuracy(accuracy, 0.0), ours)
    assert 0 < result.agreement < 1
    assert 0 <= result.accuracy <= accuracy
    assert 0 < result.agreement_error < 0.5
    assert 0 < result.accuracy_error < 0.5


@given(st.floats(LEAST_AGREEMENT, 0.99), st.floats(1e-3, 1e-2))
def test_more_agreement_means_more_accuracy(agreement: float, more: float) -> None:
    assert made(agreement + more).accuracy > made(agreement).accuracy


def test_other_images_make_the_same_agreement_worth_more() -> None:
    """A student that never saw structured noise and still agrees on it knows the teacher better."""
    assert made(0.7, structured=False).accuracy > made(0.7, structured=True).accuracy


def test_a_student_unlike_its_teacher_gets_no_estimate() -> None:
    assert estimate(LEAST_AGREEMENT - 0.01, EXACT, structured=True) is None


def test_few_validation_images_make_the_error_larger() -> None:
    few, many = TeacherAccuracy.measured(1.0, 70), TeacherAccuracy.measured(1.0, 7000)
    assert few.value == pytest.approx(71 / 72)
    assert few.value < many.value < 1
    assert few.error > many.error > 0
    assert made(0.8, few).accuracy_error > made(0.8, replace(few, error=0.0)).accuracy_error


def test_the_line_is_the_one_that_was_fitted() -> None:
    assert {name: CALIBRATION["line"][name] for name in vars(LINE)} == vars(LINE)


def recorded(used: dict[str, Any]) -> tuple[float, float, float]:
    """(estimate, its error, true accuracy) of a student that was recorded with real images."""
    teacher = TeacherAccuracy(used["teacher_accuracy"], 0.0)
    result = estimate(used["structured_agreement"], teacher, used["structured"])
    assert result is not None
    return result.accuracy, result.accuracy_error, used["accuracy"]


def test_estimates_are_near_the_truth() -> None:
    finished = [row for row in CALIBRATION["students"] if row["steps"] >= 400]
    students = [recorded(row) for row in finished if row["structured_agreement"] >= LEAST_AGREEMENT]
    near = sum(abs(guess - truth) <= 0.01 for guess, _, truth in students)
    covered = sum(abs(guess - truth) <= 2 * error for guess, error, truth in students)
    assert near >= 20
    assert covered >= 0.9 * len(students)


def classifier(seed: int) -> Classifier:
    torch.manual_seed(seed)
    return Classifier(ClassifierSpec("lenet_half", (1, 32, 32), tuple("abc"), (0.1,), (0.3,))).eval()


def test_structured_agreement_leaves_everything_as_it_is() -> None:
    teacher, student = classifier(0).frozen(), classifier(1)
    torch.manual_seed(5)
    before = torch.get_rng_state()
    assert structured_agreement(teacher, teacher, 1000) == 1
    once = structured_agreement(teacher, student, 1000)
    assert once == structured_agreement(teacher, student, 1000) < 1
    assert torch.equal(before, torch.get_rng_state())


def test_distill_estimates_without_real_data(run_copy: Path) -> None:
    with_it = kdextract.distill(run=run_copy, method="structured_noise", steps=120, name="a", teacher_accuracy=0.97)
    assert not with_it.manifest.real_data
    metrics = with_it.manifest.metrics
    assert LEAST_AGREEMENT <= metrics["structured_agreement"] <= 1
    assert metrics["estimated_accuracy"] <= 0.97
    expected = estimate(metrics["structured_agreement"], TeacherAccuracy(0.97, 0.0), structured=True)
    assert expected is not None
    assert metrics["estimated_accuracy"] == pytest.approx(expected.accuracy, abs=1e-4)


def test_an_unknown_teacher_accuracy_means_no_estimate(tmp_path: Path) -> None:
    teacher = kdextract.train(run=tmp_path, epochs=1, validation=0.0, threads=1)
    assert "validation_accuracy" not in teacher.manifest.metrics
    student = kdextract.distill(run=tmp_path, method="structured_noise", steps=2, threads=1)
    assert not [name for name in student.manifest.metrics if name.startswith("estimated")]
