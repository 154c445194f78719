"""The networks of KegNet (Yoo et al. 2019): generators, and the decoder that predicts the noise of an image."""

from __future__ import annotations

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import nn

from ...models.architectures import InputShape

NOISE = 10
"""Length of the noise, as published."""
VARIANCE_FLOOR = 1e-5
"""Added to the variance of an image, so that an image without contrast stays finite."""
STRIDE = 8
"""Ratio of the height of an image to the height of its coarse grid."""


class _CoarseToFine(nn.Module):
    """First and last layers of both generators of images: linear layers to a coarse grid; tanh and standardization."""

    conditional = True
    standardized = True
    noise_shape = (NOISE,)

    def __init__(self, shape: InputShape, num_classes: int, width: int) -> None:
        super().__init__()
        _, self._height, self._rows = shape
        self._num_classes = num_classes
        self._coarse = (4 * width, -(-self._height // STRIDE), -(-self._rows // STRIDE))
        self.fc1 = nn.Sequential(nn.Linear(NOISE + num_classes, 256), nn.BatchNorm1d(256), nn.ReLU())
        self.fc2 = nn.Sequential(nn.Linear(256, 128), nn.BatchNorm1d(128), nn.ReLU())
        self.start = nn.Linear(128, self._coarse[0] * self._coarse[1] * self._coarse[2], bias=False)
        self.bn1 = nn.BatchNorm2d(4 * width)

    def _grid(self, noise: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Return the coarse grid, [batch, 4 width, height / STRIDE, width / STRIDE]."""
        hidden = self.fc2(self.fc1(_noise_and_labels(noise, labels, self._num_classes)))
        grid = self.start(hidden).view(-1, *self._coarse).contiguous(memory_format=torch.channels_last)
        return torch.relu(self.bn1(grid))

    def _finished(self, grid: torch.Tensor) -> torch.Tensor:
        """Return the centre of a grid that is at least as large as the images, as standardized images."""
        return _standardized(_centre_of(grid, self._height, self._rows))


class StridedImages(_CoarseToFine):
    """KegNet's generator of images: two linear layers to a coarse grid, and transposed convolutions that enlarge it.

    Noise and one-hot label - 256 - 128 - 4 `width` x coarse - `width` x 2 coarse - `width` / 4 x 4 coarse - channels x
    8 coarse, with batch normalization and ReLU between, tanh, and a standardization of each channel of each image. With
    width 16 and images of 32x32 pixels it has the published layers.
    """

    def __init__(self, shape: InputShape, num_classes: int, width: int) -> None:
        super().__init__(shape, num_classes, width)
        channels = shape[0]
        last = max(2, width // 4)
        self.deconv2 = nn.ConvTranspose2d(4 * width, width, 4, 2, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.deconv3 = nn.ConvTranspose2d(width, last, 4, 2, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(last)
        self.deconv4 = nn.ConvTranspose2d(last, channels, 4, 2, 1, bias=False)

    def forward(self, noise: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Return images [batch, channels, height, width] for noise [batch, 10] and labels [batch]."""
        grid = self._grid(noise, labels)
        grid = self.deconv2(grid)
        grid = self.deconv3(torch.relu(self.bn2(grid)))
        grid = self.deconv4(torch.relu(self.bn3(grid)))
        return self._finished(grid)


class ResizedImages(_CoarseToFine):
    """A generator of smoother images: every enlargement is bilinear and followed by a convolution.

    Noise and one-hot label - 256 - 128 - 4 `width` x coarse - 2 `width` x 2 coarse - `width` x 4 coarse - channels x 4
    coarse - enlarged to the image, with batch normalization and ReLU between; then tanh and a standardization of each
    channel of each image, as in `StridedImages`. Transposed convolutions make checkerboards, for which a teacher
    may predict any class (Odena et al. 2016, "Deconvolution and Checkerboard Artifacts").
    """

    def __init__(self, shape: InputShape, num_classes: int, width: int) -> None:
        super().__init__(shape, num_classes, width)
        channels = shape[0]
        self.conv2 = nn.Conv2d(4 * width, 2 * width, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(2 * width)
        self.conv3 = nn.Conv2d(2 * width, width, 3, padding=1, bias=False)
        self.bn3 = nn.BatchNorm2d(width)
        self.conv4 = nn.Conv2d(width, channels, 3, padding=1, bias=False)

    def forward(self, noise: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Return images [batch, channels, height, width] for noise [batch, 10] and labels [batch]."""
        grid = self._grid(noise, labels)
        grid = self.conv2(_enlarged(grid, 2))
        grid = self.conv3(_enlarged(torch.relu(self.bn2(grid)), 2))
        grid = _enlarged(self.conv4(torch.relu(self.bn3(grid))), 2)
        return self._finished(grid)


class DenseImages(nn.Module):
    """KegNet's dense generator, for tables: linear layers with ELU and batch normalization.

    Noise and one-hot label - (`width`, ELU, batch normalization) x `layers` - one number per feature - batch
    normalization without scale and shift.
    """

    conditional = True
    standardized = True
    noise_shape = (NOISE,)

    def __init__(self, shape: InputShape, num_classes: int, width: int, layers: int) -> None:
        super().__init__()
        self._shape, self._num_classes = shape, num_classes
        features = shape[0] * shape[1] * shape[2]
        self.hidden = _elu_layers(NOISE + num_classes, width, layers)
        self.features = nn.Linear(width, features)
        self.norm = nn.BatchNorm1d(features, affine=False)

    def forward(self, noise: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Return images [batch, channels, height, width] for noise [batch, 10] and labels [batch]."""
        features = self.features(self.hidden(_noise_and_labels(noise, labels, self._num_classes)))
        return self.norm(features).view(-1, *self._shape)


class NoiseDecoder(nn.Module):
    """KegNet's decoder: (`width`, ELU, batch normalization) x (1 + `layers`), then a linear layer to the noise."""

    def __init__(self, shape: InputShape, layers: int, width: int) -> None:
        super().__init__()
        self.hidden = _elu_layers(shape[0] * shape[1] * shape[2], width, 1 + layers)
        self.noise = nn.Linear(width, NOISE)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Return the predicted noise [batch, 10] for images [batch, channels, height, width]."""
        return self.noise(self.hidden(images.flatten(1)))


def _noise_and_labels(noise: torch.Tensor, labels: torch.Tensor, num_classes: int) -> torch.Tensor:
    """Return noise and one-hot labels, concatenated."""
    return torch.cat([noise, F.one_hot(labels, num_classes).to(noise)], dim=1)


def _enlarged(grid: torch.Tensor, factor: int) -> torch.Tensor:
    return F.interpolate(grid, scale_factor=factor, mode="bilinear")


def _centre_of(grid: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """Return the central `height` x `width` pixels."""
    top, left = (grid.shape[2] - height) // 2, (grid.shape[3] - width) // 2
    return grid[:, :, top : top + height, left : left + width]


def _standardized(values: torch.Tensor) -> torch.Tensor:
    """Return tanh(values), each channel of each image with mean 0 and variance 1."""
    image = torch.tanh(values)
    variance, mean = torch.var_mean(image, (2, 3), keepdim=True)
    return (image - mean) / (variance + VARIANCE_FLOOR).sqrt()


def _elu_layers(inputs: int, width: int, count: int) -> nn.Sequential:
    """Return `count` times (linear layer, ELU, batch normalization)."""
    parts: list[nn.Module] = []
    for before, after in pairwise([inputs, *[width] * count]):
        parts += [nn.Linear(before, after), nn.ELU(), nn.BatchNorm1d(after)]
    return nn.Sequential(*parts)
