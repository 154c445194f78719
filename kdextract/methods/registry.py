"""The registry of methods: name -> its options and its function.

A method is used in one or more of three ways: as an *objective* of `optimize-dataset`, it makes images for given
classes; as a *trainer* of `train-generator`, it fits generators to the teacher; *live*, it is a `Source` that `distill`
draws from while the student learns.
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
    """What both kinds of methods have: `config` are its options, `source` is the paper, with section or equation."""

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
        """What the method takes."""
        return "teacher"

    @property
    def supports_tables(self) -> bool:
        """Whether it also makes rows of a table, not images alone."""
        return True

    @property
    def needs_gradient(self) -> bool:
        """Whether it follows the teacher's gradient to the images."""
        return True


@dataclass(frozen=True)
class Objective(SynthesisMethod):
    """A way to make images for classes.

    `synthesize(given, labels, config, rng)` returns one image per label, and depends on nothing else. `record` is
    the record of the statistics that it draws from. `inverts` says whether it matches what the teacher's batch
    normalization keeps, or else statistics. `competes` says whether it needs a student, `blind` whether it does without
    the teacher's gradient.
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
        """`teacher`, or `teacher+statistics`."""
        return needed("teacher+statistics" if self.record else "teacher", self.matches_batch_norm)

    @property
    def supports_tables(self) -> bool:
        """Those that match a record of the teacher's statistics do."""
        return self.record is not None


@dataclass(frozen=True)
class LiveMethod(SynthesisMethod):
    """A source that keeps making images while the student learns.

    `open_source(given, config, seed)` returns the `Source`, on the teacher's device. `settings` are the options of
    `distill` that the method wants otherwise than usual, where the user says nothing. `structured` says whether its
    images are structured noise, or begin as such. `inverts` and `blind` are as in `Objective`.
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
        """`teacher`, and what else would do where it lacks something."""
        return needed("teacher", self.matches_batch_norm)

    @property
    def supports_tables(self) -> bool:
        """None of them does."""
        return False

    @property
    def open_source(self) -> OpenSource:
        """The function."""
        return self.function


@dataclass(frozen=True)
class GeneratorMethod(SynthesisMethod):
    """A way to train generators.

    `build_training(teacher, config, seed, samples)` returns a fresh generator on the teacher's device with the loss
    that trains it. `takes_samples` says whether it can use a few real images as well; without any, `samples` is None.
    """

    takes_samples: bool

    @property
    def needs(self) -> str:
        """`teacher`, with `samples` in brackets where it can use some."""
        return "teacher (+samples)" if self.takes_samples else "teacher"

    @property
    def build_training(self) -> BuildTraining:
        """The function."""
        return self.function


def needed(always: str, matches_batch_norm: bool) -> str:
    """Return what a method needs, in words; one that `inverts` does with statistics for batch normalization."""
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
        config: its options; the command line grows them by itself.
        record: name of the record in `Statistics.records` that it draws targets from, None if it needs none.
        source: paper, with section or equation.
        matches_batch_norm: whether it matches the teacher's batch normalization, or statistics where there is none.
        needs_student: whether it needs a student, with which images compete.
        gradient_free: whether it does without the teacher's gradient.
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
        config: its options; the command line grows them by itself.
        source: paper, with section or equation.
        settings: options of `distill` and the defaults that they have with this method.
        structured: whether its images are structured noise, or begin as such.
        matches_batch_norm: whether it matches the teacher's batch normalization, or statistics where there is none.
        gradient_free: whether it does without the teacher's gradient.
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
        config: its options; the command line grows them by itself.
        source: paper, with section or equation.
        takes_samples: whether it can use a few real images besides the teacher.
    """

    def decorate(function: FunctionT) -> FunctionT:
        _GENERATORS.add(name, GeneratorMethod(name, function, config, source, takes_samples))
        return function

    return decorate


def objective(name: str) -> Objective:
    """Return the objective called `name`. Raises `UsageError`, with the near name, when there is none."""
    return _OBJECTIVES.get(name)


def objective_names() -> list[str]:
    """Return the name of every objective, in alphabetical order."""
    return sorted(_OBJECTIVES.names())


def live_method(name: str) -> LiveMethod:
    """Return the live method called `name`. Raises `UsageError`, with the near name, when there is none."""
    return _LIVE.get(name)


def live_names() -> list[str]:
    """Return the name of every live method, in alphabetical order."""
    return sorted(_LIVE.names())


def generator_method(name: str) -> GeneratorMethod:
    """Return the way to train generators called `name`. Raises `UsageError`, with the near name, when there is none."""
    return _GENERATORS.get(name)


def generator_names() -> list[str]:
    """Return the name of every way to train generators, in alphabetical order."""
    return sorted(_GENERATORS.names())


def every_method() -> list[tuple[str, SynthesisMethod]]:
    """Return every way to use a method: the command with the option that chooses it, and the method."""
    used: list[tuple[str, SynthesisMethod]] = [
        ("optimize-dataset --objective", objective(name)) for name in objective_names()
    ]
    used += [("train-generator", generator_method(name)) for name in generator_names()]
    return used + [("distill --method", live_method(name)) for name in live_names()]
