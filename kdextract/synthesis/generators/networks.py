"""Every network that a kept generator may have, by the name in its file."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from ...models.architectures import InputShape
from .flows import glow, nice, nice_affine, realnvp
from .game_networks import LATENT, LatentDecoder
from .kegnet_networks import DenseImages, ResizedImages, StridedImages


class LatentImages(nn.Module):
    """The usual generator of the field, without labels: DAFL's (Chen et al. 2019), and that of many since.

    As published, it ends in tanh and batch normalization without scale and shift: its images are standardized.
    """

    conditional = False
    standardized = True
    noise_shape = (LATENT,)

    def __init__(self, shape: InputShape, num_classes: int, width: int) -> None:
        super().__init__()
        self.decoder = LatentDecoder(shape, width, keeps_statistics=True)
        self.norm = nn.BatchNorm2d(shape[0], affine=False)

    def forward(self, noise: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Return images [batch, channels, height, width], whatever the labels, for noise [batch, LATENT]."""
        return self.norm(torch.tanh(self.decoder.values(noise)))


NETWORKS: dict[str, Callable[..., nn.Module]] = {
    "strided": StridedImages,
    "resized": ResizedImages,
    "dense": DenseImages,
    "latent": LatentImages,
    "nice": nice,
    "nice_affine": nice_affine,
    "realnvp": realnvp,
    "glow": glow,
}
"""Name -> (input shape, number of classes, **options) -> network with `noise_shape`, `conditional`, `standardized` and
`forward(noise, labels)`. A standardized network returns images of mean 0 and variance 1 per channel, unclipped, the
others pixels."""
