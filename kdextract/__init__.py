"""kdx: data-free knowledge distillation.

Every command that makes an artifact is a function here, with the same name and the same options:

    import kdextract
    kdextract.train(run="runs/a", epochs=10)
    outcome = kdextract.distill(run="runs/a", student="lenet_half")
    outcome.directory, outcome.manifest.metrics

`load_classifier(path)` gives the network of a `model.safetensors` file. Nothing heavy is imported until it is used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from .classifier import load_classifier as load_classifier

_STAGE_FUNCTIONS = (
    "train",
    "compute_stats",
    "optimize_dataset",
    "train_generator",
    "generate",
    "compress",
    "distill",
    "evaluate",
    "neighbours",
)

__all__ = [
    "__version__",
    "compress",
    "compute_stats",
    "distill",
    "evaluate",
    "generate",
    "load_classifier",
    "neighbours",
    "optimize_dataset",
    "train",
    "train_generator",
]


def __getattr__(name: str) -> Any:
    if name == "load_classifier":
        from .classifier import load_classifier

        return load_classifier
    if name in _STAGE_FUNCTIONS:
        from .options import stage_function
        from .stages import STAGES

        return stage_function(STAGES[name.replace("_", "-")])
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
