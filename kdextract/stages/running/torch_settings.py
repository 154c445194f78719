"""Settings of PyTorch for a stage: threads, determinism, device, precision and compilation."""

from __future__ import annotations

import os
import shutil
from importlib import import_module
from typing import TYPE_CHECKING

from ...errors import ConfigError, UsageError
from ...options.declare import NetworkConfig, StageConfig
from .process_state import CUBLAS

if TYPE_CHECKING:
    import torch

COMPILERS = ("g++", "clang++")


def import_what_is_set(config: StageConfig) -> None:
    """Import PyTorch, and its compiler if networks are compiled, so that `process_as_it_was` saves their settings."""
    import_module("torch")
    if isinstance(config, NetworkConfig) and config.compile:
        import_module("torch._dynamo")


def set_up_torch(config: StageConfig) -> torch.device:
    """Set the number of threads and determinism, and return the device; to be called inside `process_as_it_was`."""
    os.environ.setdefault(CUBLAS, ":4096:8")
    import torch

    if config.threads is not None:
        torch.set_num_threads(config.threads)
    torch.use_deterministic_algorithms(True, warn_only=True)
    name = config.device
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise UsageError(f"unknown device {config.device!r}; use auto, cpu, cuda or cuda:N") from error
    if device.type not in ("cpu", "cuda"):
        raise UsageError(f"device {config.device!r} is not supported; use auto, cpu, cuda or cuda:N")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise UsageError(f"this machine has no device {config.device!r}; use --device cpu")
    return device


def how_networks_run(config: StageConfig, device: torch.device) -> tuple[torch.dtype | None, bool]:
    """Return precision and compilation of networks, (None, False) for a stage without these options.

    Raises:
        ConfigError: the device does not support the precision, or there is no C++ compiler.
    """
    import torch

    if not isinstance(config, NetworkConfig):
        return None, False
    if config.precision == "bf16" and device.type == "cuda" and not torch.cuda.is_bf16_supported(False):
        raise ConfigError(f"{torch.cuda.get_device_name(device)} has no bfloat16; leave out --precision")
    if config.compile and not any(map(shutil.which, COMPILERS)):
        raise ConfigError(f"--compile needs a C++ compiler ({' or '.join(COMPILERS)}), and none is installed")
    return (torch.bfloat16 if config.precision == "bf16" else None), bool(config.compile)
