"""Training of a classifier with new classes on images of the new classes and synthetic images of the old ones.

Data-free class-incremental learning as in DeepInversion (Yin et al. 2020, section 4.6).
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from ..models.classifier import Classifier
from ..models.hooks import batch_norm_layers
from ..models.more_classes import first_classes
from ..models.queries import TARGETS
from .augmentation import Augmenter
from .crossing import Crossings
from .loop import CheckpointSaver, Monitor, Row, Schedule, Stateful, take_steps
from .losses import kl_divergence
from .progress import Reporter
from .sources import ImagePool, Source

TEMPERATURE = 2.0
"""Temperature of the Kullback-Leibler terms (Li and Hoiem 2016, Learning without Forgetting, section 3)."""
ALONE_NOT_NEW_WEIGHT = 10.0
"""Weight of `not_new` for synthetic images without crossed ones. Synthetic images are told from new ones more easily
than real images of the old classes are, so that a small weight prefers new classes."""
CROSSED_WEIGHT = 0.2
"""Weight of `crossed_loss`, chosen on MNIST (`docs/notes.md`): larger ones take new images for old ones."""
SURE = 0.9
"""Crossed images count if the old classifier gives one of its classes at least this probability."""


def kept_answers(new: torch.Tensor, old: torch.Tensor) -> torch.Tensor:
    """KL(old || new restricted to the old classes) at `TEMPERATURE`, times its square, mean over the batch.

    Args:
        new: logits of all classes [batch, K].
        old: logits of the old classes by the old classifier [batch, K_old].
    """
    return kl_divergence(new[:, : old.shape[1]], old, TEMPERATURE, scale=True)


def not_new(logits: torch.Tensor, num_old: int) -> torch.Tensor:
    """-log of the probability that the image is of one of the first `num_old` classes, mean over the batch.

    Added to KL(old || new restricted to the old classes) at temperature 1, this is KL((old, 0) || new) over all
    classes: the old classifier's targets for its own images, whose probability of a new class is 0. It has the part of
    the term KL(0, new | new classes) of Yin et al. (2020), whose classifier has sigmoids in place of the softmax.

    Args:
        logits: of all classes [batch, K].
    """
    return (logits.logsumexp(1) - logits[:, :num_old].logsumexp(1)).mean()


def old_images_loss(new: torch.Tensor, old: torch.Tensor, not_new_weight: float = 1.0) -> torch.Tensor:
    """Loss on images of the old classes: the old answers among the old classes, and no new class (weighted).

    Args:
        new: logits of all classes [batch, K].
        old: logits of the old classes by the old classifier [batch, K_old].
    """
    return kept_answers(new, old) + not_new_weight * not_new(new, old.shape[1])


def crossed_loss(new: torch.Tensor, old: torch.Tensor, differ: torch.Tensor) -> torch.Tensor:
    """Mean of `old_images_loss` over those crossed images that the old classifier is sure of (`SURE`); 0 without any.

    Args:
        new: logits of all classes [batch, K].
        old: logits of the old classes by the old classifier [batch, K_old].
        differ: bool [batch], whether an image was joined from images of two classes; others do not count.
    """
    counts = (differ & (old.softmax(1).amax(1) >= SURE)).to(new.dtype)
    num_old = old.shape[1]
    log_new, log_old = (F.log_softmax(logits / TEMPERATURE, 1) for logits in (new[:, :num_old], old))
    kept = F.kl_div(log_new, log_old, reduction="none", log_target=True).sum(1) * TEMPERATURE**2
    is_new = new.logsumexp(1) - new[:, :num_old].logsumexp(1)
    return ((kept + is_new) * counts).sum() / counts.sum().clamp_min(1)


def new_images_loss(new: torch.Tensor, labels: torch.Tensor, old: torch.Tensor | None) -> torch.Tensor:
    """Loss on images of the new classes: cross-entropy over all classes and, with `old`, the old answers.

    Args:
        new: logits of all classes [batch, K].
        labels: int64 [batch] in [K_old, K).
        old: logits of the old classes by the old classifier [batch, K_old]; None: without the second term.
    """
    loss = F.cross_entropy(new, labels)
    return loss if old is None else loss + kept_answers(new, old)


def balanced(of_old: torch.Tensor, of_new: torch.Tensor, num_old: int, num_classes: int) -> torch.Tensor:
    """Mean of both losses, weighted by the number of old and of new classes.

    Each batch has as many old as new images. With these weights every class counts as much as every other one, however
    many classes are added at once. This replaces a correction of the last layer after training: weight aligning (Zhao
    et al. 2020, Maintaining Discrimination and Fairness in Class Incremental Learning) changed the
    accuracy on MNIST by less than one point, in both directions, and lowered it by up to 2.5 at high learning rates.
    """
    return (num_old * of_old + (num_classes - num_old) * of_new) / num_classes


@dataclass(frozen=True)
class ExtensionOptions:
    """How an extended classifier is trained.

    Attributes:
        batch_size: number of new images per step, and of old ones.
        schedule: the steps, their learning rates, and the optimizer.
        new_augmenter, old_augmenter: change new and old images before both classifiers get them.
        keep_on_new: whether the old answers are also kept on the new images (Learning without Forgetting).
        crossings: joins new images for `crossed_loss`; None: without it.
        not_new_weight: weight of `not_new` for old images.
    """

    batch_size: int
    schedule: Schedule
    new_augmenter: Augmenter
    old_augmenter: Augmenter
    keep_on_new: bool = True
    crossings: Crossings | None = None
    not_new_weight: float = 1.0


class _Batches:
    """The loss of batch after batch; the arguments are those of `extend`."""

    def __init__(
        self,
        old: Classifier,
        new: Classifier,
        new_images: ImagePool,
        source: Source | None,
        options: ExtensionOptions,
        in_source: Callable[[], AbstractContextManager[None]],
    ) -> None:
        self._old, self._new, self._new_images = old, new, new_images
        self._source, self._options, self._in_source = source, options, in_source
        self._as_student = first_classes(new, old.num_classes)

    def next_loss(self) -> torch.Tensor:
        """Return the loss of the next batch of new images and, if there is a source, of one of old images."""
        batch, options = self._new_images.sample(self._options.batch_size), self._options
        assert batch.targets is not None
        images = options.new_augmenter(batch.images)
        kept = self._old_answers(images) if options.keep_on_new else None
        of_new = new_images_loss(self._new(images), batch.targets, kept)
        if self._source is None:
            return of_new
        of_old = self._loss_on_old(self._source)
        if options.crossings is not None:
            crossed, differ = options.crossings(images, batch.targets)
            of_old = of_old + CROSSED_WEIGHT * crossed_loss(self._new(crossed), self._old_answers(crossed), differ)
        return balanced(of_old, of_new, self._old.num_classes, self._new.num_classes)

    def _loss_on_old(self, source: Source) -> torch.Tensor:
        with self._in_source():
            source.update(self._as_student)
            images = source.sample(self._options.batch_size).images
        images = self._options.old_augmenter(images)
        return old_images_loss(self._new(images), self._old_answers(images), self._options.not_new_weight)

    def _old_answers(self, images: torch.Tensor) -> torch.Tensor:
        with torch.no_grad(), self._old.queries.purpose(TARGETS):
            return self._old(images)


def extend(
    old: Classifier,
    new: Classifier,
    new_images: ImagePool,
    source: Source | None,
    options: ExtensionOptions,
    checkpoints: CheckpointSaver,
    reporter: Reporter,
    monitor: Monitor[Classifier] | None = None,
    in_source: Callable[[], AbstractContextManager[None]] = nullcontext,
) -> list[Row]:
    """Train `new`, in place, to answer as `old` on old images and to know the new ones; keep the last weights.

    Batch normalization keeps the running statistics of the old classifier, which are of real images, and normalizes
    with them; synthetic images would change them.

    Args:
        old: is frozen; its classes are the first ones of `new`.
        new_images: images with labels in [K_old, K).
        source: of images of the old classes; None: without them (Learning without Forgetting or, without
            `options.keep_on_new`, fine-tuning).
        monitor: measures `new` between steps.
        in_source: returns a context manager that is entered while the source works, to measure its time.

    Returns:
        The metric rows of `loop.take_steps`.

    Raises:
        DivergedError: the loss or a weight is not finite.
    """
    old.frozen()
    new.train().requires_grad_(True)
    for layer in batch_norm_layers(new):
        new.get_submodule(layer).eval()
    batches = _Batches(old, new, new_images, source, options, in_source)
    members: dict[str, Stateful] = {
        "new_images": new_images,
        "new_augmenter": options.new_augmenter,
        "old_augmenter": options.old_augmenter,
        **({} if options.crossings is None else {"crossings": options.crossings}),
        **({} if source is None else {"source": source}),
    }
    rows = take_steps(new, batches.next_loss, options.schedule, members, checkpoints, reporter, "extend", monitor)
    new.eval().requires_grad_(True)
    return rows
