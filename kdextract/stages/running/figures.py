"""Metrics as texts for terminals and notebooks."""

from __future__ import annotations

from typing import Any

_PERCENT = {"accuracy", "agreement", "teacher_accuracy", "train_accuracy", "validation_accuracy",
            "old_accuracy", "new_accuracy", "held_out_new_accuracy", "estimated_accuracy", "estimated_agreement",
            "teacher_agrees_with_label", "rarest_class_share", "mean_confidence", "explained_variance",
            "float32_accuracy", "runtime_agreement"}  # fmt: skip
_BYTES = {"bytes_handed_over", "image_bytes"}


def figure(name: str, value: Any) -> str:
    """Return a metric as text: shares as percent, bytes as MB, counts with commas."""
    if value is None:
        return "-"
    if name in _PERCENT:
        return f"{100 * value:.2f} %"
    if name in _BYTES:
        return f"{value / 1e6:.2f} MB" if value >= 1e5 else f"{value:,} bytes"
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    if isinstance(value, list | tuple):
        return ", ".join(map(str, value)) or "none"
    return str(value)


def shown_metrics(metrics: dict[str, Any]) -> list[tuple[str, str]]:
    """Return (name, text) of the metrics that fit on a line; an error is appended to the metric that it belongs to.

    For a curve, it is the number of snapshots; a list of sentences has one entry per sentence.
    """
    errors = {name for name in metrics if name.endswith("_error") and name.removesuffix("_error") in metrics}
    hidden = {"confusion_matrix", *errors, *(name for name, value in metrics.items() if isinstance(value, dict))}
    shown = []
    for name, value in metrics.items():
        if name == "curve":
            shown.append(("snapshots_scored", figure(name, len(value))))
        elif f"{name}_error" in errors:
            shown.append((name, f"{figure(name, value)} +- {100 * metrics[f'{name}_error']:.2f}"))
        elif isinstance(value, list) and any(isinstance(part, str) and len(part) > 30 for part in value):
            shown += [("" if index else name, part) for index, part in enumerate(value)]
        elif name not in hidden:
            shown.append((name, figure(name, value)))
    return shown
