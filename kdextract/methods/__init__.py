"""Methods, one per file. Importing this package registers every file in it, without importing torch."""

from __future__ import annotations

import importlib
import pkgutil

from ..synthesis.interface import TWO_WAYS, Given
from .registry import (
    GeneratorMethod,
    LiveMethod,
    Objective,
    SynthesisMethod,
    every_method,
    generator_method,
    generator_names,
    live_method,
    live_names,
    objective,
    objective_names,
    register_generator,
    register_live,
    register_objective,
)

for _module in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_module.name}")

__all__ = [
    "TWO_WAYS",
    "GeneratorMethod",
    "Given",
    "LiveMethod",
    "Objective",
    "SynthesisMethod",
    "every_method",
    "generator_method",
    "generator_names",
    "live_method",
    "live_names",
    "objective",
    "objective_names",
    "register_generator",
    "register_live",
    "register_objective",
]
