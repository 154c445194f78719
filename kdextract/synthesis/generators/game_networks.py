"""Small generators for adversarial training, as wide as the cost of the teacher allows."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import torch
import torch.nn.functional as F
from torch import nn

from ...models.architectures import InputShape
from ...models.hooks import count_multiply_adds
from .width import largest_width

LATENT = 100
"""Length of the latent vector (ZSKT, Micaelli and Storkey 2019, and many others)."""
NARROWEST, WIDEST = 4, 64
"""Bounds of a generator's width: 64 is the published one for images of 32x32 pixels."""
SLOPE = 0.2
"""Slope of the leaky ReLU for negative values, as published."""


class ImageMaker(nn.Module):
    """A generator: a network whose outputs are images with pixels in [0, 1].

    Attributes:
        edits: whether its input is an image with noise as one more channel; otherwise it is noise.
        noise_shape: shape of the noise of one image.
    """

    edits: bool
    noise_shape: tuple[int, ...]


class ImageEditor(ImageMaker):
    """Changes an image: clip(image + change) to [0, 1]; at initialization the change is zero.

    An encoder of two strided convolutions and a decoder with one skip connection, so that changes depend on strokes and
    areas of the image instead of single pixels.

    Args:
        shape: (channels, height, width) of the images, of any size.
        width: channels of the first layer.
    """

    edits = True

    def __init__(self, shape: InputShape, width: int) -> None:
        super().__init__()
        channels, height, rows = shape
        self.noise_shape = (1, height, rows)
        self.encode = nn.Conv2d(channels + 1, width, 3, stride=2, padding=1)
        self.deepen = nn.Conv2d(width, 2 * width, 3, stride=2, padding=1)
        self.middle = nn.Conv2d(2 * width, 2 * width, 3, padding=1)
        self.decode = nn.Conv2d(2 * width, width, 3, padding=1)
        self.change = nn.Conv2d(width, channels, 3, padding=1)
        nn.init.zeros_(self.change.weight)
        assert self.change.bias is not None
        nn.init.zeros_(self.change.bias)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """Return images [batch, channels, height, width] for inputs with one more channel, of noise."""
        images = inputs[:, :-1]
        shallow = F.leaky_relu(self.encode(inputs), SLOPE)
        deep = F.leaky_relu(self.deepen(shallow), SLOPE)
        deep = F.leaky_relu(self.middle(deep), SLOPE)
        joined = shallow + self.decode(F.interpolate(deep, shallow.shape[2:]))
        change = self.change(F.interpolate(F.leaky_relu(joined, SLOPE), images.shape[2:]))
        return (images + change).clamp(0, 1)


class LatentDecoder(ImageMaker):
    """The usual generator in the literature: a latent vector is mapped to a coarse grid, which is enlarged twice.

    Linear layer, batch normalization, two times (enlarge, 3x3 convolution, batch normalization, leaky ReLU), 3x3
    convolution, sigmoid.

    Args:
        shape: (channels, height, width) of the images, any size.
        width: channels of the last hidden layer; the layers before have twice as many (published: 64).
        keeps_statistics: whether batch normalization has running statistics, so that in evaluation mode an image does
            not depend on the rest of its batch; otherwise it always uses the statistics of the batch.
        latent: length of the latent vector.
    """

    edits = False
    noise_shape = (LATENT,)

    def __init__(self, shape: InputShape, width: int, keeps_statistics: bool = False, latent: int = LATENT) -> None:
        super().__init__()
        channels, self._height, self._rows = shape
        self._coarse = (2 * width, max(2, -(-self._height // 4)), max(2, -(-self._rows // 4)))
        self.start = nn.Linear(latent, self._coarse[0] * self._coarse[1] * self._coarse[2])
        self.norm1 = nn.BatchNorm2d(2 * width, track_running_stats=keeps_statistics)
        self.conv2 = nn.Conv2d(2 * width, 2 * width, 3, padding=1)
        self.norm2 = nn.BatchNorm2d(2 * width, track_running_stats=keeps_statistics)
        self.conv3 = nn.Conv2d(2 * width, width, 3, padding=1)
        self.norm3 = nn.BatchNorm2d(width, track_running_stats=keeps_statistics)
        self.conv4 = nn.Conv2d(width, channels, 3, padding=1)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """Return images [batch, channels, height, width] for latent vectors [batch, latent]."""
        return torch.sigmoid(self.values(inputs))

    def values(self, inputs: torch.Tensor) -> torch.Tensor:
        """Return the inputs of the sigmoid."""
        grid = self.start(inputs).view(-1, *self._coarse).contiguous(memory_format=torch.channels_last)
        half = (-(-self._height // 2), -(-self._rows // 2))
        grid = self.conv2(F.interpolate(self.norm1(grid), half))
        grid = self.conv3(F.interpolate(F.leaky_relu(self.norm2(grid), SLOPE), (self._height, self._rows)))
        return self.conv4(F.leaky_relu(self.norm3(grid), SLOPE))


GAME_GENERATORS: dict[str, Callable[[InputShape, int], ImageMaker]] = {
    "structured": ImageEditor,
    "noise": LatentDecoder,
}
"""Value of `--start` -> (image shape, width) -> the generator."""


def game_multiply_adds(kind: str, shape: InputShape, width: int) -> int:
    """Return the multiply-adds per image of a generator, without computing an image."""
    with torch.device("meta"):
        generator = GAME_GENERATORS[kind](shape, width)
        channels, height, rows = shape
        inputs = torch.empty((2, channels + 1, height, rows) if kind == "structured" else (2, LATENT))
        return count_multiply_adds(generator, inputs)


@cache
def fitting_width(kind: str, shape: InputShape, affordable: int) -> int:
    """Return the largest width within the bounds whose generator needs at most `affordable` multiply-adds."""
    return largest_width(lambda width: game_multiply_adds(kind, shape, width), affordable, NARROWEST, WIDEST)
