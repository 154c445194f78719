"""Mean and variance per channel: values and gradients against PyTorch's own."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kdextract.models.channel_moments import channel_moments


@settings(derandomize=True, database=None, deadline=None, max_examples=40)
@given(
    batch=st.integers(2, 5),
    channels=st.integers(1, 4),
    sides=st.lists(st.integers(1, 4), max_size=2),
    offset=st.floats(-50, 50),
    last=st.booleans(),
)
def test_moments_are_those_of_var_mean(batch: int, channels: int, sides: list[int], offset: float, last: bool) -> None:
    rng = torch.Generator().manual_seed(batch * channels)
    values = offset + torch.randn((batch, channels, *sides), generator=rng, dtype=torch.float64)
    if last and len(sides) == 2:
        values = values.contiguous(memory_format=torch.channels_last)
    near = offset + torch.randn((channels,), generator=rng, dtype=torch.float64)
    weights = torch.randn((2, channels), generator=rng, dtype=torch.float64)
    gradients = []
    for ours in (True, False):
        x = values.clone().requires_grad_(True)
        if ours:
            mean, variance = channel_moments(x, near)
        else:
            variance, mean = torch.var_mean(x, [0, *range(2, x.dim())], correction=0)
        gradients.append((mean, variance, *torch.autograd.grad((weights[0] * mean + weights[1] * variance).sum(), x)))
    for one, other in zip(*gradients, strict=True):
        assert torch.allclose(one, other, atol=1e-9)


def test_little_is_lost_far_from_zero() -> None:
    values = 1000 + 0.01 * torch.randn((64, 3, 8, 8), generator=torch.Generator().manual_seed(0))
    exact = values.double().var((0, 2, 3), correction=0)
    _, variance = channel_moments(values, torch.full((3,), 1000.0))
    assert variance.double().numpy() == pytest.approx(exact.numpy(), rel=1e-3)


def test_halves_are_summed_in_full() -> None:
    values = torch.randn((8, 3, 4, 4), generator=torch.Generator().manual_seed(0)).bfloat16().requires_grad_(True)
    mean, variance = channel_moments(values, torch.zeros(3))
    assert mean.dtype == variance.dtype == torch.float32
    (gradient,) = torch.autograd.grad(variance.sum(), values)
    assert gradient.dtype == torch.bfloat16
