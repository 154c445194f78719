"""The registry of methods: name -> its options and its function.

A method has one or more of three forms. An *objective* of `optimize-dataset` makes images for given classes. A
*generator method* of `train-generator` trains generators with the teacher. A *live method* is a `Source` of `distill`,
which makes images while the student is trained.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from ..options.declare import OptionSet
from ..options.registry import Registry
from ..synthesis.interface import Given

if TYPE_CHECKING:
    import torch

    from ..models.classifier import Classifier
    from ..synthesis.generators.training import GeneratorTraining, Samples
    from ..synthesis.interface import Inverted
    from ..synthesis.options import GeneratorConfig
    from ..training.sources import Source

    Synthesize = Callable[["Given", torch.Tensor, Any, torch.Generator], Inverted]
    OpenSource = Callable[["Given", Any, int], Source]
    BuildTraining = Callable[[Classifier, Any, int, Samples | None], GeneratorTraining]
else:
    Synthesize = OpenSource = BuildTraining = Callable


@dataclass(frozen=True)
class SynthesisMethod:
    """What all three forms have in common.

    Attributes:
        name: as the user gives it.
        function: the registered function; the first line of its docstring is the summary.
        config: class of its options.
        source: the paper, with section or equation.
    """

    name: str
    function: Callable[..., Any]
    config: type[OptionSet]
    source: str

    @property
    def summary(self) -> str:
        """First line of the function's docstring."""
        return (self.function.__doc__ or "").strip().splitlines()[0]

    @property
    def needs(self) -> str:
        """What the method needs, in words for `kdx methods`."""
        return "teacher"

    @property
    def supports_tables(self) -> bool:
        """Whether it can make rows of a table, not only images."""
        return True

    @property
    def needs_gradient(self) -> bool:
        """Whether it needs the gradient of the teacher with respect to images."""
        return True


@dataclass(frozen=True)
class Objective(SynthesisMethod):
    """A method that makes images for given classes.

    `synthesize(given, labels, config, rng)` returns one image per label, and depends on nothing else.

    Attributes:
        record: name of the record of the statistics from which targets are drawn; None if it needs none.
        matches_batch_norm: whether images are matched to the statistics of the teacher's batch normalization or,
            without it, to recorded statistics.
        needs_student: whether a student is part of the loss.
        gradient_free: whether the teacher's gradient is not needed.
    """

    record: str | None
    matches_batch_norm: bool
    needs_student: bool
    gradient_free: bool

    @property
    def needs_gradient(self) -> bool:
        """All but those that are `blind`."""
        return not self.gradient_free

    @property
    def synthesize(self) -> Synthesize:
        """The function."""
        return self.function

    @property
    def needs(self) -> str:
        """What it needs, in words: `teacher`, `teacher+statistics`, or `teacher with batch norm, or statistics`."""
        return needed("teacher+statistics" if self.record else "teacher", self.matches_batch_norm)

    @property
    def supports_tables(self) -> bool:
        """Whether it draws targets from a record, which tables also have."""
        return self.record is not None


@dataclass(frozen=True)
class LiveMethod(SynthesisMethod):
    """A method that makes images while the student is trained.

    `open_source(given, config, seed)` returns the `Source`, on the teacher's device.

    Attributes:
        settings: options of `distill` with the defaults that they have with this method.
        structured: whether its images are structured noise, or are made from it.
        matches_batch_norm, gradient_free: as in `Objective`.
    """

    settings: dict[str, Any]
    structured: bool
    matches_batch_norm: bool
    gradient_free: bool

    @property
    def needs_gradient(self) -> bool:
        """All but those that are `blind`."""
        return not self.gradient_free

    @property
    def needs(self) -> str:
        """What the method needs, in words: `teacher`, or `teacher with batch norm, or statistics`."""
        return needed("teacher", self.matches_batch_norm)

    @property
    def supports_tables(self) -> bool:
        """False: live methods make images only."""
        return False

    @property
    def open_source(self) -> OpenSource:
        """The function."""
        return self.function


@dataclass(frozen=True)
class GeneratorMethod(SynthesisMethod):
    """A method that trains generators.

    `build_training(teacher, config, seed, samples)` returns an untrained generator on the teacher's device with its
    loss; `samples` is None if there are no real images.

    Attributes:
        takes_samples: whether it can also use a few real images.
    """

    takes_samples: bool

    @property
    def needs(self) -> str:
        """What the method needs, in words: `teacher`, with `(+samples)` if it can use real images."""
        return "teacher (+samples)" if self.takes_samples else "teacher"

    @property
    def build_training(self) -> BuildTraining:
        """The function."""
        return self.function


