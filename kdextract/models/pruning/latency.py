"""Sizes of layers by time: where a channel costs more seconds, more channels are cut.

The seconds of a channel of a group are measured: the group is cut to a quarter, and the network is timed beside the
whole one. Channels are then removed one after the other, of all groups together: always the one that loses least per
second. What it loses is the fall of the logarithm of the share of importance that its group has left, once for each
layer of the group. If all channels are equally important, the number that stays in a group is inversely proportional to
the seconds of a channel. How many channels are removed is found by timing the cut network.
"""

from __future__ import annotations

import heapq
import math
import statistics
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import Any

import torch
from torch import nn

from ...errors import ConfigError
from ..classifier import Classifier
from ..hooks import is_weighted
from .cut import Channels, Counts, Sizing, counts_at, with_counts
from .groups import Group
from .importance import Importance
from .sizes import find_layer
from .slices import OUT

Json = dict[str, Any]
Once = Callable[[str, Callable[[], Json]], Json]

BATCH = 32
"""Images of the batch that is timed."""
WARM_UP = 2
LEAST_PAIRS, MOST_PAIRS, SECONDS = 11, 201, 2.0
"""Both networks are timed in turn, so many times that it takes about so many seconds."""
PART = 4
"""To measure the time of its channels, a group is cut to one channel in so many. The smaller what is left, the more the
difference exceeds noise."""
SEARCHES = 12
"""Number of measurements for the number of channels that are removed."""
MORE = 50
"""One removal in so many is added while the cut network takes too long."""
LEAST_COST = 0.01
"""The seconds of a channel are at least this share of their mean over all groups; noise may make them negative."""


def batch_seconds(classifier: Classifier, pixels: torch.Tensor) -> float:
    """Return the seconds of one forward pass of a batch."""
    began = time.perf_counter()
    with torch.inference_mode():
        classifier(pixels)
    if pixels.is_cuda:
        torch.cuda.synchronize(pixels.device)
    return time.perf_counter() - began


