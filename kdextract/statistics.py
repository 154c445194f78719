"""Recorded activation statistics of a teacher: what `compute-stats` hands over instead of the data.

Per class c, three kinds of record (Lopes, Fenu and Starner 2017), all of activations before the nonlinearity:

* each layer's mean and standard deviation, per unit;
* `Record`s: a mean and a covariance factor F (covariance = F F^T) over several blocks of numbers at once, so that
  targets drawn for different layers belong to the same imagined image;
* `Graph`s: the bases of the two spectral objectives.

The paper calls the spectral objectives graph spectra of the network's activations and leaves the operator open. Our
reading: nodes are units, the weight between units i, j of adjacent layers is E_c[relu(a_i) relu(a_j)], the basis holds
the eigenvectors of the normalized Laplacian L = I - D^(-1/2) W D^(-1/2) whose eigenvalues are farthest from 1 (most of
W's energy), and the spectrum of an image is basis^T a, of its pre-activations a: what remains after ReLU determines
an image far less (`inversion.match_layers` has the figure). As only adjacent layers are joined, the graph is
bipartite (odd and even layers), and L's eigenvectors (u, +v)/sqrt(2), (u, -v)/sqrt(2) with eigenvalues 1 -+ s come
from the singular triplets (u, s, v) of the odd-even block of D^(-1/2) W D^(-1/2): exact, and small enough to compute.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from typing import Any, Literal

import torch

from .classifier import Classifier
from .errors import ArtifactError, ConfigError
from .hooks import record_activations, weighted_layers
from .images import to_pixels

SpectralOrder = Literal["energy", "smooth"]
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
class Graph:
    """One spectral basis per class: [K, V, k] over the units of `layers` laid end to end; eigenvalues [K, k] of L."""

    name: str
    layers: tuple[str, ...]
    basis: torch.Tensor
    eigenvalues: torch.Tensor

    def spectrum(self, activations: dict[str, torch.Tensor], labels: torch.Tensor) -> torch.Tensor:
        """Return basis_c^T a for each image: [batch, k]. `labels` picks the basis, class by class."""
        nodes = torch.cat([activations[name].flatten(1) for name in self.layers], dim=1)
        spectrum = nodes.new_zeros(len(labels), self.basis.shape[2])
        for label in labels.unique():
            rows = (labels == label).nonzero().squeeze(1).to(nodes.device)
            spectrum = spectrum.index_copy(0, rows, nodes[rows] @ self.basis[label])
        return spectrum


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

    `rank` bounds the columns of a covariance factor; a spectral basis keeps ceil(`spectral_fraction` * V)
    eigenvectors, at most `spectral_max`.
    """

    max_units: int
    rank: int
    spectral: bool
    spectral_fraction: float
    spectral_max: int
    spectral_order: SpectralOrder


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
        if options.spectral and len(values) > 1:
            graphs = _make_graphs(values, options)
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
    directions, singular = _leading_directions(stacked, width)
    explained = float(singular.square().sum() / stacked.square().sum().clamp_min(1e-12))
    parts = (directions * singular).split([part.shape[1] for part in values.values()])
    factor = torch.cat([part * scale for part, scale in zip(parts, scales.values(), strict=True)])
    if factor.shape[1] < rank:
        factor = torch.nn.functional.pad(factor, (0, min(rank, stacked.shape[1]) - factor.shape[1]))
    blocks = tuple((name, part.shape[1]) for name, part in values.items())
    return Record(blocks, torch.cat(list(means.values())).unsqueeze(0), factor.unsqueeze(0), explained)


