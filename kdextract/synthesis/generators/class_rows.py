"""The generator of NAYER (Tran et al. 2024), whose input is the teacher's last layer, not text.

The input is an embedding of the class. There, it is that of a language model for the class's name; here it is the row
of the class in the teacher's last layer, which also tells similar classes. Images of a class differ because the first
layer is drawn anew.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from ...models.classifier import Classifier
from ...training.sources import State, with_prefix
from ..interface import Inverted
from .bank import BETAS, BatchLoss
from .game_networks import LatentDecoder, fitting_width

NOISY = 256
"""Outputs of the noisy layer, as published."""


def class_rows(teacher: Classifier) -> torch.Tensor:
    """Return the weights of each class in the last layer, [K, features]; unit vectors if it has other outputs."""
    weight = getattr(teacher.network.get_submodule(teacher.feature_layer), "weight", None)
    if isinstance(weight, torch.Tensor) and len(weight) == teacher.num_classes:
        return weight.detach().flatten(1).clone()
    return torch.eye(teacher.num_classes, device=teacher.device)


class RowGenerator(nn.Module):
    """Batch normalization over the classes' rows, a noisy linear layer for each group of images, and a decoder.

    Args:
        rows: [K, features].
        width: of the decoder.
    """

    rows: torch.Tensor

    def __init__(self, rows: torch.Tensor, teacher: Classifier, width: int) -> None:
        super().__init__()
        self.register_buffer("rows", rows)
        self.norm = nn.BatchNorm1d(rows.shape[1], track_running_stats=False)
        self.decoder = LatentDecoder(teacher.input_shape, width, latent=NOISY)

    def forward(self, labels: torch.Tensor, noisy: torch.Tensor) -> torch.Tensor:
        """Return one image per label, [batch, channels, height, width].

        Args:
            labels: int64 [batch].
            noisy: weights of the noisy layers, [groups, features, NOISY]; each serves K images in turn.
        """
        rows = self.norm(self.rows) if len(self.rows) > 1 else self.rows
        latent = rows @ noisy
        groups = torch.arange(len(labels), device=labels.device) // len(self.rows)
        images: torch.Tensor = self.decoder(latent[groups, labels])
        return images


@dataclass(frozen=True)
class RowOptions:
    """Steps per batch, their learning rate, and the number of batches after which a new generator begins."""

    steps: int
    lr: float
    life: int


class RowMaker:
    """Makes batches with a `RowGenerator`, which goes on from batch to batch; its noisy layers are drawn for each.

    Args:
        seed: of the first weights of all generators.
    """

    def __init__(self, teacher: Classifier, loss: BatchLoss, options: RowOptions, seed: int) -> None:
        self._teacher, self._loss, self._options, self._seed = teacher, loss, options, seed
        self._width = fitting_width("noise", teacher.input_shape, teacher.frozen().multiply_adds())
        self._rows = class_rows(teacher)
        self._batches = 0
        self._generator = self._new()

    def _new(self) -> RowGenerator:
        """Return a generator whose first weights depend on the seed and on the number of batches so far."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self._seed * 1_000_003 + self._batches)
            made = RowGenerator(self._rows, self._teacher, self._width)
        return made.to(self._teacher.device, memory_format=torch.channels_last)  # type: ignore[call-overload]

    def make(
        self, labels: torch.Tensor, student: Classifier | None, rng: torch.Generator, start: torch.Tensor | None
    ) -> Inverted:
        """Return one image per label; see `BatchLoss.minimize`."""
        if self._batches and self._batches % self._options.life == 0:
            self._generator = self._new()
        self._batches += 1
        wanted, generator = labels.to(self._teacher.device), self._generator
        groups = -(-len(labels) // len(self._rows))
        noisy = (
            torch.randn((groups, self._rows.shape[1], NOISY), generator=rng).to(self._teacher.device).requires_grad_()
        )
        optimizer = torch.optim.Adam([*generator.parameters(), noisy], lr=self._options.lr, betas=BETAS)
        return self._loss.minimize(
            lambda: generator(wanted, noisy), optimizer, self._options.steps, labels, student, rng
        )

    def state(self) -> State:
        """Return copies of the weights, and the tracked statistics."""
        tensors = {f"generator.{name}": value.clone() for name, value in self._generator.state_dict().items()}
        tracked, values = self._loss.state()
        tensors |= {f"loss.{name}": value for name, value in tracked.items()}
        return tensors, {"batches": self._batches, "loss": values}

    def restore(self, state: State) -> None:
        """Continue from `state`."""
        tensors, values = state
        self._generator.load_state_dict(with_prefix(tensors, "generator."))
        self._loss.restore((with_prefix(tensors, "loss."), values["loss"]))
        self._batches = values["batches"]
