"""Statistics of batch normalization, estimated anew for a network whose channels were cut."""

from __future__ import annotations

import torch
from torch import nn

from ..models.classifier import Classifier
from .sources import Source

NUM_IMAGES = 1024


@torch.no_grad()
def estimate_batch_norm(student: Classifier, source: Source, batch_size: int) -> None:
    """Replace the running statistics of batch normalization by the means over `NUM_IMAGES` images of the source.

    Only batch normalization is in training mode meanwhile, so that dropout draws nothing. A student without such
    layers is not changed, and no image is drawn for it.
    """
    kind = nn.modules.batchnorm._BatchNorm
    layers = [m for m in student.modules() if isinstance(m, kind) and m.track_running_stats]
    if not layers:
        return
    student.eval()
    usual = [layer.momentum for layer in layers]
    for layer in layers:
        layer.reset_running_stats()
        layer.momentum = None  # the mean over all batches
        layer.train()
    for _ in range(-(-NUM_IMAGES // batch_size)):
        student(source.sample(batch_size).images)
    for layer, momentum in zip(layers, usual, strict=True):
        layer.momentum = momentum
    student.eval()
