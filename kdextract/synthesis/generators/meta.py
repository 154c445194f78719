"""The meta generator of FastDFKD (Fang et al. 2022, "Up to 100x Faster Data-Free Knowledge Distillation").

Few steps are enough for a batch, because the generator from which they start has learned from all batches before.
"""

from __future__ import annotations

from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import torch

from ...models.classifier import Classifier
from ...training.loop import optimizer_state, restore_optimizer
from ...training.sources import State, with_prefix
from ..interface import Inverted
from .bank import BETAS, BatchLoss
from .game_networks import LATENT, LatentDecoder, fitting_width

RESET_AFTER = 120
"""Batches after the warm-up after which the first layer of the generator is initialized anew, once."""
FIRST_LAYER_STD = 0.02


@dataclass(frozen=True)
class MetaOptions:
    """How batches are made.

    Attributes:
        steps: of a copy of the generator and of the noise, per batch.
        lr, noise_lr: of Adam, for the copy and for the noise. The generator itself learns at `steps` * `lr`.
        warmup: number of batches without a student.
    """

    steps: int
    lr: float
    noise_lr: float
    warmup: int


class MetaGenerator:
    """Makes batches by a few steps of a copy of its generator, which learns from their gradients (first-order MAML).

    Args:
        seed: of the generator's first weights.
    """

    def __init__(self, teacher: Classifier, loss: BatchLoss, options: MetaOptions, seed: int) -> None:
        self._teacher, self._loss, self._options = teacher, loss, options
        width = fitting_width("noise", teacher.input_shape, teacher.frozen().multiply_adds())
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            generator = LatentDecoder(teacher.input_shape, width)
        self._generator = generator.to(teacher.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self._optimizer = torch.optim.Adam(self._generator.parameters(), lr=options.lr * options.steps, betas=BETAS)
        self._batches = 0

    def make(
        self, labels: torch.Tensor, student: Classifier | None, rng: torch.Generator, start: torch.Tensor | None
    ) -> Inverted:
        """Return one image per label, and learn from the batch; see `BatchLoss.minimize`."""
        options = self._options
        self._batches += 1
        if self._batches == options.warmup + RESET_AFTER:
            self._reset_first_layer(rng)
        noise = torch.randn((len(labels), LATENT), generator=rng).to(self._teacher.device).requires_grad_()
        fast = deepcopy(self._generator)
        groups: list[dict[str, Any]] = [
            {"params": list(fast.parameters())},
            {"params": [noise], "lr": options.noise_lr},
        ]
        optimizer = torch.optim.Adam(groups, lr=options.lr, betas=BETAS)
        self._optimizer.zero_grad()

        def learn() -> None:
            for learned, copied in zip(self._generator.parameters(), fast.parameters(), strict=True):
                assert copied.grad is not None
                learned.grad = copied.grad.clone() if learned.grad is None else learned.grad.add_(copied.grad)

        made = self._loss.minimize(lambda: fast(noise), optimizer, options.steps, labels, student, rng, learn)
        self._optimizer.step()
        return made

    @torch.no_grad()
    def _reset_first_layer(self, rng: torch.Generator) -> None:
        layer = self._generator.start
        layer.weight.copy_(FIRST_LAYER_STD * torch.randn(layer.weight.shape, generator=rng))
        layer.bias.zero_()

    def state(self) -> State:
        """Return copies of weights and moments, and the tracked statistics."""
        tensors = {f"generator.{name}": value.clone() for name, value in self._generator.state_dict().items()}
        tensors |= {f"adam.{name}": value.clone() for name, value in optimizer_state(self._optimizer).items()}
        tracked, values = self._loss.state()
        return tensors | {f"loss.{name}": value for name, value in tracked.items()}, {
            "batches": self._batches,
            "loss": values,
        }

    def restore(self, state: State) -> None:
        """Continue from `state`."""
        tensors, values = state
        self._generator.load_state_dict(with_prefix(tensors, "generator."))
        moments = with_prefix(tensors, "adam.")
        restore_optimizer(self._optimizer, {name: value.clone() for name, value in moments.items()})
        self._loss.restore((with_prefix(tensors, "loss."), values["loss"]))
        self._batches = values["batches"]
