"""Recorded activation statistics of a teacher: what `compute-stats` hands over instead of the data.

Per class c, three kinds of record (Lopes, Fenu and Starner 2017), all of activations before the nonlinearity:

* each layer's mean and standard deviation, per unit;
* `Record`s: a mean and a covariance factor F (covariance = F F^T) over several blocks of numbers at once, so that
  targets drawn for different layers belong to the same imagined image;
* `spectra.Graph`s: the bases of the two spectral objectives.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from typing import Any

import torch

from .classifier import Classifier
from .errors import ArtifactError, ConfigError
from .hooks import record_activations, weighted_layers
from .images import to_pixels
from .queries import BLANK
from .spectra import Graph, SpectralOptions, class_graphs, leading_directions

LAYERS, SPECTRAL_ALL, SPECTRAL_PAIRS = "layers", "spectral_all_layers", "spectral_layer_pairs"


@dataclass(frozen=True)
class Layer:
    """A recorded layer: its name in the network, its output shape per image, its number of units."""

    name: str
    shape: tuple[int, ...]
    units: int


@dataclass(frozen=True)
class Record:
    """Mean [K, M] and covariance factor [K, M, R] of M numbers, which are `blocks` laid end to end.

    `blocks` holds (name, size) pairs; `explained` is the share of the variance that the factor keeps.
    """

    blocks: tuple[tuple[str, int], ...]
    mean: torch.Tensor
    factor: torch.Tensor
    explained: float = 1.0

    def sample(self, labels: torch.Tensor, generator: torch.Generator) -> dict[str, torch.Tensor]:
        """Draw one target per label: t = mean_c + F_c g with g ~ N(0, I), which has the covariance F_c F_c^T.

        Returns block name -> [len(labels), size]. (The 2017 code multiplies g by the covariance itself.)
        """
        device = self.mean.device
        noise = torch.randn(len(labels), self.factor.shape[2], generator=generator).to(device)
        drawn = self.mean[labels].clone()
        for label in labels.unique():
            rows = labels == label
            drawn[rows] += noise[rows.to(device)] @ self.factor[label].T
        return self.split(drawn)

    def split(self, values: torch.Tensor) -> dict[str, torch.Tensor]:
        """Cut [..., M] into block name -> [..., size]."""
        names = [name for name, _ in self.blocks]
        return dict(zip(names, values.split([size for _, size in self.blocks], dim=-1), strict=True))

    def variance(self) -> dict[str, torch.Tensor]:
        """Block name -> mean over classes and units of the recorded variance (a scalar > 0)."""
        total = self.factor.square().sum(dim=2)
        return {name: part.mean().clamp_min(1e-12) for name, part in self.split(total).items()}


@dataclass(frozen=True)
class Statistics:
    """Everything `compute-stats` records. `layers` are in the order in which they run; the last is the logits.

    `counts` is int64 [K]; `means` and `deviations` hold [K, units] per layer name.
    """

    layers: tuple[Layer, ...]
    counts: torch.Tensor
    means: dict[str, torch.Tensor]
    deviations: dict[str, torch.Tensor]
    records: dict[str, Record] = field(default_factory=dict)
    graphs: dict[str, tuple[Graph, ...]] = field(default_factory=dict)

    @property
    def logits(self) -> str:
        """Name of the last layer."""
        return self.layers[-1].name

    def record(self, name: str) -> Record:
        """Return the record called `name`; raises `ConfigError` when it was not made."""
        if name not in self.records:
            raise ConfigError(
                f"the statistics of this run hold no {name} record; make one with: "
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
            tensors[f"mean.{layer.name}"] = self.means[layer.name]
            tensors[f"std.{layer.name}"] = self.deviations[layer.name]
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
            expected += [(tensors[layer.name], (classes, layer.units)) for tensors in (self.means, self.deviations)]
        for record in self.records.values():
            size = sum(size for _, size in record.blocks)
            expected += [(record.mean, (classes, size)), (record.factor, (classes, size, record.factor.shape[-1]))]
        units = {layer.name: layer.units for layer in self.layers}
        for graph in (graph for graphs in self.graphs.values() for graph in graphs):
            nodes, kept = sum(units[name] for name in graph.layers), graph.eigenvalues.shape[-1]
            expected += [(graph.basis, (classes, nodes, kept)), (graph.eigenvalues, (classes, kept))]
        for tensor, shape in expected:
            if tuple(tensor.shape) != shape:
                raise ValueError(f"tensor of shape {tuple(tensor.shape)} where {shape} belongs")

    @staticmethod
    def from_tensors(tensors: dict[str, torch.Tensor], metadata: dict[str, Any]) -> Statistics:
        """Inverse of `to_tensors`. Raises `ArtifactError` when the two do not belong together."""
        try:
            layers = tuple(Layer(x["name"], tuple(x["shape"]), x["units"]) for x in metadata["layers"])
            records = {
                name: Record(
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
            means = {layer.name: tensors[f"mean.{layer.name}"] for layer in layers}
            deviations = {layer.name: tensors[f"std.{layer.name}"] for layer in layers}
            statistics = Statistics(layers, tensors["counts"], means, deviations, records, graphs)
            statistics._check_shapes()
            return statistics
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise ArtifactError(f"the file is not a statistics record of kdx: missing or malformed {error}") from error


@dataclass(frozen=True)
class StatisticsOptions:
    """What to record. Layers of more than `max_units` units get a mean and a standard deviation only.

    `rank` bounds the columns of a covariance factor; without `spectra` no spectral record is made.
    """

    max_units: int
    rank: int
    spectra: SpectralOptions | None


def compute_statistics(
    teacher: Classifier,
    images: torch.Tensor,
    labels: torch.Tensor,
    options: StatisticsOptions,
    advance: Callable[[int], None],
    chunk: int = 500,
) -> Statistics:
    """Record a teacher's statistics in one pass: each image goes through the teacher once, class by class.

    Args:
        images: uint8 [N, channels, height, width] of the teacher's input shape.
        labels: int64 [N]; every class in [0, K) appears at least twice.
        advance: called with the number of images done since the last call.
    """
    device = teacher.device
    teacher.queries.add(1, BLANK)
    shapes = weighted_layers(teacher.network, torch.zeros(1, *teacher.input_shape, device=device))
    layers = tuple(Layer(name, shape, math.prod(shape)) for name, shape in shapes.items())
    small = [layer for layer in layers if layer.units <= options.max_units]
    if layers[-1] not in small:
        raise ConfigError(f"--max-units must be at least {layers[-1].units}: the logits are always recorded")
    per_class = []
    for label in range(teacher.num_classes):
        chunks = images[labels == label].split(chunk)
        per_class.append(_one_class(teacher, layers, small, _with_progress(chunks, advance), options))
    count, means, deviations, records, graphs = zip(*per_class, strict=True)
    names = [layer.name for layer in layers]
    return Statistics(
        layers=layers,
        counts=torch.tensor(count),
        means={name: torch.stack([row[name] for row in means]) for name in names},
        deviations={name: torch.stack([row[name] for row in deviations]) for name in names},
        records={name: _join_records([row[name] for row in records]) for name in records[0]},
        graphs={name: _join_graphs([row[name] for row in graphs]) for name in graphs[0]},
    )


def _with_progress(chunks: tuple[torch.Tensor, ...], advance: Callable[[int], None]) -> Iterator[torch.Tensor]:
    for chunk in chunks:
        yield chunk
        advance(len(chunk))


def _one_class(
    teacher: Classifier,
    layers: tuple[Layer, ...],
    small: list[Layer],
    chunks: Iterator[torch.Tensor],
    options: StatisticsOptions,
) -> tuple[int, dict[str, Any], dict[str, Any], dict[str, Any], dict[str, Any]]:
    """Return (count, means, deviations, records, graphs) of one class, each with a leading dimension left out."""
    count = 0
    sums = {layer.name: torch.zeros(layer.units, dtype=torch.float64) for layer in layers}
    squares = {layer.name: torch.zeros(layer.units, dtype=torch.float64) for layer in layers}
    kept: dict[str, list[torch.Tensor]] = {layer.name: [] for layer in small}
    with torch.inference_mode(), record_activations(teacher.network, list(sums)) as activations:
        for stored in chunks:
            teacher(to_pixels(stored.to(teacher.device)))
            count += len(stored)
            for name, output in activations.items():
                flat = output.flatten(1)
                sums[name] += flat.sum(0, dtype=torch.float64).cpu()
                squares[name] += flat.square().sum(0, dtype=torch.float64).cpu()
                if name in kept:
                    kept[name].append(flat.clone())
        values = {name: torch.cat(parts) for name, parts in kept.items()}
        means = {name: (total / count).float() for name, total in sums.items()}
        deviations = {
            name: (squares[name] / count - (sums[name] / count).square()).clamp_min(0).sqrt().float() for name in sums
        }
        records = {LAYERS: _make_record(values, options.rank)}
        graphs: dict[str, list[Graph]] = {}
        if options.spectra is not None and len(values) > 1:
            over_all, pairs = class_graphs(values, options.spectra)
            graphs = {SPECTRAL_ALL: [over_all], SPECTRAL_PAIRS: pairs}
            zeros = torch.zeros(count, dtype=torch.int64)
            logits = layers[-1].name
            for name, members in graphs.items():
                blocks = {graph.name: graph.spectrum(values, zeros) for graph in members}
                records[name] = _make_record({**blocks, logits: values[logits]}, options.rank)
    return count, means, deviations, records, graphs


def _make_record(values: dict[str, torch.Tensor], rank: int) -> Record:
    """Return mean [1, M] and the best factor of `rank` columns over blocks of [n, size] values.

    Blocks are scaled to equal total variance first, so that a wide layer does not crowd out a narrow one.
    """
    means = {name: part.mean(0) for name, part in values.items()}
    centered = {name: values[name] - means[name] for name in values}
    scales = {name: part.square().sum().div(len(part)).sqrt().clamp_min(1e-12) for name, part in centered.items()}
    stacked = (
        torch.cat([centered[name] / scales[name] for name in values], dim=1) / len(centered[next(iter(values))]) ** 0.5
    )
    width = min(rank, *stacked.shape)
    directions, singular = leading_directions(stacked, width)
    explained = float(singular.square().sum() / stacked.square().sum().clamp_min(1e-12))
    parts = (directions * singular).split([part.shape[1] for part in values.values()])
    factor = torch.cat([part * scale for part, scale in zip(parts, scales.values(), strict=True)])
    if factor.shape[1] < rank:
        factor = torch.nn.functional.pad(factor, (0, min(rank, stacked.shape[1]) - factor.shape[1]))
    blocks = tuple((name, part.shape[1]) for name, part in values.items())
    return Record(blocks, torch.cat(list(means.values())).unsqueeze(0), factor.unsqueeze(0), explained)


def _join_records(rows: list[Record]) -> Record:
    width = max(row.factor.shape[2] for row in rows)
    factors = [torch.nn.functional.pad(row.factor, (0, width - row.factor.shape[2])) for row in rows]
    explained = sum(row.explained for row in rows) / len(rows)
    return Record(rows[0].blocks, torch.cat([row.mean for row in rows]), torch.cat(factors), explained)


def _join_graphs(rows: list[list[Graph]]) -> tuple[Graph, ...]:
    return tuple(
        Graph(
            same[0].name,
            same[0].layers,
            torch.cat([graph.basis for graph in same]),
            torch.cat([graph.eigenvalues for graph in same]),
        )
        for same in zip(*rows, strict=True)
    )
