"""Losses between the logits of a student and those of its teacher: pure functions that return a scalar."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F

DistillationLoss = Callable[[torch.Tensor, torch.Tensor, float, bool], torch.Tensor]


def kl_divergence(student: torch.Tensor, teacher: torch.Tensor, temperature: float, scale: bool) -> torch.Tensor:
    """KL(softmax(teacher / T) || softmax(student / T)), mean over the batch (Hinton et al. 2015, section 2).

    Args:
        student, teacher: logits [batch, K].
        temperature: T > 0.
        scale: multiply by T^2, so that gradients keep their size as T grows.
    """
    log_student = F.log_softmax(student / temperature, dim=1)
    log_teacher = F.log_softmax(teacher / temperature, dim=1)
    loss = F.kl_div(log_student, log_teacher, reduction="batchmean", log_target=True)
    return loss * temperature**2 if scale else loss


def cross_entropy(student: torch.Tensor, teacher: torch.Tensor, temperature: float, scale: bool) -> torch.Tensor:
    """Cross-entropy of softmax(student / T) to the targets softmax(teacher / T) (Lopes et al. 2017)."""
    loss = F.cross_entropy(student / temperature, F.softmax(teacher / temperature, dim=1))
    return loss * temperature**2 if scale else loss


def logit_l1(student: torch.Tensor, teacher: torch.Tensor, temperature: float, scale: bool) -> torch.Tensor:
    """Mean absolute difference of logits / T (DFAD, Fang et al. 2019, at T = 1)."""
    loss = F.l1_loss(student / temperature, teacher / temperature)
    return loss * temperature if scale else loss


def logit_mse(student: torch.Tensor, teacher: torch.Tensor, temperature: float, scale: bool) -> torch.Tensor:
    """Mean squared difference of logits / T (Ba and Caruana 2014, at T = 1)."""
    loss = F.mse_loss(student / temperature, teacher / temperature)
    return loss * temperature**2 if scale else loss


DISTILLATION_LOSSES: dict[str, DistillationLoss] = {
    "kl": kl_divergence,
    "ce": cross_entropy,
    "l1": logit_l1,
    "mse": logit_mse,
}
