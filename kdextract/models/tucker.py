"""Tucker-2 decomposition of weights, and ranks by empirical variational Bayes.

Libraries of tensor decompositions, such as TensorLy, need given ranks; here they are estimated from the weights.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from scipy.optimize import minimize_scalar

SWEEPS = 50
TOLERANCE = 1e-9
"""Iterations end when the kept share of the squared norm of the weight increases by less than this."""


@dataclass(frozen=True)
class Tucker2:
    """weight[o, i, ...] is approximated by the sum over p, q of outwards[o, p] * core[p, q, ...] * inwards[q, i].

    `inwards` is [in rank, I], `core` [out rank, in rank, ...], `outwards` [O, out rank]; `error` is the relative error
    of the weight in the Frobenius norm, in [0, 1].
    """

    inwards: torch.Tensor
    core: torch.Tensor
    outwards: torch.Tensor
    error: float


def tucker2(weight: torch.Tensor, in_rank: int, out_rank: int) -> Tucker2:
    """Decompose a weight [O, I, ...] along its outputs and inputs (Kim et al. 2016, arXiv 1511.06530, section 3).

    Higher-order orthogonal iteration from the truncated higher-order SVD (De Lathauwer et al. 2000), in float64.

    Args:
        in_rank: from 1 to I.
        out_rank: from 1 to O.
    """
    original = weight.detach().to("cpu", torch.float64)
    total = float(original.square().sum())
    inwards = _leading(_unfold(original, 1), in_rank)
    kept = 0.0
    for _ in range(SWEEPS):
        outwards = _leading(_unfold(_project(original, inwards, 1), 0), out_rank)
        inwards = _leading(_unfold(_project(original, outwards, 0), 1), in_rank)
        core = _project(_project(original, inwards, 1), outwards, 0)
        before, kept = kept, float(core.square().sum()) / max(total, 1e-300)
        if kept - before < TOLERANCE:
            break
    error = math.sqrt(max(0.0, 1 - kept)) if total else 0.0
    factors = [part.to(weight.dtype).contiguous() for part in (inwards.T, core, outwards)]
    return Tucker2(factors[0], factors[1], factors[2], error)


def _unfold(weight: torch.Tensor, axis: int) -> torch.Tensor:
    """Return the unfolding of the weight as a matrix with one row per index of `axis`."""
    return weight.movedim(axis, 0).flatten(1)


def _leading(matrix: torch.Tensor, rank: int) -> torch.Tensor:
    """Return the first left singular vectors, [rows, rank]; if there are fewer columns, others complete the basis."""
    return torch.linalg.svd(matrix, full_matrices=matrix.shape[1] < rank).U[:, :rank]


def _project(weight: torch.Tensor, factor: torch.Tensor, axis: int) -> torch.Tensor:
    """Multiply an axis of the weight by the transpose of a factor."""
    return torch.tensordot(weight, factor, dims=([axis], [0])).movedim(-1, axis)


def evbmf_rank(matrix: torch.Tensor) -> int:
    """Return the estimated rank of a matrix with noise: from 0 to the shorter side.

    Empirical variational Bayesian matrix factorization with unknown noise, in closed form except the noise variance
    (Nakajima et al. 2013, "Global Analytic Solution of Fully-Observed Variational Bayesian Matrix Factorization",
    theorems 2 and 3, corollary 2). For a matrix without full rank there is no noise to estimate: its rank
    is returned.
    """
    values = torch.linalg.svdvals(matrix.detach().to("cpu", torch.float64)).numpy()
    rows, columns = sorted(matrix.shape)
    energies = values**2
    largest = float(energies.max(initial=0.0))
    present = int((energies > 1e-20 * largest).sum())
    if present < rows:
        return present
    shape = rows / columns
    threshold = (1 + (tau := 2.5129 * math.sqrt(shape))) * (1 + shape / tau)
    # the remaining singular values are noise, and give a lower bound of its variance
    tail = energies[min(math.ceil(rows / (1 + shape)) - 1, rows - 1) :]
    least = max(float(tail[0]) / (columns * threshold), float(tail.mean()) / columns)
    most = float(energies.sum()) / (rows * columns)

    def free_energy(log_variance: float) -> float:
        scaled = energies / (columns * math.exp(log_variance))
        noise, signal = scaled[scaled <= threshold], scaled[scaled > threshold]
        excess = signal - (1 + shape)
        kept = (excess + np.sqrt(excess**2 - 4 * shape)) / 2
        from_signal = signal - kept + np.log((kept + 1) / signal) + shape * np.log(kept / shape + 1)
        return float((noise - np.log(noise)).sum() + from_signal.sum())

    variance = most
    if least < most:
        found = minimize_scalar(free_energy, bounds=(math.log(least), math.log(most)), method="bounded")
        variance = math.exp(float(found.x))
    return int((energies > columns * variance * threshold).sum())


def evbmf_ranks(weight: torch.Tensor) -> tuple[int, int]:
    """Return (in rank, out rank) of a weight [O, I, ...] by `evbmf_rank` of its two unfoldings, at least 1 each."""
    return max(1, evbmf_rank(_unfold(weight, 1))), max(1, evbmf_rank(_unfold(weight, 0)))
