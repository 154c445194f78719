"""kdx: data-free knowledge distillation.

`load_classifier(path)` returns the classifier of a `model.safetensors` file. The commands of `kdx` are functions of
`kdextract.api`, with the same names and options:

    import kdextract.api as kdx

    outcome = kdx.distill(run="runs/a", student="lenet_half")
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .storage.version import __version__

__all__ = ["__version__", "load_classifier"]

if TYPE_CHECKING:
    from .stages.running.outcome import load_classifier as load_classifier


def __getattr__(name: str) -> Any:
    if name == "load_classifier":  # imported on first use, because it needs PyTorch
        from .stages.running.outcome import load_classifier

        return load_classifier
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}; commands are functions of kdextract.api")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
