"""The loop that takes optimizer steps, and the supervised training and evaluation of classifiers."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Protocol, TypeVar

import torch
from torch import nn

from ..errors import DivergedError
from .budget import Replan
from .progress import Reporter
from .soap import Soap
from .sources import State

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
"""Names of PyTorch's random states in a checkpoint."""
COOLDOWN_SHARE = 0.2

Row = dict[str, float]


class CheckpointSaver(Protocol):
    """Where a loop saves its state: `checkpoints.Checkpoints` is one."""

    def load(self) -> tuple[State, dict[str, list[Row]]] | None:
        """Return what was saved last, or None."""
        ...

    def offer(self, state: Callable[[], tuple[State, dict[str, list[Row]]]]) -> None:
        """Save `state()` if it is time to."""
        ...


class Stateful(Protocol):
    """Anything besides weights and optimizer that a loop has to restore."""

    def state(self) -> State:
        """Return tensors that describe it."""
        ...

    def restore(self, state: State) -> None:
        """Continue from them."""
        ...


class Trainee(Protocol):
    """What a loop trains: a `Classifier`, or a generator with whatever learns beside it."""

    @property
    def network(self) -> nn.Module:
        """Holds all weights that are trained."""
        ...

    @property
    def device(self) -> torch.device:
        """Where they are."""
        ...


TraineeT = TypeVar("TraineeT", bound=Trainee)
TraineeT_contra = TypeVar("TraineeT_contra", bound=Trainee, contravariant=True)


class Monitor(Stateful, Protocol[TraineeT_contra]):
    """Looks at what learns, between two steps."""

    @property
    def cooldown_start(self) -> int | None:
        """The step from which on the rate should fall to zero, None while it need not."""
        ...

    @property
    def replan(self) -> Replan | None:
        """How the rest of the schedule is spread, None while it goes on as planned."""
        ...

    def on_step(self, trainee: TraineeT_contra, step: int, /) -> Row:
        """Measure it after `step` steps, and return what the metric row should say besides."""
        ...


@dataclass(frozen=True)
class Schedule:
    """`steps` steps of rate `lr`: a linear warm-up of `warmup` steps, then (`cosine`) a fall to zero.

    `optimizer` is one of `OPTIMIZERS`. `weight_decay` is for adam, decoupled from the gradient (Loshchilov and Hutter
    2019), and for sgd. `clip` is the largest norm of the gradient; longer ones are shortened.
    `cooldown_start` is the step from which on a schedule that ends early falls to zero. `replan` spreads what is
    left of the schedule over fewer or more steps.
    """

    steps: int
    lr: float
    kind: str = "cosine"
    warmup: int = 0
    cooldown_start: int | None = None
    optimizer: str = "adam"
    clip: float | None = None
    weight_decay: float = 0.0
    replan: Replan | None = None

    def rate(self, step: int) -> float:
        """Learning rate of step number `step`, counted from 0."""
        if self.cooldown_start is not None and step >= self.cooldown_start:
            return self._planned_rate(self.cooldown_start) * _fall(
                (step - self.cooldown_start) / (self.last - self.cooldown_start)
            )
        return self._planned_rate(step)

    @property
    def last(self) -> int:
        """Number of steps that are taken: `steps`, those of another plan, or fewer after an early cooldown_start."""
        planned = self.steps if self.replan is None else self.replan.last
        if self.cooldown_start is None:
            return planned
        return min(planned, self.cooldown_start + max(1, round(self.cooldown_start * COOLDOWN_SHARE)))

    def progress(self, step: int) -> float:
        """Where in the schedule, in [0, 1], a step is, landings aside."""
        return step / self.steps if self.replan is None else self.replan.progress_at(step)

    def _planned_rate(self, step: int) -> float:
        rate = self.lr * min(1.0, (step + 1) / (self.warmup + 1))
        return rate if self.kind == "constant" else rate * _fall(self.progress(step))


