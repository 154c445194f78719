"""Spectra of a teacher's activation graph: the bases of the two spectral objectives (Lopes, Fenu and Starner 2017).

The paper uses graph spectra of the network's activations without defining the operator. Our definition:

* nodes are units; the weight between units i, j of adjacent layers is E_c[relu(a_i) relu(a_j)];
* the basis holds the eigenvectors of the normalized Laplacian L = I - D^(-1/2) W D^(-1/2) whose eigenvalues are
  farthest from 1 (most of W's energy);
* the spectrum of an image is basis^T a with its pre-activations a, which give better images than activations after
  ReLU (see `activation_matching.match_layers`).

As only adjacent layers are connected, the graph is bipartite (odd and even layers). L's eigenvectors (u, +v)/sqrt(2),
(u, -v)/sqrt(2) with eigenvalues 1 -+ s come from the singular triplets (u, s, v) of the odd-even block of
D^(-1/2) W D^(-1/2). This is exact, and the block is small enough to compute them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise

import torch


@dataclass(frozen=True)
class SpectralOptions:
    """How many eigenvectors of a graph of V nodes are kept: about ceil(`fraction` * V), and at most `maximum`.

    They are those of the eigenvalues farthest from 1, in pairs of eigenvalues 1 - s and 1 + s.
    """

    fraction: float
    maximum: int


@dataclass(frozen=True)
class Graph:
    """One spectral basis per class, [K, V, k], over the V units of `layers`, concatenated; eigenvalues [K, k] of L."""

    name: str
    layers: tuple[str, ...]
    basis: torch.Tensor
    eigenvalues: torch.Tensor

    def spectrum(self, activations: dict[str, torch.Tensor], labels: torch.Tensor) -> torch.Tensor:
        """Return basis_c^T a for each image, [batch, k], with the basis of the class c in `labels`, int64 [batch]."""
        nodes = torch.cat([activations[name].flatten(1) for name in self.layers], dim=1)
        spectrum = nodes.new_zeros(len(labels), self.basis.shape[2])
        for label in labels.unique():
            rows = (labels == label).nonzero().squeeze(1).to(nodes.device)
            spectrum = spectrum.index_copy(0, rows, nodes[rows] @ self.basis[label])
        return spectrum


def class_graphs(values: dict[str, torch.Tensor], options: SpectralOptions) -> tuple[Graph, list[Graph]]:
    """Return the graphs of one class from the values [n, units] of its layers: one over all, one per adjacent pair."""
    names = list(values)
    active = {name: part.relu() for name, part in values.items()}
    weights = [(active[a].T @ active[b]) / len(active[a]) for a, b in pairwise(names)]
    pairs = [
        _make_graph(f"{a}-{b}", (a, b), [block], options)
        for (a, b), block in zip(pairwise(names), weights, strict=True)
    ]
    return _make_graph("all", tuple(names), weights, options), pairs


def _make_graph(name: str, layers: tuple[str, ...], weights: list[torch.Tensor], options: SpectralOptions) -> Graph:
    """Return the spectral basis of a chain of layers; `weights` [units, units] are those of each layer and the next."""
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
    even_nodes = [node for part in rows for node in range(starts[part], starts[part + 1])]
    odd_nodes = [node for part in columns for node in range(starts[part], starts[part + 1])]
    return _basis_of(name, layers, joined, even_nodes, odd_nodes, options)


def num_eigenvectors(sizes: list[int], options: SpectralOptions) -> int:
    """Return how many eigenvectors are kept of the graph of a chain of layers of these numbers of units."""
    nodes = sum(sizes)
    keep = max(2, min(options.maximum, math.ceil(nodes * options.fraction), nodes))
    sides = sum(sizes[0::2]), sum(sizes[1::2])
    return 2 * min(keep // 2, *sides)


def _basis_of(
    name: str, layers: tuple[str, ...], joined: torch.Tensor, even: list[int], odd: list[int], options: SpectralOptions
) -> Graph:
    """Return the eigenvectors of the normalized Laplacian from the singular triplets of the even-odd block."""
    kept = num_eigenvectors([len(even), len(odd)], options)
    triplets = kept // 2
    left, singular, right = _singular_triplets(joined, triplets)
    half = 0.5**0.5
    basis = torch.zeros(len(even) + len(odd), kept, device=joined.device)
    basis[even, :triplets], basis[odd, :triplets] = left * half, right * half
    basis[even, triplets:], basis[odd, triplets:] = left * half, -right * half
    eigenvalues = torch.cat([1 - singular, 1 + singular])
    return Graph(name, layers, basis.unsqueeze(0), eigenvalues.unsqueeze(0))


def _singular_triplets(matrix: torch.Tensor, count: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return the leading (U [m, count], s [count], V [n, count]), from the Gram matrix of the smaller side."""
    transposed = matrix.shape[0] < matrix.shape[1]
    tall = matrix.T if transposed else matrix
    right, singular = leading_directions(tall, count)
    left = tall @ right / singular.clamp_min(1e-8)
    left = torch.where(singular > 1e-6, left, 0)
    return (right, singular, left) if transposed else (left, singular, right)


def leading_directions(rows: torch.Tensor, width: int) -> tuple[torch.Tensor, torch.Tensor]:
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
