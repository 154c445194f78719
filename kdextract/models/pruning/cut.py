"""A smaller classifier from a larger one: channels are cut out, and the weights of those that stay are kept."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, replace

import torch
from torch import nn
from torch.nn.utils.parametrize import is_parametrized

from ...errors import ConfigError, KdxError
from ..architectures.registry import scaled
from ..classifier import Classifier
from ..external.exported_program import Program
from ..external.names import Share
from ..hooks import evaluation_mode, is_weighted, last_layer, module_of, weighted_layers
from .checks import Kept, Trial, kept_axes, plain_copy
from .groups import Group
from .importance import Importance, magnitude, strongest
from .sizes import find_layer, sizes_of
from .slices import OUT, take

BISECTIONS = 24
COSTS = {"macs": "multiply-adds", "params": "parameters"}
SPARE = 0.02
"""Single channels are added if a larger share of the allowed multiply-adds or parameters is left."""
UNTRACED = "how its channels are used cannot be traced"


@dataclass(frozen=True)
class Channels:
    """The channels of a classifier that can be cut.

    Attributes:
        network: a copy of the classifier's network with a plain weight in each layer (`checks.plain_copy`).
        groups: the groups of channels of which some can be cut, in the order of the layers.
        layers: the number of convolutions and linear layers that run, the last one excluded.
        whole: those of them whose outputs cannot be cut, with the reason.
    """

    network: nn.Module
    groups: tuple[Group, ...]
    layers: int
    whole: dict[str, str]
    trial: Trial

    def without(self, reasons: Mapping[Group, str]) -> Channels:
        """Return the channels without these groups; their layers are left whole for these reasons."""
        groups = [group for group in self.groups if group not in reasons]
        outputs = dict.fromkeys(axis.layer for group in reasons for axis in group.axes if axis.side == OUT)
        layers = {name: find_layer(self.network, name) for name in outputs}
        weighted = [name for name, layer in layers.items() if isinstance(layer, nn.Module) and is_weighted(layer)]
        return replace(self, groups=tuple(groups), whole=self.whole | _whole(weighted, groups, reasons))


def channel_groups(classifier: Classifier) -> Channels:
    """Return the channels of a classifier that can be cut. The classifier is not changed.

    Every group is tried: half of its channels are cut, and the network must run, in both modes, with outputs of the
    same shape; where nothing normalizes over channels, these must be the outputs that it has with the weights of the
    same channels set to zero.

    Raises:
        ConfigError: no channel can be cut; one line says why.
    """
    architecture = classifier.spec.architecture
    if isinstance(classifier.network, Program):
        raise ConfigError("a .pt2 program cannot be cut: its operations have fixed sizes")
    network = plain_copy(classifier.network)
    trial = Trial(network, classifier.spec.head, classifier.input_shape)
    try:
        found = trial.find_groups()
    except KdxError:
        raise
    except Exception as error:
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        raise ConfigError(f"{architecture} cannot be cut: torch-pruning cannot trace it ({reason})") from error
    wide = [group for group in found if len(group.channels) > group.unit]
    groups, failures = trial.possible({group: trial.halves(group) for group in wide})
    layers = _hidden_layers(classifier, network)
    whole = _whole(layers, groups, failures)
    if not groups:
        raise ConfigError(f"{architecture} has no channels that can be cut: {_why_none(network, whole)}")
    return Channels(network, tuple(groups), len(layers), whole, trial)


def _hidden_layers(classifier: Classifier, network: nn.Module) -> list[str]:
    """Return the names of convolutions and linear layers, in the order in which they run, the last one excluded."""
    blank = torch.zeros(2, *classifier.input_shape, dtype=next(network.parameters()).dtype)
    with evaluation_mode(network):
        names = dict.fromkeys(module_of(name) for name in weighted_layers(network, blank))
        last = last_layer(network, classifier.num_classes, blank)
    return [name for name in names if name != last]


def _why_none(network: nn.Module, whole: Mapping[str, str]) -> str:
    if whole:
        name, reason = next(iter(whole.items()))
        return f"{name}: {reason}"
    holders = [module for module in network.modules() if module._parameters and sizes_of(module) is None]
    others = dict.fromkeys(type(module).__name__ for module in holders)
    return f"{', '.join(others)} cannot be cut" if others else "it has one layer"


def _whole(layers: Sequence[str], groups: Sequence[Group], failures: Mapping[Group, str]) -> dict[str, str]:
    """Return the layers whose outputs are in none of the groups, with the reason."""
    cut = {axis.layer for group in groups for axis in group.axes if axis.side == OUT}
    reasons: dict[str, str] = {}
    for group, reason in failures.items():
        for axis in group.axes:
            if axis.side == OUT:
                reasons.setdefault(axis.layer, reason)
    return {name: reasons.get(name, UNTRACED) for name in layers if name not in cut}


def cut(classifier: Classifier, kept: Kept, network: nn.Module | None = None) -> Classifier:
    """Return a classifier with these channels alone, with their weights, in evaluation mode on the CPU.

    Args:
        classifier: it is not changed.
        kept: the channels that stay, ascending, of each group that is cut; the same number of each block of a group.
        network: from `Channels`, if the groups are of it.

    Raises:
        KdxError: the network cannot be built again (see `ClassifierSpec.build`).
    """
    source = plain_copy(classifier.network if network is None else network)
    stay = kept_axes(source, kept)
    take(source, stay)
    sizes = dict(classifier.spec.kept)
    for name in {axis.layer for axis in stay}:
        after = sizes_of(find_layer(source, name))
        assert after is not None
        sizes[name] = after
    spec = replace(classifier.spec, kept=tuple(sorted(sizes.items())))
    state = torch.get_rng_state()
    try:
        built = spec.build()
    finally:
        torch.set_rng_state(state)
    _copy_weights(source, built)
    return Classifier(spec, built).eval()


@torch.no_grad()
def _copy_weights(source: nn.Module, network: nn.Module) -> None:
    """Copy all weights and buffers of a plain network of the same sizes."""
    weights = source.state_dict()
    for name, module in network.named_modules():
        if is_parametrized(module, "weight") and f"{name}.weight" in weights:
            module.weight = weights.pop(f"{name}.weight")
            parametrized = {key: value for key, value in module.state_dict(prefix=f"{name}.").items()}
            weights |= {key: value for key, value in parametrized.items() if key not in weights}
    network.load_state_dict(weights)


Counts = dict[Group, int]
"""How many channels of each block of a group stay."""
Sizing = Callable[[Channels], Counts]
Selection = tuple[nn.Module, dict[Group, list[int]]]
Select = Callable[[Channels, Counts], Selection]
"""(channels, counts) -> the network to cut, with the layers of `Channels.network`, and the channels that stay."""


def counts_at(channels: Channels, width: float) -> Counts:
    """Return the counts at which a share `width` of the channels of each group stays, at least one of each block."""
    return {group: scaled(len(group.channels) // group.unit, width) for group in channels.groups}


def most_important(importance: Importance) -> Select:
    """Return the selection of the most important channels, whose weights are not changed."""

    def select(channels: Channels, counts: Counts) -> Selection:
        network = channels.network
        return network, {
            group: strongest(importance(network, group), group, counts[group]) for group in channels.groups
        }

    return select


def width_for(classifier: Classifier, channels: Channels, share: Share) -> float:
    """Return the largest width at which the classifier has at most this share of its multiply-adds or parameters, by
    bisection; for a share of the channels, the share.

    Raises:
        ConfigError: it has more with one channel of each block.
    """
    if share.of not in COSTS:
        return share.value
    cost = _cost(classifier, channels, share)
    whole = cost(counts_at(channels, 1.0))
    low, high = 0.0, 1.0
    least = cost(counts_at(channels, low))
    if least > share.value * whole:
        raise ConfigError(
            f"{classifier.spec.architecture} cannot be cut to {share.value:g} of its {COSTS[share.of]}: with one "
            f"channel of each group, {least / whole:.3g} of them are left"
        )
    if whole <= share.value * whole:
        return high
    for _ in range(BISECTIONS):
        middle = (low + high) / 2
        fits = cost(counts_at(channels, middle)) <= share.value * whole
        low, high = (middle, high) if fits else (low, middle)
    return low


def counts_for(classifier: Classifier, channels: Channels, share: Share) -> Counts:
    """Return the counts with which the classifier has at most this share, all groups at nearly one width.

    All groups get the largest width that fits. Where one more channel in every group of a size would be too much, a
    single one can fit: if more than `SPARE` is left, channels are added one by one, to the group that is then the
    narrowest, as long as they fit.

    Raises:
        ConfigError: as `width_for`.
    """
    width = width_for(classifier, channels, share)
    counts, full = counts_at(channels, width), counts_at(channels, 1.0)
    if share.of not in COSTS:
        return counts
    cost = _cost(classifier, channels, share)
    most = share.value * cost(full)
    growing = [group for group in channels.groups if counts[group] < full[group]]
    if cost(counts) >= (1 - SPARE) * most:
        return counts
    while growing:
        group = min(growing, key=lambda group: (counts[group] + 1) / full[group])
        more = counts | {group: counts[group] + 1}
        fits = cost(more) <= most
        counts = more if fits else counts
        if not fits or counts[group] == full[group]:
            growing.remove(group)
    return counts


def _cost(classifier: Classifier, channels: Channels, share: Share) -> Callable[[Counts], int]:
    """Return a function counts -> multiply-adds or parameters of the classifier with so many channels."""
    if share.of == "macs":
        return lambda counts: with_counts(classifier, channels, counts).multiply_adds()
    return lambda counts: with_counts(classifier, channels, counts).num_parameters


def with_counts(classifier: Classifier, channels: Channels, counts: Counts) -> Classifier:
    """Return the classifier with the first channels of each block, to count or to time it: which ones makes no
    difference there."""
    kept = {}
    for group in channels.groups:
        kept[group] = sorted(index for block in group.members() for index in block[: counts[group]])
    network = take(deepcopy(channels.network), kept_axes(channels.network, kept))
    return Classifier(classifier.spec, network)


@dataclass(frozen=True)
class Cut:
    """A classifier whose channels were cut.

    Attributes:
        layers: the number of convolutions and linear layers, without the last one.
        whole: those of them that have all outputs, with the reason.
        kept: the channels that stay of each group.
    """

    classifier: Classifier
    layers: int
    whole: dict[str, str]
    kept: dict[Group, list[int]]

    @property
    def summary(self) -> str:
        """What was cut and what was left whole, in one line."""
        line = f"{self.layers - len(self.whole)} of {self.layers} layers"
        if not self.whole:
            return line
        names = list(self.whole)
        named = ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")
        return f"{line}; left whole: {named} ({self.whole[names[0]]})"


def kept_outputs(classifier: Classifier, made: Cut) -> dict[str, list[int]]:
    """Return the outputs, ascending, that each layer of `classifier` has kept in `made`, for those that lost some."""
    return {axis.layer: stay for axis, stay in kept_axes(classifier.network, made.kept).items() if axis.side == OUT}


def cut_to(
    classifier: Classifier,
    share: Share,
    select: Select | None = None,
    channels: Channels | None = None,
) -> Cut:
    """Return the classifier with a share of its channels, multiply-adds or parameters; see `counts_for`.

    Args:
        classifier: it is not changed.
        select: selects the channels; without it, those with the largest weights stay.
        channels: those that can be cut, if not all of `channel_groups`.

    Raises:
        ConfigError: no channel can be cut, or not as many as the share requires.
    """

    def sizing(channels: Channels) -> Counts:
        return counts_for(classifier, channels, share)

    return cut_by(classifier, sizing, select or most_important(magnitude), channels or channel_groups(classifier))


def cut_by(classifier: Classifier, sizing: Sizing, select: Select, channels: Channels) -> Cut:
    """Return the classifier with as many channels of each group as `sizing` returns.

    Groups whose cut the network does not run with are left whole; the others are then sized again.

    Raises:
        ConfigError: no channel can be cut; `sizing` may raise others.
    """
    while True:
        network, kept = select(channels, sizing(channels))
        groups, failures = channels.trial.possible(kept, compare=False)
        if not failures:
            break
        if not groups:
            raise ConfigError(f"{classifier.spec.architecture} cannot be cut: {next(iter(failures.values()))}")
        channels = channels.without(failures)
    return Cut(cut(classifier, kept, network), channels.layers, channels.whole, kept)
