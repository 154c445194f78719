"""Detect properties of a network by running it: its input size, and what its outputs are."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from ...errors import ConfigError, KdxError
from ..architectures import InputShape
from ..hooks import evaluation_mode
from .exported_program import Program
from .head import Head, find_head
from .names import NetworkName, format_input_size

SQUARE_SIDES = (8, 16, 28, 32, 48, 64, 96, 112, 128, 160, 192, 224, 256, 299, 384)
"""Heights (and widths) of square images that are tried, in pixels."""
_NOISE_SCALES = (0.0, 1.0, 10.0, 100.0)
_BATCH = 3


@dataclass(frozen=True)
class Probed:
    """What was detected. `input_shape` is (channels, height, width)."""

    input_shape: InputShape
    head: Head
    num_classes: int


def probe(network: nn.Module, name: NetworkName, shape: InputShape | None) -> Probed:
    """Run a network in evaluation mode on images of zeros and of noise, and return its input size and outputs.

    Args:
        name: the name of the network, for errors.
        shape: (channels, height, width) of its images; None to try `SQUARE_SIDES`.

    Raises:
        ConfigError: the network fails on images of this shape, several sizes are possible, or its outputs are not those
            of a classifier.
    """
    if shape is None:
        shape = network.input_shape if isinstance(network, Program) else _find_shape(network, name)
    with _probing(network):
        try:
            outputs = [network(images) for images in _probe_images(network, shape)]
        except KdxError:
            raise
        except Exception as error:
            raise ConfigError(f"{name} cannot take images of {format_input_size(shape)}: {_reason(error)}") from error
        head, num_classes = find_head(outputs, _BATCH)
    return Probed(shape, head, num_classes)


def number_type(network: nn.Module) -> torch.dtype:
    """Return the data type of the first weight of a network, in which it computes; float32 if it has none."""
    return next((p.dtype for p in network.parameters() if p.is_floating_point()), torch.float32)


@contextmanager
def _probing(network: nn.Module) -> Iterator[None]:
    """Run the block in evaluation mode without gradients; torch's random state is restored afterwards."""
    state = torch.get_rng_state()
    try:
        with evaluation_mode(network), torch.no_grad():
            yield
    finally:
        torch.set_rng_state(state)


def _probe_images(network: nn.Module, shape: InputShape) -> list[torch.Tensor]:
    """Return batches of normalized pixels: zeros, and noise of growing scale, so that logits leave [0, 1]."""
    rng = torch.Generator().manual_seed(0)
    noise = torch.randn(_BATCH, *shape, generator=rng)
    return [(scale * noise).to(number_type(network)) for scale in _NOISE_SCALES]


def _find_shape(network: nn.Module, name: NetworkName) -> InputShape:
    fitting: list[InputShape] = []
    reason = "no layer with weights"
    for shape in _candidates(network):
        with _probing(network):
            try:
                find_head([network(images) for images in _probe_images(network, shape)[:1]], _BATCH)
                fitting.append(shape)
            except Exception as error:
                reason = _reason(error)
    if len(fitting) == 1:
        return fitting[0]
    if not fitting:
        raise ConfigError(f"{name} takes none of the usual image sizes ({reason}); give --input-size, such as 3x40x40")
    several = ", ".join(map(format_input_size, fitting))
    raise ConfigError(f"{name} takes images of several sizes ({several}); give the right one with --input-size")


def _candidates(network: nn.Module) -> list[InputShape]:
    """Return the input shapes that fit the first layer with weights."""
    for module in network.modules():
        if isinstance(module, nn.Linear):
            return _shapes_of(module.in_features)
        if isinstance(module, nn.Conv2d):
            return [(module.in_channels, side, side) for side in SQUARE_SIDES]
    return [(channels, side, side) for channels in (1, 3) for side in SQUARE_SIDES]


def _shapes_of(count: int) -> list[InputShape]:
    """Return the shape of square images with `count` values, or else of a row of a table with `count` columns."""
    for channels in (1, 3):
        side = round((count / channels) ** 0.5)
        if side >= min(SQUARE_SIDES) and channels * side * side == count:
            return [(channels, side, side)]
    return [(1, 1, count)]


def _reason(error: Any) -> str:
    return (str(error) or type(error).__name__).splitlines()[0]
