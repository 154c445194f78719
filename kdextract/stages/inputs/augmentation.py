"""The usual augmentation of synthetic images, which depends on their source and on the teacher."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ...models.classifier import Classifier
    from .image_source import ImageSource

USUAL_AUGMENTATION: dict[str, Any] = {"shift": 2, "warp": 0.2, "flip": False, "splice": False, "redraw": False}
"""Largest shift in pixels, strength of the distortion, and whether images are mirrored, images are joined and drawings
are redrawn (`training.augmentation`)."""


def usual_augmentation(images: ImageSource, teacher: Classifier) -> dict[str, Any]:
    """Return the values of `USUAL_AUGMENTATION` for a source of images and its teacher.

    A method may change them. Rows of a table are not changed. Generated drawings, which are similar to each other, are
    redrawn.
    """
    from ...synthesis.structured_noise.patterns import drawings_alone

    usual = {name: images.settings.get(name, value) for name, value in USUAL_AUGMENTATION.items()}
    if teacher.is_table:
        return usual | {"shift": 0, "warp": 0.0, "flip": False, "splice": False}
    return usual | ({"redraw": drawings_alone(_brightness(teacher))} if images.low_diversity else {})


def drawing_background(teacher: Classifier) -> float:
    """Return the brightness of the background, 0 or 1, whichever is nearer to the mean of the teacher's data."""
    return float(_brightness(teacher) >= 0.5)


def _brightness(teacher: Classifier) -> float:
    return float(teacher.mean.mean())
