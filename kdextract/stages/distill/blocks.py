"""Which blocks of the student `kdx distill` compares with blocks of the teacher, and with which weight."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

from ...errors import ConfigError

if TYPE_CHECKING:
    from ...models.classifier import Classifier
    from ...training.blocks import BlockOptions

USUAL_WEIGHT = 30.0
"""Weight of blocks with all channels of the teacher, for a student that is made from it (docs/notes.md)."""


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
        weight: the value of `--match-blocks`; None: `USUAL_WEIGHT` if the student is `made_from_teacher`, for blocks
            that have all channels of the teacher. A student whose blocks have fewer has more freedom without the term:
            in long training it agrees more with the teacher (docs/notes.md).
        kept: for each layer of the teacher that was cut, the outputs that the student has.

    Raises:
        ConfigError: a weight above 0 is given, and no block of the student corresponds to one of the teacher.
    """
    from ...models.blocks import find_pairs
    from ...training.blocks import BlockOptions, describe

    if weight == 0 or (weight is None and not made_from_teacher):
        return None
    pairs = find_pairs(teacher, student, {} if weight is None else kept)
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
