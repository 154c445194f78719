"""The estimate of accuracy: calibrated on recorded runs, made only where it was calibrated, without real data."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import ROOT, kdx
from hypothesis import given
from hypothesis import strategies as st

from kdextract import api
from kdextract.methods import live_method
from kdextract.models.architectures import architecture
from kdextract.models.classifier import Classifier, ClassifierSpec, load_classifier
from kdextract.stages.inputs.image_source import LiveImages
from kdextract.stages.inputs.method_inputs import MethodInputs
from kdextract.storage.run_dir import MODEL_FILE
from kdextract.synthesis.estimate import (
    ACCURACIES,
    FEWEST_STEPS,
    LEARNED_FROM,
    LEAST_AGREEMENT,
    LINE,
    MOST_AGREEMENT,
    MOST_PARAMETERS,
    SIDES,
    Estimate,
    TeacherAccuracy,
    estimate,
    structured_agreement,
    why_not,
    why_not_student,
)

CALIBRATION = json.loads((ROOT / "benchmarks" / "results" / "calibration.json").read_text())
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


def test_other_images_increase_the_estimate_of_the_same_agreement() -> None:
    """A student that was not trained on structured noise and agrees on it as much agrees more on real images."""
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
    """(estimate, its error, measured accuracy) of a recorded student."""
    teacher = TeacherAccuracy(used["teacher_accuracy"], 0.0)
    result = estimate(used["structured_agreement"], teacher, used["structured"])
    assert result is not None
    return result.accuracy, result.accuracy_error, used["accuracy"]


def test_estimates_are_near_the_measured_accuracies() -> None:
    finished = [row for row in CALIBRATION["students"] if row["steps"] >= 400]
    students = [recorded(row) for row in finished if row["structured_agreement"] >= LEAST_AGREEMENT]
    near = sum(abs(guess - truth) <= 0.01 for guess, _, truth in students)
    covered = sum(abs(guess - truth) <= 2 * error for guess, error, truth in students)
    assert near >= 20
    assert covered >= 0.9 * len(students)


def classifier(seed: int) -> Classifier:
    torch.manual_seed(seed)
    return Classifier(ClassifierSpec("lenet_half", (1, 32, 32), tuple("abc"), (0.1,), (0.3,))).eval()


def test_structured_agreement_changes_no_state() -> None:
    teacher, student = classifier(0).frozen(), classifier(1)
    torch.manual_seed(5)
    before = torch.get_rng_state()
    assert structured_agreement(teacher, teacher, 1000) == 1
    once = structured_agreement(teacher, student, 1000)
    assert once == structured_agreement(teacher, student, 1000) < 1
    assert torch.equal(before, torch.get_rng_state())


def test_distill_estimates_without_real_data(run_copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The agreement of this student differs between processors; the estimate is computed from the measured one."""
    monkeypatch.setattr("kdextract.synthesis.estimate.LEAST_AGREEMENT", 0.0)
    monkeypatch.setattr("kdextract.synthesis.estimate.MOST_AGREEMENT", 1.0)
    monkeypatch.setattr("kdextract.synthesis.estimate.FEWEST_STEPS", 100)
    with_it = api.distill(
        run=run_copy, method="structured_noise", steps=100, batch_size=16, name="a", teacher_accuracy=0.97, threads=1
    )
    assert not with_it.manifest.real_data
    metrics = with_it.manifest.metrics
    teacher, student = (load_classifier(run_copy / name / MODEL_FILE).frozen() for name in ("teacher", "students/a"))
    measured = structured_agreement(teacher, student, 100 * 16)
    assert metrics["structured_agreement"] == pytest.approx(measured, abs=1e-6)
    assert measured > structured_agreement(teacher, Classifier(student.spec).frozen(), 100 * 16), "of an untrained one"
    expected = made(measured, TeacherAccuracy(0.97, 0.0))
    for name, value in vars(expected).items():
        assert metrics[f"estimated_{name}"] == pytest.approx(value, abs=1e-4)
    assert metrics["estimated_accuracy"] <= 0.97


def test_an_unknown_teacher_accuracy_means_no_estimate(tmp_path: Path) -> None:
    teacher = api.train(run=tmp_path, epochs=1, validation=0.0, threads=1)
    assert "validation_accuracy" not in teacher.manifest.metrics
    student = api.distill(run=tmp_path, method="structured_noise", steps=2, threads=1)
    assert not [name for name in student.manifest.metrics if name.startswith("estimated")]


# ---- range of the estimate -----------------------------------------------------------------------------------------


def teacher_of(shape: tuple[int, int, int] = (1, 28, 28), classes: int = 10, parameters: int = 100) -> Classifier:
    """A teacher with this number of parameters, which is not run."""
    names = tuple(f"class {index}" for index in range(classes))
    spec = ClassifierSpec("hinton800", shape, names, (0.1,) * shape[0], (0.3,) * shape[0])
    return Classifier(spec, torch.nn.Linear(parameters, 1, bias=False))


