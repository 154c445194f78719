"""Which live method suits a teacher."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ..models.classifier import Classifier

LARGE = 64
"""Images of more pixels a side than this, or in colour, are taken for photographs."""


def pick(teacher: Classifier) -> tuple[str, str]:
    """Return the name of a live method, and the reason in words that follow `because`.

    Structured noise was the best per second wherever both were measured (docs/notes.md): small grey images. For
    photographs there is no such figure; there the batch normalization of a teacher, if it has any, knows something of
    the data that lines and shapes do not.

    Raises:
        ConfigError: the teacher takes rows of a table.
    """
    from ..models.hooks import batch_norm_layers
    from ..synthesis.structured_noise.by_class import require_images

    require_images(teacher)
    channels, height, width = teacher.input_shape
    layers = len(batch_norm_layers(teacher))
    if (channels > 1 or max(height, width) > LARGE) and layers:
        return "dfq", f"{layers} batch normalization layers of the teacher tell what its images looked like"
    if layers:
        return "structured_noise", "it learns most per second on small grey images"
    return "structured_noise", "it needs nothing but the teacher's answers, and learns most per second"