class Timing:
    """Compares the time of networks with that of a whole one.

    Args:
        whole: in evaluation mode.
        device: where they run.
    """

    def __init__(self, whole: Classifier, channels: Channels, device: torch.device) -> None:
        self._device = device
        self._pixels = torch.rand(BATCH, *whole.input_shape, generator=torch.Generator().manual_seed(0)).to(device)
        self._whole = self._ready(with_counts(whole, channels, counts_at(channels, 1.0)))
        taken = statistics.median(batch_seconds(self._whole, self._pixels) for _ in range(3))
        self._pairs = max(LEAST_PAIRS, min(MOST_PAIRS, int(SECONDS / max(taken, 1e-9) / 2)))
        self.seconds: list[float] = []

    def share(self, candidate: Classifier) -> float:
        """Return the time of a batch as a share of that of the whole network: the median over pairs of passes.

        The passes of a pair follow each other, so that other work on the machine slows both.
        """
        candidate = self._ready(candidate)
        shares = []
        for index in range(self._pairs):
            order = [candidate, self._whole] if index % 2 else [self._whole, candidate]
            seconds = {id(one): batch_seconds(one, self._pixels) for one in order}
            shares.append(seconds[id(candidate)] / seconds[id(self._whole)])
            self.seconds.append(seconds[id(self._whole)])
        return statistics.median(shares)

    def _ready(self, classifier: Classifier) -> Classifier:
        placed = classifier.frozen().placed(self._device)
        for _ in range(WARM_UP):
            batch_seconds(placed, self._pixels)
        return placed

    def costs(self, whole: Classifier, channels: Channels) -> dict[Group, float]:
        """Return the time of one channel of each block of each group, as a share of that of the whole network."""
        full, costs = counts_at(channels, 1.0), {}
        for group in channels.groups:
            left = max(1, full[group] // PART)
            saved = 1 - self.share(with_counts(whole, channels, full | {group: left}))
            costs[group] = saved / (full[group] - left)
        return costs


class TimedSizes:
    """Sizes of the cuts of a classifier by time. The first time that is needed is measured when it is needed.

    Args:
        whole: the classifier, in evaluation mode.
        channels: those of it that may be cut.
        device: where networks are timed.
        once: (name, measure) -> `measure()`, or what it returned in an earlier run.

    Attributes:
        figures: what was measured last, for a summary; {} before.
    """

    def __init__(self, whole: Classifier, channels: Channels, device: torch.device, once: Once) -> None:
        self._whole, self._channels, self._device, self._once = whole, channels, device, once
        self.figures: Json = {}

    @cached_property
    def _timing(self) -> Timing:
        return Timing(self._whole, self._channels, self._device)

    @cached_property
    def _costs(self) -> dict[Group, float]:
        def measure() -> Json:
            costs = self._timing.costs(self._whole, self._channels)
            return {"costs": [costs[group] for group in self._channels.groups]}

        return dict(zip(self._channels.groups, self._once("times", measure)["costs"], strict=True))

    def sized(
        self, number: int, share: float, classifier: Classifier, importance: Importance, origins: Mapping[Group, Group]
    ) -> Sizing:
        """Return the sizing of a round to a share of the time of the whole classifier.

        Args:
            number: of the round.
            classifier: the present one.
            importance: of its channels.
            origins: from `Rounds.channels`.
        """

        def sizing(channels: Channels) -> Counts:
            costs = {group: self._costs[origins[group]] for group in channels.groups}

            def measure() -> Json:
                order = removal_order(channels, importance, costs)
                counts, reached = counts_in_time(classifier, channels, order, share, self._timing)
                milliseconds = 1000 * statistics.median(self._timing.seconds)
                return {"counts": list(counts.values()), "share": reached, "milliseconds": milliseconds}

            found = self._once(f"times-{number}-{len(channels.groups)}", measure)
            self.figures = self._figures(found["share"], found["milliseconds"])
            return dict(zip(channels.groups, found["counts"], strict=True))

        return sizing

    def _figures(self, share: float, milliseconds: float) -> Json:
        full = counts_at(self._channels, 1.0)
        times = {group.name: round(cost * full[group], 4) for group, cost in self._costs.items()}
        return {
            "latency": round(share, 4),
            "milliseconds": round(share * milliseconds, 3),
            "milliseconds_before": round(milliseconds, 3),
            "time_of_channels": times,
        }


def counts_in_time(
    classifier: Classifier, channels: Channels, order: Sequence[Group], share: float, timing: Timing
) -> tuple[Counts, float]:
    """Return the counts at which the classifier takes at most this share of the time of the whole one, and the share
    that it takes, measured once more. Where that is above `share`, which noise may cause, more channels are removed.

    Args:
        order: from `removal_order`; its first removals are made, as few as are enough.

    Raises:
        ConfigError: it takes longer after all of them; the message has the share that it takes.
    """
    full = counts_at(channels, 1.0)

    def after(removals: int) -> Counts:
        gone = Counter(order[:removals])
        return {group: count - gone[group] for group, count in full.items()}

    def time_after(removals: int) -> float:
        return timing.share(with_counts(classifier, channels, after(removals)))

    if share >= 1:
        return full, 1.0
    most = len(order)
    least = time_after(most)
    if least > share:
        raise ConfigError(
            f"{classifier.spec.architecture} cannot be cut to {share:g} of the time of a batch: with one channel of "
            f"each group, {least:.3g} of it is left"
        )
    removals = fewest(most, share, time_after, least)
    while (reached := time_after(removals)) > share and removals < most:
        removals = min(most, removals + max(1, most // MORE))
    return after(removals), reached


def fewest(most: int, share: float, time_after: Callable[[int], float], least: float) -> int:
    """Return the smallest number of removals, up to `most`, after which the time is at most `share`.

    A falling function is fitted to all measurements so far (isotonic regression). The next one is made where it
    crosses `share`, so that one wrong measurement is corrected by others, which it would not be in a bisection.

    Args:
        time_after: measures the time after a number of removals.
        least: the time after `most` removals.
    """
    measured = {0: [1.0], most: [least]}
    for _ in range(SEARCHES):
        crossing = _crossing(measured, share)
        near = [number for number in (crossing, crossing - 1) if number > 0]
        number = min(near, key=lambda one: len(measured.get(one, ())))
        measured.setdefault(number, []).append(time_after(number))
    return _crossing(measured, share)


def _crossing(measured: Mapping[int, Sequence[float]], share: float) -> int:
    """Return the smallest number at which a falling function, fitted to these measurements, is at most `share`."""
    from sklearn.isotonic import IsotonicRegression

    numbers = sorted(measured)
    means, weights = ([of(measured[one]) for one in numbers] for of in (statistics.fmean, len))
    fitted = IsotonicRegression(increasing=False).fit_transform(numbers, means, sample_weight=weights)
    place = next((index for index, value in enumerate(fitted) if value <= share), len(numbers) - 1)
    (left, right), (high, low) = numbers[place - 1 : place + 1], fitted[place - 1 : place + 1]
    return left + max(1, math.ceil((right - left) * (high - share) / max(high - low, 1e-12) - 1e-9))


def removal_order(channels: Channels, importance: Importance, costs: Mapping[Group, float]) -> list[Group]:
    """Return the groups in the order in which each loses one channel of each block, until each has one left."""
    mean = statistics.fmean(max(0.0, cost) for cost in costs.values())
    steps = {group: _losses(channels.network, group, importance(channels.network, group)) for group in channels.groups}
    prices = {group: max(costs[group], LEAST_COST * mean) or 1.0 for group in channels.groups}
    heap = [(own[0] / prices[group], place, 0) for place, (group, own) in enumerate(steps.items()) if own]
    heapq.heapify(heap)
    order, groups = [], list(steps)
    while heap:
        _, place, step = heapq.heappop(heap)
        group = groups[place]
        order.append(group)
        if step + 1 < len(steps[group]):
            heapq.heappush(heap, (steps[group][step + 1] / prices[group], place, step + 1))
    return order


def _losses(network: nn.Module, group: Group, importance: torch.Tensor) -> list[float]:
    """Return what is lost with each next channel of each block, the least important first."""
    values = importance.double().clamp(min=0)
    if not float(values.sum()) > 0:
        values = torch.ones_like(values)
    ranked = torch.stack([values[torch.tensor(block)].sort().values for block in group.members()]).sum(0)
    left = ranked.flip(0).cumsum(0).flip(0).log()
    layers = len({axis.layer for axis in group.axes if axis.side == OUT and _produces(network, axis.layer)})
    return [max(1, layers) * float(left[index] - left[index + 1]) for index in range(len(ranked) - 1)]


def _produces(network: nn.Module, name: str) -> bool:
    layer = find_layer(network, name)
    return isinstance(layer, nn.Module) and is_weighted(layer)
