"""The loop that takes optimizer steps, its schedule of learning rates, and its checkpoints."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any, Protocol, TypeVar

import torch
from torch import nn

from ..errors import DivergedError
from .budget import Replan
from .progress import Reporter
from .soap import Soap
from .sources import State, Tensors, with_prefix

OPTIMIZERS: dict[str, Callable[[Iterable[torch.Tensor], Schedule], torch.optim.Optimizer]] = {
    "adam": lambda parameters, schedule: torch.optim.AdamW(
        parameters, lr=schedule.lr, weight_decay=schedule.weight_decay, fused=True
    ),
    "sgd": lambda parameters, schedule: torch.optim.SGD(
        parameters, lr=schedule.lr, momentum=0.9, nesterov=True, weight_decay=schedule.weight_decay
    ),
    "soap": lambda parameters, schedule: Soap(parameters, schedule.lr),
}
METRIC_ROWS = 200
CPU_RANDOM, GPU_RANDOM = "torch_rng", "cuda_rng"
"""Names of PyTorch's global random states in a checkpoint."""
COOLDOWN_SHARE = 0.2
"""Steps of a cooldown, as a share of the steps before it."""

Row = dict[str, float]


class CheckpointSaver(Protocol):
    """Saves and loads the state of a loop, as `checkpoints.Checkpoints` does."""

    def load(self) -> State | None:
        """Return the state that was saved last, None if there is none."""
        ...

    def offer(self, state: Callable[[], State]) -> None:
        """Save `state()` if a checkpoint is due."""
        ...


class Stateful(Protocol):
    """An object besides network and optimizer whose state a checkpoint must hold."""

    def state(self) -> State:
        """Return all that `restore` needs."""
        ...

    def restore(self, state: State) -> None:
        """Continue from `state`."""
        ...


class Trainee(Protocol):
    """What a loop trains: a `Classifier`, or a generator with its auxiliary networks."""

    @property
    def network(self) -> nn.Module:
        """The module of all weights that are trained."""
        ...

    @property
    def device(self) -> torch.device:
        """Device of these weights."""
        ...


TraineeT = TypeVar("TraineeT", bound=Trainee)
TraineeT_contra = TypeVar("TraineeT_contra", bound=Trainee, contravariant=True)


class Monitor(Stateful, Protocol[TraineeT_contra]):
    """Measures what is trained, between two steps, and may change the end of the schedule."""

    @property
    def cooldown_start(self) -> int | None:
        """The step at which the learning rate begins to fall to zero before its time; None: as planned."""
        ...

    @property
    def replan(self) -> Replan | None:
        """Another last step, over which the rest of the schedule is spread; None: as planned."""
        ...

    def on_step(self, trainee: TraineeT_contra, step: int, /) -> Row:
        """Return what is measured after `step` steps, for the metric row; it may be empty."""
        ...


@dataclass(frozen=True)
class Schedule:
    """The learning rate of each step, and the optimizer.

    Attributes:
        steps: number of steps that are planned.
        lr: highest learning rate. The rate falls from it to zero along a half cosine over all steps; or, `linear`, in
            equal amounts per step after the warm-up.
        warmup: number of first steps in which the rate is also multiplied by a factor that rises linearly to 1.
        cooldown_start: a step at which the rate begins to fall to zero along a half cosine of its own, in
            `COOLDOWN_SHARE` of the steps so far; None: there is no cooldown.
        optimizer: a name in `OPTIMIZERS`.
        clip: largest norm of the gradient; larger gradients are scaled down to it. None: no limit.
        weight_decay: for adam (decoupled from the gradient, Loshchilov and Hutter 2019) and sgd.
        replan: spreads the rest of the schedule over fewer or more steps; None: as planned.
    """

    steps: int
    lr: float
    warmup: int = 0
    cooldown_start: int | None = None
    optimizer: str = "adam"
    clip: float | None = None
    weight_decay: float = 0.0
    replan: Replan | None = None
    linear: bool = False

    def rate(self, step: int) -> float:
        """Return the learning rate of step number `step`, counted from 0."""
        if self.cooldown_start is not None and step >= self.cooldown_start:
            return self._planned_rate(self.cooldown_start) * _fall(
                (step - self.cooldown_start) / (self.last - self.cooldown_start)
            )
        return self._planned_rate(step)

    @property
    def last(self) -> int:
        """Number of steps that are taken: `steps`, or those of `replan`, or fewer because of a cooldown."""
        planned = self.steps if self.replan is None else self.replan.last
        if self.cooldown_start is None:
            return planned
        return min(planned, self.cooldown_start + max(1, round(self.cooldown_start * COOLDOWN_SHARE)))

    def progress(self, step: int) -> float:
        """Return the position of a step in the schedule, in [0, 1], without regard to a cooldown."""
        return step / self.steps if self.replan is None else self.replan.progress_at(step)

    def _planned_rate(self, step: int) -> float:
        rate = self.lr * min(1.0, (step + 1) / (self.warmup + 1))
        if self.linear:
            risen = self.warmup / self.steps
            return rate * min(1.0, (1 - self.progress(step)) / (1 - risen))
        return rate * _fall(self.progress(step))


def _fall(share: float) -> float:
    """Return (1 + cos(pi * share)) / 2, which falls from 1 at 0 to 0 at 1."""
    return 0.5 * (1 + math.cos(math.pi * share))


