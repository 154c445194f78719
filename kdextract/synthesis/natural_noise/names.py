"""The names of the kinds of images and of the mixtures that a user can name, without importing torch."""

from __future__ import annotations

STRUCTURED = "structured"
"""The kind of images that `structured_noise` makes."""
ALL_KINDS = ("spectrum", "flat_leaves", "textured_leaves", "objects", "areas", "landscapes", STRUCTURED)
FITTED, EQUAL = "fitted", "equal"
MIXTURES = [FITTED, *ALL_KINDS, EQUAL]
"""Names of mixtures: fitted to the teacher, one kind alone, or equal shares of all kinds."""