def _fall(share: float) -> float:
    """Half a cosine: 1 at 0, 0 at 1."""
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
    """Minimize a loss over a network's weights; resume from the last checkpoint if there is one.

    Args:
        loss_of_next_batch: draws the next batch and returns its scalar loss.
        stateful: everything that `loss_of_next_batch` draws from, by name, so that it continues after a resume.
        monitor: looks at the network now and then, and may change the end of the schedule; it is stateful as well.

    Returns:
        Metric rows {step, loss, lr} and what the monitor measured: about `METRIC_ROWS` of them, losses averaged over
        the steps between.

    Raises:
        DivergedError: the loss stopped being finite.
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
    """Return the schedule with the cooldown_start and the other plan that the monitor asks for, if it does."""
    if monitor is None:
        return schedule
    return replace(schedule, cooldown_start=monitor.cooldown_start, replan=monitor.replan)


def _state(
    trainee: Trainee, optimizer: torch.optim.Optimizer, stateful: dict[str, Stateful], rows: list[Row]
) -> tuple[State, dict[str, list[Row]]]:
    tensors = {f"network.{name}": value for name, value in trainee.network.state_dict().items()}
    tensors |= {f"moment.{name}": value for name, value in optimizer_state(optimizer).items()}
    for owner, member in stateful.items():
        tensors |= {f"state.{owner}.{name}": value for name, value in member.state().items()}
    return tensors | random_states(trainee.device), {"rows": rows}


def _restore(
    trainee: Trainee,
    optimizer: torch.optim.Optimizer,
    stateful: dict[str, Stateful],
    checkpoints: CheckpointSaver,
    rows: list[Row],
) -> int:
    """Put everything back into the state of the last checkpoint, and return the number of steps it had done."""
    saved = checkpoints.load()
    if saved is None:
        return 0
    tensors, values = saved

    def below(prefix: str) -> State:
        return {name.removeprefix(prefix): t for name, t in tensors.items() if name.startswith(prefix)}

    trainee.network.load_state_dict(below("network."))
    restore_optimizer(optimizer, below("moment."))
    for owner, member in stateful.items():
        member.restore(below(f"state.{owner}."))
    set_random_states(tensors, trainee.device)
    rows += values["rows"]
    return int(rows[-1]["step"])


def random_states(device: torch.device) -> State:
    """Return PyTorch's random state on the CPU and, if `device` is a GPU, the one that dropout there draws from."""
    states = {CPU_RANDOM: torch.get_rng_state()}
    if device.type == "cuda":
        states[GPU_RANDOM] = torch.cuda.get_rng_state(device)
    return states


def set_random_states(saved: State, device: torch.device) -> None:
    """Continue from what `random_states` returned; a checkpoint of a CPU says nothing of a GPU."""
    torch.set_rng_state(saved[CPU_RANDOM])
    if device.type == "cuda" and GPU_RANDOM in saved:
        torch.cuda.set_rng_state(saved[GPU_RANDOM], device)


def optimizer_state(optimizer: torch.optim.Optimizer) -> State:
    """Return an optimizer's moments and step counts, named `index.name` by the parameter's index; not copies."""
    states = optimizer.state_dict()["state"].items()
    return {f"{index}.{name}": value for index, state in states for name, value in state.items()}


def restore_optimizer(optimizer: torch.optim.Optimizer, saved: State) -> None:
    """Continue from what `optimizer_state` returned."""
    moments: dict[int, State] = {}
    for name, tensor in saved.items():
        index, key = name.split(".")
        moments.setdefault(int(index), {})[key] = tensor
    optimizer.load_state_dict({**optimizer.state_dict(), "state": moments})
    _as_parameters_lie(optimizer)


def _as_parameters_lie(optimizer: torch.optim.Optimizer) -> None:
    """Give moments of a weight's shape its memory layout, too: Adam's fused step walks both by address."""
    for parameter, state in optimizer.state.items():
        for name, value in state.items():
            if value.shape == parameter.shape:
                state[name] = torch.empty_like(parameter).copy_(value)