def needed(always: str, matches_batch_norm: bool) -> str:
    """Return what a method needs, in words: `always`, with the alternative of one that matches batch normalization."""
    return f"{always} with batch norm, or statistics" if matches_batch_norm else always


_OBJECTIVES: Registry[Objective] = Registry("objective")
_LIVE: Registry[LiveMethod] = Registry("method")
_GENERATORS: Registry[GeneratorMethod] = Registry("method")

FunctionT = TypeVar("FunctionT", bound=Callable[..., Any])


def register_objective(
    name: str,
    *,
    config: type[OptionSet],
    record: str | None,
    source: str,
    matches_batch_norm: bool = False,
    needs_student: bool = False,
    gradient_free: bool = False,
) -> Callable[[FunctionT], FunctionT]:
    """Register the decorated `synthesize` function under `name`. Raises `ValueError` when the name is taken.

    Args:
        config: class of its options, which the command line then offers.
        record: as in `Objective`, a name in `Statistics.records`.
        source: the paper, with section or equation.
        matches_batch_norm: as in `Objective`.
        needs_student: as in `Objective`.
        gradient_free: as in `Objective`.
    """

    def decorate(function: FunctionT) -> FunctionT:
        _OBJECTIVES.add(
            name, Objective(name, function, config, source, record, matches_batch_norm, needs_student, gradient_free)
        )
        return function

    return decorate


def register_live(
    name: str,
    *,
    config: type[OptionSet],
    source: str,
    settings: dict[str, Any],
    structured: bool,
    matches_batch_norm: bool = False,
    gradient_free: bool = False,
) -> Callable[[FunctionT], FunctionT]:
    """Register the decorated `open_source` function under `name`. Raises `ValueError` when the name is taken.

    Args:
        config: class of its options, which the command line then offers.
        source: the paper, with section or equation.
        settings: as in `LiveMethod`.
        structured: as in `LiveMethod`.
        matches_batch_norm: as in `Objective`.
        gradient_free: as in `Objective`.
    """

    def decorate(function: FunctionT) -> FunctionT:
        _LIVE.add(
            name, LiveMethod(name, function, config, source, settings, structured, matches_batch_norm, gradient_free)
        )
        return function

    return decorate


def register_generator(
    name: str, *, config: type[GeneratorConfig], source: str, takes_samples: bool = False
) -> Callable[[FunctionT], FunctionT]:
    """Register the decorated `build_training` function under `name`. Raises `ValueError` when the name is taken.

    Args:
        config: class of its options, which the command line then offers.
        source: the paper, with section or equation.
        takes_samples: as in `GeneratorMethod`.
    """

    def decorate(function: FunctionT) -> FunctionT:
        _GENERATORS.add(name, GeneratorMethod(name, function, config, source, takes_samples))
        return function

    return decorate


def objective(name: str) -> Objective:
    """Return the objective called `name`. Raises `UsageError`, with a similar name, if there is none."""
    return _OBJECTIVES.get(name)


def objective_names() -> list[str]:
    """Return the name of every objective, in alphabetical order."""
    return sorted(_OBJECTIVES.names())


def live_method(name: str) -> LiveMethod:
    """Return the live method called `name`. Raises `UsageError`, with a similar name, if there is none."""
    return _LIVE.get(name)


def live_names() -> list[str]:
    """Return the name of every live method, in alphabetical order."""
    return sorted(_LIVE.names())


def generator_method(name: str) -> GeneratorMethod:
    """Return the generator method called `name`. Raises `UsageError`, with a similar name, if there is none."""
    return _GENERATORS.get(name)


def generator_names() -> list[str]:
    """Return the name of every generator method, in alphabetical order."""
    return sorted(_GENERATORS.names())


def every_method() -> list[tuple[str, SynthesisMethod]]:
    """Return every method with the command and option that choose it, in all of its forms."""
    used: list[tuple[str, SynthesisMethod]] = [
        ("optimize-dataset --objective", objective(name)) for name in objective_names()
    ]
    used += [("train-generator", generator_method(name)) for name in generator_names()]
    return used + [("distill --method", live_method(name)) for name in live_names()]
