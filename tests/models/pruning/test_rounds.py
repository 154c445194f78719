"""Cuts in rounds: the groups of a cut network, its sizes, and what a checkpoint holds of it."""

from __future__ import annotations

import json
from itertools import pairwise
from typing import Any

import pytest
import torch
from helpers import equal, weights
from test_cut import EXACT, MIXING, answers, ours, theirs

from kdextract.models.classifier import Classifier
from kdextract.models.external.names import Share
from kdextract.models.pruning.checks import Trial
from kdextract.models.pruning.cut import Channels, channel_groups, counts_at, cut_to, most_important
from kdextract.models.pruning.importance import magnitude
from kdextract.models.pruning.rounds import Rounds, share_of_round

SLOW = {name for name in (*EXACT, "resnet14") if name != "Dense"}
"""Networks that are cut in rounds in the slow tests alone."""
SELECT = most_important(magnitude)


def made(name: str, channels: int = 3, num_classes: int = 10) -> Classifier:
    return ours(name, channels, num_classes) if name.islower() else theirs(name, channels, num_classes)


def step(rounds: Rounds, share: Share, last: Share | None = None) -> Any:
    channels, origins = rounds.channels()
    return rounds.cut(rounds.sized(share, last or share, origins), SELECT, channels, origins)


def described(channels: Channels) -> set[Any]:
    """Return all that a cut uses of the groups with several channels."""
    wide = [group for group in channels.groups if len(group.channels) > group.unit]
    return {(group.axes, group.channels, group.blocks) for group in wide}


@pytest.mark.parametrize(
    ("name", "channels"),
    [
        pytest.param(name, 1 + 2 * (index % 2), marks=pytest.mark.slow if name in SLOW else (), id=name)
        for index, name in enumerate([*EXACT, *MIXING, "lenet5", "resnet14"])
    ],
)
def test_the_groups_of_a_cut_network_are_those_that_are_found_in_it(name: str, channels: int) -> None:
    rounds = Rounds(whole := made(name, channels), channel_groups(made(name, channels)))
    before = weights(whole)
    for share in (0.75, 0.5):
        step(rounds, Share("width", share))
        assert described(rounds.channels()[0]) == described(channel_groups(rounds.classifier))
    assert equal(weights(whole), before)


@pytest.mark.parametrize("share", [Share("macs", 0.3), Share("macs", 0.1), Share("params", 0.4), Share("width", 0.5)])
@pytest.mark.parametrize("name", ["lenet5_bn", *(pytest.param(n, marks=pytest.mark.slow) for n in ("Padded", "Dense"))])
def test_the_sizes_after_the_last_round_are_those_of_one_cut(name: str, share: Share) -> None:
    whole = made(name)
    channels = channel_groups(whole)
    once = cut_to(whole, share, SELECT, channels)
    rounds, sizes = Rounds(whole, channels), []
    for number in (1, 2, 3):
        last = step(rounds, share_of_round(share, number, 3), share)
        sizes.append(last.classifier.num_parameters)
    assert sizes == sorted(sizes, reverse=True)
    assert last.classifier.spec == once.classifier.spec
    assert last.summary == once.summary
    assert [len(kept) for kept in last.kept.values()] == [len(kept) for kept in once.kept.values()]
    assert all(kept == sorted(set(kept)) for kept in last.kept.values())
    assert answers(last.classifier).shape == answers(whole).shape


def test_one_round_is_one_cut() -> None:
    whole = made("lenet5_bn", 1, 2)
    channels = channel_groups(whole)
    once = cut_to(whole, Share("macs", 0.5), SELECT, channels)
    rounds = step(Rounds(whole, channels), share_of_round(Share("macs", 0.5), 1, 1))
    assert equal(weights(rounds.classifier), weights(once.classifier))
    assert rounds.kept == once.kept


def test_trained_weights_decide_which_channels_the_next_round_keeps() -> None:
    whole = made("lenet5", 1, 10)
    rounds = Rounds(whole, channel_groups(whole))
    step(rounds, Share("width", 0.5))
    with torch.no_grad():
        rounds.classifier.network.get_submodule("conv2").weight.mul_(torch.tensor([9.0] + [1e-3] * 7).view(-1, 1, 1, 1))
    kept = next(iter(kept for group, kept in rounds._kept.items() if group.name == "conv2"))
    last = step(rounds, Share("width", 1 / 16))
    (left,) = (left for group, left in last.kept.items() if group.name == "conv2")
    assert left == kept[:1]


@pytest.mark.parametrize(
    "name", ["Grouped", "Normed", "lenet5_bn", *(pytest.param(n, marks=pytest.mark.slow) for n in ("Padded", "Dense"))]
)
def test_the_state_restores_sizes_and_groups(name: str) -> None:
    whole = made(name)
    channels = channel_groups(whole)
    rounds = Rounds(whole, channels)
    first = step(rounds, Share("width", 0.7))
    again = Rounds(whole, channels)
    restored = again.restore(json.loads(json.dumps(rounds.state())))
    assert restored.kept == first.kept
    assert restored.whole == first.whole
    assert restored.classifier.spec == first.classifier.spec
    again.classifier.network.load_state_dict(rounds.classifier.network.state_dict())
    ours, theirs = (step(one, Share("width", 0.4)) for one in (again, rounds))
    assert equal(weights(ours.classifier), weights(theirs.classifier))
    assert ours.kept == theirs.kept


def test_a_group_that_a_later_round_cannot_cut_keeps_its_channels(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = made("lenet5", 1, 10)
    channels = channel_groups(whole)
    rounds = Rounds(whole, channels)
    step(rounds, Share("width", 0.75))
    real = Trial.possible

    def possible(self: Trial, kept: Any, compare: bool = True) -> Any:
        stuck = [group for group in kept if group.name == "conv2"]
        groups, failures = real(self, {group: own for group, own in kept.items() if group not in stuck}, compare)
        return groups, failures | dict.fromkeys(stuck, "sizes are fixed")

    monkeypatch.setattr(Trial, "possible", possible)
    step(rounds, Share("width", 0.5))
    monkeypatch.undo()
    last = step(rounds, Share("width", 0.25))
    counts = {group.name: len(kept) for group, kept in rounds._kept.items()}
    full = {group.name: count for group, count in counts_at(channels, 1.0).items()}
    assert counts == {name: round(full[name] * 0.75) if name == "conv2" else -(-full[name] // 4) for name in full}
    assert answers(last.classifier).shape == (4, 10)
    again = Rounds(whole, channels)
    again.restore(rounds.state())
    assert again.classifier.spec == last.classifier.spec
    assert len(again.channels()[1]) == len(channels.groups) - 1


def test_each_round_keeps_the_same_share_of_the_round_before() -> None:
    shares = [1.0] + [share_of_round(Share("macs", 0.1), number, 4).value for number in (1, 2, 3, 4)]
    assert shares[-1] == 0.1
    assert [after / before for before, after in pairwise(shares)] == pytest.approx([0.1**0.25] * 4)