def take_steps(
    trainee: TraineeT,
    loss_of_next_batch: Callable[[], torch.Tensor],
    schedule: Schedule,
    stateful: dict[str, Stateful],
    checkpoints: CheckpointSaver,
    reporter: Reporter,
    title: str,
    monitor: Monitor[TraineeT] | None = None,
) -> list[Row]:
    """Minimize a loss over a network's weights; go on from the last checkpoint if there is one.

    Args:
        loss_of_next_batch: draws the next batch and returns its loss, a scalar.
        stateful: every object whose state `loss_of_next_batch` depends on, by name; checkpoints hold these states.
        title: name of the work in progress lines and errors.
        monitor: called after every `steps` / `METRIC_ROWS` steps; its state is in checkpoints as well.

    Returns:
        About `METRIC_ROWS` metric rows {step, loss, lr}, with what the monitor measured; each loss is the mean over the
        steps since the row before.

    Raises:
        DivergedError: the loss or a weight is not finite.
    """
    weights = list(trainee.network.parameters())
    optimizer = OPTIMIZERS[schedule.optimizer](weights, schedule)
    rows: list[Row] = []
    if monitor is not None:
        stateful = {**stateful, "monitor": monitor}
    step = _restore(trainee, optimizer, stateful, checkpoints, rows)
    every = max(1, schedule.steps // METRIC_ROWS)
    total = torch.zeros((), device=trainee.device)
    with reporter.task(title, schedule.steps) as task:
        task.advance(step)
        while step < _with_changes(schedule, monitor).last:
            reported, schedule = step, _with_changes(schedule, monitor)
            task.expect(schedule.last)
            while step < min(schedule.last, reported + every):
                optimizer.param_groups[0]["lr"] = schedule.rate(step)
                loss = loss_of_next_batch()
                optimizer.zero_grad()
                loss.backward()
                if schedule.clip is not None:
                    torch.nn.utils.clip_grad_norm_(weights, schedule.clip)
                optimizer.step()
                total += loss.detach()
                step += 1
            mean = float(total) / (step - reported)
            if not math.isfinite(mean):
                raise DivergedError(f"{title}: the loss is not finite at step {step}; try a smaller --lr")
            row = {"step": step, "loss": round(mean, 6), "lr": schedule.rate(step - 1)}
            rows.append(row | monitor.on_step(trainee, step) if monitor is not None else row)
            total.zero_()
            task.advance(step - reported, f"loss {mean:.4f}")
            checkpoints.offer(lambda: _state(trainee, optimizer, stateful, rows))
    if not all(bool(torch.isfinite(weight).all()) for weight in weights):
        raise DivergedError(f"{title}: the last step left weights that are not finite; try a smaller --lr")
    return rows


def _with_changes(schedule: Schedule, monitor: Monitor[TraineeT] | None) -> Schedule:
    """Return the schedule with the cooldown and the other last step that the monitor sets."""
    if monitor is None:
        return schedule
    return replace(schedule, cooldown_start=monitor.cooldown_start, replan=monitor.replan)


def _state(trainee: Trainee, optimizer: torch.optim.Optimizer, stateful: dict[str, Stateful], rows: list[Row]) -> State:
    tensors = {f"network.{name}": value for name, value in trainee.network.state_dict().items()}
    tensors |= {f"moment.{name}": value for name, value in optimizer_state(optimizer).items()}
    states: dict[str, Any] = {}
    for owner, member in stateful.items():
        own, states[owner] = member.state()
        tensors |= {f"state.{owner}.{name}": value for name, value in own.items()}
    return tensors | random_states(trainee.device), {"rows": rows, "states": states}


def _restore(
    trainee: Trainee,
    optimizer: torch.optim.Optimizer,
    stateful: dict[str, Stateful],
    checkpoints: CheckpointSaver,
    rows: list[Row],
) -> int:
    """Restore everything from the last checkpoint, and return the number of its finished steps; 0 without one."""
    saved = checkpoints.load()
    if saved is None:
        return 0
    tensors, values = saved
    trainee.network.load_state_dict(with_prefix(tensors, "network."))
    restore_optimizer(optimizer, with_prefix(tensors, "moment."))
    for owner, member in stateful.items():
        member.restore((with_prefix(tensors, f"state.{owner}."), values["states"][owner]))
    set_random_states(tensors, trainee.device)
    rows += values["rows"]
    return int(rows[-1]["step"])


def random_states(device: torch.device) -> Tensors:
    """Return PyTorch's global random state of the CPU and, if `device` is a GPU, that of the GPU, for dropout."""
    states = {CPU_RANDOM: torch.get_rng_state()}
    if device.type == "cuda":
        states[GPU_RANDOM] = torch.cuda.get_rng_state(device)
    return states


def set_random_states(saved: Tensors, device: torch.device) -> None:
    """Set the states that `random_states` returned; those of a CPU run hold none of a GPU, which is then not set."""
    torch.set_rng_state(saved[CPU_RANDOM])
    if device.type == "cuda" and GPU_RANDOM in saved:
        torch.cuda.set_rng_state(saved[GPU_RANDOM], device)


def optimizer_state(optimizer: torch.optim.Optimizer) -> Tensors:
    """Return an optimizer's moments and step counts, not copied, named `index.name` by the parameter's index."""
    states = optimizer.state_dict()["state"].items()
    return {f"{index}.{name}": value for index, state in states for name, value in state.items()}


def restore_optimizer(optimizer: torch.optim.Optimizer, saved: Tensors) -> None:
    """Restore what `optimizer_state` returned."""
    moments: dict[int, Tensors] = {}
    for name, tensor in saved.items():
        index, key = name.split(".")
        moments.setdefault(int(index), {})[key] = tensor
    optimizer.load_state_dict({**optimizer.state_dict(), "state": moments})
    _as_parameters_lie(optimizer)


def _as_parameters_lie(optimizer: torch.optim.Optimizer) -> None:
    """Give moments the memory layout of their weight: Adam's fused step reads both in the order of addresses."""
    for parameter, state in optimizer.state.items():
        for name, value in state.items():
            if value.shape == parameter.shape:
                state[name] = torch.empty_like(parameter).copy_(value)
