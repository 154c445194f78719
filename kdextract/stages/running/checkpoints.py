"""Checkpoints of an unfinished stage, and the signals that stop it."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

from ...errors import ArtifactError, Interrupted
from ...storage.artifacts import write_file

if TYPE_CHECKING:
    import torch

CHECKPOINT_SECONDS = 10.0
CHECKPOINT_FILE = "checkpoint.safetensors"
CHECKPOINT_FORMAT = 2
"""Number of the layout of checkpoints; the work of a checkpoint with another number begins anew."""

Json = dict[str, Any]


class Checkpoints:
    """Saves and restores the state of an unfinished stage. There is one checkpoint, which is replaced atomically.

    `saved` is called each time a checkpoint was saved.
    """

    def __init__(self, directory: Path) -> None:
        self._directory, self._path = directory, directory / CHECKPOINT_FILE
        self._last = time.monotonic()
        self._stop_signal: int | None = None
        self._deferring = False
        self.saved: Callable[[], None] = lambda: None

    def load(self) -> tuple[dict[str, torch.Tensor], Json] | None:
        """Return (tensors, values) of the last checkpoint; None if there is none, or if it is damaged."""
        from ...storage.tensor_files import read_safetensors

        if not self._path.exists():
            return None
        try:
            tensors, values = read_safetensors(self._path)
        except ArtifactError:
            return None
        digest = values.pop("sha256", None)
        return (tensors, values) if digest == _digest(tensors, values) else None

    def offer(self, state: Callable[[], tuple[dict[str, torch.Tensor], Json]]) -> None:
        """Save `state()` if the last checkpoint is older than `CHECKPOINT_SECONDS`, or after a signal to stop.

        Raises:
            Interrupted: there was a signal to stop; the state is saved.
        """
        if self._stop_signal is None and time.monotonic() - self._last < CHECKPOINT_SECONDS:
            return
        from ...storage.tensor_files import encode_safetensors

        tensors, values = state()
        write_file(self._path, encode_safetensors(tensors, {**values, "sha256": _digest(tensors, values)}))
        self.saved()
        self._last = time.monotonic()
        if self._stop_signal is not None:
            raise Interrupted(self._stop_signal)

    def once(self, name: str, decide: Callable[[], Json]) -> Json:
        """Return `decide()`, or the value from before an interruption, for values that depend on the clock."""
        path = self._directory / f"{name}.json"
        if path.exists():
            decided: Json = json.loads(path.read_bytes())
            return decided
        value = decide()
        write_file(path, json.dumps(value).encode())
        return value

    def once_tensor(self, name: str, make: Callable[[], torch.Tensor]) -> torch.Tensor:
        """Return `make()` on the CPU, or the tensor from before an interruption, for tensors that take long to make."""
        from ...storage.tensor_files import encode_safetensors, read_safetensors

        path = self._directory / f"{name}.safetensors"
        if path.exists():
            with suppress(ArtifactError):
                return read_safetensors(path)[0][name]
        made = make().cpu().contiguous()
        write_file(path, encode_safetensors({name: made}, {}))
        return made

    @contextmanager
    def loop(self) -> Iterator[None]:
        """While the block runs, a signal has its effect at the next `offer`, so that the saved state is complete."""
        self._deferring = True
        try:
            yield
        finally:
            self._deferring = False

    def stop(self, signal_number: int, frame: FrameType | None) -> None:
        """Signal handler: stop at the next `offer` inside `loop`; at once outside of it, and at a second signal."""
        if not self._deferring or self._stop_signal is not None:
            raise Interrupted(signal_number)
        self._stop_signal = signal_number


class SequentialCheckpoints:
    """Checkpoints of a stage that runs several loops one after the other: the `CheckpointSaver` of the current loop.

    `finished` has (weights, metric rows) of the finished loops, including those from before an interruption.
    """

    def __init__(self, checkpoints: Checkpoints) -> None:
        self._checkpoints = checkpoints
        self.finished: list[tuple[dict[str, torch.Tensor], list[dict[str, float]]]] = []
        self._current: tuple[dict[str, torch.Tensor], Json] | None = None
        saved = checkpoints.load()
        if saved is not None:
            tensors, values = saved
            for index, rows in enumerate(values["finished"]):
                self.finished.append((_below(tensors, f"finished-{index}."), rows))
            self._current = _below(tensors, "loop."), values["loop"]

    def finish(self, weights: dict[str, torch.Tensor], rows: list[dict[str, float]]) -> None:
        """Store the results of the current loop, as copies; the next loop begins."""
        self.finished.append(({name: tensor.clone() for name, tensor in weights.items()}, rows))
        self._current = None

    def load(self) -> tuple[dict[str, torch.Tensor], Json] | None:
        """Return the last saved state of the current loop, None at its start."""
        return self._current

    def offer(self, state: Callable[[], tuple[dict[str, torch.Tensor], Json]]) -> None:
        """Save the state of the current loop with the results of the finished ones, as `Checkpoints.offer` does."""

        def whole() -> tuple[dict[str, torch.Tensor], Json]:
            tensors, values = state()
            kept = {f"loop.{name}": tensor for name, tensor in tensors.items()}
            for index, (weights, _) in enumerate(self.finished):
                kept |= {f"finished-{index}.{name}": tensor for name, tensor in weights.items()}
            return kept, {"loop": values, "finished": [rows for _, rows in self.finished]}

        self._checkpoints.offer(whole)


def _below(tensors: dict[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def _digest(tensors: dict[str, torch.Tensor], values: Json) -> str:
    """Return the sha256 of a checkpoint's content, which is stored in its metadata."""
    from ...storage.tensor_files import encode_safetensors

    return hashlib.sha256(encode_safetensors(tensors, values)).hexdigest()
