"""The costs of all attempts at a stage, stored beside its checkpoint until the stage is done."""

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
    """Costs of `number` attempts: `seconds` by phase, `queries` (images that the teacher was given) by purpose.

    `memory` is the maximum over the attempts in MB (10^6 bytes), by kind: `host`, `gpu`. Of an attempt that was killed,
    the costs up to its last checkpoint are included.
    """

    number: int = 0
    seconds: dict[str, float] = field(default_factory=dict)
    queries: dict[str, int] = field(default_factory=dict)
    memory: dict[str, int] = field(default_factory=dict)

    @classmethod
    def read(cls, directory: Path) -> Attempts:
        """Return the costs of earlier attempts; zero if there were none, or if the file is damaged."""
        try:
            return cls(**json.loads((directory / ATTEMPTS_FILE).read_bytes()))
        except (OSError, ValueError, TypeError):
            return cls()

    def write(self, directory: Path) -> None:
        """Store the costs beside the checkpoint."""
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
        """Return the entries of a manifest's `budget` for these costs, which include those of `earlier` attempts."""
        budget: dict[str, Any] = {"seconds": {name: round(seconds, 2) for name, seconds in self.seconds.items()}}
        if earlier.number:
            budget["seconds"]["earlier_attempts"] = round(earlier.seconds.get("total", 0.0), 2)
        budget["attempts"] = self.number
        if self.queries:
            budget |= {"teacher_queries": sum(self.queries.values()), "teacher_queries_by_purpose": self.queries}
        names = {"host": "peak_memory_mb", "gpu": "peak_gpu_memory_mb"}
        return budget | {names[kind]: amount for kind, amount in self.memory.items()}


def reset_peak_memory(device: torch.device) -> None:
    """Start the measurement of a GPU's peak memory again."""
    import torch

    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def peak_bytes() -> int:
    """Return the peak memory of the process so far, in bytes.

    On Linux it is read from /proc, because `getrusage` also counts the memory of the process that started this one.
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
    """Return the peak memory of the process and, on a GPU, of its tensors so far, in MB (10^6 bytes)."""
    import torch

    memory = {"host": round(peak_bytes() / 1e6)}
    if device.type == "cuda":
        memory["gpu"] = round(torch.cuda.max_memory_allocated(device) / 1e6)
    return memory
