"""Time of the parts of the distillation loop: `python benchmarks/loop_shares.py [--steps 400] [--json]`.

Runs the loop of `kdx distill --method structured_noise` on untrained networks, whose steps take the same time as those
of trained networks, and measures the functions that the loop calls. It needs no data. Run it on an idle machine.
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import optim

from kdextract.methods import Given, live_method
from kdextract.models.architectures import architecture
from kdextract.models.classifier import Classifier, ClassifierSpec
from kdextract.stages.distill.budget import NoCheckpoints
from kdextract.stages.inputs.distill_settings import CONVOLUTION_RATE
from kdextract.synthesis.structured_noise.pool import RefreshedPool
from kdextract.training import loop as training
from kdextract.training.augmentation import Augmenter
from kdextract.training.distill import DistillationLossOptions, DistillationOptions, distill
from kdextract.training.loop import Schedule
from kdextract.training.observer import HELD_OUT_IMAGES, Observer, Probe
from kdextract.training.progress import Reporter

PAIRS = [("lenet5", "lenet5_half"), ("lenet", "lenet_half"), ("hinton1200", "hinton800"), ("resnet34", "resnet18")]
NETWORKS = ("student forward", "student backward", "teacher forward")
BATCH_SIZE = 128


class Clock:
    """Adds up the seconds of calls by name; the time of a nested call does not count for the outer call."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self._open: list[list[Any]] = []

    def timed(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """Return the function, with its calls measured."""

        def call(*args: Any, **kwargs: Any) -> Any:
            self._open.append([time.perf_counter(), 0.0])
            try:
                return function(*args, **kwargs)
            finally:
                started, inside = self._open.pop()
                taken = time.perf_counter() - started
                self.seconds[name] += taken - inside
                if self._open:
                    self._open[-1][1] += taken

        return call


def measure(teacher_name: str, student_name: str, steps: int) -> dict[str, float]:
    """Return milliseconds per step for each part of the loop, and `total`."""
    shape = architecture(teacher_name).input_shape
    spec = ClassifierSpec(teacher_name, shape, tuple("0123456789"), (0.13,) * shape[0], (0.31,) * shape[0])
    cpu = torch.device("cpu")
    teacher = Classifier(spec).placed(cpu).frozen()
    student = Classifier(replace(spec, architecture=student_name)).placed(cpu)
    method = live_method("structured_noise")
    source = method.open_source(Given(teacher), method.config(), 0)
    assert isinstance(source, RefreshedPool)
    observer = Observer(Probe.of(teacher, source.held_out(HELD_OUT_IMAGES)), steps, None, 0)
    clock = Clock()
    kept = torch.Tensor.backward, training.OPTIMIZERS["soap"], RefreshedPool.sample, RefreshedPool.update
    make = source._make
    teacher.forward = clock.timed("teacher forward", teacher.forward)  # type: ignore[method-assign]
    student.forward = clock.timed("student forward", student.forward)  # type: ignore[method-assign]
    torch.Tensor.backward = clock.timed("student backward", kept[0])  # type: ignore[method-assign]
    source._make = clock.timed("making images", make)
    RefreshedPool.sample = clock.timed("drawing batches", kept[2])  # type: ignore[method-assign]
    RefreshedPool.update = clock.timed("sorting images", kept[3])  # type: ignore[method-assign]
    observer.on_step = clock.timed("held-out evaluation", observer.on_step)  # type: ignore[method-assign]

    def watched(parameters: Any, schedule: Schedule) -> optim.Optimizer:
        optimizer = kept[1](parameters, schedule)
        optimizer.step = clock.timed("optimizer", optimizer.step)  # type: ignore[method-assign]
        return optimizer

    training.OPTIMIZERS["soap"] = watched
    loss = DistillationLossOptions("kl", 8.0, True)
    schedule = Schedule(steps, CONVOLUTION_RATE, warmup=steps // 20, optimizer="soap")
    try:
        started = time.perf_counter()
        options = DistillationOptions(BATCH_SIZE, schedule, loss, Augmenter(0, False, 0.0, 1))
        distill(teacher, student, source, options, NoCheckpoints(), Reporter(quiet=True), observer)
        total = time.perf_counter() - started
    finally:
        torch.Tensor.backward, training.OPTIMIZERS["soap"] = kept[:2]  # type: ignore[method-assign]
        RefreshedPool.sample, RefreshedPool.update = kept[2:]  # type: ignore[method-assign]
    spent = {**clock.seconds, "rest": total - sum(clock.seconds.values())}
    return {name: 1000 * seconds / steps for name, seconds in (*spent.items(), ("total", total))}


def main() -> None:
    """Measure the pairs and print the table, or one JSON document."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--pairs", type=int, default=3, help="number of pairs to measure, smallest first")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    measure(*PAIRS[0], 20)  # warm-up: imports, choice of kernels
    measured = {f"{t} -> {s}": measure(t, s, options.steps) for t, s in PAIRS[: options.pairs]}
    if options.json:
        about = {"torch": torch.__version__, "threads": torch.get_num_threads(), "platform": platform.platform()}
        print(json.dumps({**about, "milliseconds_per_step": measured}, indent=2))
        return
    parts = [*NETWORKS, *sorted({name for row in measured.values() for name in row} - {*NETWORKS, "total"}), "total"]
    print("| ms per step of 128 images | " + " | ".join(measured) + " |")
    print("|---" * (len(measured) + 1) + "|")
    for part in parts:
        print(f"| {part} | " + " | ".join(f"{row.get(part, 0):.2f}" for row in measured.values()) + " |")
    outside = [1 - sum(row[name] for name in NETWORKS) / row["total"] for row in measured.values()]
    print("| outside the networks | " + " | ".join(f"{100 * share:.0f} %" for share in outside) + " |")


if __name__ == "__main__":
    main()
