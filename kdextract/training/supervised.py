"""Training on labels, and the classes that a classifier gives to images."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from ..models.classifier import Classifier
from ..models.pixels import to_pixels
from .augmentation import Augmenter
from .loop import CheckpointSaver, Row, Schedule, take_steps
from .progress import Reporter
from .sources import Batch, ImagePool, Mixture


def fit(
    classifier: Classifier,
    pool: ImagePool | Mixture,
    batch_size: int,
    schedule: Schedule,
    augmenter: Augmenter,
    checkpoints: CheckpointSaver,
    reporter: Reporter,
) -> list[Row]:
    """Train a classifier with cross-entropy; `pool`'s targets are labels, int64 [N], or probabilities [N, K].

    The weights at the end are the last step's; nothing is selected on any other data.
    """
    classifier.train().requires_grad_(True)

    def loss() -> torch.Tensor:
        batch: Batch = pool.sample(batch_size)
        assert batch.targets is not None
        return F.cross_entropy(classifier(augmenter(batch.images)), batch.targets)

    rows = take_steps(
        classifier, loss, schedule, {"pool": pool, "augmenter": augmenter}, checkpoints, reporter, "train"
    )
    classifier.eval()
    return rows


def predict(classifier: Classifier, images: torch.Tensor, batch_size: int | None = None) -> torch.Tensor:
    """Return the logits [N, K] of stored images (uint8 [N, channels, height, width]), on the CPU.

    Args:
        batch_size: images per forward pass; None for `classifier.images_per_pass`. It changes the result by rounding
            only.
    """
    assert not classifier.training
    batch_size = batch_size or classifier.images_per_pass
    with torch.inference_mode():
        logits = [classifier(to_pixels(chunk.to(classifier.device))).cpu() for chunk in images.split(batch_size)]
    return torch.cat(logits)
