"""Tucker-2 against plain linear algebra, and ranks of matrices whose rank is known."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from helpers import seeded
from hypothesis import given, settings
from hypothesis import strategies as st

from kdextract.models.tucker import Tucker2, evbmf_rank, evbmf_ranks, tucker2


def rebuilt(parts: Tucker2) -> torch.Tensor:
    return torch.einsum("op,pq...,qi->oi...", parts.outwards, parts.core, parts.inwards)


def low_rank(rows: int, columns: int, rank: int, noise: float, seed: int = 0) -> torch.Tensor:
    """A matrix with `rank` large singular values, plus normal noise."""
    generator = seeded(seed)
    left, right = (torch.linalg.qr(torch.randn((n, rank), generator=generator).double()).Q for n in (rows, columns))
    strong = left @ torch.diag(torch.linspace(3, 2, rank).double() * (rows * columns) ** 0.5) @ right.T
    return strong + noise * torch.randn((rows, columns), generator=generator)


@settings(max_examples=30, deadline=None)
@given(
    outputs=st.integers(1, 9),
    inputs=st.integers(1, 9),
    kernel=st.sampled_from([(), (1, 1), (3, 3), (2, 5)]),
    data=st.data(),
    seed=st.integers(0, 2**31),
)
def test_shapes_and_the_reported_error(
    outputs: int, inputs: int, kernel: tuple[int, ...], data: st.DataObject, seed: int
) -> None:
    weight = torch.randn((outputs, inputs, *kernel), generator=seeded(seed), dtype=torch.float64)
    in_rank, out_rank = data.draw(st.integers(1, inputs)), data.draw(st.integers(1, outputs))
    parts = tucker2(weight, in_rank, out_rank)
    assert parts.inwards.shape == (in_rank, inputs)
    assert parts.core.shape == (out_rank, in_rank, *kernel)
    assert parts.outwards.shape == (outputs, out_rank)
    error = float((weight - rebuilt(parts)).norm() / weight.norm())
    assert parts.error == pytest.approx(error, abs=1e-6)


@settings(max_examples=20, deadline=None)
@given(in_rank=st.integers(1, 6), out_rank=st.integers(1, 8), seed=st.integers(0, 2**31))
def test_the_error_lies_between_the_bounds_of_linear_algebra(in_rank: int, out_rank: int, seed: int) -> None:
    """Squared, at least that of one side alone and at most the sum of both (De Lathauwer et al. 2000, eq. 24)."""
    weight = torch.randn((8, 6, 3, 3), generator=seeded(seed), dtype=torch.float64)
    lost = [
        float(torch.linalg.svdvals(weight.movedim(axis, 0).flatten(1))[rank:].square().sum())
        for axis, rank in ((0, out_rank), (1, in_rank))
    ]
    squared = tucker2(weight, in_rank, out_rank).error ** 2 * float(weight.square().sum())
    assert max(lost) - 1e-6 <= squared <= sum(lost) + 1e-6


def test_full_ranks_lose_nothing() -> None:
    weight = torch.randn((5, 7, 3, 3), generator=seeded())
    torch.testing.assert_close(rebuilt(tucker2(weight, 7, 5)), weight, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("rank", [1, 3, 6])
def test_a_matrix_is_cut_like_its_singular_values(rank: int) -> None:
    weight = torch.randn((9, 6), generator=seeded(), dtype=torch.float64)
    u, s, v = np.linalg.svd(weight.numpy(), full_matrices=False)
    best = (u[:, :rank] * s[:rank]) @ v[:rank]
    np.testing.assert_allclose(rebuilt(tucker2(weight, rank, rank)).numpy(), best, atol=1e-9)


def test_a_weight_of_zeros_can_be_decomposed() -> None:
    parts = tucker2(torch.zeros(4, 3, 2, 2), 2, 2)
    assert parts.error == 0
    assert float(rebuilt(parts).abs().max()) == 0
    assert evbmf_rank(torch.zeros(4, 6)) == 0


@pytest.mark.parametrize("shape", [(40, 150), (60, 60), (150, 40)])
@pytest.mark.parametrize("rank", [1, 5, 15])
def test_evbmf_finds_the_rank_below_noise(shape: tuple[int, int], rank: int) -> None:
    for seed in range(3):
        assert evbmf_rank(low_rank(*shape, rank, noise=0.3, seed=seed)) == rank


def test_evbmf_finds_nothing_in_noise() -> None:
    assert [evbmf_rank(torch.randn((50, 120), generator=seeded(seed))) for seed in range(5)] == [0] * 5


@settings(max_examples=20, deadline=None)
@given(rank=st.integers(0, 8), scale=st.floats(1e-4, 1e4), seed=st.integers(0, 2**31))
def test_evbmf_does_not_depend_on_scale_or_orientation(rank: int, scale: float, seed: int) -> None:
    matrix = low_rank(30, 70, rank, noise=0.5, seed=seed) if rank else torch.randn((30, 70), generator=seeded(seed))
    assert evbmf_rank(matrix) == evbmf_rank(scale * matrix) == evbmf_rank(matrix.T)


@pytest.mark.parametrize("rank", [1, 4])
def test_without_noise_evbmf_is_the_rank(rank: int) -> None:
    assert evbmf_rank(low_rank(20, 50, rank, noise=0.0)) == rank


def test_ranks_of_a_weight_are_those_of_its_unfoldings() -> None:
    core = tucker2(torch.randn((64, 48, 3, 3), generator=seeded()), 6, 4)
    weight = 20 * rebuilt(core) / rebuilt(core).norm() * 64**0.5 + 0.02 * torch.randn(
        (64, 48, 3, 3), generator=seeded(1)
    )
    assert evbmf_ranks(weight) == (6, 4)
    assert evbmf_ranks(torch.randn((32, 32, 3, 3), generator=seeded(2)) * 1e-3) == (1, 1), "never below one"
