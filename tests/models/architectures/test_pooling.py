"""The fast pooling equals that of PyTorch in every value and gradient, ties included."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from kdextract.models.architectures.pooling import FEW_CHANNELS, HalvingMaxPool2d


def value_and_gradient(pool: nn.Module, images: torch.Tensor, upstream: torch.Tensor) -> list[torch.Tensor]:
    images = images.clone(memory_format=torch.preserve_format).requires_grad_()
    pooled = pool(images)
    pooled.backward(upstream)
    assert images.grad is not None
    return [pooled.detach(), images.grad]


@settings(max_examples=40, deadline=None)
@given(
    batch=st.integers(1, 4),
    channels=st.integers(1, FEW_CHANNELS),
    height=st.integers(2, 9),
    width=st.integers(2, 9),
    levels=st.sampled_from([1, 2, 3, 1000]),
    channels_last=st.booleans(),
    seed=st.integers(0, 2**31),
)
def test_it_equals_torch(
    batch: int, channels: int, height: int, width: int, levels: int, channels_last: bool, seed: int
) -> None:
    """Few levels make many ties: the first pixel of a window gets the gradient then."""
    rng = torch.Generator().manual_seed(seed)
    images = torch.randint(-levels, levels + 1, (batch, channels, height, width), generator=rng) / 7
    layout = torch.channels_last if channels_last else torch.contiguous_format
    images = images.contiguous(memory_format=layout)
    upstream = torch.randn((batch, channels, height // 2, width // 2), generator=rng)
    fast = value_and_gradient(HalvingMaxPool2d(), images, upstream)
    for ours, theirs in zip(fast, value_and_gradient(nn.MaxPool2d(2), images, upstream), strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize("layout", [torch.channels_last, torch.contiguous_format])
def test_the_layout_is_kept(layout: torch.memory_format) -> None:
    images = torch.randn(2, 3, 8, 8).contiguous(memory_format=layout)
    pooled, gradient = value_and_gradient(HalvingMaxPool2d(), images, torch.randn(2, 3, 4, 4))
    assert pooled.is_contiguous(memory_format=layout)
    assert gradient.is_contiguous(memory_format=layout)


def test_gradients_equal_finite_differences() -> None:
    images = torch.randperm(64).view(1, 4, 4, 4).double().requires_grad_()
    assert torch.autograd.gradcheck(HalvingMaxPool2d(), (images,))


def test_nothing_is_kept_without_gradients() -> None:
    with torch.inference_mode():
        assert HalvingMaxPool2d()(torch.ones(1, 1, 4, 4)).tolist() == [[[[1, 1], [1, 1]]]]
