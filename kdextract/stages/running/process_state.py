"""Settings and random states of the process: saved before a stage runs, and restored after it."""

from __future__ import annotations

import os
import random
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

CUBLAS = "CUBLAS_WORKSPACE_CONFIG"
_ONE_AT_A_TIME = threading.RLock()


@contextmanager
def process_as_it_was() -> Iterator[None]:
    """Restore the settings and random states of the process when the block ends, with or without an error.

    These are the random states of Python, and of NumPy and PyTorch if they are imported, PyTorch's number of threads,
    determinism and default type, the compiler's options that kdx sets, and cuBLAS's environment variable. Inside the
    block, PyTorch computes as in a new process: in float32, on the CPU by default, with gradients.

    One thread at a time is inside, because all threads share the random states. Blocks of one thread may be nested.
    """
    with _ONE_AT_A_TIME, ExitStack() as undo:
        undo.callback(_set_variable, CUBLAS, os.environ.get(CUBLAS))
        undo.callback(random.setstate, random.getstate())
        if "numpy" in sys.modules:
            import numpy

            undo.callback(numpy.random.set_state, numpy.random.get_state())
        if "torch" in sys.modules:
            _keep_torch(undo)
        if "torch._dynamo" in sys.modules:
            _keep_compiler(undo)
        yield


def _keep_torch(undo: ExitStack) -> None:
    import torch

    undo.callback(_set_num_threads, torch.get_num_threads())
    undo.callback(
        torch.use_deterministic_algorithms,
        torch.are_deterministic_algorithms_enabled(),
        warn_only=torch.is_deterministic_algorithms_warn_only_enabled(),
    )
    undo.callback(torch.set_default_dtype, torch.get_default_dtype())
    if torch.cuda.is_initialized():
        undo.callback(torch.cuda.set_rng_state_all, torch.cuda.get_rng_state_all())
    elif torch.cuda.is_available():  # seeding the CPU also sets the seed that devices start with later
        undo.callback(torch.cuda.manual_seed_all, torch.initial_seed())
    undo.callback(torch.set_rng_state, torch.get_rng_state())
    torch.set_default_dtype(torch.float32)
    undo.enter_context(torch.inference_mode(False))
    undo.enter_context(torch.enable_grad())
    if torch.get_default_device().type != "cpu":
        undo.enter_context(torch.device("cpu"))


def _keep_compiler(undo: ExitStack) -> None:
    import torch._dynamo

    options: Any = torch._dynamo.config
    undo.callback(setattr, options, "skip_nnmodule_hook_guards", options.skip_nnmodule_hook_guards)


def _set_num_threads(count: int) -> None:
    import torch

    if torch.get_num_threads() != count:
        torch.set_num_threads(count)


def _set_variable(name: str, value: str | None) -> None:
    if value is None:
        os.environ.pop(name, None)
    else:
        os.environ[name] = value
