"""The registry of model architectures: name -> how to build it.

An architecture is a function `(input_shape, num_classes) -> nn.Module` on normalized images. Registering it gives it
a row in `kdx models`, a place in the contract tests, and a spelling for `--model` and `--student`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import nn

from ..errors import ConfigError, UsageError, did_you_mean

InputShape = tuple[int, int, int]
Builder = Callable[[InputShape, int], nn.Module]


@dataclass(frozen=True)
class Architecture:
    """A registered network: its builder, the pixels it is meant for, and where it comes from."""

    name: str
    builder: Builder
    input_shape: InputShape
    source: str

    def build(self, input_shape: InputShape, num_classes: int) -> nn.Module:
        """Return the freshly initialized network. Raises `ConfigError` when it cannot take `input_shape`."""
        if num_classes < 2:
            raise ConfigError(f"{self.name} needs at least 2 classes, got {num_classes}")
        return self.builder(input_shape, num_classes)


_ARCHITECTURES: dict[str, Architecture] = {}


def register_model(name: str, *, input_shape: InputShape, source: str) -> Callable[[Builder], Builder]:
    """Register the decorated builder under `name`. Raises `ValueError` when the name is taken.

    Args:
        name: the literature's name, as typed after `--model` and `--student`.
        input_shape: (channels, height, width) it was designed for.
        source: paper or code base that defines it, with section or table.
    """

    def decorate(builder: Builder) -> Builder:
        if name in _ARCHITECTURES:
            raise ValueError(f"model {name!r} is registered twice")
        _ARCHITECTURES[name] = Architecture(name, builder, input_shape, source)
        return builder

    return decorate


def architecture(name: str) -> Architecture:
    """Return the architecture called `name`. Raises `UsageError`, with the near name, when there is none."""
    if name not in _ARCHITECTURES:
        raise UsageError(f"unknown model {name!r}.{did_you_mean(name, model_names())}")
    return _ARCHITECTURES[name]


def model_names() -> list[str]:
    """Return every registered name, in order of registration."""
    return list(_ARCHITECTURES)


def require_size(name: str, input_shape: InputShape, height: int, width: int) -> None:
    """Raise `ConfigError` unless images are `height` x `width` (any number of channels)."""
    if input_shape[1:] != (height, width):
        got = "x".join(map(str, input_shape))
        raise ConfigError(f"{name} takes images of {height}x{width} pixels, got {got} (channels x height x width)")
