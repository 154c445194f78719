"""The networks of generators that are kept as artifacts, by the name in their files."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from ...models.architectures import InputShape
from .flows import glow, nice, nice_affine, realnvp
from .game_networks import LATENT, LatentDecoder
from .kegnet_networks import DenseImages, ResizedImages, StridedImages


class LatentImages(nn.Module):
    """The usual generator in the literature, without labels, as in DAFL (Chen et al. 2019).

    As published, its last layers are tanh and batch normalization without scale and shift: images are standardized.
    """

    conditional = False
    standardized = True
    noise_shape = (LATENT,)

    def __init__(self, shape: InputShape, num_classes: int, width: int) -> None:
        super().__init__()
        self.decoder = LatentDecoder(shape, width, keeps_statistics=True)
        self.norm = nn.BatchNorm2d(shape[0], affine=False)

    def forward(self, noise: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Return images [batch, channels, height, width] for noise [batch, LATENT]; labels are ignored."""
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
`forward(noise, labels)`. A standardized network returns images of mean 0 and variance 1 per channel, not clipped; the
others return pixels in [0, 1]."""
