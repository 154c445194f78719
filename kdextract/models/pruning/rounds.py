"""Cuts of a classifier in several rounds, between which its network may be trained."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from ..classifier import Classifier
from ..external.names import Share
from .checks import Trial, kept_axes, plain_copy
from .cut import UNTRACED, Channels, Counts, Cut, Select, Sizing, counts_at, counts_for, cut, cut_by
from .groups import Group
from .slices import Axis

Json = dict[str, Any]


def share_of_round(share: Share, number: int, rounds: int) -> Share:
    """Return what is left of a classifier after round `number`, counted from 1, of `rounds`.

    Each round keeps the same share of what the round before has left, so that no round takes a larger part of its
    network than another: share ** (number / rounds) of the whole.
    """
    return replace(share, value=share.value if number == rounds else share.value ** (number / rounds))


class Rounds:
    """A classifier whose channels are cut in rounds.

    The groups of channels are found once, in the whole network. Those of a cut network follow from the channels that
    stayed, so that the sizes after the last round are those of a single cut to the same share.

    Args:
        whole: in evaluation mode; it is not changed.
        channels: those of it that may be cut.

    Attributes:
        classifier: the present one; its weights may be trained.
    """

    def __init__(self, whole: Classifier, channels: Channels) -> None:
        self.classifier = self._whole = whole
        self._channels = channels
        self._kept = {group: list(range(len(group.channels))) for group in channels.groups}
        self._reasons: dict[Group, str] = {}

    def channels(self) -> tuple[Channels, dict[Group, Group]]:
        """Return the channels of the present classifier that may be cut, and for each of their groups that of the whole
        classifier."""
        whole = self._channels.without(self._reasons)
        if self.classifier is self._whole:
            return whole, {group: group for group in whole.groups}
        stay = kept_axes(self._channels.network, self._kept)
        places = {axis: {old: new for new, old in enumerate(indices)} for axis, indices in stay.items()}
        network = plain_copy(self.classifier.network)
        origins = {_remaining(group, self._kept[group], places): group for group in whole.groups}
        trial = Trial(network, self._whole.spec.head, self._whole.input_shape)
        return replace(whole, network=network, groups=tuple(origins), trial=trial), origins

    def sized(self, share: Share, last: Share, origins: Mapping[Group, Group]) -> Sizing:
        """Return the sizing to a share of the whole classifier; see `cut.counts_for`.

        Args:
            last: the share of the last round, for which enough channels are left.
            origins: from `channels`.
        """

        def sizing(channels: Channels) -> Counts:
            whole = replace(self._channels, groups=tuple(origins[group] for group in channels.groups))
            counts, at_last = (counts_for(self._whole, whole, size) for size in (share, last))
            most = counts_at(channels, 1.0)
            wanted = {group: max(counts[origins[group]], at_last[origins[group]]) for group in channels.groups}
            return {group: min(wanted[group], most[group]) for group in channels.groups}

        return sizing

    def cut(self, sizing: Sizing, select: Select, channels: Channels, origins: Mapping[Group, Group]) -> Cut:
        """Cut the present classifier; return it with the channels that stay of each group of the whole one.

        Args:
            channels, origins: from `channels`.

        Raises:
            ConfigError: no channel can be cut; `sizing` may raise others.
        """
        made = cut_by(self.classifier, sizing, select, channels)
        for group, origin in origins.items():
            if group in made.kept:
                self._kept[origin] = [self._kept[origin][index] for index in made.kept[group]]
            else:
                reasons = (made.whole[axis.layer] for axis in group.axes if axis.layer in made.whole)
                self._reasons[origin] = next(reasons, UNTRACED)
        self.classifier = made.classifier
        return self._as_cut()

    def _as_cut(self) -> Cut:
        """Return the present classifier, with what was cut since the first round."""
        left = self._channels.without({group: why for group, why in self._reasons.items() if self._is_whole(group)})
        return Cut(self.classifier, left.layers, left.whole, {group: self._kept[group] for group in left.groups})

    def _is_whole(self, group: Group) -> bool:
        return len(self._kept[group]) == len(group.channels)

    def state(self) -> Json:
        """Return what `restore` needs."""
        groups = self._channels.groups
        return {
            "kept": [self._kept[group] for group in groups],
            "reasons": [self._reasons.get(group) for group in groups],
        }

    def restore(self, state: Json) -> Cut:
        """Cut the whole classifier as it was cut when `state` was returned; weights that were trained are not restored.

        Returns:
            As `cut`.
        """
        groups = self._channels.groups
        self._kept = dict(zip(groups, state["kept"], strict=True))
        self._reasons = {group: why for group, why in zip(groups, state["reasons"], strict=True) if why is not None}
        self.classifier = cut(self._whole, self._kept, self._channels.network)
        return self._as_cut()


def _remaining(group: Group, kept: Sequence[int], places: Mapping[Axis, Mapping[int, int]]) -> Group:
    """Return the group of the channels that stay, with their new indices."""
    channels = tuple(
        tuple(
            tuple(places[axis][index] for index in indices) if axis in places else indices
            for axis, indices in zip(group.axes, group.channels[channel], strict=True)
        )
        for channel in kept
    )
    return Group(group.axes, channels, tuple(group.blocks[channel] for channel in kept))
