"""The registry of model architectures: name -> how to build it.

An architecture is a function `(input_shape, num_classes, *, width=1.0) -> nn.Module` on normalized images, where
`width` makes hidden layers narrower or wider; a builder without that argument has one width only. Registering it gives
it a row in `kdx models`, includes it in the contract tests, and makes it available for `--model` and `--student`.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from dataclasses import dataclass

from torch import nn

from ...errors import ConfigError, UsageError
from ...options.registry import Registry

InputShape = tuple[int, int, int]
Builder = Callable[..., nn.Module]
"""`(input_shape, num_classes)`, and by keyword `width` where the family has one."""
MAX_WIDTH = 4.0


@dataclass(frozen=True)
class Architecture:
    """A registered network: its builder, the (channels, height, width) it was designed for, and its source."""

    name: str
    builder: Builder
    input_shape: InputShape
    source: str

    @property
    def has_width(self) -> bool:
        """Whether it can be built narrower or wider than it was designed."""
        return "width" in inspect.signature(self.builder).parameters

    def build(self, input_shape: InputShape, num_classes: int, width: float = 1.0) -> nn.Module:
        """Return the freshly initialized network.

        Args:
            width: factor of the units of its hidden layers, above 0 and at most 4; the module of the family says which
                layers. 1 is as designed.

        Raises:
            UsageError: `width` is not above 0 and at most 4.
            ConfigError: it does not take `input_shape`, has fewer than 2 classes, or has no other width than 1.
        """
        if not 0 < width <= MAX_WIDTH:
            raise UsageError(f"the width of a network is above 0 and at most {MAX_WIDTH:g}, got {width}")
        if num_classes < 2:
            raise ConfigError(f"{self.name} needs at least 2 classes, got {num_classes}")
        if self.has_width:
            return self.builder(input_shape, num_classes, width=width)
        if width != 1:
            raise ConfigError(f"{self.name} has one width only; it cannot be built at width {width}")
        return self.builder(input_shape, num_classes)


_ARCHITECTURES: Registry[Architecture] = Registry("model")


def register_model(name: str, *, input_shape: InputShape, source: str) -> Callable[[Builder], Builder]:
    """Register the decorated builder under `name`. Raises `ValueError` when the name is taken.

    Args:
        name: the literature's name, as typed after `--model` and `--student`.
        input_shape: (channels, height, width) it was designed for.
        source: paper or code base that defines it, with section or table.
    """

    def decorate(builder: Builder) -> Builder:
        _ARCHITECTURES.add(name, Architecture(name, builder, input_shape, source))
        return builder

    return decorate


def architecture(name: str) -> Architecture:
    """Return the architecture called `name`. Raises `UsageError`, with a suggestion, if there is none."""
    return _ARCHITECTURES.get(name)


def model_names() -> list[str]:
    """Return every registered name, in order of registration."""
    return _ARCHITECTURES.names()


def scaled(units: int, width: float) -> int:
    """Return `units * width` rounded to an integer, halves upwards, at least 1."""
    return max(1, math.floor(units * width + 0.5))


def require_size(name: str, input_shape: InputShape, height: int, width: int) -> None:
    """Raise `ConfigError` unless images are `height` x `width` (any number of channels)."""
    if input_shape[1:] != (height, width):
        got = "x".join(map(str, input_shape))
        raise ConfigError(f"{name} takes images of {height}x{width} pixels, got {got} (channels x height x width)")
