"""What the output of a network is, and how logits are computed from it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from ...errors import ConfigError

KINDS = ("logits", "probabilities", "sigmoids", "logit", "probability")
MIN_PROBABILITY = 1e-30
"""Probabilities are clamped to at least this value before their logarithm."""
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
    """Which part of a network's output has the classes, and in which form.

    `part` is the path to a tensor: keys of dicts, indices of tuples, names of attributes; () if the output is a tensor.
    `kind` is one of `KINDS`: logits [batch, K]; probabilities that sum to one; one sigmoid per class; or, for two
    classes, one logit or one probability of the second class, [batch] or [batch, 1].
    """

    part: tuple[str | int, ...] = ()
    kind: str = "logits"

    def logits(self, output: Any) -> torch.Tensor:
        """Return float32 logits [batch, K] of a network's output. Their softmax is the network's probabilities."""
        if not self.part and self.kind == "logits" and isinstance(output, torch.Tensor) and output.dim() == 2:
            return output.float()
        values = self.values(output).float()
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

    def values(self, output: Any) -> torch.Tensor:
        """Return the tensor of the output that has the classes, as [batch, K] or [batch, 1]."""
        if not self.part and isinstance(output, tuple | list):  # several outputs in training mode only: the first one
            output = output[0]
        for step in () if isinstance(output, torch.Tensor) else self.part:
            output = getattr(output, step) if isinstance(step, str) and hasattr(output, step) else output[step]
        return _as_rows(output)

    @property
    def description(self) -> str:
        """The kind and the part in words, for printing."""
        what = {
            "logits": "logits",
            "probabilities": "probabilities, converted to their logarithms",
            "sigmoids": "one sigmoid per class, converted to logits",
            "logit": "one logit for two classes; the other logit is 0",
            "probability": "one probability for two classes, converted to two logarithms",
        }[self.kind]
        return what + "".join(
            f", in {step!r}" if isinstance(step, str) else f", in element {step} of the tuple" for step in self.part
        )


def find_head(outputs: list[Any], batch: int) -> tuple[Head, int]:
    """Return which part of the outputs has the classes, in which form, and the number of classes.

    Args:
        outputs: of one network, for several batches of images.
        batch: number of images of each batch.

    Raises:
        ConfigError: they have no tensor [batch, classes], or values that are not finite.
    """
    part = _find_part(outputs[0], batch)
    values = torch.cat([Head(part).values(output).float() for output in outputs])
    if not values.isfinite().all():
        raise ConfigError("the network has outputs that are not finite for images of zeros or noise")
    unit = bool((values >= 0).all() and (values <= 1).all())
    if values.shape[1] == 1:
        return Head(part, "probability" if unit else "logit"), 2
    if unit and bool(((values.sum(1) - 1).abs() < _TOLERANCE).all()):
        return Head(part, "probabilities"), values.shape[1]
    return Head(part, "sigmoids" if unit else "logits"), values.shape[1]


def _as_rows(values: torch.Tensor) -> torch.Tensor:
    """Return [batch], [batch, K] or [batch, K, 1, 1] as [batch, K]."""
    return values.unsqueeze(1) if values.dim() == 1 else values.flatten(1)


def _is_class_output(value: Any, batch: int) -> bool:
    return (
        isinstance(value, torch.Tensor)
        and value.is_floating_point()
        and value.dim() >= 1
        and len(value) == batch
        and all(size == 1 for size in value.shape[2:])
    )


def _find_part(output: Any, batch: int) -> tuple[str | int, ...]:
    """Return the path to the first tensor that can be the classes. Usual keys are tried first."""
    if isinstance(output, torch.Tensor):
        if _is_class_output(output, batch):
            return ()
        raise ConfigError(
            f"for {batch} images the network returns a tensor of shape {tuple(output.shape)}, not [batch, classes]"
        )
    entries: dict[str | int, Any]
    if isinstance(output, Mapping):
        entries = {key: value for key, value in output.items() if isinstance(key, str)}
    elif isinstance(output, list | tuple):
        entries = dict(enumerate(output))
    else:
        entries = dict(vars(output)) if hasattr(output, "__dict__") else {}
    named = [key for key in _USUAL_KEYS if key in entries]
    for key in [*named, *entries]:
        if _is_class_output(entries[key], batch) and (key in named or entries[key].dim() > 1):
            return (key,)
    described = ", ".join(
        f"{key}: {tuple(value.shape) if isinstance(value, torch.Tensor) else type(value).__name__}"
        for key, value in entries.items()
    )
    kind = type(output).__name__
    raise ConfigError(f"the network returns {kind} ({described}), which has no tensor [batch, classes]")
