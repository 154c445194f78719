"""What a network's answer is, and how logits are made of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from ...errors import ConfigError

KINDS = ("logits", "probabilities", "sigmoids", "logit", "probability")
MIN_PROBABILITY = 1e-30
"""Probabilities are at least this much before their logarithm is taken."""
_USUAL_KEYS = (
    "logits",
    "logit",
    "out",
    "output",
    "outputs",
    "pred",
    "preds",
    "prediction",
    "predictions",
    "scores",
    "y",
)
_TOLERANCE = 1e-3


@dataclass(frozen=True)
class Head:
    """Where in a network's answer the classes are, and what they are given as.

    `part` leads to a tensor: keys of dicts, indices of tuples, names of attributes; of a bare tensor it is not needed.
    `kind` is one of `KINDS`: logits [batch, K]; probabilities that sum to one; one sigmoid per class; or, for two
    classes, one logit or one probability, of the second class, [batch] or [batch, 1].
    """

    part: tuple[str | int, ...] = ()
    kind: str = "logits"

    def logits(self, answer: Any) -> torch.Tensor:
        """Return float32 logits [batch, K] of a network's answer, whose softmax are its probabilities."""
        if not self.part and self.kind == "logits" and isinstance(answer, torch.Tensor) and answer.dim() == 2:
            return answer.float()
        values = self.values(answer).float()
        if self.kind == "logits":
            return values
        if self.kind == "probabilities":
            return values.clamp_min(MIN_PROBABILITY).log()
        if self.kind == "sigmoids":
            return torch.logit(values, 1e-7)
        if self.kind == "logit":
            return torch.cat([torch.zeros_like(values), values], dim=1)
        return torch.cat(
            [(1 - values).clamp_min(MIN_PROBABILITY).log(), values.clamp_min(MIN_PROBABILITY).log()], dim=1
        )

    def values(self, answer: Any) -> torch.Tensor:
        """Return the tensor, [batch, K] or [batch, 1], that the answer has for the classes."""
        for step in () if isinstance(answer, torch.Tensor) else self.part:
            answer = getattr(answer, step) if isinstance(step, str) and hasattr(answer, step) else answer[step]
        return _as_rows(answer)

    @property
    def words(self) -> str:
        """What it says, for people."""
        what = {
            "logits": "logits",
            "probabilities": "probabilities, whose logarithms are taken",
            "sigmoids": "a sigmoid per class, undone",
            "logit": "one logit for two classes, beside which a zero is put",
            "probability": "one probability for two classes, whose logarithms are taken",
        }[self.kind]
        return what + "".join(
            f", under {step!r}" if isinstance(step, str) else f", number {step + 1} of what it returns"
            for step in self.part
        )


def find_head(answers: list[Any], batch: int) -> tuple[Head, int]:
    """Return what the answers to several batches of images are, and the number of classes.

    Raises:
        ConfigError: they have no tensor [batch, classes].
    """
    part = _find_part(answers[0], batch)
    values = torch.cat([Head(part).values(answer).float() for answer in answers])
    if not values.isfinite().all():
        raise ConfigError("the network answers to plain images with values that are not finite")
    unit = bool((values >= 0).all() and (values <= 1).all())
    if values.shape[1] == 1:
        return Head(part, "probability" if unit else "logit"), 2
    if unit and bool(((values.sum(1) - 1).abs() < _TOLERANCE).all()):
        return Head(part, "probabilities"), values.shape[1]
    return Head(part, "sigmoids" if unit else "logits"), values.shape[1]


def _as_rows(values: torch.Tensor) -> torch.Tensor:
    """Return [batch], [batch, K] or [batch, K, 1, 1] as [batch, K]."""
    return values.unsqueeze(1) if values.dim() == 1 else values.flatten(1)


def _is_answer(value: Any, batch: int) -> bool:
    return (
        isinstance(value, torch.Tensor)
        and value.is_floating_point()
        and value.dim() >= 1
        and len(value) == batch
        and all(size == 1 for size in value.shape[2:])
    )


def _find_part(answer: Any, batch: int) -> tuple[str | int, ...]:
    """Return the way to the first tensor that could be classes; those of the usual names come first."""
    if isinstance(answer, torch.Tensor):
        if _is_answer(answer, batch):
            return ()
        raise ConfigError(
            f"the network answers {batch} images with a tensor of shape {tuple(answer.shape)}, not [batch, classes]"
        )
    entries: dict[str | int, Any]
    if isinstance(answer, Mapping):
        entries = {key: value for key, value in answer.items() if isinstance(key, str)}
    elif isinstance(answer, list | tuple):
        entries = dict(enumerate(answer))
    else:
        entries = dict(vars(answer)) if hasattr(answer, "__dict__") else {}
    named = [key for key in _USUAL_KEYS if key in entries]
    for key in [*named, *entries]:
        if _is_answer(entries[key], batch) and (key in named or entries[key].dim() > 1):
            return (key,)
    described = ", ".join(
        f"{key}: {tuple(value.shape) if isinstance(value, torch.Tensor) else type(value).__name__}"
        for key, value in entries.items()
    )
    raise ConfigError(f"the network answers with {type(answer).__name__} ({described}), in which no classes are found")
