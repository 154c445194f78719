"""The choice of a live method for a teacher, and the methods that a trial compares (`stages.distill.trial`)."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ..models.classifier import Classifier

LARGE = 64
"""Images with a longer side than this number of pixels, or in colour, are assumed to be photographs."""


def pick(teacher: Classifier, optimizes: bool = True) -> tuple[str, str]:
    """Return the name of a live method, and the reason in words that follow `because`.

    On small grey images, structured noise gave the best students per second; on photographs, natural noise that was
    fitted to the teacher's batch normalization, and moved towards it (docs/notes.md). For teachers of photographs
    without batch normalization, nothing was measured.

    Args:
        optimizes: whether a method may be returned that optimizes pixels.

    Raises:
        ConfigError: the teacher takes rows of a table.
    """
    from ..models.hooks import batch_norm_layers
    from ..synthesis.structured_noise.by_class import require_images

    require_images(teacher)
    channels, height, width = teacher.input_shape
    layers = len(batch_norm_layers(teacher))
    if (channels > 1 or max(height, width) > LARGE) and layers:
        name = "natural_inversion" if optimizes else "natural_noise"
        return name, f"its images are fitted to the {layers} batch normalization layers of the teacher"
    if layers:
        return "structured_noise", "it gives the best students per second on small grey images"
    return "structured_noise", "it needs only the teacher's predictions, and gives the best students per second"


def candidates(teacher: Classifier) -> list[str]:
    """Return the methods that a trial may compare for a teacher, that of `pick` first.

    Raises:
        ConfigError: the teacher takes rows of a table.
    """
    from ..models.hooks import batch_norm_layers

    first, _ = pick(teacher)
    third = "natural_inversion" if batch_norm_layers(teacher) else "dfq"
    return [first, *(name for name in ("structured_noise", "natural_noise", third) if name != first)]
