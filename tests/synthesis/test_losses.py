"""Losses against plain NumPy in double precision, and their gradients against finite differences."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kdextract.synthesis.losses import (
    agreed_kl,
    class_imbalance,
    diversity_penalty,
    one_hot_error,
    standardized_error,
    statistics_distance,
    total_variation,
)
from kdextract.training.losses import DISTILLATION_LOSSES

repeatable = settings(derandomize=True, database=None, deadline=None, max_examples=40)
shapes = {"batch": st.integers(1, 6), "classes": st.integers(2, 9), "seed": st.integers(0, 10**6)}


def log_softmax(logits: np.ndarray) -> np.ndarray:
    shifted = logits - logits.max(axis=1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))


def kl(student: np.ndarray, teacher: np.ndarray, temperature: float) -> float:
    ours, theirs = log_softmax(student / temperature), log_softmax(teacher / temperature)
    return float((np.exp(theirs) * (theirs - ours)).sum(axis=1).mean())


def ce(student: np.ndarray, teacher: np.ndarray, temperature: float) -> float:
    ours, theirs = log_softmax(student / temperature), log_softmax(teacher / temperature)
    return float(-(np.exp(theirs) * ours).sum(axis=1).mean())


def l1(student: np.ndarray, teacher: np.ndarray, temperature: float) -> float:
    return float(np.abs(student - teacher).mean() / temperature)


def mse(student: np.ndarray, teacher: np.ndarray, temperature: float) -> float:
    return float(((student - teacher) ** 2).mean() / temperature**2)


# name -> (reference, power of T that keeps the gradient's size)
REFERENCES: dict[str, tuple[Callable[[np.ndarray, np.ndarray, float], float], int]] = {
    "kl": (kl, 2),
    "ce": (ce, 2),
    "l1": (l1, 1),
    "mse": (mse, 2),
}

every_loss = pytest.mark.parametrize("kind", sorted(DISTILLATION_LOSSES))


def random_logits(batch: int, classes: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    rng = torch.Generator().manual_seed(seed)
    student, teacher = 4 * torch.randn((2, batch, classes), generator=rng, dtype=torch.float64)
    return student, teacher


def test_every_loss_has_a_reference() -> None:
    assert set(REFERENCES) == set(DISTILLATION_LOSSES)


@every_loss
@given(**shapes, temperature=st.floats(0.5, 20), scale=st.booleans())
@repeatable
def test_loss_equals_numpy(kind: str, batch: int, classes: int, seed: int, temperature: float, scale: bool) -> None:
    student, teacher = random_logits(batch, classes, seed)
    reference, power = REFERENCES[kind]
    expected = reference(student.numpy(), teacher.numpy(), temperature) * (temperature**power if scale else 1)
    value = DISTILLATION_LOSSES[kind](student, teacher, temperature, scale)
    assert value.ndim == 0
    assert float(value) == pytest.approx(expected, rel=1e-9, abs=1e-12)
    single = DISTILLATION_LOSSES[kind](student.float(), teacher.float(), temperature, scale)
    assert float(single) == pytest.approx(expected, rel=1e-3, abs=1e-4)


@every_loss
@pytest.mark.parametrize("scale", [True, False])
def test_gradient_equals_finite_differences(kind: str, scale: bool) -> None:
    student, teacher = random_logits(3, 4, seed=1)
    student.requires_grad_(True)
    assert torch.autograd.gradcheck(lambda s: DISTILLATION_LOSSES[kind](s, teacher, 3.0, scale), (student,))


@every_loss
@given(**shapes, temperature=st.floats(0.5, 20))
@repeatable
def test_loss_is_smallest_at_the_teachers_logits(
    kind: str, batch: int, classes: int, seed: int, temperature: float
) -> None:
    student, teacher = random_logits(batch, classes, seed)
    loss = DISTILLATION_LOSSES[kind]
    at_teacher = loss(teacher, teacher, temperature, True)
    assert float(loss(student, teacher, temperature, True)) >= float(at_teacher) - 1e-12
    if kind != "ce":
        assert float(at_teacher) == pytest.approx(0, abs=1e-12)
    answer = teacher.clone().requires_grad_(True)
    if kind != "l1":  # which has no gradient there
        (gradient,) = torch.autograd.grad(loss(answer, teacher, temperature, True), answer)
        assert float(gradient.abs().max()) < 1e-9


@pytest.mark.parametrize("kind", ["kl", "ce"])
def test_a_constant_added_to_all_logits_changes_nothing(kind: str) -> None:
    student, teacher = random_logits(4, 5, seed=2)
    loss = DISTILLATION_LOSSES[kind]
    moved = loss(student + 7, teacher - 3, 2.0, True)
    assert float(moved) == pytest.approx(float(loss(student, teacher, 2.0, True)), rel=1e-9)


@every_loss
def test_scaling_keeps_the_size_of_gradients(kind: str) -> None:
    """Hinton et al. 2015, section 2: unscaled gradients shrink as 1 / T^2 (1 / T for l1)."""
    student, teacher = random_logits(16, 6, seed=3)
    student.requires_grad_(True)

    def gradient_norm(temperature: float, scale: bool) -> float:
        loss = DISTILLATION_LOSSES[kind](student, teacher, temperature, scale)
        return float(torch.autograd.grad(loss, student)[0].norm())

    power = REFERENCES[kind][1]
    assert gradient_norm(80.0, True) == pytest.approx(gradient_norm(40.0, True), rel=0.1)
    assert gradient_norm(80.0, False) == pytest.approx(gradient_norm(40.0, False) / 2**power, rel=0.1)
    assert gradient_norm(1.0, True) == gradient_norm(1.0, False)


@every_loss
def test_gradients_at_extreme_logits_are_not_zero(kind: str) -> None:
    student = torch.tensor([[300.0, -300.0, 0.0]], requires_grad=True)
    loss = DISTILLATION_LOSSES[kind](student, torch.tensor([[-300.0, 300.0, 0.0]]), 1.0, True)
    (gradient,) = torch.autograd.grad(loss, student)
    assert torch.isfinite(loss)
    assert torch.isfinite(gradient).all()
    assert gradient[0, 0] > 0 > gradient[0, 1]


@given(batch=st.integers(1, 5), units=st.integers(1, 30), seed=st.integers(0, 10**6), variance=st.floats(1e-3, 1e3))
@repeatable
def test_standardized_error_equals_numpy(batch: int, units: int, seed: int, variance: float) -> None:
    rng = np.random.default_rng(seed)
    values, targets = rng.normal(size=(2, batch, units))
    expected = (((values - targets) ** 2).mean(axis=1) / variance).sum()
    value = standardized_error(torch.tensor(values), torch.tensor(targets), torch.tensor(variance, dtype=torch.float64))
    assert float(value) == pytest.approx(expected, rel=1e-9)


def test_standardized_error_is_one_per_image_at_one_standard_deviation() -> None:
    targets = torch.randn(6, 50, generator=torch.Generator().manual_seed(0))
    assert float(standardized_error(targets + 3, targets, torch.tensor(9.0))) == pytest.approx(6, rel=1e-5)


@given(batch=st.integers(1, 4), channels=st.sampled_from([1, 3]), side=st.integers(2, 7), seed=st.integers(0, 10**6))
@repeatable
def test_total_variation_equals_numpy(batch: int, channels: int, side: int, seed: int) -> None:
    images = np.random.default_rng(seed).random((batch, channels, side, side + 1))
    across = np.abs(np.diff(images, axis=3)).mean(axis=(1, 2, 3))
    down = np.abs(np.diff(images, axis=2)).mean(axis=(1, 2, 3))
    assert float(total_variation(torch.tensor(images))) == pytest.approx((across + down).sum(), rel=1e-9)


def test_total_variation_of_known_images() -> None:
    flat = torch.full((2, 3, 8, 8), 0.7)
    assert float(total_variation(flat)) == 0
    stripes = torch.zeros(1, 1, 4, 6)
    stripes[..., ::2] = 1
    assert float(total_variation(stripes)) == pytest.approx(1)
    assert float(total_variation(stripes.transpose(2, 3))) == pytest.approx(1)


@pytest.mark.parametrize("name", ["standardized_error", "total_variation"])
def test_gradients_of_image_losses_equal_finite_differences(name: str) -> None:
    images = torch.rand((2, 1, 4, 5), generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    images.requires_grad_(True)
    targets = torch.rand((2, 1, 4, 5), generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    variance = torch.tensor(0.3, dtype=torch.float64)
    losses = {
        "standardized_error": lambda x: standardized_error(x, targets, variance),
        "total_variation": total_variation,
    }
    assert torch.autograd.gradcheck(losses[name], (images,))


@pytest.mark.parametrize("name", ["standardized_error", "total_variation"])
def test_gradient_of_an_image_does_not_depend_on_the_batch(name: str) -> None:
    images = torch.rand((5, 1, 4, 4), generator=torch.Generator().manual_seed(6))
    targets = torch.rand((5, 1, 4, 4), generator=torch.Generator().manual_seed(7))

    def gradient(rows: slice) -> torch.Tensor:
        part = images[rows].clone().requires_grad_(True)
        if name == "total_variation":
            loss = total_variation(part)
        else:
            loss = standardized_error(part, targets[rows], torch.tensor(0.5))
        return torch.autograd.grad(loss, part)[0]

    together = gradient(slice(None))
    for row in range(5):
        assert torch.allclose(gradient(slice(row, row + 1))[0], together[row], rtol=1e-6, atol=0)


# ---- losses of generators -----------------------------------------------------------------------------------------


def agreed_kl_of_numpy(student: np.ndarray, teacher: np.ndarray) -> float:
    rows = student.argmax(axis=1) == teacher.argmax(axis=1)
    return kl(student[rows], teacher[rows], 1.0) if rows.any() else 0.0


def class_imbalance_of_numpy(logits: np.ndarray) -> float:
    mean = np.exp(log_softmax(logits)).mean(axis=0)
    return float((mean * np.log(mean)).sum())


@given(**shapes)
@repeatable
def test_losses_of_logits_equal_numpy(batch: int, classes: int, seed: int) -> None:
    student, teacher = random_logits(batch, classes, seed)
    s, t = student.numpy(), teacher.numpy()
    assert float(agreed_kl(student, teacher)) == pytest.approx(agreed_kl_of_numpy(s, t), rel=1e-9, abs=1e-12)
    sure = -log_softmax(t)[np.arange(batch), t.argmax(axis=1)].mean()
    assert float(one_hot_error(teacher)) == pytest.approx(sure, rel=1e-9)
    assert float(class_imbalance(teacher)) == pytest.approx(class_imbalance_of_numpy(t), rel=1e-9)
    assert -np.log(classes) - 1e-9 <= float(class_imbalance(teacher)) <= 1e-9


@given(batch=st.integers(1, 6), seed=st.integers(0, 2**16))
@repeatable
def test_sameness_equals_numpy_over_all_pairs(batch: int, seed: int) -> None:
    rng = torch.Generator().manual_seed(seed)
    images = torch.rand((batch, 2, 3, 4), generator=rng, dtype=torch.float64)
    noise = torch.randn((batch, 5), generator=rng, dtype=torch.float64)
    x, z = images.numpy().reshape(batch, -1), noise.numpy()
    products = [((z[i] - z[j]) ** 2).mean() * np.abs(x[i] - x[j]).mean() for i in range(batch) for j in range(batch)]
    assert float(diversity_penalty(images, noise)) == pytest.approx(np.exp(-np.mean(products)), rel=1e-9)
    assert float(diversity_penalty(images[:1].expand_as(images), noise)) == 1.0


def test_one_row_has_no_variation_downwards() -> None:
    row = torch.tensor([[[[0.0, 1.0, 0.5]]]])
    assert float(total_variation(row)) == pytest.approx(0.75)
    assert float(total_variation(row.mT)) == pytest.approx(0.75)
    assert float(total_variation(row[..., :1])) == 0.0


def test_only_images_with_the_same_predicted_class_count() -> None:
    teacher = torch.tensor([[3.0, 0.0], [3.0, 0.0]])
    student = torch.tensor([[1.0, 0.0], [0.0, 9.0]], requires_grad=True)
    value = agreed_kl(student, teacher)
    assert float(value.detach()) == pytest.approx(kl(np.array([[1.0, 0.0]]), np.array([[3.0, 0.0]]), 1.0), rel=1e-5)
    (gradient,) = torch.autograd.grad(value, student)
    assert float(gradient[0].abs().min()) > 0 == float(gradient[1].abs().max())
    nobody = agreed_kl(student[1:], teacher[1:])
    assert float(nobody.detach()) == 0
    assert float(torch.autograd.grad(nobody, student)[0].abs().max()) == 0


@pytest.mark.parametrize("name", ["agreed_kl", "one_hot_error", "class_imbalance"])
def test_gradients_of_generator_losses_equal_finite_differences(name: str) -> None:
    student, teacher = (logits.requires_grad_(True) for logits in random_logits(4, 3, seed=8))
    losses = {"agreed_kl": agreed_kl, "one_hot_error": lambda s, t: one_hot_error(t)}
    losses["class_imbalance"] = lambda s, t: class_imbalance(t)
    assert torch.autograd.gradcheck(losses[name], (student, teacher))


def test_even_classes_are_the_least_and_one_class_the_most() -> None:
    sure = 200 * torch.eye(4)
    assert float(class_imbalance(sure)) == pytest.approx(-np.log(4), rel=1e-6)
    logits = sure[:1].repeat(5, 1).requires_grad_(True)
    assert float(class_imbalance(logits).detach()) == pytest.approx(0, abs=1e-6)
    assert torch.isfinite(torch.autograd.grad(class_imbalance(logits), logits)[0]).all()


@given(channels=st.integers(1, 9), seed=st.integers(0, 10**6))
@repeatable
def test_statistics_distance_equals_numpy(channels: int, seed: int) -> None:
    mean, variance, kept_mean, kept_variance = np.random.default_rng(seed).random((4, channels))
    expected = np.sqrt(((mean - kept_mean) ** 2).sum()) + np.sqrt(((variance - kept_variance) ** 2).sum())
    tensors = [torch.tensor(values) for values in (mean, variance, kept_mean, kept_variance)]
    assert float(statistics_distance(*tensors)) == pytest.approx(expected, rel=1e-9)
    assert float(statistics_distance(tensors[0], tensors[1], tensors[0], tensors[1])) == 0
