"""Which blocks of the student `kdx distill` compares with blocks of the teacher, and with which weight."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

from ...errors import ConfigError

if TYPE_CHECKING:
    from ...models.classifier import Classifier
    from ...training.blocks import BlockOptions

USUAL_WEIGHT = 30.0
"""Weight without `--match-blocks`, for the blocks that are then compared (docs/notes.md)."""


def choose_blocks(
    weight: float | None,
    made_from_teacher: bool,
    kept: Mapping[str, Sequence[int]],
    teacher: Classifier,
    student: Classifier,
    say: Callable[[str], None],
) -> BlockOptions | None:
    """Return the blocks that are compared, None for none; one line names them.

    Args:
        weight: the value of `--match-blocks`. None: `USUAL_WEIGHT`, for blocks of several layers that have all channels
            of the teacher's, if the student is `made_from_teacher`. Single layers, and blocks with fewer channels, are
            not compared then: students agreed less with the teacher (docs/notes.md).
        kept: for each layer of the teacher that was cut, the outputs that the student has.

    Raises:
        ConfigError: a weight above 0 is given, and no block of the student corresponds to one of the teacher.
    """
    from ...models.blocks import find_pairs
    from ...training.blocks import BlockOptions, describe

    if weight == 0 or (weight is None and not made_from_teacher):
        return None
    pairs = find_pairs(teacher, student, kept)
    if weight is None:
        pairs = [pair for pair in pairs if pair.channels is None and _has_layers(teacher, pair.teacher)]
    if pairs:
        chosen = USUAL_WEIGHT if weight is None else weight
        say(f"--match-blocks {chosen:g}: {describe(pairs)}")
        return BlockOptions(tuple(pairs), chosen)
    if weight is not None:
        raise ConfigError(
            "--match-blocks compares outputs of equal shape, and no block of the student has the output shape of the "
            "teacher's block at its place; leave the option out"
        )
    return None


def _has_layers(teacher: Classifier, call: str) -> bool:
    """Whether the module of a call consists of others."""
    from ...models.hooks import module_of

    return any(True for _ in teacher.network.get_submodule(module_of(call)).children())
