"""kdx: data-free knowledge distillation.

Every command that makes an artifact is a function here, with the same name and the same options:

    import kdextract
    kdextract.train(run="runs/a", epochs=10)
    outcome = kdextract.distill(run="runs/a", student="lenet_half")
    outcome.directory, outcome.metrics

`load_classifier(path)` gives the network of a `model.safetensors` file. `kdextract.api` has the commands that look as
well, which are named like packages of this one. Nothing heavy is imported until it is used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from .classifier import load_classifier as load_classifier


def __getattr__(name: str) -> Any:
    if name == "__all__":
        return ["__version__", *_names()]
    if not name.startswith("_") and not _is_module(name) and name in _names():
        from . import api

        return getattr(api, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_names()})


def _names() -> list[str]:
    from .stages import STAGES

    return ["load_classifier", *(name.replace("-", "_") for name in STAGES)]


def _is_module(name: str) -> bool:
    """Whether a module of the package has this name, which is then not to be taken for a function."""
    from importlib.util import find_spec

    return find_spec(f"{__name__}.{name}") is not None
