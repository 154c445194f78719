"""Folding: similar channels are merged into one (Wang et al. 2025, "Forget the Data and Fine-Tuning! Just Fold the
Network to Compress", ICLR 2025, arXiv 2502.10216). No data is needed.

The channels of a group are clustered by k-means over the weights that produce them. One channel of each cluster stays:
it has the mean of the producing weights, and the layers that read it have the sum of the weights that read the cluster.

A mean of several channels varies less than each of them. The variance in batch normalization is therefore multiplied by
(N + (N^2 - N) E[c]) / N^2 for N channels whose mean correlation is E[c]. This is the approximate repair, Fold-AR; the
authors' program multiplies the scale by sqrt(N / (1 + (N - 1) E[c])), which is the same. The correlation of two
channels is estimated as the cosine of the weights that produce them, which it is if the inputs are uncorrelated.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from contextlib import ExitStack
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from ..classifier import Classifier
from ..hooks import evaluation_mode, is_weighted
from .cut import Channels, Counts, Select, Selection
from .groups import Group
from .sizes import find_layer
from .slices import OUT, merge

RESTARTS = 4
"""k-means is started so many times; the clusters with the least distances are used."""
TOLERANCE = 1e-3
"""The largest change of an output that may be of rounding, as a share of the largest output."""
BatchNorm = nn.modules.batchnorm._BatchNorm
Clusters = list[list[int]]
"""Indices of channels of a group, ascending in each cluster; the first channel of a cluster stays."""


def unfoldable(channels: Channels) -> dict[Group, str]:
    """Return the groups whose channels cannot be merged, with the reason: those with the channels of attention."""
    layers = {group: [find_layer(channels.network, axis.layer) for axis in group.axes] for group in channels.groups}
    found = [group for group, own in layers.items() if any(isinstance(one, nn.MultiheadAttention) for one in own)]
    return dict.fromkeys(found, "folding does not merge channels of attention")


def folding(classifier: Classifier, seed: int) -> Select:
    """Return the selection that merges similar channels of a classifier.

    Args:
        seed: of k-means.
    """

    def select(channels: Channels, counts: Counts) -> Selection:
        whole = channels.network
        pairs = followed_by_batch_norm(classifier, whole)
        producers = {group: _producers(whole, group, pairs) for group in channels.groups}
        clusters = {group: _clusters(group, producers[group], counts[group], seed) for group in channels.groups}
        network = deepcopy(whole).requires_grad_(False)
        for group in channels.groups:
            _fold(network, group, producers[group], [own for own in clusters[group] if len(own) > 1])
        return network, {group: sorted(members[0] for members in clusters[group]) for group in channels.groups}

    return select


@dataclass(frozen=True)
class _Producer:
    """A convolution or linear layer with the channels of a group, and the batch normalization that alone reads it.

    `rows` has for each channel of the group the indices of its outputs in the layer. `norm_name` is '' without
    normalization.
    """

    name: str
    norm_name: str
    layer: Any
    norm: Any
    rows: list[list[int]]

    def effective(self) -> torch.Tensor:
        """Return weights and shifts of all channels as they are after normalization, float64 [channels, values].

        With weights w and bias c of the layer, and mean m, deviation s, scale g and shift b of the normalization, these
        are g w / s and b + g (c - m) / s.
        """
        weights = self.layer.weight.detach().double().flatten(1)
        shifts = _values(self.layer.bias, len(weights), 0.0)
        if self.norm is not None:
            gains = _values(self.norm.weight, len(weights), 1.0) / _deviations(self.norm)
            weights = weights * gains.unsqueeze(1)
            shifts = _values(self.norm.bias, len(weights), 0.0) + gains * (shifts - self.norm.running_mean.double())
        together = torch.cat([weights, shifts.unsqueeze(1)], 1)
        return torch.stack([together[rows].flatten() for rows in self.rows])

    def directions(self) -> torch.Tensor:
        """Return the weights of each output of the layer, float64 [outputs, weights]; where the normalization has a
        negative scale, their sign is changed."""
        weights = self.layer.weight.detach().double().flatten(1)
        return weights if self.norm is None else weights * _signs(self.norm).unsqueeze(1)


def _values(parameter: torch.Tensor | None, count: int, default: float) -> torch.Tensor:
    return torch.full((count,), default, dtype=torch.float64) if parameter is None else parameter.detach().double()


def _deviations(norm: Any) -> torch.Tensor:
    deviations: torch.Tensor = (norm.running_var.double() + norm.eps).sqrt()
    return deviations


def _signs(norm: Any) -> torch.Tensor:
    return torch.where(_values(norm.weight, norm.num_features, 1.0) < 0, -1.0, 1.0).double()


def followed_by_batch_norm(classifier: Classifier, network: nn.Module) -> dict[str, str]:
    """Return layer -> the batch normalization that alone reads its outputs, for convolutions and linear layers.

    It is tried: if both are rescaled, the network's outputs must be the same. The network is not changed.
    """
    number = next(network.parameters()).dtype
    random = torch.Generator().manual_seed(0)
    pixels = torch.randn(2, *classifier.input_shape, generator=random).to(number)
    pairs = _pairs(network, pixels)

    def works(tried: dict[str, str]) -> bool:
        rescaled = deepcopy(network).requires_grad_(False)
        for name, norm in tried.items():
            layer: Any = rescaled.get_submodule(name)
            _rescale(layer, rescaled.get_submodule(norm), range(len(layer.weight)), 1.0)
        head = classifier.spec.head
        with torch.no_grad(), evaluation_mode(network), evaluation_mode(rescaled):
            theirs, ours = head.values(network(pixels)), head.values(rescaled(pixels))
        return float((ours - theirs).abs().max()) <= TOLERANCE * float(theirs.abs().max())

    return pairs if works(pairs) else {name: norm for name, norm in pairs.items() if works({name: norm})}


def _pairs(network: nn.Module, pixels: torch.Tensor) -> dict[str, str]:
    """Return layer -> the batch normalization with statistics that reads its output, where each of them runs once."""
    outputs: list[tuple[str, torch.Tensor]] = []
    reads: list[tuple[str, torch.Tensor]] = []

    def note_output(name: str) -> Any:
        return lambda module, inputs, output: outputs.append((name, output))

    def note_input(name: str) -> Any:
        return lambda module, inputs: reads.append((name, inputs[0]))

    with ExitStack() as stack, torch.no_grad(), evaluation_mode(network):
        for name, module in network.named_modules():
            if is_weighted(module):
                stack.callback(module.register_forward_hook(note_output(name)).remove)
            elif isinstance(module, BatchNorm) and module.running_mean is not None:
                stack.callback(module.register_forward_pre_hook(note_input(name)).remove)
        network(pixels)
    found = [(layer, norm) for layer, output in outputs for norm, read in reads if read is output]
    layers, norms = [layer for layer, _ in outputs], [norm for norm, _ in reads]
    return {layer: norm for layer, norm in found if layers.count(layer) == 1 and norms.count(norm) == 1}


def _producers(network: nn.Module, group: Group, pairs: dict[str, str]) -> list[_Producer]:
    producers = []
    for position, axis in enumerate(group.axes):
        layer = find_layer(network, axis.layer)
        if axis.side == OUT and isinstance(layer, nn.Module) and is_weighted(layer):
            norm_name = pairs.get(axis.layer, "")
            norm = network.get_submodule(norm_name) if norm_name else None
            rows = [list(channel[position]) for channel in group.channels]
            producers.append(_Producer(axis.layer, norm_name, layer, norm, rows))
    return producers


def _clusters(group: Group, producers: Sequence[_Producer], count: int, seed: int) -> Clusters:
    """Return clusters of similar channels, `count` in each block of a group."""
    features = torch.cat([producer.effective() for producer in producers], 1).numpy()
    clusters: Clusters = []
    for block in group.members():
        found: dict[int, list[int]] = {}
        for channel, label in zip(block, _labels(features[block], count, seed), strict=True):
            found.setdefault(label, []).append(channel)
        own = list(found.values())
        while len(own) < count:  # there are fewer different channels
            own.append([max(own, key=len).pop()])
        clusters += own
    return clusters


def _labels(features: np.ndarray, count: int, seed: int) -> list[int]:
    """Return a cluster for each row of the features, [rows, values]; equal rows are in the same one."""
    from sklearn.cluster import KMeans
    from sklearn.exceptions import ConvergenceWarning
    from threadpoolctl import threadpool_limits

    if count == len(features):
        return list(range(count))
    with warnings.catch_warnings(), threadpool_limits(1):  # several threads add in an order that varies
        warnings.simplefilter("ignore", ConvergenceWarning)  # there are fewer different rows than clusters
        found: list[int] = KMeans(count, n_init=RESTARTS, random_state=seed).fit(features).labels_.tolist()
    return found


@torch.no_grad()
def _fold(network: nn.Module, group: Group, producers: Sequence[_Producer], clusters: Clusters) -> None:
    """Merge the clusters of a group, in place."""
    for producer in producers:
        if producer.norm is not None:
            layer, after = network.get_submodule(producer.name), network.get_submodule(producer.norm_name)
            for rows in _rows(producer.rows, clusters):
                _rescale(layer, after, rows, float(_deviations(after)[rows].square().mean().sqrt()))
    for position, axis in enumerate(group.axes):
        indices = [channel[position] for channel in group.channels]
        merge(network, axis, _rows(indices, clusters))
    paired = {producer.norm_name: producer for producer in producers if producer.norm is not None}
    every = [torch.stack([one.directions()[rows].flatten() for rows in one.rows]) for one in producers]
    for position, axis in enumerate(group.axes):
        norm: Any = find_layer(network, axis.layer)
        if not isinstance(norm, BatchNorm) or norm.running_var is None:
            continue
        indices = [channel[position] for channel in group.channels]
        if axis.layer in paired:
            directions = paired[axis.layer].directions()
            for rows in _rows(indices, clusters):
                _repair(norm, rows[0], directions[rows])
        elif every:
            for members in clusters:
                for row in indices[members[0]]:
                    _repair(norm, row, torch.cat(every, 1)[members])


def _rows(indices: Sequence[Sequence[int]], clusters: Clusters) -> list[list[int]]:
    """Return the clusters as indices of a layer, where each channel has the `indices` of its place."""
    return [list(rows) for members in clusters for rows in zip(*(indices[member] for member in members), strict=True)]


def _rescale(layer: Any, norm: Any, rows: Sequence[int], deviation: float) -> None:
    """Multiply outputs of a layer so that the normalization after it has this deviation, and positive scales, there.

    The outputs of the normalization do not change.
    """
    rows = list(rows)
    signs = _signs(norm)
    factors = (signs * deviation / _deviations(norm))[rows]
    layer.weight[rows] = (layer.weight[rows].double() * factors.view(-1, *[1] * (layer.weight.dim() - 1))).to(
        layer.weight.dtype
    )
    for values in (layer.bias, norm.running_mean):
        if values is not None:
            values[rows] = (values[rows].double() * factors).to(values.dtype)
    norm.running_var[rows] = deviation**2 - norm.eps
    if norm.weight is not None:
        norm.weight[rows] = norm.weight[rows].abs()


def remaining_variance(directions: torch.Tensor) -> float:
    """Return the variance of a mean of N channels as a share of theirs: (N + (N^2 - N) E[c]) / N^2.

    Args:
        directions: the weights of each channel, float64 [N, weights], N above 1. E[c] is the mean cosine of two of
            them, or 0 if it is negative; channels without weights are equal to each other.
    """
    count = len(directions)
    empty = (directions.norm(dim=1, keepdim=True) == 0).double()
    unit = torch.cat([nn.functional.normalize(directions, dim=1), empty], 1)
    cosines = unit @ unit.T
    correlation = (float(cosines.sum()) - float(cosines.trace())) / (count**2 - count)
    return (count + (count**2 - count) * min(1.0, max(0.0, correlation))) / count**2


def _repair(norm: Any, row: int, directions: torch.Tensor) -> None:
    variance = (float(norm.running_var[row]) + norm.eps) * remaining_variance(directions) - norm.eps
    norm.running_var[row] = max(0.0, variance)
