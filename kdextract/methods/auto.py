"""The choice of a live method for a teacher."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ..models.classifier import Classifier

LARGE = 64
"""Images with a longer side than this number of pixels, or in colour, are assumed to be photographs."""


def pick(teacher: Classifier) -> tuple[str, str]:
    """Return the name of a live method, and the reason in words that follow `because`.

    On small grey images, structured noise gave the best students per second (docs/notes.md). For photographs nothing
    was measured; there a teacher's batch normalization, if it has any, contains information about the training data
    that structured noise does not contain.

    Raises:
        ConfigError: the teacher takes rows of a table.
    """
    from ..models.hooks import batch_norm_layers
    from ..synthesis.structured_noise.by_class import require_images

    require_images(teacher)
    channels, height, width = teacher.input_shape
    layers = len(batch_norm_layers(teacher))
    if (channels > 1 or max(height, width) > LARGE) and layers:
        return "dfq", f"{layers} batch normalization layers of the teacher hold statistics of its training images"
    if layers:
        return "structured_noise", "it gives the best students per second on small grey images"
    return "structured_noise", "it needs only the teacher's predictions, and gives the best students per second"
