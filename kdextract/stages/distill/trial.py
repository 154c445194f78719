"""The trial of `--method auto`: copies of the student learn from the images of each method that fits the teacher.

The method whose copy agrees most with the teacher is used. Agreement is measured on held-out images of all methods
together, since a student is best at images of the kind that it learned from. All methods get as many seconds, so a
method whose images cost more takes fewer steps.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from ...models.queries import TRIAL
from ...options.declare import option_fields
from ...training.progress import Reporter
from ..inputs.image_source import ImageSource, LiveImages
from .budget import NoCheckpoints

if TYPE_CHECKING:
    from ...models.classifier import Classifier
    from ...training.observer import Probe
    from ...training.sources import Source
    from ..running.runner import StageContext
    from .config import DistillConfig
    from .loop import Loop

LEAST_SECONDS = 10.0
"""There is no trial if all methods together would get less."""
MOST_TO_OPEN = 0.6
"""Share of the time in which the sources of the other methods must be open."""
POOL, HELD_OUT, MEASURED_STEPS, FEWEST_STEPS = 512, 200, 2, 4
"""Images of the pool of each method in a trial; held-out images of each method; steps that measure how long a step
takes; least number of steps of each copy."""

Json = dict[str, Any]


@dataclass(frozen=True)
class Trial:
    """What a trial needs besides the sources of images.

    Attributes:
        config: with it, sources are opened.
        teacher: gives the targets.
        student: the initial student; it is copied.
        loop: returns the distillation loop of a source.
        prepare: called with a copy of the student and the source that it will learn from.
        seconds: of the trial, without opening the images of the usual method.
    """

    config: DistillConfig
    teacher: Classifier
    student: Classifier
    loop: Callable[[ImageSource, Source], Loop]
    prepare: Callable[[Classifier, Source], None]
    seconds: float


def choose_by_trial(images: LiveImages, trial: Trial, context: StageContext) -> tuple[LiveImages, Json]:
    """Return the images of the best method, and the figures of the trial: {method: {agreement, steps}}, or {}.

    `images` are returned if there is no time for a trial, or no method is better by two standard errors. Random states
    are not changed. What a trial found is kept for a stage that is resumed.
    """
    from ...training.loop import random_states, set_random_states

    if trial.seconds < LEAST_SECONDS:
        return images, {}
    random = random_states(trial.teacher.device)
    with context.phase("trial"), trial.teacher.queries.purpose(TRIAL):
        found = context.checkpoints.once("method", lambda: _found(images, trial, context))
    set_random_states(random, trial.teacher.device)
    if not found:
        context.reporter.line(
            f"--method auto: {trial.seconds:.0f} s, 5 % of the budget, are too few for a trial of methods"
        )
        return images, {}
    chosen = max((images, *images.others), key=lambda one: found[one.name]["agreement"])
    first, best = (found[one.name]["agreement"] for one in (images, chosen))
    if best - first <= 2 * _standard_error(first, HELD_OUT * len(found)):
        chosen = images
    shown = [f"{name} {100 * one['agreement']:.1f} % ({one['steps']} steps)" for name, one in found.items()]
    why = "no other student was better in a trial by two standard errors"
    if best == first:
        why = "its student was the best in a trial"
    elif chosen is not images:
        why = "its student was better than that of the usual method in a trial"
    reason = f"{why}; agreement on held-out images of all methods: {', '.join(shown)}"
    return replace(chosen, reason=reason), found


def _found(images: LiveImages, trial: Trial, context: StageContext) -> Json:
    """Return the agreement and the steps of each method; {} if there is not enough time."""
    opened: list[tuple[LiveImages, Source]] = []
    probes: list[Probe] = []
    ends = math.inf
    for one in (images, *images.others):
        opened.append((one, _small(one).open(trial.config, trial.teacher, context)))
        probes.append(_probe(trial.teacher, opened[-1][1]))
        if one is images:  # what takes longest, fitting a mixture, is not repeated when the method itself is opened
            ends = time.monotonic() + trial.seconds
        if ends - time.monotonic() < (1 - MOST_TO_OPEN) * trial.seconds:
            return {}
    found: Json = {}
    for place, (one, source) in enumerate(opened):
        copy = trial.student.copy()
        trial.prepare(copy, source)
        loop = trial.loop(one, source)
        _take(loop, trial.student.copy(), 1)
        began = time.monotonic()
        _take(loop, trial.student.copy(), MEASURED_STEPS)
        step = (time.monotonic() - began) / MEASURED_STEPS
        steps = math.floor((ends - time.monotonic()) / (len(opened) - place) / step)
        if steps < FEWEST_STEPS:
            return {}
        _take(loop, copy, steps)
        agreement = sum(probe.agreement(copy) for probe in probes) / len(probes)
        found[one.name] = {"agreement": round(agreement, 6), "steps": steps}
    return found


def _small(images: LiveImages) -> LiveImages:
    """Return the images with a small pool, if the method has one."""
    names = {declared.name for declared in option_fields(images.options)}
    return replace(images, options=replace(images.options, pool=POOL)) if "pool" in names else images


def _probe(teacher: Classifier, source: Source) -> Probe:
    """Return held-out images of a source with the classes that the teacher predicts."""
    from ...training.observer import Probe
    from ...training.supervised import predict

    held_out = source.held_out(HELD_OUT)
    return Probe(held_out, predict(teacher, held_out).argmax(1), None)


def _take(loop: Loop, student: Classifier, steps: int) -> None:
    loop.run(student, steps, NoCheckpoints(), Reporter(quiet=True))


def _standard_error(share: float, count: int) -> float:
    return math.sqrt(max(share * (1 - share), 1 / count) / count)
