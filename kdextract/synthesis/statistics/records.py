"""Records of activations per class, from which targets of images are drawn (Lopes, Fenu and Starner 2017)."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from .spectra import Graph, SpectralOptions, class_graphs, leading_directions

LAYERS, SPECTRAL_ALL, SPECTRAL_PAIRS = "layers", "spectral_all_layers", "spectral_layer_pairs"
Tensors = dict[str, torch.Tensor]


@dataclass(frozen=True)
class ActivationRecord:
    """Mean and covariance factor of M values per class.

    Attributes:
        blocks: (name, size) of the parts that are concatenated to the M values.
        mean: [K, M].
        factor: F, [K, M, R]; the covariance is F F^T.
        explained: share of the variance that the factor represents, in [0, 1].
    """

    blocks: tuple[tuple[str, int], ...]
    mean: torch.Tensor
    factor: torch.Tensor
    explained: float = 1.0

    def sample(self, labels: torch.Tensor, rng: torch.Generator) -> dict[str, torch.Tensor]:
        """Draw one target per label: t = mean_c + F_c g with g ~ N(0, I), which has the covariance F_c F_c^T.

        Returns block name -> [len(labels), size]; `rng` is on the CPU. (The 2017 code multiplies g by the covariance.)
        """
        device = self.mean.device
        noise = torch.randn(len(labels), self.factor.shape[2], generator=rng).to(device)
        drawn = self.mean[labels].clone()
        for label in labels.unique():
            rows = labels == label
            drawn[rows] += noise[rows.to(device)] @ self.factor[label].T
        return self.split(drawn)

    def split(self, values: torch.Tensor) -> dict[str, torch.Tensor]:
        """Split [..., M] into block name -> [..., size]."""
        names = [name for name, _ in self.blocks]
        return dict(zip(names, values.split([size for _, size in self.blocks], dim=-1), strict=True))

    def variance(self) -> dict[str, torch.Tensor]:
        """Return block name -> mean over classes and units of the recorded variance, a scalar > 0."""
        total = self.factor.square().sum(dim=2)
        return {name: part.mean().clamp_min(1e-12) for name, part in self.split(total).items()}


class ClassRecords:
    """Collects the records and graphs of all classes on the CPU, in tensors that are allocated once."""

    def __init__(self, num_classes: int) -> None:
        self._num_classes = num_classes
        self._tensors: Tensors = {}
        self._blocks: dict[str, tuple[tuple[str, int], ...]] = {}
        self._explained: dict[str, float] = {}
        self._graphs: dict[str, list[tuple[str, tuple[str, ...]]]] = {}

    def add(self, label: int, values: Tensors, logits: str, rank: int, spectra: SpectralOptions | None) -> None:
        """Make the records and graphs of one class from the values [n, units] of its images, by layer name.

        Args:
            logits: name of the last layer.
            rank: largest number of columns of covariance factors.
            spectra: options of graphs; None: no graphs are made.
        """
        with torch.no_grad():  # tensors of inference mode could not be used with gradients later
            self._keep_record(LAYERS, label, _make_record(values, rank))
            if spectra is None or len(values) == 1:
                return
            over_all, pairs = class_graphs(values, spectra)
            zeros = torch.zeros(len(values[logits]), dtype=torch.int64)
            for name, members in ((SPECTRAL_ALL, [over_all]), (SPECTRAL_PAIRS, pairs)):
                self._graphs[name] = [(graph.name, graph.layers) for graph in members]
                for graph in members:
                    self._keep(f"graph.{graph.name}.basis", label, graph.basis)
                    self._keep(f"graph.{graph.name}.eigenvalues", label, graph.eigenvalues)
                blocks = {graph.name: graph.spectrum(values, zeros) for graph in members}
                self._keep_record(name, label, _make_record({**blocks, logits: values[logits]}, rank))

    def _keep_record(self, name: str, label: int, record: ActivationRecord) -> None:
        self._blocks[name] = record.blocks
        self._explained[name] = self._explained.get(name, 0.0) + record.explained / self._num_classes
        self._keep(f"record.{name}.mean", label, record.mean)
        self._keep(f"record.{name}.factor", label, record.factor)

    def _keep(self, name: str, label: int, row: torch.Tensor) -> None:
        """Copy a tensor [1, ...] of one class to its row of the tensor [K, ...]."""
        if name not in self._tensors:
            self._tensors[name] = torch.empty(self._num_classes, *row.shape[1:])
        self._tensors[name][label] = row[0]

    def records(self) -> dict[str, ActivationRecord]:
        """Return the records of all classes, by name."""
        tensors = self._tensors
        return {
            name: ActivationRecord(
                blocks, tensors[f"record.{name}.mean"], tensors[f"record.{name}.factor"], self._explained[name]
            )
            for name, blocks in self._blocks.items()
        }

    def graphs(self) -> dict[str, tuple[Graph, ...]]:
        """Return the graphs of all classes, by the name of the record that is made with them."""
        return {
            record: tuple(
                Graph(name, layers, self._tensors[f"graph.{name}.basis"], self._tensors[f"graph.{name}.eigenvalues"])
                for name, layers in members
            )
            for record, members in self._graphs.items()
        }


def _make_record(values: dict[str, torch.Tensor], rank: int) -> ActivationRecord:
    """Return mean [1, M] and the best factor of `rank` columns over blocks of [n, size] values.

    Blocks are first scaled to equal total variance, so that layers have equal weight whatever their width.
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
    columns = min(rank, stacked.shape[1])  # the same for every class, however few images it has
    factor = torch.nn.functional.pad(factor, (0, columns - factor.shape[1]))
    blocks = tuple((name, part.shape[1]) for name, part in values.items())
    return ActivationRecord(blocks, torch.cat(list(means.values())).unsqueeze(0), factor.unsqueeze(0), explained)
