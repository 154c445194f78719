"""Network architectures, one family per file. Importing this package registers every file in it."""

from __future__ import annotations

import importlib
import pkgutil

from .registry import Architecture, InputShape, architecture, model_names, register_model

for _module in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_module.name}")

__all__ = ["Architecture", "InputShape", "architecture", "model_names", "register_model"]
