"""A smaller classifier from a larger one: channels are cut out, and the weights of those that stay are kept."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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
from ..hooks import evaluation_mode, last_layer, module_of, weighted_layers
from .checks import Kept, Trial, kept_axes, plain_copy
from .groups import Group
from .importance import Importance, magnitude, strongest
from .sizes import find_layer, sizes_of
from .slices import OUT, take

BISECTIONS = 24
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
        raise ConfigError("a .pt2 program cannot be cut: its operations have fixed sizes; name another student")
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


def kept_at_width(channels: Channels, width: float, importance: Importance = magnitude) -> dict[Group, list[int]]:
    """Return the most important channels of each group, of which a share `width` stays, at least one of each block."""
    return {
        group: strongest(importance(channels.network, group), group, _per_block(group, width))
        for group in channels.groups
    }


def _per_block(group: Group, width: float) -> int:
    return scaled(len(group.channels) // group.unit, width)


def width_for_multiply_adds(classifier: Classifier, channels: Channels, share: float) -> float:
    """Return the largest width at which the multiply-adds are at most this share of the classifier's, by bisection.

    Raises:
        ConfigError: there are more with one channel of each block.
    """
    most = share * classifier.multiply_adds()
    low, high = 0.0, 1.0
    if _multiply_adds(classifier, channels, low) > most:
        least = _multiply_adds(classifier, channels, low) / classifier.multiply_adds()
        raise ConfigError(
            f"{classifier.spec.architecture} cannot be cut to {share:g} of its multiply-adds: with one channel of each "
            f"group, {least:.3g} of them are left"
        )
    for _ in range(BISECTIONS):
        middle = (low + high) / 2
        low, high = (middle, high) if _multiply_adds(classifier, channels, middle) <= most else (low, middle)
    return low


def _multiply_adds(classifier: Classifier, channels: Channels, width: float) -> int:
    """Return the multiply-adds of the classifier at this width, whichever channels stay."""
    kept = {}
    for group in channels.groups:
        count = _per_block(group, width)
        kept[group] = sorted(index for block in group.members() for index in block[:count])
    network = take(deepcopy(channels.network), kept_axes(channels.network, kept))
    return Classifier(replace(classifier.spec, code=None), network).multiply_adds()


@dataclass(frozen=True)
class Cut:
    """A classifier whose channels were cut, and the numbers of convolutions and linear layers: `layers`, without the
    last one, of which those in `whole` have all outputs, for the reason that is given."""

    classifier: Classifier
    layers: int
    whole: dict[str, str]

    @property
    def summary(self) -> str:
        """What was cut and what was left whole, in one line."""
        line = f"{self.layers - len(self.whole)} of {self.layers} layers"
        if not self.whole:
            return line
        names = list(self.whole)
        named = ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")
        return f"{line}; left whole: {named} ({self.whole[names[0]]})"


def cut_to(classifier: Classifier, share: Share, importance: Importance = magnitude) -> Cut:
    """Return the classifier with a share of its channels or multiply-adds: all groups of channels at one width.

    Raises:
        ConfigError: no channel can be cut, or not as many as the share of multiply-adds requires.
    """
    channels = channel_groups(classifier)
    while True:
        width = share.value
        if share.of == "macs":
            width = width_for_multiply_adds(classifier, channels, share.value)
        kept = kept_at_width(channels, width, importance)
        groups, failures = channels.trial.possible(kept, compare=False)
        if not failures:
            break
        whole = channels.whole | _whole(list(_outputs_of(failures)), groups, failures)
        channels = replace(channels, groups=tuple(groups), whole=whole)
        if not groups:
            raise ConfigError(f"{classifier.spec.architecture} cannot be cut: {next(iter(failures.values()))}")
    return Cut(cut(classifier, kept, channels.network), channels.layers, channels.whole)


def _outputs_of(failures: Mapping[Group, str]) -> dict[str, None]:
    return dict.fromkeys(axis.layer for group in failures for axis in group.axes if axis.side == OUT)
