"""Activation statistics of a teacher, which `compute-stats` records from its training data.

All statistics are of activations before the nonlinearity. For every layer, over all images:

* mean and variance per channel, which are the running statistics of batch normalization after this layer.

For the layers of at most `max_units` units, per class c (Lopes, Fenu and Starner 2017):

* `ActivationRecord`s: a mean and a covariance factor F (covariance = F F^T) of several blocks of numbers, so that
  targets drawn for different layers are consistent;
* `spectra.Graph`s: the bases of the two spectral objectives.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any

import torch

from ...errors import ArtifactError, ConfigError
from ...models.channel_moments import ChannelSums
from ...models.classifier import Classifier
from ...models.hooks import hand_over_activations, layer_outputs
from ...models.pixels import to_pixels
from .records import LAYERS as LAYERS
from .records import SPECTRAL_ALL as SPECTRAL_ALL
from .records import SPECTRAL_PAIRS as SPECTRAL_PAIRS
from .records import ActivationRecord as ActivationRecord
from .records import ClassRecords, Tensors
from .spectra import Graph, SpectralOptions


@dataclass(frozen=True)
class Layer:
    """A recorded layer.

    Attributes:
        name: of the module in the network.
        shape: of its output for one image.
        units: number of values in this output.
        channel_axis: index of the channels in `shape`: the first in a convolution, the last in a linear layer.
    """

    name: str
    shape: tuple[int, ...]
    units: int
    channel_axis: int = 0

    @property
    def channels(self) -> int:
        """Number of channels."""
        return self.shape[self.channel_axis]


@dataclass(frozen=True)
class Statistics:
    """All that `compute-stats` records.

    Attributes:
        layers: in the order in which they run; the last one gives the logits.
        counts: images per class, int64 [K].
        means, variances: [channels] per layer name, over all images and positions; variances are the biased ones.
        records: by name, see `records.ActivationRecord`.
        graphs: by the name of their record, see `spectra.Graph`.
    """

    layers: tuple[Layer, ...]
    counts: torch.Tensor
    means: Tensors
    variances: Tensors
    records: dict[str, ActivationRecord] = field(default_factory=dict)
    graphs: dict[str, tuple[Graph, ...]] = field(default_factory=dict)

    @property
    def logits(self) -> str:
        """Name of the last layer."""
        return self.layers[-1].name

    def record(self, name: str) -> ActivationRecord:
        """Return the record called `name`. Raises `ConfigError` if it was not recorded."""
        if name not in self.records:
            raise ConfigError(
                f"the statistics of this run have no record {name}; record it with: "
                f"kdx compute-stats --force{' --spectral' if name != LAYERS else ''}"
            )
        return self.records[name]

    def to(self, device: torch.device) -> Statistics:
        """Return a copy whose tensors are on `device`."""
        tensors, metadata = self.to_tensors()
        return Statistics.from_tensors({name: tensor.to(device) for name, tensor in tensors.items()}, metadata)

    def to_tensors(self) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
        """Return (named tensors, JSON metadata), the contents of a statistics file."""
        tensors = {"counts": self.counts}
        for layer in self.layers:
            tensors[f"channel_mean.{layer.name}"] = self.means[layer.name]
            tensors[f"channel_variance.{layer.name}"] = self.variances[layer.name]
        for name, record in self.records.items():
            tensors[f"record.{name}.mean"], tensors[f"record.{name}.factor"] = record.mean, record.factor
        for graphs in self.graphs.values():
            for graph in graphs:
                tensors[f"graph.{graph.name}.basis"] = graph.basis
                tensors[f"graph.{graph.name}.eigenvalues"] = graph.eigenvalues
        metadata = {
            "layers": [asdict(layer) for layer in self.layers],
            "records": {n: {"blocks": r.blocks, "explained": r.explained} for n, r in self.records.items()},
            "graphs": {n: [{"name": g.name, "layers": g.layers} for g in gs] for n, gs in self.graphs.items()},
        }
        return tensors, metadata

    def _check_shapes(self) -> None:
        """Raise `ValueError` unless every tensor has the shape that the names and sizes of its parts imply."""
        classes = len(self.counts)
        expected: list[tuple[torch.Tensor, tuple[int, ...]]] = [(self.counts, (classes,))]
        for layer in self.layers:
            expected += [(tensors[layer.name], (layer.channels,)) for tensors in (self.means, self.variances)]
        for record in self.records.values():
            size = sum(size for _, size in record.blocks)
            expected += [(record.mean, (classes, size)), (record.factor, (classes, size, record.factor.shape[-1]))]
        units = {layer.name: layer.units for layer in self.layers}
        for graph in (graph for graphs in self.graphs.values() for graph in graphs):
            nodes, kept = sum(units[name] for name in graph.layers), graph.eigenvalues.shape[-1]
            expected += [(graph.basis, (classes, nodes, kept)), (graph.eigenvalues, (classes, kept))]
        for tensor, shape in expected:
            if tuple(tensor.shape) != shape:
                raise ValueError(f"tensor of shape {tuple(tensor.shape)}, which must be {shape}")

    @staticmethod
    def from_tensors(tensors: dict[str, torch.Tensor], metadata: dict[str, Any]) -> Statistics:
        """Return the statistics of a file: the inverse of `to_tensors`.

        It also reads files of version 0.1, with statistics per unit and class.

        Raises:
            ArtifactError: tensors and metadata are not those of one statistics file.
        """
        try:
            layers = tuple(_layer_from_record(entry) for entry in metadata["layers"])
            if any(f"mean.{layer.name}" in tensors for layer in layers):
                tensors = _with_channels(tensors, layers)
            records = {
                name: ActivationRecord(
                    tuple((block, size) for block, size in entry["blocks"]),
                    tensors[f"record.{name}.mean"],
                    tensors[f"record.{name}.factor"],
                    entry["explained"],
                )
                for name, entry in metadata["records"].items()
            }
            graphs = {
                name: tuple(
                    Graph(
                        entry["name"],
                        tuple(entry["layers"]),
                        tensors[f"graph.{entry['name']}.basis"],
                        tensors[f"graph.{entry['name']}.eigenvalues"],
                    )
                    for entry in entries
                )
                for name, entries in metadata["graphs"].items()
            }
            means = {layer.name: tensors[f"channel_mean.{layer.name}"] for layer in layers}
            variances = {layer.name: tensors[f"channel_variance.{layer.name}"] for layer in layers}
            statistics = Statistics(layers, tensors["counts"], means, variances, records, graphs)
            statistics._check_shapes()
            return statistics
        except (KeyError, TypeError, ValueError, AttributeError, IndexError, RuntimeError) as error:
            raise ArtifactError(f"the file is not a statistics record of kdx: missing or malformed {error}") from error


def _layer_from_record(entry: dict[str, Any]) -> Layer:
    shape = tuple(entry["shape"])
    usual = len(shape) - 1 if len(shape) == 2 else 0  # of version 0.1: tokens x units, or channels x height x width
    return Layer(entry["name"], shape, entry["units"], entry.get("channel_axis", usual))


def _with_channels(tensors: Tensors, layers: tuple[Layer, ...]) -> Tensors:
    """Return the tensors of a file of version 0.1 with statistics per channel instead of those per class and unit.

    The file holds means and standard deviations `mean.LAYER` and `std.LAYER`, [K, units] each.
    """
    shares = (tensors["counts"].double() / tensors["counts"].sum()).unsqueeze(1)
    reduced = dict(tensors)
    for layer in layers:
        means, deviations = (reduced.pop(f"{kind}.{layer.name}") for kind in ("mean", "std"))
        if {means.shape, deviations.shape} != {(len(shares), layer.units)}:
            raise ValueError(f"mean or std.{layer.name}")
        others = [axis for axis in range(len(layer.shape)) if axis != layer.channel_axis]
        first = (shares * means).sum(0).view(layer.shape)
        second = (shares * (deviations.double().square() + means.double().square())).sum(0).view(layer.shape)
        if others:
            first, second = first.mean(others), second.mean(others)
        reduced[f"channel_mean.{layer.name}"] = first.float()
        reduced[f"channel_variance.{layer.name}"] = (second - first.square()).clamp_min(0).float()
    return reduced


@dataclass(frozen=True)
class StatisticsOptions:
    """What is recorded.

    Attributes:
        max_units: layers of more units have statistics per channel only, and are not part of records.
        rank: largest number of columns of a covariance factor.
        spectra: options of the spectral records; None: they are not made.
    """

    max_units: int
    rank: int
    spectra: SpectralOptions | None


@dataclass(frozen=True)
class RecordedLayers:
    """The layers of a teacher in the order in which they run, and those that are part of the records (`joined`)."""

    layers: tuple[Layer, ...]
    joined: tuple[Layer, ...]


def recorded_layers(teacher: Classifier, max_units: int) -> RecordedLayers:
    """Find the layers of a teacher by a forward pass of one image of zeros.

    Layers with at most `max_units` units and one output row per image are part of the records.

    Raises:
        ConfigError: the teacher has no convolution or linear layer, or the last one is not part of the records.
    """
    layers, joined = [], []
    teacher.queries.add_blank(1)
    for name, output in layer_outputs(teacher.network, teacher.blank(1)).items():
        shape = output.shape[1:]
        layers.append(Layer(name, shape, math.prod(shape), output.channel_axis - 1))
        if layers[-1].units <= max_units and output.shape[0] == 1:
            joined.append(layers[-1])
    if not layers:
        raise ConfigError("the teacher has no convolution and no linear layer, of which statistics could be recorded")
    if layers[-1] not in joined:
        raise ConfigError(f"--max-units must be at least {layers[-1].units}: the logits are always recorded")
    return RecordedLayers(tuple(layers), tuple(joined))


def compute_statistics(
    teacher: Classifier,
    images: torch.Tensor,
    labels: torch.Tensor,
    options: StatisticsOptions,
    advance: Callable[[int], None],
    batch_size: int | None = None,
) -> Statistics:
    """Record a teacher's statistics with one forward pass per image, class by class.

    Outputs of layers are added up in float64 during the forward pass; only the outputs of layers that are part of the
    records are kept, for one class at a time.

    Args:
        images: uint8 [N, channels, height, width] of the teacher's input shape.
        labels: int64 [N]; every class in [0, K) appears at least twice.
        options: what is recorded.
        advance: called with the number of images since its last call.
        batch_size: images per forward pass; None: `teacher.images_per_pass`. It changes the result by rounding only.
    """
    found = recorded_layers(teacher, options.max_units)
    sums = {layer.name: ChannelSums(layer.channels, layer.channel_axis + 1, teacher.device) for layer in found.layers}
    batch_size = batch_size or teacher.images_per_pass
    counts = labels.bincount(minlength=teacher.num_classes)
    records = ClassRecords(teacher.num_classes)
    for label in range(teacher.num_classes):
        values = _class_values(teacher, images[labels == label], found.joined, sums, batch_size, advance)
        records.add(label, values, found.layers[-1].name, options.rank, options.spectra)
    return Statistics(
        layers=found.layers,
        counts=counts,
        means={name: total.mean for name, total in sums.items()},
        variances={name: total.variance for name, total in sums.items()},
        records=records.records(),
        graphs=records.graphs(),
    )


def _class_values(
    teacher: Classifier,
    images: torch.Tensor,
    joined: tuple[Layer, ...],
    sums: dict[str, ChannelSums],
    batch_size: int,
    advance: Callable[[int], None],
) -> Tensors:
    """Add the images of a class to the sums of all layers; return the values [n, units] of the layers of records."""
    values = {layer.name: torch.empty(len(images), layer.units, device=teacher.device) for layer in joined}
    done = 0

    def take(name: str, output: torch.Tensor) -> None:
        sums[name].add(output)
        if name in values:
            values[name][done : done + batch_size] = output.flatten(1)

    with torch.inference_mode(), hand_over_activations(teacher.network, list(sums), take):
        for stored in images.split(batch_size):
            teacher(to_pixels(stored.to(teacher.device)))
            done += len(stored)
            advance(len(stored))
    return values
