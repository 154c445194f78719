"""Time of a training step of generators, for generator and teacher: `python benchmarks/generator_costs.py`.

A fresh `lenet5` as teacher, batches of 128 images of 32x32 pixels, each way to train generators with its own defaults,
and the published networks beside them. Milliseconds, minimum of several repetitions; run it on an idle machine.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import torch

from kdextract.methods import generator_method
from kdextract.models.classifier import Classifier, ClassifierSpec
from kdextract.models.hooks import count_multiply_adds
from kdextract.synthesis.generators.training import GeneratorTraining, multiply_adds

REPETITIONS = 12
WAYS = {
    "kegnet": ("kegnet", {}),
    "kegnet --network strided --width 16": ("kegnet", {"network": "strided", "width": 16}),
    "dafl": ("dafl", {}),
    "dafl --width 64": ("dafl", {"width": 64}),
    "keflow --flow nice": ("keflow", {"flow": "nice"}),
    "keflow": ("keflow", {}),
    "keflow --width 1500": ("keflow", {"width": 1500}),
    "keflow --flow realnvp": ("keflow", {"flow": "realnvp"}),
    "keflow --flow glow": ("keflow", {"flow": "glow"}),
}
"""Command line -> method and options."""


def best(call: Callable[[], object]) -> float:
    """Return the minimum time of a call, in milliseconds."""
    times = []
    for _ in range(REPETITIONS):
        started = time.perf_counter()
        call()
        times.append(1000 * (time.perf_counter() - started))
    return min(times)


def parts(teacher: Classifier, training: GeneratorTraining) -> tuple[float, float, float]:
    """Return the milliseconds of a generator's and of the teacher's forward and backward pass, and of a whole step."""
    training.network.train()
    noise, labels = training.draws.next()
    images = training.generator(noise, labels).detach().requires_grad_(True)

    def generator() -> None:
        training.generator(noise, labels).sum().backward()

    def frozen_teacher() -> None:
        teacher(images).sum().backward()

    return best(generator), best(frozen_teacher), best(lambda: training.loss().backward())


def main() -> None:
    """Print the table."""
    torch.manual_seed(0)
    teacher = Classifier(ClassifierSpec("lenet5", (1, 32, 32), tuple("0123456789"), (0.13,), (0.31,))).frozen()
    teacher.placed(torch.device("cpu"))
    cost = count_multiply_adds(teacher.network, torch.zeros(1, 1, 32, 32))
    print(f"teacher: {cost:,} multiply-adds per image; {torch.get_num_threads()} threads\n")
    print("| trained by | multiply-adds | generator ms | teacher ms | step ms |")
    print("|---|--:|--:|--:|--:|")
    for spelled, (name, options) in WAYS.items():
        method = generator_method(name)
        training = method.build_training(teacher, method.config(**options), 0, None)
        figures = " | ".join(f"{value:.1f}" for value in parts(teacher, training))
        print(f"| `{spelled}` | {multiply_adds(training.generator.spec):,} | {figures} |")


if __name__ == "__main__":
    main()
