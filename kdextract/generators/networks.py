"""Every network that a kept generator may have, by the name in its file."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from ..models import InputShape
from .kegnet import DenseImages, StridedImages
from .makers import LATENT, Decoder


class LatentImages(nn.Module):
    """The usual generator of the field, without labels: DAFL's (Chen et al. 2019), and that of many since."""

    conditional = False
    noise_shape = (LATENT,)

    def __init__(self, shape: InputShape, num_classes: int, width: int) -> None:
        super().__init__()
        self.decoder = Decoder(shape, width, keeps_statistics=True)

    def forward(self, noise: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Return pixels [batch, channels, height, width] for noise [batch, LATENT], whatever the labels."""
        return self.decoder(noise)


NETWORKS: dict[str, Callable[..., nn.Module]] = {
    "strided": StridedImages,
    "dense": DenseImages,
    "latent": LatentImages,
}
"""Name -> (input shape, number of classes, **options) -> network with `noise_shape`, `conditional` and
`forward(noise, labels)`."""
