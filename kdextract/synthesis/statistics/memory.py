"""The memory that recording statistics takes, computed from the shapes of a teacher's layers."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import pairwise

from ...models.architectures import InputShape
from ...models.channel_moments import ChannelSums
from .recorded import RecordedLayers, StatisticsOptions
from .spectra import num_eigenvectors

FLOAT, DOUBLE = 4, 8
"""Bytes of a number in float32 and in float64."""
ALLOCATORS = 0.1
"""Share of the used memory that allocators hold in addition."""


@dataclass(frozen=True)
class Work:
    """The sizes on which the memory depends.

    Attributes:
        input_shape: (channels, height, width) of the teacher's images.
        num_classes: number of classes, K.
        weights: number of values in the teacher's parameters and buffers.
        images: number of images, which are in memory as uint8.
        largest_class: number of images of the most frequent class.
        batch_size: images per forward pass.
    """

    input_shape: InputShape
    num_classes: int
    weights: int
    images: int
    largest_class: int
    batch_size: int


@dataclass(frozen=True)
class StatisticsMemory:
    """Bytes: `kept` of the statistics themselves; `most`, an upper bound of all memory in use at any time."""

    kept: int
    most: int


def statistics_memory(found: RecordedLayers, options: StatisticsOptions, work: Work) -> StatisticsMemory:
    """Return the memory of `recorded.compute_statistics` and of writing its result to a file."""
    sizes = [layer.units for layer in found.joined]
    records = work.num_classes * _numbers_per_class(sizes, options)
    kept = FLOAT * (records + 2 * sum(layer.channels for layer in found.layers)) + DOUBLE * work.num_classes
    pixels = math.prod(work.input_shape)
    resting = FLOAT * work.weights + pixels * work.images + kept
    one_class = pixels * work.largest_class + FLOAT * work.largest_class * sum(sizes)
    records_of_class = _making_records(sizes, options, work.largest_class)
    working = one_class + max(_forward_pass(found, work), records_of_class)
    encoding = 3 * kept  # the bytes of each tensor and of the file and, before safetensors 0.8, a copy of these
    return StatisticsMemory(kept, round((1 + ALLOCATORS) * (resting + max(working, encoding))))


def _numbers_per_class(sizes: list[int], options: StatisticsOptions) -> int:
    """Return the number of values in all records and graphs of one class, for layers of these numbers of units."""
    total = _record_numbers(sum(sizes), options.rank)
    if options.spectra is None or len(sizes) == 1:
        return total
    for chains in ([sizes], [list(pair) for pair in pairwise(sizes)]):
        kept = [num_eigenvectors(chain, options.spectra) for chain in chains]
        total += sum((sum(chain) + 1) * count for chain, count in zip(chains, kept, strict=True))
        total += _record_numbers(sum(kept) + sizes[-1], options.rank)
    return total


def _record_numbers(size: int, rank: int) -> int:
    return size * (1 + min(rank, size))


def _forward_pass(found: RecordedLayers, work: Work) -> int:
    """Return an upper bound of the bytes of one forward pass without gradients.

    It assumes that the outputs of all layers stay in memory, which is more than in most networks. In a network of few
    layers, three tensors of the size of the largest output are needed: input, output, and normalized output.
    """
    outputs = [layer.units for layer in found.layers]
    images = work.batch_size * (FLOAT * 3) * math.prod(work.input_shape)
    widened = 2 * DOUBLE * max(ChannelSums.VALUES_AT_A_TIME, max(outputs))
    return images + FLOAT * work.batch_size * max(sum(outputs), 3 * max(outputs)) + widened


def _making_records(sizes: list[int], options: StatisticsOptions, count: int) -> int:
    """Return the bytes of computing the records of a class of `count` images, without their values."""
    nodes, rank = sum(sizes), min(options.rank, sum(sizes))
    columns = nodes if nodes <= 1024 else rank + 20
    factor = 3 * FLOAT * count * nodes + FLOAT * nodes * (rank + 4 * columns) + DOUBLE * 3 * columns**2
    if options.spectra is None or len(sizes) == 1:
        return factor
    blocks = [one * other for one, other in pairwise(sizes)]
    sides = sum(sizes[0::2]), sum(sizes[1::2])
    gram = min(sides) ** 2 if min(sides) <= 1024 else 0
    graphs = FLOAT * (count * nodes + sum(blocks) + math.prod(sides) + 2 * max(blocks))
    bases = FLOAT * sum(_basis_numbers(chain, options) for chain in [sizes, *map(list, pairwise(sizes))])
    return max(factor, graphs + 3 * DOUBLE * gram + 4 * bases)


def _basis_numbers(chain: Iterable[int], options: StatisticsOptions) -> int:
    sizes = list(chain)
    assert options.spectra is not None
    return sum(sizes) * num_eigenvectors(sizes, options.spectra)
