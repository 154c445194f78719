"""Terms of the losses of images and generators: pure functions of tensors."""

from __future__ import annotations

import functools
import math
import operator
from typing import Any

import torch
import torch.nn.functional as F
from torch.autograd.function import once_differentiable

Terms = dict[str, torch.Tensor]
"""The weighted terms of a loss, by name."""
_BUT_FIRST, _BUT_LAST, _ALL = slice(1, None), slice(None, -1), slice(None)


def sum_terms(terms: Terms) -> torch.Tensor:
    """Return the sum of the terms of a loss, added in their order."""
    return functools.reduce(operator.add, terms.values())


def agreed_kl(student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
    """KL(teacher || student) at T = 1, mean over images for which both predict one class; 0 if there are none.

    The decision adversarial loss of DFQ (Choi et al. 2020) and its successors: images for which the predictions differ
    need no further change.

    Args:
        student, teacher: logits [batch, K].
    """
    agreed = (student.argmax(1) == teacher.argmax(1)).to(student.dtype)
    log_teacher = F.log_softmax(teacher, dim=1)
    terms = F.kl_div(F.log_softmax(student, dim=1), log_teacher, reduction="none", log_target=True).sum(1)
    return (terms * agreed).sum() / agreed.sum().clamp_min(1)


def one_hot_error(logits: torch.Tensor) -> torch.Tensor:
    """Cross-entropy of logits [batch, K] to their own argmax: small for confident predictions (DAFL, eq. 2)."""
    return F.cross_entropy(logits, logits.argmax(1))


def class_imbalance(logits: torch.Tensor) -> torch.Tensor:
    """Minus the entropy of the batch's mean softmax, in [-log K, 0]: least for equal classes (DAFL, eq. 4)."""
    log_mean = torch.logsumexp(F.log_softmax(logits, dim=1), dim=0) - math.log(len(logits))
    return (log_mean.exp() * log_mean).sum()


def diversity_penalty(images: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
    """exp(-mean over pairs of (mean squared difference of noise * mean absolute difference of images)), in (0, 1].

    The diversity loss of KegNet (Yoo et al. 2019, section 3.3): large if different noise gives similar images. The mean
    is over all pairs of the batch, including each image with itself.

    Args:
        images: [batch, channels, height, width], in units in which a difference of 1 is large.
        noise: [batch, length].
    """
    flat = images.flatten(1)
    between_images = torch.cdist(flat, flat, p=1) / flat.shape[1]
    between_noise = (noise.unsqueeze(0) - noise.unsqueeze(1)).square().mean(2)
    return torch.exp(-(between_noise * between_images).mean())


def statistics_distance(
    mean: torch.Tensor, variance: torch.Tensor, kept_mean: torch.Tensor, kept_variance: torch.Tensor
) -> torch.Tensor:
    """||mean - kept mean||_2 + ||variance - kept variance||_2, each [channels] (DeepInversion, Yin et al. 2020)."""
    return torch.linalg.vector_norm(mean - kept_mean) + torch.linalg.vector_norm(variance - kept_variance)


def standardized_error(values: torch.Tensor, targets: torch.Tensor, variance: torch.Tensor) -> torch.Tensor:
    """Sum over the batch of the mean squared error of each row, in units of `variance` (a scalar > 0).

    The sum, not the mean, over the batch: the gradient of each image then does not depend on how many there are.
    """
    return (values - targets).square().flatten(1).mean(dim=1).sum() / variance


def total_variation(images: torch.Tensor) -> torch.Tensor:
    """Sum over images [batch, channels, height, width] of the mean absolute difference of neighbouring pixels."""
    total = images.new_zeros(())
    for differences in (images[..., :, 1:] - images[..., :, :-1], images[..., 1:, :] - images[..., :-1, :]):
        if differences.numel():  # an image of one row or one column has no neighbours in that direction
            total = total + differences.abs().flatten(1).mean(dim=1).sum()
    return total


def pixel_variation(images: torch.Tensor) -> torch.Tensor:
    """Return the total variation of DeepInversion (Yin et al. 2020, R_TV).

    The sum of four Euclidean norms over the whole batch: of the differences of horizontal, vertical and diagonal
    neighbours, the latter in both directions.

    Args:
        images: [batch, channels, height, width], at least 2 x 2.
    """
    total: torch.Tensor = _PixelVariation.apply(images)
    return total


def mean_variation(images: torch.Tensor) -> torch.Tensor:
    """Return the sum of mean absolute differences of neighbours in four directions (authors' code for ImageNet).

    Args:
        images: as in `pixel_variation`.
    """
    return torch.stack([(images[one] - images[other]).abs().mean() for one, other in _NEIGHBOURS]).sum()


_NEIGHBOURS = [
    ((..., _ALL, _BUT_LAST), (..., _ALL, _BUT_FIRST)),
    ((..., _BUT_LAST, _ALL), (..., _BUT_FIRST, _ALL)),
    ((..., _BUT_FIRST, _BUT_LAST), (..., _BUT_LAST, _BUT_FIRST)),
    ((..., _BUT_LAST, _BUT_LAST), (..., _BUT_FIRST, _BUT_FIRST)),
]
"""Pixels and their neighbours, as indices of a batch: right, below, above to the right, below to the right."""


class _PixelVariation(torch.autograd.Function):
    """Computes its gradient in the forward pass: autograd would pad each of the eight slices to the batch size."""

    @staticmethod
    def forward(ctx: Any, images: torch.Tensor) -> torch.Tensor:
        norms, gradient = [], torch.zeros_like(images)
        for one, other in _NEIGHBOURS:
            difference = images[one] - images[other]
            norms.append(torch.linalg.vector_norm(difference))
            difference /= norms[-1].clamp_min(torch.finfo(images.dtype).tiny)
            gradient[one] += difference
            gradient[other] -= difference
        ctx.save_for_backward(gradient)
        return torch.stack(norms).sum()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: torch.Tensor) -> torch.Tensor:
        (gradient,) = ctx.saved_tensors
        return upstream * gradient


def js_similarity(student: torch.Tensor, teacher: torch.Tensor, temperature: float) -> torch.Tensor:
    """1 - JS(softmax(teacher / T), softmax(student / T)), mean over the batch, in [1 - log 2, 1].

    The competition term of Adaptive DeepInversion (Yin et al. 2020, eq. 8): small where the networks disagree. As in
    the paper, JS = (KL(P || M) + KL(Q || M)) / 2 with M = (P + Q) / 2; the published code uses KL(M || P) of clamped
    probabilities.

    Args:
        student, teacher: logits [batch, K].
    """
    log_p, log_q = (F.log_softmax(logits / temperature, dim=1) for logits in (teacher, student))
    log_m = torch.logaddexp(log_p, log_q) - math.log(2)
    halves = [F.kl_div(log_m, log_own, reduction="batchmean", log_target=True) for log_own in (log_p, log_q)]
    return 1 - (halves[0] + halves[1]) / 2
