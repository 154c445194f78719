"""Training on labels, and the logits of a classifier for stored images."""

from __future__ import annotations

from collections.abc import Sequence

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
    smoothing: float = 0.0,
    fixed: Sequence[torch.Tensor] = (),
) -> list[Row]:
    """Train a classifier, in place, with cross-entropy, and return the metric rows of `loop.take_steps`.

    The weights after the last step are kept: nothing is selected on other data.

    Args:
        pool: images with targets: labels, int64 [N], or probabilities [N, K].
        batch_size: images per step.
        smoothing: share of each target that is spread over all classes (label smoothing, Szegedy et al. 2016).
        fixed: weights that are not trained.

    Raises:
        DivergedError: the loss or a weight is not finite.
    """
    classifier.train().requires_grad_(True)
    for weight in fixed:
        weight.requires_grad_(False)

    def loss() -> torch.Tensor:
        batch: Batch = pool.sample(batch_size)
        assert batch.targets is not None
        return F.cross_entropy(classifier(augmenter(batch.images)), batch.targets, label_smoothing=smoothing)

    rows = take_steps(
        classifier, loss, schedule, {"pool": pool, "augmenter": augmenter}, checkpoints, reporter, "train"
    )
    classifier.eval()
    return rows


def predict(classifier: Classifier, images: torch.Tensor, batch_size: int | None = None) -> torch.Tensor:
    """Return the logits [N, K] of stored images (uint8 [N, channels, height, width]), on the CPU.

    Args:
        batch_size: images per forward pass; None: `classifier.images_per_pass`. It changes the result by rounding only.
    """
    assert not classifier.training
    batch_size = batch_size or classifier.images_per_pass
    with torch.inference_mode():
        logits = [classifier(to_pixels(chunk.to(classifier.device))).cpu() for chunk in images.split(batch_size)]
    return torch.cat(logits)
