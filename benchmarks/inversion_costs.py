"""Time of an inversion step, and the part of it outside of the teacher: `python benchmarks/inversion_costs.py`.

The teachers are untrained; a batch has 256 images; the loss has all terms of DeepInversion. The teacher's part is a
forward pass and the gradient with respect to the images. Whole steps and that part are measured alternately; times are
medians of several repetitions. `--device cuda --precision bf16 --compile` measures on a GPU. Run it on an idle machine.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch

from kdextract.models.architectures import architecture
from kdextract.models.classifier import Classifier, ClassifierSpec
from kdextract.synthesis.inversion.deep_inversion import PixelSchedule, TermWeights, invert

REPETITIONS = 7
STEPS = 10
BATCH = 256


def seconds(call: Callable[[], object], device: torch.device) -> float:
    """Return how many seconds a call takes, including the kernels that it starts on a GPU."""
    started = time.perf_counter()
    call()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - started


def measure(model: str, device: torch.device, precision: torch.dtype | None, compiled: bool) -> tuple[float, float]:
    """Return the milliseconds of a step, and of the teacher's part of it."""
    torch.manual_seed(0)
    shape = architecture(model).input_shape
    spec = ClassifierSpec(model, shape, tuple("0123456789"), (0.5,) * shape[0], (0.25,) * shape[0])
    teacher = Classifier(spec).frozen().placed(device, precision, compiled)
    labels = torch.arange(BATCH) % 10
    weights = TermWeights(ce=1.0, tv=2.5e-5, tv_l1=0.0, l2=3e-8, bn=10.0)
    schedule = PixelSchedule(steps=STEPS, lr=0.05, betas=(0.9, 0.999), jitter=2)
    pixels = torch.rand((BATCH, *shape), device=device).contiguous(memory_format=torch.channels_last)
    pixels.requires_grad_(True)
    upstream = torch.rand((BATCH, 10), device=device)

    def teacher_alone() -> None:
        for _ in range(STEPS):
            torch.autograd.grad(teacher(pixels), pixels, upstream)

    def steps() -> None:
        invert(teacher, None, None, labels, weights, schedule, torch.Generator().manual_seed(0))

    teacher_alone(), steps()
    pairs = [(seconds(steps, device), seconds(teacher_alone, device)) for _ in range(REPETITIONS)]
    step, part = (1000 * statistics.median(times) / STEPS for times in zip(*pairs, strict=True))
    return step, part


def main() -> None:
    """Measure each teacher and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("models", nargs="*", default=["lenet5_bn", "resnet14"])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--precision", choices=["fp32", "bf16"], default="fp32")
    parser.add_argument("--compile", action="store_true")
    given = parser.parse_args()
    precision = torch.bfloat16 if given.precision == "bf16" else None
    print(f"{given.device}, {given.precision}, {torch.get_num_threads()} threads, batches of {BATCH}\n")
    print(
        "| teacher | ms per step | teacher alone | outside, % | image-steps per second | images per second, 60 steps |"
    )
    print("|---|--:|--:|--:|--:|--:|")
    for model in given.models:
        step, part = measure(model, torch.device(given.device), precision, given.compile)
        rate = 1000 * BATCH / step
        print(f"| `{model}` | {step:.1f} | {part:.1f} | {100 * (1 - part / step):.0f} | {rate:.0f} | {rate / 60:.1f} |")


if __name__ == "__main__":
    main()
