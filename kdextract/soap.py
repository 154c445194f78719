"""SOAP: Adam in the eigenbasis of Shampoo's preconditioner (Vyas et al. 2024, arXiv 2409.11321, algorithm 3)."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch

MAX_SIDE = 256
"""A side of a weight matrix that is longer is not rotated: its eigenvectors would cost more than the network."""
REFRESH = 10
"""Steps between two refreshments of the eigenvectors (the paper's frequency)."""
BETA = 0.95
"""Decay of all moving averages (the paper's)."""
EPSILON = 1e-8
SIDES = ("left", "right")


class Soap(torch.optim.Optimizer):
    """For small networks: a step costs a few small matrix products more than Adam's, and is worth several of them.

    A weight [out, ...] is taken as a matrix [out, rest]. For each of its sides a moving average of the gradients'
    second moments is kept, with its eigenvectors; Adam's moments live in the basis that they span. Biases and sides
    longer than `MAX_SIDE` are not rotated. The first step only measures.

    Args:
        params: weights, as for any optimizer.
        lr: learning rate, of the size that suits Adam.
    """

    def __init__(self, params: Iterable[torch.Tensor], lr: float) -> None:
        super().__init__(params, {"lr": lr})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Take one step with the gradients that are there."""
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._update(parameter, parameter.grad.reshape(len(parameter), -1), group["lr"])

    def _update(self, parameter: torch.Tensor, gradient: torch.Tensor, lr: float) -> None:
        state = self.state[parameter]
        if not state:
            _begin(state, gradient)
            return
        state["step"] += 1
        step = int(state["step"])
        rotated = _rotate(gradient, state)
        momentum = state["momentum"].lerp_(gradient, 1 - BETA)
        square = state["square"].lerp_(rotated.square(), 1 - BETA)
        correction = 1 - BETA**step
        direction = _rotate(momentum, state).div_(correction)
        direction.div_((square / correction).sqrt_().add_(EPSILON))
        parameter.add_(_rotate_back(direction, state).view_as(parameter), alpha=-lr)
        for side, moment in _moments(gradient):
            if f"{side}_moment" in state:
                state[f"{side}_moment"].lerp_(moment(), 1 - BETA)
                if step % REFRESH == 0:
                    basis = state[f"{side}_basis"]
                    state[f"{side}_basis"] = torch.linalg.qr(state[f"{side}_moment"] @ basis).Q.contiguous()


def _begin(state: dict[str, Any], gradient: torch.Tensor) -> None:
    """Fill a weight's state from its first gradient [out, rest].

    All of it is contiguous, as it will be when it is restored from a file: sums then run in the same order.
    """
    state["step"] = torch.zeros(())
    state["momentum"], state["square"] = (gradient.new_zeros(gradient.shape) for _ in range(2))
    if gradient.shape[1] == 1:
        return
    for side, moment in _moments(gradient):
        if gradient.shape[SIDES.index(side)] <= MAX_SIDE:
            state[f"{side}_moment"] = moment()
            state[f"{side}_basis"] = torch.linalg.eigh(state[f"{side}_moment"]).eigenvectors.contiguous()


def _moments(gradient: torch.Tensor) -> list[tuple[str, Any]]:
    """The second moments of both sides, each computed when it is called."""
    left, right = SIDES
    return [(left, lambda: gradient @ gradient.T), (right, lambda: gradient.T @ gradient)]


def _rotate(matrix: torch.Tensor, state: dict[str, Any]) -> torch.Tensor:
    """Return the matrix in the basis of its sides' eigenvectors."""
    if "left_basis" in state:
        matrix = state["left_basis"].T @ matrix
    return matrix @ state["right_basis"] if "right_basis" in state else matrix.clone()


def _rotate_back(matrix: torch.Tensor, state: dict[str, Any]) -> torch.Tensor:
    """Undo `_rotate`."""
    if "left_basis" in state:
        matrix = state["left_basis"] @ matrix
    return matrix @ state["right_basis"].T if "right_basis" in state else matrix
