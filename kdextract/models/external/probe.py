"""What can be found out about a network by running it: the images that it takes, what it answers."""

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
from .names import NetworkName

SQUARE_SIDES = (8, 16, 28, 32, 48, 64, 96, 112, 128, 160, 192, 224, 256, 299, 384)
"""Sides of square images that are tried."""
_NOISE_SCALES = (0.0, 1.0, 10.0, 100.0)
_BATCH = 3


@dataclass(frozen=True)
class Probed:
    """What was found: (channels, height, width), the head, the number of classes."""

    input_shape: InputShape
    head: Head
    num_classes: int


def probe(network: nn.Module, name: NetworkName, shape: InputShape | None) -> Probed:
    """Run a network in evaluation mode on plain images and noise, and say what it takes and answers.

    Args:
        shape: what it takes, where that is known; otherwise sizes are tried.

    Raises:
        ConfigError: it does not take images of this shape, or takes several, or answers with no classes.
    """
    if shape is None:
        shape = network.input_shape if isinstance(network, Program) else _find_shape(network, name)
    with _probing(network):
        try:
            answers = [network(images) for images in _probe_images(network, shape)]
        except KdxError:
            raise
        except Exception as error:
            raise ConfigError(f"{name} cannot take images of {_spelled(shape)}: {_reason(error)}") from error
        head, num_classes = find_head(answers, _BATCH)
    return Probed(shape, head, num_classes)


def number_type(network: nn.Module) -> torch.dtype:
    """Return what a network computes in: the type of its first weight."""
    return next((p.dtype for p in network.parameters() if p.is_floating_point()), torch.float32)


@contextmanager
def _probing(network: nn.Module) -> Iterator[None]:
    """Evaluation mode, no gradients, and random numbers that are as they were afterwards."""
    state = torch.get_rng_state()
    try:
        with evaluation_mode(network), torch.no_grad():
            yield
    finally:
        torch.set_rng_state(state)


def _probe_images(network: nn.Module, shape: InputShape) -> list[torch.Tensor]:
    """Return batches of normalized pixels: plain ones, and noise that grows so loud that logits leave [0, 1]."""
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
        raise ConfigError(f"{name} takes images of no usual size; say theirs, such as --input-size 3x40x40 ({reason})")
    several = ", ".join(map(_spelled, fitting))
    raise ConfigError(f"{name} takes images of several sizes ({several}); say what it was trained on with --input-size")


def _candidates(network: nn.Module) -> list[InputShape]:
    """Return shapes that the first layer with weights could take."""
    for module in network.modules():
        if isinstance(module, nn.Linear):
            return _shapes_of(module.in_features)
        if isinstance(module, nn.Conv2d):
            return [(module.in_channels, side, side) for side in SQUARE_SIDES]
    return [(channels, side, side) for channels in (1, 3) for side in SQUARE_SIDES]


def _shapes_of(count: int) -> list[InputShape]:
    """Return the shape of square images of so many values, or else that of a row of a table."""
    for channels in (1, 3):
        side = round((count / channels) ** 0.5)
        if side >= min(SQUARE_SIDES) and channels * side * side == count:
            return [(channels, side, side)]
    return [(1, 1, count)]


def _spelled(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape))


def _reason(error: Any) -> str:
    return (str(error) or type(error).__name__).splitlines()[0]
