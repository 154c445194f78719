"""The network of Jordan 2024: its whitening convolution and its initialization."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from kdextract.models.architectures import architecture
from kdextract.models.architectures.airbench import Whitening


def correlated(channels: int, count: int = 400) -> torch.Tensor:
    """Smooth images whose channels depend on each other, [count, channels, 16, 16]."""
    rng = torch.Generator().manual_seed(0)
    noise = torch.randn((count, channels, 18, 18), generator=rng)
    mixed = torch.einsum("nchw,dc->ndhw", noise, torch.randn((channels, channels), generator=rng))
    return F.avg_pool2d(mixed, 3, 1) + 0.3


@pytest.mark.parametrize("channels", [1, 2, 3])
def test_whitened_patches_are_uncorrelated_with_variance_one(channels: int) -> None:
    layer, images = Whitening(channels), correlated(channels)
    layer.fit(images)
    with torch.no_grad():
        outputs = layer(images).transpose(0, 1).flatten(1).double()
    half = 4 * channels
    assert torch.allclose(outputs[:half], -outputs[half:], atol=1e-4)
    expected = torch.eye(half, dtype=torch.float64)
    variances, _ = torch.linalg.eigh(F.unfold(images, 2).transpose(1, 2).flatten(0, 1).double().T.cov())
    expected *= (variances / (variances + 5e-4)).flip(0)  # of the largest principal component first
    assert torch.allclose(outputs[:half].cov(), expected, atol=1e-3)


def test_images_without_variance_give_finite_weights() -> None:
    layer = Whitening(3)
    layer.fit(torch.zeros(4, 3, 8, 8))
    assert torch.isfinite(layer.weight).all()
    assert not layer.bias.any()


def test_the_weights_do_not_depend_on_the_sign_of_eigenvectors(monkeypatch: pytest.MonkeyPatch) -> None:
    """Which a library may choose otherwise."""
    one, other, images = Whitening(3), Whitening(3), correlated(3)
    one.fit(images)
    eigh = torch.linalg.eigh

    def turned(matrix: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        values, vectors = eigh(matrix)
        return values, -vectors

    monkeypatch.setattr(torch.linalg, "eigh", turned)
    other.fit(images)
    assert torch.equal(one.weight, other.weight)


@pytest.mark.parametrize("width", [0.1, 0.5, 1.0, 2.0])
def test_convolutions_pass_the_channels_of_their_input_on_at_first(width: int) -> None:
    network = architecture("airbench").build((3, 32, 32), 10, width)
    layers = [m for m in network.modules() if isinstance(m, nn.Conv2d) and not isinstance(m, Whitening)]
    assert len(layers) == 6
    for layer in layers:
        pixels = torch.rand(2, layer.in_channels, 5, 5, generator=torch.Generator().manual_seed(0))
        both = min(layer.in_channels, layer.out_channels)
        with torch.no_grad():
            assert torch.equal(layer(pixels)[:, :both], pixels[:, :both])


def test_the_gradient_of_the_maximum_is_the_same_in_either_layout() -> None:
    network = architecture("airbench").build((3, 16, 16), 3).eval()
    pixels = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    gradients = []
    for layout in (torch.contiguous_format, torch.channels_last):
        inputs = pixels.clone(memory_format=layout).requires_grad_()
        (gradient,) = torch.autograd.grad(network(inputs).sum(), inputs)
        gradients.append(gradient)
    assert torch.allclose(*gradients, rtol=0, atol=1e-5 * float(gradients[0].abs().max()))
