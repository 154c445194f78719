"""How many steps of `kdx distill` fit into `--budget`: by trial steps, and by measuring what follows the loop."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from ...models.queries import TRIAL
from ...training.budget import AIM, CLOSING_SECONDS, MOST_TRIAL, TRIAL_SHARE, TRIAL_STEPS, Costs, StepTimes
from ...training.progress import Reporter
from ..outputs.transfer_set import PICTURED_IMAGES

if TYPE_CHECKING:
    from ...models.classifier import Classifier
    from ...training.loop import Monitor
    from ...training.observer import Probe
    from ...training.sources import Source
    from ..running.runner import StageContext

MEASURED_IMAGES, MEASUREMENTS = 250, 2
"""So many images are given to both networks, so many times, to measure the time per image of what is not trained."""
EVALUATION_ROUNDS = 3
"""So many times, the number of evaluations is computed from the number of steps, and the other way round."""

Take = Callable[["Classifier", int, "NoCheckpoints", Reporter, "Monitor[Classifier]"], Any]


class NoCheckpoints:
    """A `CheckpointSaver` that saves nothing."""

    def load(self) -> None:
        """Return None: there is no checkpoint."""

    def offer(self, state: Callable[[], Any]) -> None:
        """Save nothing."""


def plan_steps(
    budget: float,
    take: Take,
    source: Source,
    teacher: Classifier,
    student: Classifier,
    probe: Probe,
    batch_size: int,
    estimates: bool,
    evaluations: Callable[[int], int],
    context: StageContext,
) -> dict[str, float]:
    """Return the number of `steps` that fit into the budget, and the seconds of the work after them, `closing`.

    Student, source and random state are not changed. The trial takes less than `MOST_TRIAL` of the budget, unless its
    first step alone takes more; then one line says so.

    Args:
        budget: seconds of the whole stage.
        take: trains a student for a number of steps, with a monitor.
        probe: the held-out images on which the student is evaluated.
        batch_size: images per step.
        estimates: whether the student's accuracy will be estimated.
        evaluations: returns the number of evaluations of the student during a number of steps.
    """
    from ...training.loop import random_states, set_random_states
    from ...training.observer import TRAINING_COST

    began, state, random = time.monotonic(), source.state(), random_states(teacher.device)
    with teacher.queries.purpose(TRIAL):
        times, extra = _try_steps(budget, take, source, student.copy())
        left = MOST_TRIAL * budget - (time.monotonic() - began)
        answer = times.usual / (TRAINING_COST * batch_size)
        made = looked = answer
        if left > 2 * (TRAINING_COST + 1) * MEASURED_IMAGES * MEASUREMENTS * answer:
            made, looked = _seconds_per_image(teacher, student, probe, estimates)
        source.restore(state)
    set_random_states(random, teacher.device)
    if len(times.times) == 1 and times.times[0] > MOST_TRIAL * budget:
        context.reporter.line(
            f"--budget {budget:g}s: one step takes {times.times[0]:.1f} s, more than 5 % of the budget"
        )
    if context.elapsed > budget:
        context.reporter.line(f"--budget {budget:g}s: {context.elapsed:.0f} s passed before the first step")
    evaluation = looked * len(probe.images)
    closing = CLOSING_SECONDS + evaluation + PICTURED_IMAGES * made
    left = AIM * budget - context.elapsed
    costs = Costs(times.usual + extra, evaluation, closing)
    steps = _fitting_steps(costs, left, evaluations)
    if estimates:
        closing += _estimate_seconds(steps * batch_size, made, looked)
        steps = _fitting_steps(replace(costs, closing=closing), left, evaluations)
    return {"steps": steps, "closing": closing}


def _fitting_steps(costs: Costs, seconds: float, evaluations: Callable[[int], int]) -> int:
    """Return how many steps fit into the seconds, with the evaluations that there are during so many steps."""
    from ...training.observer import NUM_EVALUATIONS

    steps = costs.steps_within(seconds, NUM_EVALUATIONS)
    for _ in range(EVALUATION_ROUNDS):
        steps = costs.steps_within(seconds, evaluations(steps))
    return steps


def _try_steps(budget: float, take: Take, source: Source, trial: Classifier) -> tuple[StepTimes, float]:
    """Return the times of trial steps, and the seconds per step that are added by batches the source makes at times.

    No such batch is made in the trial, because it may take longer than the whole trial; the source reports the seconds
    of its last one.
    """
    from ...training.sources import Batched

    most, extra = TRIAL_STEPS, 0.0
    if isinstance(source, Batched) and source.period > 1:
        most, extra = min(most, source.period - 1), source.batch_seconds / source.period
    times = StepTimes(TRIAL_SHARE * budget, most)
    take(trial, TRIAL_STEPS, NoCheckpoints(), Reporter(quiet=True), times)
    return times, extra


def _seconds_per_image(teacher: Classifier, student: Classifier, probe: Probe, estimates: bool) -> tuple[float, float]:
    """Return the seconds per image of making an image with the teacher's class, and of the student's prediction.

    Each is the minimum of several measurements, so that other work on the machine changes it little.
    """
    import torch

    from ...models.pixels import to_uint8
    from ...synthesis.structured_noise.by_class import maker
    from ...training.observer import Probe
    from ...training.supervised import predict

    images, made, looked = probe.images[:MEASURED_IMAGES], [], []
    for seed in range(MEASUREMENTS):
        began = time.monotonic()
        if estimates:
            images = to_uint8(maker(teacher)(MEASURED_IMAGES, torch.Generator().manual_seed(seed)))
        answers = predict(teacher, images).argmax(1)
        answered = time.monotonic()
        Probe(images, answers, None).agreement(student)
        made.append(answered - began)
        looked.append(time.monotonic() - answered)
    return min(made) / len(images), min(looked) / len(images)


def _estimate_seconds(images_seen: int, made: float, looked: float) -> float:
    from ...synthesis.estimate import DRAWN, compared

    return compared(images_seen) * (DRAWN * made + looked)
