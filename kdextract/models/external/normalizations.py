"""Usual normalizations: mean and standard deviation of pixels in [0, 1], one value or one per channel."""

from __future__ import annotations

NORMALIZATIONS: dict[str, tuple[tuple[float, ...], tuple[float, ...]]] = {
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "half": ((0.5,), (0.5,)),
    "bytes": ((0.0,), (1 / 255,)),
}
"""Name -> (mean, standard deviation). `bytes` is for networks that take pixels from 0 to 255."""
