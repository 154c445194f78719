"""SOAP: Adam in the eigenbasis of Shampoo's preconditioner (Vyas et al. 2024, arXiv 2409.11321, algorithm 3).

PyTorch has no SOAP; a package of optimizers would be one more dependency for one class.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch

MAX_SIDE = 256
"""A longer side of a weight matrix is not rotated: its eigenvectors would cost more than the network."""
REFRESH = 10
"""Steps between two updates of the eigenvectors (the paper's frequency)."""
BETA = 0.95
"""Decay of all moving averages (the paper's)."""
EPSILON = 1e-8
SIDES = ("left", "right")


class Soap(torch.optim.Optimizer):
    """SOAP for small networks: a step needs some more small matrix products than Adam's, but fewer steps are needed.

    A weight [out, ...] is taken as a matrix [out, rest]. For each of its sides a moving average of the gradients'
    second moments is kept, with its eigenvectors; Adam's moments are in the basis of these. Biases and sides longer
    than `MAX_SIDE` are not rotated. The first step only initializes the moving averages.

    Args:
        params: weights, as for any optimizer.
        lr: learning rate, about as large as for Adam.
    """

    def __init__(self, params: Iterable[torch.Tensor], lr: float) -> None:
        super().__init__(params, {"lr": lr})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Take one step with the present gradients; weights without a gradient are not changed."""
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
    """Take a step of Adam in the basis of each weight, then update the averages from which the next bases are computed.

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
    """Update the second moments; with `refresh`, also the bases, and express the momentum in the new bases."""
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
    """Initialize a weight's state from its first gradient [out, rest].

    All tensors are contiguous, as they are after they were read from a file: the order of sums is then the same.
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
    """Return the eigenvectors of a second moment, computed in float64: in float32, low rank can make it fail."""
    return torch.linalg.eigh(moment.double()).eigenvectors.to(moment.dtype).contiguous()


def _rotate(matrix: torch.Tensor, state: dict[str, Any]) -> torch.Tensor:
    """Return the matrix in the bases of its sides; a side without a basis is left as it is."""
    if "left_basis" in state:
        matrix = state["left_basis"].T @ matrix
    return matrix @ state["right_basis"] if "right_basis" in state else matrix


def _rotate_back(matrix: torch.Tensor, state: dict[str, Any]) -> torch.Tensor:
    """Undo `_rotate`."""
    if "left_basis" in state:
        matrix = state["left_basis"] @ matrix
    return matrix @ state["right_basis"].T if "right_basis" in state else matrix
