"""What the attempts at one stage have cost together, kept beside its checkpoint until the stage is done."""

from __future__ import annotations

import json
import platform
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...storage.artifacts import write_file

if TYPE_CHECKING:
    import torch

ATTEMPTS_FILE = "attempts.json"


@dataclass
class Attempts:
    """Costs of `number` attempts: `seconds` by phase, `queries` (images that the teacher was shown) by purpose.

    `memory` is the most MB (10^6 bytes) that any of them held, by kind: `host`, `gpu`. Of an attempt that was killed
    it holds what had been spent at its last checkpoint.
    """

    number: int = 0
    seconds: dict[str, float] = field(default_factory=dict)
    queries: dict[str, int] = field(default_factory=dict)
    memory: dict[str, int] = field(default_factory=dict)

    @classmethod
    def read(cls, directory: Path) -> Attempts:
        """Return what earlier attempts have cost; nothing where there were none, or where the file is damaged."""
        try:
            return cls(**json.loads((directory / ATTEMPTS_FILE).read_bytes()))
        except (OSError, ValueError, TypeError):
            return cls()

    def write(self, directory: Path) -> None:
        """Keep the costs beside the checkpoint."""
        write_file(directory / ATTEMPTS_FILE, json.dumps(asdict(self)).encode())

    def with_one_more(self, seconds: dict[str, float], queries: dict[str, int], memory: dict[str, int]) -> Attempts:
        """Return the costs of these attempts and of one more."""
        return Attempts(
            self.number + 1,
            {name: self.seconds.get(name, 0.0) + seconds.get(name, 0.0) for name in (self.seconds | seconds)},
            {name: self.queries.get(name, 0) + queries.get(name, 0) for name in (self.queries | queries)},
            {name: max(self.memory.get(name, 0), memory.get(name, 0)) for name in (self.memory | memory)},
        )

    def record(self, earlier: Attempts) -> dict[str, Any]:
        """Return what a manifest's `budget` says of these costs, those of `earlier` attempts being part of them."""
        budget: dict[str, Any] = {"seconds": {name: round(seconds, 2) for name, seconds in self.seconds.items()}}
        if earlier.number:
            budget["seconds"]["earlier_attempts"] = round(earlier.seconds.get("total", 0.0), 2)
        budget["attempts"] = self.number
        if self.queries:
            budget |= {"teacher_queries": sum(self.queries.values()), "teacher_queries_by_purpose": self.queries}
        names = {"host": "peak_memory_mb", "gpu": "peak_gpu_memory_mb"}
        return budget | {names[kind]: amount for kind, amount in self.memory.items()}


def forget_peak_memory(device: torch.device) -> None:
    """Let a GPU's peak memory be that of what begins now."""
    import torch

    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def peak_bytes() -> int:
    """Return the most bytes of memory that the process has held so far.

    On Linux it is the process's own high-water mark: `getrusage` also counts what the process that started it held.
    """
    import resource

    status = Path("/proc/self/status")
    if status.is_file():
        marks = [line.split()[1] for line in status.read_text().splitlines() if line.startswith("VmHWM:")]
        if marks:
            return int(marks[0]) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak * (1024 if platform.system() == "Linux" else 1)


def peak_memory(device: torch.device) -> dict[str, int]:
    """Return the most MB (10^6 bytes) that the process has held so far and, on a GPU, that its tensors have."""
    import torch

    memory = {"host": round(peak_bytes() / 1e6)}
    if device.type == "cuda":
        memory["gpu"] = round(torch.cuda.max_memory_allocated(device) / 1e6)
    return memory
