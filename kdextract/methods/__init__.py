"""Synthesis methods, one per file. Importing this package registers every file in it, without importing torch."""

from __future__ import annotations

import importlib
import pkgutil

from .registry import Method, method, method_names, register_method

for _module in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_module.name}")

__all__ = ["Method", "method", "method_names", "register_method"]
