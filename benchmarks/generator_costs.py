"""Time of a training step of generators, and of its two networks: `python benchmarks/generator_costs.py`.

The teacher is an untrained `lenet5`; a batch has 128 images of 32x32 pixels. Each method is measured with its defaults,
and some with the networks of their papers. Times are in milliseconds, the minimum of several repetitions. Run it on an
idle machine.
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
"""Arguments of `kdx train-generator` -> method and options."""


def best(call: Callable[[], object]) -> float:
    """Return the minimum time of a call, in milliseconds."""
    times = []
    for _ in range(REPETITIONS):
        started = time.perf_counter()
        call()
        times.append(1000 * (time.perf_counter() - started))
    return min(times)


def parts(teacher: Classifier, training: GeneratorTraining) -> tuple[float, float, float]:
    """Return the milliseconds of a forward and backward pass of generator and teacher, and of a whole training step."""
    training.network.train()
    noise, labels = training.draws.next()
    images = training.generator(noise, labels).detach().requires_grad_(True)

    def generator() -> None:
        training.generator(noise, labels).sum().backward()

    def frozen_teacher() -> None:
        teacher(images).sum().backward()

    return best(generator), best(frozen_teacher), best(lambda: training.loss().backward())


def main() -> None:
    """Measure each method and print the table."""
    torch.manual_seed(0)
    teacher = Classifier(ClassifierSpec("lenet5", (1, 32, 32), tuple("0123456789"), (0.13,), (0.31,))).frozen()
    teacher.placed(torch.device("cpu"))
    cost = count_multiply_adds(teacher.network, torch.zeros(1, 1, 32, 32))
    print(f"teacher: {cost:,} multiply-adds per image; {torch.get_num_threads()} threads\n")
    print("| method | multiply-adds | generator ms | teacher ms | step ms |")
    print("|---|--:|--:|--:|--:|")
    for spelled, (name, options) in WAYS.items():
        method = generator_method(name)
        training = method.build_training(teacher, method.config(**options), 0, None)
        figures = " | ".join(f"{value:.1f}" for value in parts(teacher, training))
        print(f"| `{spelled}` | {multiply_adds(training.generator.spec):,} | {figures} |")


if __name__ == "__main__":
    main()