FITTED = [
    row
    for row in CALIBRATION["students"]
    if row["steps"] >= FEWEST_STEPS and row["structured_agreement"] >= LEAST_AGREEMENT
    and not row["data"].startswith("cifar10")
]  # fmt: skip


def test_it_is_made_for_every_student_that_the_line_was_fitted_to() -> None:
    for row in FITTED:
        shape = architecture(row["teacher_model"]).input_shape
        images = "real images" if row["images"] in ("mnist", "folder") else row["images"]
        network = architecture(row["teacher_model"]).build(shape, 10)
        teacher = teacher_of(shape, parameters=sum(p.numel() for p in network.parameters()))
        assert why_not(teacher, images, TeacherAccuracy(row["teacher_accuracy"], 0.0)) == ""
        assert why_not_student(row["structured_agreement"], row["steps"]) == ""


def test_its_borders_are_near_recorded_students() -> None:
    accuracies, agreements = ([row[name] for row in FITTED] for name in ("teacher_accuracy", "structured_agreement"))
    assert pytest.approx((min(accuracies), max(accuracies)), abs=0.01) == ACCURACIES
    assert pytest.approx(max(agreements), abs=0.01) == MOST_AGREEMENT
    assert {row["images"] for row in FITTED} - {"mnist"} == set(LEARNED_FROM) - {"real images"}
    assert {architecture(row["teacher_model"]).input_shape for row in FITTED} == {(1, side, side) for side in SIDES}


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"shape": (3, 32, 32)}, "grey images of 28x28 to 32x32, not of 3x32x32"),
        ({"shape": (1, 27, 28)}, "not of 1x27x28"),
        ({"shape": (1, 28, 33)}, "not of 1x28x33"),
        ({"shape": (1, 1, 28)}, "not of 1x1x28"),
        ({"classes": 9}, "10 classes, not of 9"),
        ({"classes": 100}, "10 classes, not of 100"),
        ({"parameters": MOST_PARAMETERS + 1}, "not of 2,500,001"),
    ],
)
def test_other_teachers_get_no_estimate(changed: dict[str, Any], reason: str) -> None:
    assert why_not(teacher_of(), "dfq", EXACT) == ""
    assert why_not(teacher_of(parameters=MOST_PARAMETERS), "dfq", EXACT) == ""
    assert reason in why_not(teacher_of(**changed), "dfq", EXACT)


@pytest.mark.parametrize(
    "images", ["dafl", "noise:normal", "trained generators", "deep_inversion", "dfq with --replay 0"]
)
def test_students_of_other_images_get_no_estimate(images: str) -> None:
    assert f"not of {images}" in why_not(teacher_of(), images, EXACT)


@pytest.mark.parametrize("accuracy", [0.959, 0.997])
def test_teachers_of_other_accuracy_get_no_estimate(accuracy: float) -> None:
    assert "96 to 99.6 % accuracy" in why_not(teacher_of(), "dfq", TeacherAccuracy(accuracy, 0.0))
    for inside in ACCURACIES:
        assert why_not(teacher_of(), "dfq", TeacherAccuracy(inside, 0.0)) == ""
    assert "give it with --teacher-accuracy" in why_not(teacher_of(), "dfq", None)


@pytest.mark.parametrize(("agreement", "steps", "estimated"), [
    (0.5, 400, True), (0.96, 400, True), (0.49, 400, False), (0.97, 400, False), (0.7, 399, False),
])  # fmt: skip
def test_other_students_get_no_estimate(agreement: float, steps: int, estimated: bool) -> None:
    assert (why_not_student(agreement, steps) == "") == estimated


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, "dfq"),
        ({"replay": 0.9}, "dfq"),
        ({"replay": 0.7}, "dfq with --replay 0.7"),
        ({"start": "noise"}, "dfq with --start noise"),
        ({"start": "noise", "replay": 0.0}, "dfq with --start noise"),
    ],
)
def test_a_game_from_noise_is_another_one(options: dict[str, Any], expected: str) -> None:
    dfq = live_method("dfq")
    assert LiveImages.of(dfq, dfq.config(**options), MethodInputs()).learned_from == expected


def test_one_line_gives_the_reason_for_a_missing_estimate(teacher_run: Path, tmp_path: Path) -> None:
    options = ["--method", "dfq", "--start", "noise", "--replay", "0", "--steps", "2", "--batch-size", "8"]
    done = kdx("distill", *options, "--threads", "1", "--run", teacher_run, "--json", cwd=tmp_path)
    assert [line for line in done.stderr.splitlines() if "estimate" in line] == [
        f"no estimate of accuracy: it was calibrated on students of {', '.join(LEARNED_FROM)}, "
        "not of dfq with --start noise"
    ]
    assert not [name for name in json.loads(done.stdout) if name.startswith(("estimated", "structured"))]
