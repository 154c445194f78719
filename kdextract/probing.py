"""The held-out synthetic images that every student of a teacher is measured on."""

from __future__ import annotations

import torch

from .classifier import Classifier
from .images import to_uint8
from .observer import Probe
from .structured_noise import images_of_classes
from .training import predict

PROBE_IMAGES = 2000
CANDIDATES = 4
PROBE_SEED = 2**31 + 11
"""Beyond all seeds that a user can give, so that no method ever draws the same images."""


def make_probe(teacher: Classifier) -> Probe:
    """Return the probe of a teacher: structured images, each of its classes equally often, the same every time."""
    labels = torch.arange(PROBE_IMAGES) % teacher.num_classes
    found = images_of_classes(teacher, labels, CANDIDATES, torch.Generator().manual_seed(PROBE_SEED))
    images = to_uint8(found.images)
    return Probe(images, predict(teacher, images).argmax(1))
