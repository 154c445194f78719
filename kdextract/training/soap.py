"""SOAP: Adam in the eigenbasis of Shampoo's preconditioner (Vyas et al. 2024, arXiv 2409.11321, algorithm 3).

PyTorch has no SOAP, and a package of optimizers would be a dependency for this one class.
"""

from __future__ import annotations

import math
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
            begun = []
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                gradient, state = parameter.grad.reshape(len(parameter), -1), self.state[parameter]
                if state:
                    begun.append((parameter, gradient, state))
                else:
                    _begin(state, gradient)
            if begun:
                _update(begun, group["lr"])


def _update(begun: list[tuple[torch.Tensor, torch.Tensor, dict[str, Any]]], lr: float) -> None:
    """Adam in each weight's basis, then the averages that the next bases come from.

    Args:
        begun: weights, their gradients as matrices, and their states.
    """
    rotated = [_rotate(gradient, state) for _, gradient, state in begun]
    states = [state for _, _, state in begun]
    momenta, squares = ([state[name] for state in states] for name in ("momentum", "square"))
    torch._foreach_lerp_(momenta, rotated, 1 - BETA)
    torch._foreach_mul_(squares, BETA)
    torch._foreach_addcmul_(squares, rotated, rotated, 1 - BETA)
    torch._foreach_add_([state["step"] for state in states], 1)
    steps = [int(state["step"]) for state in states]
    corrections = [1 - BETA**step for step in steps]
    sizes = torch._foreach_sqrt(squares)
    torch._foreach_mul_(sizes, [math.sqrt(correction) for correction in corrections])
    torch._foreach_add_(sizes, [EPSILON * correction for correction in corrections])
    directions = torch._foreach_div(momenta, sizes)
    for (parameter, gradient, state), direction, step in zip(begun, directions, steps, strict=True):
        parameter.add_(_rotate_back(direction, state).view_as(parameter), alpha=-lr)
        _follow(gradient, state, refresh=step % REFRESH == 0)


def _follow(gradient: torch.Tensor, state: dict[str, Any], refresh: bool) -> None:
    """Move the second moments on; if it is time to, turn the bases after them, and the momentum with the bases."""
    sides = [side for side in SIDES if f"{side}_moment" in state]
    for side in sides:
        rows = gradient if side == "left" else gradient.T
        torch.addmm(state[f"{side}_moment"], rows, rows.T, beta=BETA, alpha=1 - BETA, out=state[f"{side}_moment"])
    if refresh and sides:
        momentum = _rotate_back(state["momentum"], state)
        for side in sides:
            basis = state[f"{side}_moment"] @ state[f"{side}_basis"]
            state[f"{side}_basis"] = torch.linalg.qr(basis).Q.contiguous()
        state["momentum"] = _rotate(momentum, state)


def _begin(state: dict[str, Any], gradient: torch.Tensor) -> None:
    """Fill a weight's state from its first gradient [out, rest].

    All of it is contiguous, as it will be when it is restored from a file: sums then run in the same order.
    """
    state["step"] = torch.zeros(())
    state["momentum"], state["square"] = (gradient.new_zeros(gradient.shape) for _ in range(2))
    if gradient.shape[1] == 1:
        return
    for side, rows in zip(SIDES, (gradient, gradient.T), strict=True):
        if len(rows) <= MAX_SIDE:
            state[f"{side}_moment"] = (rows @ rows.T).contiguous()
            state[f"{side}_basis"] = _eigenvectors(state[f"{side}_moment"])


def _eigenvectors(moment: torch.Tensor) -> torch.Tensor:
    """Return the eigenvectors of a second moment, in double precision: in single, a first one of low rank may fail."""
    return torch.linalg.eigh(moment.double()).eigenvectors.to(moment.dtype).contiguous()


def _rotate(matrix: torch.Tensor, state: dict[str, Any]) -> torch.Tensor:
    """Return the matrix in the basis of its sides' eigenvectors; the matrix itself where no side has one."""
    if "left_basis" in state:
        matrix = state["left_basis"].T @ matrix
    return matrix @ state["right_basis"] if "right_basis" in state else matrix


def _rotate_back(matrix: torch.Tensor, state: dict[str, Any]) -> torch.Tensor:
    """Undo `_rotate`."""
    if "left_basis" in state:
        matrix = state["left_basis"] @ matrix
    return matrix @ state["right_basis"].T if "right_basis" in state else matrix
