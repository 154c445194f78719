"""The network of Jordan 2024 ("94 % on CIFAR-10 in 3.29 seconds on a single GPU", arXiv 2404.00498, section 3).

A few wide layers learn images of 32x32 pixels in few passes over the data. The first convolution decorrelates patches
of 2x2 pixels; `kdx train --recipe fast` computes it from training images and does not train it. As in the paper's code,
convolutions pass the channels of their input on at first (section 3.3). Different from it, the scales of the batch
normalization are trained. A width scales the channels of the three stages.
"""

from __future__ import annotations

from collections import OrderedDict

import torch
import torch.nn.functional as F
from torch import nn

from ...errors import ConfigError
from .registry import InputShape, register_model, scaled

_CHANNELS = (64, 256, 256)
_LEAST_SIDE = 16
_EPSILON = 5e-4
"""Added to the variances of patches, so that directions without variance are not amplified (section 3.2)."""


class Whitening(nn.Conv2d):
    """A convolution of 2x2 pixels whose outputs are the principal components of patches, and their negatives."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels, 2 * 4 * channels, 2)

    @torch.no_grad()
    def fit(self, images: torch.Tensor) -> None:
        """Give the principal components of patches of `images` the variance 1, and set the bias to 0.

        Args:
            images: as the network gets them, [N, channels, height, width].
        """
        patches = F.unfold(images, 2).transpose(1, 2).flatten(0, 1).double()
        variances, directions = torch.linalg.eigh(patches.T.cov())
        rows = (directions / (variances + _EPSILON).sqrt()).T.flip(0)
        rows = rows * torch.where(rows.sum(1, keepdim=True) < 0, -1.0, 1.0)  # eigenvectors have no sign of their own
        self.weight.copy_(torch.cat([rows, -rows]).view_as(self.weight))
        assert self.bias is not None
        self.bias.zero_()


class SmallMaximum(nn.Module):
    """A ninth of the maximum over height and width: [batch, channels, height, width] -> [batch, channels].

    The paper's code divides the logits by 9; without the bias, that is the same.
    """

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """Return it; the gradient is shared by equal pixels."""
        return inputs.amax((2, 3)) / 9


def _convolution(channels: int, filters: int) -> nn.Conv2d:
    made = nn.Conv2d(channels, filters, 3, padding=1, bias=False)
    nn.init.dirac_(made.weight.data[:channels])
    return made


@register_model("airbench", input_shape=(3, 32, 32), source="Jordan 2024, section 3")
def airbench(input_shape: InputShape, num_classes: int, *, width: float = 1.0) -> nn.Module:
    """A whitening convolution and three stages of two convolutions (64, 256, 256 channels), for fast training."""
    channels, height, columns = input_shape
    if min(height, columns) < _LEAST_SIDE:
        raise ConfigError(
            f"airbench takes images of at least {_LEAST_SIDE}x{_LEAST_SIDE} pixels, got {height}x{columns}"
        )
    whitening = Whitening(channels)
    layers: OrderedDict[str, nn.Module] = OrderedDict(whitening=whitening, act=nn.GELU())
    channels = whitening.out_channels
    for stage, designed in enumerate(_CHANNELS, start=1):
        filters = scaled(designed, width)
        layers[f"conv{stage}_1"] = _convolution(channels, filters)
        layers[f"pool{stage}"] = nn.MaxPool2d(2)
        layers[f"bn{stage}_1"] = nn.BatchNorm2d(filters)
        layers[f"act{stage}_1"] = nn.GELU()
        layers[f"conv{stage}_2"] = _convolution(filters, filters)
        layers[f"bn{stage}_2"] = nn.BatchNorm2d(filters)
        layers[f"act{stage}_2"] = nn.GELU()
        channels = filters
    layers["pool"] = SmallMaximum()
    layers["logits"] = nn.Linear(channels, num_classes)
    return nn.Sequential(layers)
