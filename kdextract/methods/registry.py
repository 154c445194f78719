"""The registry of synthesis methods: name -> its options and the function that makes images."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..config import OptionSet
from ..errors import UsageError, did_you_mean

if TYPE_CHECKING:
    import torch

    from ..classifier import Classifier
    from ..inversion import Inverted
    from ..statistics import Statistics

    Synthesize = Callable[[Classifier, Statistics, torch.Tensor, Any, torch.Generator], Inverted]
else:
    Synthesize = Callable


@dataclass(frozen=True)
class Method:
    """A way to make images from a teacher.

    `synthesize(teacher, statistics, labels, config, generator)` returns one image per label, and depends on nothing
    else. `record` is the record of the statistics that it draws from.
    """

    name: str
    synthesize: Synthesize
    config: type[OptionSet]
    record: str
    source: str

    @property
    def needs(self) -> str:
        """What the method takes, besides nothing: `teacher+statistics`."""
        return "teacher+statistics"

    @property
    def summary(self) -> str:
        """First line of the function's docstring."""
        return (self.synthesize.__doc__ or "").strip().splitlines()[0]


_METHODS: dict[str, Method] = {}


def register_method(
    name: str, *, config: type[OptionSet], record: str, source: str
) -> Callable[[Synthesize], Synthesize]:
    """Register the decorated function under `name`. Raises `ValueError` when the name is taken.

    Args:
        config: its options; the command line grows them by itself.
        record: name of the record in `Statistics.records` that it draws targets from.
        source: paper, with section or equation.
    """

    def decorate(synthesize: Synthesize) -> Synthesize:
        if name in _METHODS:
            raise ValueError(f"method {name!r} is registered twice")
        _METHODS[name] = Method(name, synthesize, config, record, source)
        return synthesize

    return decorate


def method(name: str) -> Method:
    """Return the method called `name`. Raises `UsageError`, with the near name, when there is none."""
    if name not in _METHODS:
        raise UsageError(f"unknown objective {name!r}.{did_you_mean(name, method_names())}")
    return _METHODS[name]


def method_names() -> list[str]:
    """Return every registered name, in alphabetical order."""
    return sorted(_METHODS)
