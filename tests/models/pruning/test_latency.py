"""Sizes by time. Times are those of a formula, except in one test: no test depends on the speed of the machine."""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from helpers import seeded
from test_cut import ours, theirs
from torch import nn

from kdextract.errors import ConfigError
from kdextract.models.classifier import Classifier
from kdextract.models.pruning import latency
from kdextract.models.pruning.cut import Channels, channel_groups, counts_at, most_important, with_counts
from kdextract.models.pruning.groups import Group
from kdextract.models.pruning.importance import magnitude
from kdextract.models.pruning.latency import TimedSizes, Timing, counts_in_time, fewest, removal_order
from kdextract.models.pruning.rounds import Rounds

CPU = torch.device("cpu")
SELECT = most_important(magnitude)
Prices = dict[str, float]


def layer_outputs(classifier: Classifier) -> dict[str, int]:
    kinds = (nn.Conv2d, nn.Linear)
    return {n: len(layer.weight) for n, layer in classifier.network.named_modules() if isinstance(layer, kinds)}


def seconds_of(prices: Prices, rest: float = 1.0) -> Callable[[Classifier], float]:
    """Return the formula: `rest`, and for each layer a price per output, 1 for others than those named."""
    return lambda made: rest + sum(prices.get(name, 1.0) * count for name, count in layer_outputs(made).items())


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Callable[[Classifier], float]]:
    """Replace the measurement by a formula, with noise."""

    def use(prices: Prices, rest: float = 1.0, noise: float = 0.0) -> Callable[[Classifier], float]:
        seconds, random = seconds_of(prices, rest), seeded(5)

        def measured(classifier: Classifier, pixels: torch.Tensor) -> float:
            return seconds(classifier) * (1 + noise * float(torch.randn((), generator=random)))

        monkeypatch.setattr(latency, "batch_seconds", measured)
        return seconds

    return use


def sized(whole: Classifier, channels: Channels, share: float) -> tuple[Rounds, TimedSizes]:
    rounds, timed = Rounds(whole, channels), TimedSizes(whole, channels, CPU, lambda name, measure: measure())
    own, origins = rounds.channels()
    rounds.cut(timed.sized(1, share, whole, magnitude, origins), SELECT, own, origins)
    return rounds, timed


@pytest.mark.parametrize(
    ("name", "layers", "channels", "num_classes"),
    [("lenet5", ("conv2", "fc1"), 1, 2), ("lenet5_bn", ("conv3", "fc1"), 3, 100)],
)
def test_where_a_channel_takes_longer_more_channels_are_cut(
    name: str, layers: tuple[str, str], channels: int, num_classes: int, clock: Any
) -> None:
    whole = ours(name, channels, num_classes)
    found, left = channel_groups(whole), []
    for slow, fast in (layers, layers[::-1]):
        clock({slow: 30.0, fast: 3.0})
        rounds, _ = sized(whole, found, 0.6)
        after, before = layer_outputs(rounds.classifier), layer_outputs(whole)
        left.append({layer: after[layer] / before[layer] for layer in layers})
        assert left[-1][slow] < left[-1][fast]
    assert left[0][layers[0]] < left[1][layers[0]]


@pytest.mark.parametrize("share", [0.9, 0.7, 0.5])
@pytest.mark.parametrize(
    "name", ["lenet5_bn", "Grouped", *(pytest.param(n, marks=pytest.mark.slow) for n in ("Padded", "Dense"))]
)
def test_the_fewest_channels_are_cut_that_are_enough(name: str, share: float, clock: Any) -> None:
    whole = ours(name, 1, 10) if name.islower() else theirs(name)
    channels = channel_groups(whole)
    seconds = clock({"conv1": 5.0})
    timing = Timing(whole, channels, CPU)
    order = removal_order(channels, magnitude, timing.costs(whole, channels))
    counts, reached = counts_in_time(whole, channels, order, share, timing)
    assert reached == pytest.approx(seconds(with_counts(whole, channels, counts)) / seconds(whole))
    assert reached <= share
    removed = sum(counts_at(channels, 1.0)[group] - count for group, count in counts.items())
    assert counts == {g: counts_at(channels, 1.0)[g] - order[:removed].count(g) for g in channels.groups}
    one_less = dict(counts)
    one_less[order[removed - 1]] += 1
    assert seconds(with_counts(whole, channels, one_less)) / seconds(whole) > share


@pytest.mark.parametrize("wrong", [0.3, 0.7])
def test_one_wrong_measurement_does_not_decide(wrong: float) -> None:
    """The first measurement between both ends is wrong; a bisection would search in the wrong half ever after."""
    calls: list[int] = []

    def time_after(removals: int) -> float:
        calls.append(removals)
        return wrong if len(calls) == 1 else 1 - 0.7 * removals / 100

    assert fewest(100, 0.5, time_after, 0.3) == pytest.approx(72, abs=4)


@pytest.mark.parametrize("power", [0.5, 1.0, 3.0])
@pytest.mark.parametrize("share", [0.4, 0.9])
def test_the_search_finds_the_smallest_number(power: float, share: float) -> None:
    times = [1 - 0.7 * (removals / 500) ** power for removals in range(501)]
    found = fewest(500, share, lambda removals: times[removals], times[-1])
    assert found == pytest.approx(next(n for n, time in enumerate(times) if time <= share), abs=5)


