"""The version of kdx, which artifacts record."""

from __future__ import annotations

__version__ = "0.1.0"