def _leading_directions(rows: torch.Tensor, width: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the `width` leading right singular vectors [M, width] and singular values of `rows` [n, M].

    Exact where a side is small; otherwise by randomized subspace iteration (Halko et al. 2011, algorithm 4.4).
    """
    n, m = rows.shape
    if m <= 1024:
        values, vectors = torch.linalg.eigh((rows.T @ rows).double())
        values, vectors = values.flip(0)[:width], vectors.flip(1)[:, :width]
        return vectors.float(), values.clamp_min(0).sqrt().float()
    oversampled = min(width + 20, n, m)
    start = torch.randn(m, oversampled, generator=torch.Generator().manual_seed(0)).to(rows.device)
    basis = torch.linalg.qr(rows @ start).Q
    for _ in range(2):
        basis = torch.linalg.qr(rows @ torch.linalg.qr(rows.T @ basis).Q).Q
    _, singular, right = torch.linalg.svd(basis.T @ rows, full_matrices=False)
    return right[:width].T.contiguous(), singular[:width]


def _make_graphs(values: dict[str, torch.Tensor], options: StatisticsOptions) -> dict[str, list[Graph]]:
    """Return one class's graphs over layers of values [n, units]: one over all of them, one per adjacent pair."""
    names = list(values)
    active = {name: part.relu() for name, part in values.items()}
    weights = [(active[a].T @ active[b]) / len(active[a]) for a, b in pairwise(names)]
    pairs = [
        _make_graph(f"{a}-{b}", (a, b), [block], options)
        for (a, b), block in zip(pairwise(names), weights, strict=True)
    ]
    return {SPECTRAL_ALL: [_make_graph("all", tuple(names), weights, options)], SPECTRAL_PAIRS: pairs}


def _make_graph(name: str, layers: tuple[str, ...], weights: list[torch.Tensor], options: StatisticsOptions) -> Graph:
    """Return the spectral basis of a chain of layers, of which `weights` [units, units] joins each to the next."""
    sizes = [weights[0].shape[0], *(block.shape[1] for block in weights)]
    degrees = [weights[0].new_zeros(size) for size in sizes]
    for index, block in enumerate(weights):
        degrees[index] += block.sum(1)
        degrees[index + 1] += block.sum(0)
    roots = [torch.where(d > 0, d.clamp_min(1e-20).rsqrt(), 0) for d in degrees]
    starts = [sum(sizes[:index]) for index in range(len(sizes) + 1)]
    rows = {index: sum(sizes[0:index:2]) for index in range(0, len(sizes), 2)}
    columns = {index: sum(sizes[1:index:2]) for index in range(1, len(sizes), 2)}
    joined = weights[0].new_zeros(sum(sizes[0::2]), sum(sizes[1::2]))
    for index, block in enumerate(weights):
        scaled = roots[index].unsqueeze(1) * block * roots[index + 1]
        even, odd, scaled = (index + 1, index, scaled.T) if index % 2 else (index, index + 1, scaled)
        joined[rows[even] : rows[even] + sizes[even], columns[odd] : columns[odd] + sizes[odd]] = scaled
    nodes = starts[-1]
    keep = max(2, min(options.spectral_max, math.ceil(nodes * options.spectral_fraction), nodes))
    even_nodes = [node for part in rows for node in range(starts[part], starts[part + 1])]
    odd_nodes = [node for part in columns for node in range(starts[part], starts[part + 1])]
    return _basis_of(name, layers, joined, even_nodes, odd_nodes, keep, options.spectral_order)


def _basis_of(
    name: str, layers: tuple[str, ...], joined: torch.Tensor, even: list[int], odd: list[int], keep: int, order: str
) -> Graph:
    """Turn the singular triplets of the even-odd block into eigenvectors of the normalized Laplacian."""
    both_signs = order == "energy"
    triplets = min(keep // 2 if both_signs else keep, *joined.shape)
    left, singular, right = _singular_triplets(joined, triplets)
    half = 0.5**0.5
    basis = torch.zeros(len(even) + len(odd), triplets * (2 if both_signs else 1), device=joined.device)
    basis[even, :triplets], basis[odd, :triplets] = left * half, right * half
    eigenvalues = 1 - singular
    if both_signs:
        basis[even, triplets:], basis[odd, triplets:] = left * half, -right * half
        eigenvalues = torch.cat([eigenvalues, 1 + singular])
    return Graph(name, layers, basis.unsqueeze(0), eigenvalues.unsqueeze(0))


def _singular_triplets(matrix: torch.Tensor, count: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return the leading (U [m, count], s [count], V [n, count]), from the Gram matrix of the smaller side."""
    transposed = matrix.shape[0] < matrix.shape[1]
    tall = matrix.T if transposed else matrix
    right, singular = _leading_directions(tall, count)
    left = tall @ right / singular.clamp_min(1e-8)
    left = torch.where(singular > 1e-6, left, 0)
    return (right, singular, left) if transposed else (left, singular, right)


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