def test_noise_does_not_decide(clock: Any) -> None:
    whole = ours("lenet5", 1, 10)
    channels = channel_groups(whole)
    seconds = clock({"conv2": 20.0, "fc1": 2.0}, noise=0.2)
    rounds, timed = sized(whole, channels, 0.5)
    assert seconds(rounds.classifier) / seconds(whole) == pytest.approx(0.5, abs=0.05)
    assert timed.figures["latency"] <= 0.5
    left = {name: count / layer_outputs(whole)[name] for name, count in layer_outputs(rounds.classifier).items()}
    assert left["conv2"] < left["fc1"]


def test_a_share_that_is_not_reached_is_refused_with_the_smallest(clock: Any) -> None:
    whole = ours("lenet5", 1, 10)
    channels = channel_groups(whole)
    seconds = clock({}, rest=250.0)
    least = seconds(with_counts(whole, channels, dict.fromkeys(channels.groups, 1))) / seconds(whole)
    with pytest.raises(ConfigError, match=rf"to 0\.3 of the time of a batch: with one .*, {least:.3g} of it is left"):
        sized(whole, channels, 0.3)


@pytest.mark.parametrize("costs", [1.0, 0.0, -1.0])
def test_nothing_is_cut_for_all_of_the_time_and_costs_of_noise_are_no_error(costs: float, clock: Any) -> None:
    whole = ours("lenet5", 1, 10)
    channels = channel_groups(whole)
    clock({})
    rounds, timed = sized(whole, channels, 1.0)
    assert layer_outputs(rounds.classifier) == layer_outputs(whole)
    assert timed.figures["latency"] == 1
    order = removal_order(channels, magnitude, dict.fromkeys(channels.groups, costs))
    assert len(order) == sum(count - 1 for count in counts_at(channels, 1.0).values())


def test_equally_important_channels_leave_widths_that_are_inverse_to_their_time() -> None:
    whole = ours("lenet5", 1, 10)
    channels = channel_groups(whole)
    full = counts_at(channels, 1.0)
    costs = {group: 0.5 + index for index, group in enumerate(channels.groups)}
    order = removal_order(channels, lambda network, group: torch.ones(len(group.channels)), costs)
    gone = order[: len(order) // 2]
    left = {group: full[group] - gone.count(group) for group in channels.groups}
    times = [left[group] * costs[group] for group in channels.groups if 1 < left[group] < full[group]]
    assert len(times) > 1
    assert max(times) - min(times) <= 2 * max(costs.values())


def test_the_order_is_that_of_the_least_loss_per_second(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = theirs("Grouped")
    channels = channel_groups(whole)
    random = seeded(1)
    values = {group: torch.rand(len(group.channels), generator=random).double() for group in channels.groups}
    costs = {group: float(torch.rand((), generator=random)) + 0.1 for group in channels.groups}
    order = removal_order(channels, lambda network, group: values[group], costs)
    left: dict[Group, list[float]] = {}
    for group, own in values.items():
        blocks = [sorted(own[block].tolist()) for block in group.members()]
        left[group] = [sum(parts) for parts in zip(*blocks, strict=True)]
    for chosen in order:
        prices = {
            group: layers_of(group) * math.log(sum(parts) / sum(parts[1:])) / costs[group]
            for group, parts in left.items()
            if len(parts) > 1
        }
        assert prices[chosen] == pytest.approx(min(prices.values()))
        heapq.heappop(left[chosen])
    assert all(len(parts) == 1 for parts in left.values())


def layers_of(group: Group) -> int:
    """Return the number of convolutions and linear layers of `Grouped` that produce the channels of a group."""
    return len({axis.layer for axis in group.axes if axis.side == "out" and "norm" not in axis.layer})


def test_channels_without_any_importance_are_no_error() -> None:
    channels = channel_groups(ours("lenet5", 3, 2))
    costs = dict.fromkeys(channels.groups, 1.0)
    order = removal_order(channels, lambda network, group: torch.zeros(len(group.channels)), costs)
    assert set(order) == set(channels.groups)


def test_a_resumed_run_measures_nothing_again(clock: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = ours("lenet5_bn", 1, 10)
    channels = channel_groups(whole)
    stored: dict[str, Any] = {}

    def once(name: str, measure: Callable[[], Any]) -> Any:
        if name not in stored:
            stored[name] = measure()
        return stored[name]

    def cut() -> tuple[Any, Any]:
        rounds, timed = Rounds(whole, channels), TimedSizes(whole, channels, CPU, once)
        own, origins = rounds.channels()
        made = rounds.cut(timed.sized(1, 0.5, whole, magnitude, origins), SELECT, own, origins)
        return made.kept, timed.figures

    clock({"conv2": 9.0})
    first = cut()
    monkeypatch.setattr(latency, "batch_seconds", None)
    assert cut() == first


def test_real_times() -> None:
    whole = theirs("Small", 3)
    found = channel_groups(whole)
    timing = Timing(whole, found, CPU)
    assert timing.share(with_counts(whole, found, counts_at(found, 0.5))) > 0
    assert all(math.isfinite(cost) for cost in timing.costs(whole, found).values())
    assert min(timing.seconds) > 0
