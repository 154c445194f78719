"""Checkpoints of an unfinished stage, and the signals that ask it to stop."""

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
    """Saves and restores the state of an unfinished stage. One checkpoint is kept, replaced atomically.

    `saved` is called after each time that it was saved.
    """

    def __init__(self, directory: Path) -> None:
        self._directory, self._path = directory, directory / CHECKPOINT_FILE
        self._last = time.monotonic()
        self._stop_signal: int | None = None
        self._deferring = False
        self.saved: Callable[[], None] = lambda: None

    def load(self) -> tuple[dict[str, torch.Tensor], Json] | None:
        """Return (tensors, values) of the last checkpoint, or None; a damaged one counts as none."""
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
        """Save `state()` when it is time to: every few seconds, or now if the process was told to stop.

        Raises:
            Interrupted: the process was told to stop; the state is saved.
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
        """Return `decide()`, or what it returned before an interruption: for what depends on the clock."""
        path = self._directory / f"{name}.json"
        if path.exists():
            decided: Json = json.loads(path.read_bytes())
            return decided
        value = decide()
        write_file(path, json.dumps(value).encode())
        return value

    def once_tensor(self, name: str, make: Callable[[], torch.Tensor]) -> torch.Tensor:
        """Return `make()`, or what it returned before an interruption, on the CPU: for what takes long to make."""
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
        """While the block runs, a signal waits for the next `offer`, so that the state it saves is whole."""
        self._deferring = True
        try:
            yield
        finally:
            self._deferring = False

    def stop(self, signal_number: int, frame: FrameType | None) -> None:
        """Signal handler: stop at the next `offer` inside `loop`, at once elsewhere or when asked twice."""
        if not self._deferring or self._stop_signal is not None:
            raise Interrupted(signal_number)
        self._stop_signal = signal_number


class SequentialCheckpoints:
    """Checkpoints of a stage that runs several loops one after the other: a `training.CheckpointSaver` of each of them.

    `finished` holds (weights, metric rows) of the loops that are done, those from before an interruption included.
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
        """The loop at work is done, and this is what it has made; copied."""
        self.finished.append(({name: tensor.clone() for name, tensor in weights.items()}, rows))
        self._current = None

    def load(self) -> tuple[dict[str, torch.Tensor], Json] | None:
        """Return what the loop at work saved last, None if it only begins."""
        return self._current

    def offer(self, state: Callable[[], tuple[dict[str, torch.Tensor], Json]]) -> None:
        """Save the state of the loop at work, with what the others have made, if it is time to."""

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
    """Sha256 of a checkpoint's content, kept in its metadata."""
    from ...storage.tensor_files import encode_safetensors

    return hashlib.sha256(encode_safetensors(tensors, values)).hexdigest()
