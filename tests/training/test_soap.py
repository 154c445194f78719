"""SOAP against a plain NumPy version of the algorithm of the paper, and compared with Adam."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch

from kdextract.training import soap
from kdextract.training.soap import Soap


def reference(gradients: list[np.ndarray], lr: float) -> np.ndarray:
    """The weight after all steps, from zero: moments and bases in float64, as in algorithm 3 of the paper."""
    weight = np.zeros_like(gradients[0])
    left, right = gradients[0] @ gradients[0].T, gradients[0].T @ gradients[0]
    left_basis, right_basis = np.linalg.eigh(left)[1], np.linalg.eigh(right)[1]
    momentum, square = np.zeros_like(weight), np.zeros_like(weight)
    for step, gradient in enumerate(gradients[1:], start=1):
        rotated = left_basis.T @ gradient @ right_basis
        momentum = soap.BETA * momentum + (1 - soap.BETA) * gradient
        square = soap.BETA * square + (1 - soap.BETA) * rotated**2
        correction = 1 - soap.BETA**step
        direction = left_basis.T @ momentum @ right_basis / correction
        direction /= np.sqrt(square / correction) + soap.EPSILON
        weight = weight - lr * left_basis @ direction @ right_basis.T
        left = soap.BETA * left + (1 - soap.BETA) * gradient @ gradient.T
        right = soap.BETA * right + (1 - soap.BETA) * gradient.T @ gradient
        if step % soap.REFRESH == 0:
            left_basis, right_basis = np.linalg.qr(left @ left_basis)[0], np.linalg.qr(right @ right_basis)[0]
    return weight


@pytest.mark.parametrize("shape", [(6, 6), (8, 2, 2, 2)])
def test_steps_equal_the_reference(shape: tuple[int, ...]) -> None:
    rng = np.random.default_rng(0)
    gradients = [rng.normal(size=shape) for _ in range(25)]
    weight = torch.zeros(shape, dtype=torch.float64, requires_grad=True)
    optimizer = Soap([weight], lr=0.01)
    for gradient in gradients:
        weight.grad = torch.from_numpy(gradient)
        optimizer.step()
    expected = reference([g.reshape(shape[0], -1) for g in gradients], 0.01)
    np.testing.assert_allclose(weight.detach().numpy().reshape(shape[0], -1), expected, atol=1e-9)


def test_sides_that_are_long_or_single_are_not_rotated() -> None:
    weights = [torch.zeros(shape, requires_grad=True) for shape in [(4, soap.MAX_SIDE + 1), (6,), (5, 7)]]
    optimizer = Soap(weights, lr=0.1)
    for weight in weights:
        weight.grad = torch.randn_like(weight)
    optimizer.step()
    bases = [{name for name in optimizer.state[weight] if name.endswith("basis")} for weight in weights]
    assert bases == [{"left_basis"}, set(), {"left_basis", "right_basis"}]


def test_it_minimizes_a_rotated_quadratic_faster_than_adam() -> None:
    """A quadratic with rotated axes: Adam scales each coordinate, which converges slowly (0.12 against 0.0004)."""
    rng = torch.Generator().manual_seed(0)
    left, right = (torch.linalg.qr(torch.randn((12, 12), generator=rng)).Q for _ in range(2))
    goal, scales = torch.randn((12, 12), generator=rng), torch.logspace(0, 3, 12).view(-1, 1)

    def loss(weight: torch.Tensor) -> torch.Tensor:
        return ((left @ (weight - goal) @ right) * scales.sqrt()).square().mean()

    def after(optimizer_type: Callable[..., torch.optim.Optimizer]) -> float:
        weight = torch.zeros((12, 12), requires_grad=True)
        optimizer = optimizer_type([weight], lr=0.1)
        for step in range(300):
            optimizer.param_groups[0]["lr"] = 0.1 * (1 - step / 300)
            optimizer.zero_grad()
            loss(weight).backward()
            optimizer.step()
        return float(loss(weight).detach())

    assert after(Soap) < 0.05 * after(torch.optim.Adam)


def test_state_can_be_saved_and_restored() -> None:
    gradients = torch.randn((30, 4, 6), generator=torch.Generator().manual_seed(1))

    def run(stop: int | None) -> torch.Tensor:
        weight = torch.zeros((4, 6), requires_grad=True)
        optimizer = Soap([weight], lr=0.01)
        for step, gradient in enumerate(gradients):
            if step == stop:
                state = optimizer.state_dict()
                optimizer = Soap([weight], lr=0.01)
                optimizer.load_state_dict(state)
            weight.grad = gradient.clone()
            optimizer.step()
        return weight.detach()

    assert torch.equal(run(None), run(13))
