"""Time of distillation steps on a GPU: `python benchmarks/gpu_steps.py [--teacher NAME] [--student NAME] [--json]`.

For every live method and precision, it prints milliseconds per step, images per second, the share of the time in which
no kernel runs, how often per step the CPU waits for the GPU, and the lines of code that cause most of these waits. The
networks are untrained; their steps take the same time as those of trained networks. It needs no data. Run it on an idle
machine.
"""

from __future__ import annotations

import argparse
import json
import time
import warnings
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from kdextract.methods import Given, live_method, live_names
from kdextract.models.architectures import architecture
from kdextract.models.classifier import Classifier, ClassifierSpec
from kdextract.options.declare import option_fields
from kdextract.stages.distill.budget import NoCheckpoints
from kdextract.synthesis.statistics.recorded import StatisticsOptions, compute_statistics
from kdextract.training.augmentation import Augmenter
from kdextract.training.distill import DistillationLossOptions, DistillationOptions, distill
from kdextract.training.loop import Schedule
from kdextract.training.progress import Reporter

SMALL = {"pool": 2000, "pixel_steps": 20}
"""Values of options that shorten the preparation of a method, for the methods that have these options. The time to
invert images is not measured here but by `inversion_costs.py`."""
PRECISIONS = {"fp32": (None, False), "bf16": (torch.bfloat16, False), "bf16, compiled": (torch.bfloat16, True)}


def steps_of(
    name: str, teacher_name: str, student_name: str, precision: str, batch_size: int, device: torch.device
) -> Callable[[int], None]:
    """Return a function that runs N steps of a method with networks of this precision."""
    torch.manual_seed(0)
    shape = architecture(teacher_name).input_shape
    spec = ClassifierSpec(teacher_name, shape, tuple("0123456789"), (0.45,) * shape[0], (0.25,) * shape[0])
    dtype, compiled = PRECISIONS[precision]
    teacher = Classifier(spec).placed(device, dtype, compiled).frozen()
    student = Classifier(replace(spec, architecture=student_name)).placed(device, dtype, compiled)
    method = live_method(name)
    known = {declared.name for declared in option_fields(method.config)}
    statistics = None
    if method.matches_batch_norm:
        images = torch.randint(0, 256, (200, *shape), dtype=torch.uint8)
        labels, options = torch.arange(200) % 10, StatisticsOptions(4096, 4, None)
        statistics = compute_statistics(teacher, images, labels, options, lambda amount: None).to(device)
    config = method.config(**{option: value for option, value in SMALL.items() if option in known})
    source = method.open_source(Given(teacher, statistics), config, 0)

    def take(steps: int) -> None:
        schedule = Schedule(steps, 1e-3, optimizer="soap")
        options = DistillationOptions(
            batch_size, schedule, DistillationLossOptions("kl", 4.0, True), Augmenter(2, True, 0.0, 0)
        )
        distill(teacher, student, source, options, NoCheckpoints(), Reporter(quiet=True))
        torch.cuda.synchronize(device)

    return take


def synchronizations(take: Callable[[int], None], steps: int) -> Counter[str]:
    """Return, for each line of kdx, how often it made the CPU wait for the GPU during these steps."""
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            take(steps)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    waits = (each for each in caught if "synchronizing CUDA operation" in str(each.message))
    return Counter(f"{Path(each.filename).name}:{each.lineno}" for each in waits)


def measure(take: Callable[[int], None], steps: int, batch_size: int) -> dict[str, Any]:
    """Return the measurements of one method and precision."""
    take(steps)  # not measured: compilation, first calls of libraries
    started = time.perf_counter()
    take(steps)
    seconds = time.perf_counter() - started
    with profile(activities=[ProfilerActivity.CUDA]) as profiled:
        take(steps)
    in_kernels = sum(event.self_device_time_total for event in profiled.key_averages()) / 1e6
    waits = synchronizations(take, steps)
    return {
        "ms per step": round(1000 * seconds / steps, 2),
        "images per second": round(steps * batch_size / seconds),
        "outside kernels": round(max(0.0, 1 - in_kernels / seconds), 3),
        "waits per step": round(sum(waits.values()) / steps, 1),
        "lines that wait": {line: round(count / steps, 2) for line, count in waits.most_common(6)},
        "peak GPU MB": round(torch.cuda.max_memory_allocated() / 1e6),
    }


def main() -> None:
    """Measure the methods and print one row for each, or one JSON document."""
    parser = argparse.ArgumentParser(description="Time of distillation steps on a GPU.")
    parser.add_argument("--teacher", default="resnet34")
    parser.add_argument("--student", default="resnet18")
    parser.add_argument("--methods", nargs="*", default=live_names())
    parser.add_argument("--precisions", nargs="*", default=list(PRECISIONS), choices=list(PRECISIONS))
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    device = torch.device("cuda")
    rows = []
    for name in given.methods:
        for precision in given.precisions:
            torch.cuda.reset_peak_memory_stats()
            take = steps_of(name, given.teacher, given.student, precision, given.batch_size, device)
            rows.append({"method": name, "precision": precision, **measure(take, given.steps, given.batch_size)})
            if not given.json:
                print(rows[-1], flush=True)
    if given.json:
        print(json.dumps({"device": torch.cuda.get_device_name(), "torch": torch.__version__, "rows": rows}, indent=2))


if __name__ == "__main__":
    main()
