"""The recorded statistics against NumPy with all images at once, and samples of them."""

from __future__ import annotations

import json
from collections import OrderedDict
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import Tokens, num_hooks, statistics_teacher
from torch import nn

from kdextract.errors import ArtifactError, ConfigError
from kdextract.models.channel_moments import ChannelSums
from kdextract.models.classifier import Classifier, ClassifierSpec
from kdextract.models.pixels import to_pixels
from kdextract.storage.tensor_files import encode_safetensors, read_safetensors
from kdextract.synthesis.statistics.recorded import (
    LAYERS,
    SPECTRAL_ALL,
    SPECTRAL_PAIRS,
    ActivationRecord,
    Statistics,
    StatisticsOptions,
    compute_statistics,
)
from kdextract.synthesis.statistics.spectra import SpectralOptions

UNITS = {"conv1": 18, "fc1": 12, "fc2": 10, "logits": 3}
PAIRS = [("conv1", "fc1"), ("fc1", "fc2"), ("fc2", "logits")]
COUNTS = [60, 45, 80]
SPECTRA = SpectralOptions(0.3, 64)
OPTIONS = StatisticsOptions(max_units=1000, rank=200, spectra=SPECTRA)


def tiny_teacher() -> Classifier:
    """Four layers of 18, 12, 10 and 3 units on 8x8 pixels."""
    torch.manual_seed(0)
    teacher = Classifier(ClassifierSpec("hinton800", (1, 8, 8), ("a", "b", "c"), (0.4,), (0.3,)))
    teacher.network = nn.Sequential(
        OrderedDict(
            conv1=nn.Conv2d(1, 2, 3, stride=2),
            relu1=nn.ReLU(),
            flatten=nn.Flatten(),
            fc1=nn.Linear(18, 12),
            relu2=nn.ReLU(),
            fc2=nn.Linear(12, 10),
            relu3=nn.ReLU(),
            logits=nn.Linear(10, 3),
        )
    )
    for module in teacher.network.modules():
        if isinstance(module, nn.Linear | nn.Conv2d):
            nn.init.kaiming_normal_(module.weight)
            nn.init.constant_(module.bias, 0.3)
    return teacher.frozen()


def tiny_images() -> tuple[torch.Tensor, torch.Tensor]:
    """Images of three classes with means of their own, in mixed order."""
    rng = torch.Generator().manual_seed(1)
    labels = torch.cat([torch.full((count,), label) for label, count in enumerate(COUNTS)])
    labels = labels[torch.randperm(len(labels), generator=rng)]
    patterns = torch.rand((3, 1, 8, 8), generator=rng)
    pixels = 0.6 * patterns[labels] + 0.4 * torch.rand((len(labels), 1, 8, 8), generator=rng)
    return (pixels * 255).to(torch.uint8), labels


def activations_by_hand(teacher: Classifier, images: torch.Tensor) -> dict[str, np.ndarray]:
    """Pre-activations [N, units] of every layer, in double precision."""
    values, x = {}, (to_pixels(images).double() - 0.4) / 0.3
    with torch.no_grad():
        for name, module in teacher.network.named_children():
            x = module.double()(x)
            if name in UNITS:
                values[name] = x.flatten(1).numpy()
            module.float()
    return values


def nothing(amount: int) -> None:
    """Ignore progress."""


@pytest.fixture(scope="module")
def teacher() -> Classifier:
    return tiny_teacher()


@pytest.fixture(scope="module")
def statistics(teacher: Classifier) -> Statistics:
    return compute_statistics(teacher, *tiny_images(), OPTIONS, nothing)


@pytest.fixture(scope="module")
def per_class(teacher: Classifier) -> list[dict[str, np.ndarray]]:
    """For each class, the pre-activations of its images."""
    images, labels = tiny_images()
    return [activations_by_hand(teacher, images[labels == label]) for label in range(3)]


def stacked(values: dict[str, np.ndarray]) -> np.ndarray:
    return np.concatenate([values[name] for name in UNITS], axis=1)


def relative_difference(value: np.ndarray | torch.Tensor, expected: np.ndarray) -> float:
    return float(np.linalg.norm(np.asarray(value) - expected) / np.linalg.norm(expected))


# ---- means, deviations, covariance ------------------------------------------------------------------------------


def test_every_image_goes_through_the_teacher_once() -> None:
    teacher, (images, labels) = tiny_teacher(), tiny_images()
    passed: list[torch.Tensor] = []
    teacher.network.register_forward_hook(lambda module, inputs, output: passed.append(inputs[0].detach().clone()))
    progress: list[int] = []
    compute_statistics(teacher, images, labels, OPTIONS, progress.append, batch_size=16)
    probe, *batches = passed
    assert len(probe) == 1
    assert max(map(len, batches)) <= 16
    assert sum(map(len, batches)) == sum(progress) == len(images)
    expected = (to_pixels(images) - 0.4) / 0.3
    seen = sorted(tuple(image.flatten().tolist()) for image in torch.cat(batches))
    assert seen == sorted(tuple(image.flatten().tolist()) for image in expected)


def test_layers_counts_means_and_variances(statistics: Statistics, per_class: list[dict[str, np.ndarray]]) -> None:
    assert {layer.name: layer.units for layer in statistics.layers} == UNITS
    assert [layer.shape for layer in statistics.layers] == [(2, 3, 3), (12,), (10,), (3,)]
    assert [layer.channels for layer in statistics.layers] == [2, 12, 10, 3]
    assert statistics.logits == "logits"
    assert statistics.counts.tolist() == COUNTS
    assert statistics.counts.dtype == torch.int64
    for layer in statistics.layers:
        together = np.concatenate([values[layer.name] for values in per_class])
        channels = np.moveaxis(together.reshape(-1, layer.channels, layer.units // layer.channels), 1, 0)
        channels = channels.reshape(layer.channels, -1)
        np.testing.assert_allclose(statistics.means[layer.name], channels.mean(1), rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(statistics.variances[layer.name], channels.var(1), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("batch_size", [1, 7, 1000, None])
def test_statistics_do_not_depend_on_the_batch_size(
    batch_size: int | None, teacher: Classifier, statistics: Statistics
) -> None:
    other = compute_statistics(teacher, *tiny_images(), OPTIONS, nothing, batch_size)
    assert other.counts.tolist() == COUNTS
    for name in UNITS:
        torch.testing.assert_close(other.means[name], statistics.means[name], rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(other.variances[name], statistics.variances[name], rtol=1e-5, atol=1e-6)
    for name in (LAYERS, SPECTRAL_ALL, SPECTRAL_PAIRS):
        record, expected = other.record(name), statistics.record(name)
        assert record.blocks == expected.blocks
        if name == LAYERS:  # the signs of eigenvectors are free
            torch.testing.assert_close(record.mean, expected.mean, rtol=1e-4, atol=1e-5)
            for ours, theirs in zip(record.factor, expected.factor, strict=True):
                torch.testing.assert_close(ours @ ours.T, theirs @ theirs.T, rtol=1e-3, atol=1e-4)
        assert record.explained == pytest.approx(expected.explained, abs=1e-4)


def test_factor_gives_the_covariance_over_all_layers(
    statistics: Statistics, per_class: list[dict[str, np.ndarray]]
) -> None:
    record = statistics.record(LAYERS)
    assert record.blocks == tuple(UNITS.items())
    assert record.explained == pytest.approx(1, abs=1e-4)
    for label, values in enumerate(per_class):
        together = stacked(values)
        np.testing.assert_allclose(record.mean[label], together.mean(0), rtol=1e-4, atol=1e-5)
        factor = record.factor[label].double().numpy()
        assert relative_difference(factor @ factor.T, np.cov(together, rowvar=False, bias=True)) < 1e-3


def test_small_rank_keeps_the_best_directions(teacher: Classifier, per_class: list[dict[str, np.ndarray]]) -> None:
    """With each block scaled to a total variance of 1, no factor of that rank is nearer (Eckart and Young)."""
    options = replace(OPTIONS, rank=4, spectra=None)
    record = compute_statistics(teacher, *tiny_images(), options, nothing).record(LAYERS)
    assert record.factor.shape == (3, sum(UNITS.values()), 4)
    shares = []
    for label, values in enumerate(per_class):
        scale = np.concatenate([np.full(units, values[n].var(0).sum() ** 0.5) for n, units in UNITS.items()])
        scaled = np.cov(stacked(values) / scale, rowvar=False, bias=True)
        eigenvalues, vectors = np.linalg.eigh(scaled)
        best = (vectors[:, -4:] * eigenvalues[-4:]) @ vectors[:, -4:].T
        ours = record.factor[label].double().numpy() / scale[:, None]
        assert relative_difference(ours @ ours.T, best) < 1e-3
        shares.append(eigenvalues[-4:].sum() / eigenvalues.sum())
    assert record.explained == pytest.approx(np.mean(shares), rel=1e-3)
    assert record.explained < 0.99


def test_more_rank_explains_more(teacher: Classifier) -> None:
    explained = [
        compute_statistics(teacher, *tiny_images(), replace(OPTIONS, rank=rank, spectra=None), nothing)
        .record(LAYERS)
        .explained
        for rank in (1, 3, 8, 43)
    ]
    assert explained == sorted(explained)
    assert explained[0] < 0.8 < explained[-1]


def test_wide_record_is_factored_as_well_as_a_narrow_one() -> None:
    """Above 1,024 numbers the factor comes from a randomized method; it explains as much as the exact one."""
    torch.manual_seed(2)
    teacher = Classifier(ClassifierSpec("hinton800", (1, 8, 8), ("a", "b"), (0.4,), (0.3,))).frozen()
    images, labels = tiny_images()
    labels = labels.clamp_max(1)
    rank = 20
    record = compute_statistics(
        teacher, images, labels, replace(OPTIONS, max_units=1000, rank=rank, spectra=None), nothing
    ).record(LAYERS)
    assert record.mean.shape[1] == 800 + 800 + 2
    exact = []
    with torch.no_grad():
        for label in range(2):
            x = ((to_pixels(images[labels == label]) - 0.4) / 0.3).flatten(1)
            fc1 = teacher.network.fc1(x)
            fc2 = teacher.network.fc2(fc1.relu())
            logits = teacher.network.logits(fc2.relu())
            blocks = [part - part.mean(0) for part in (fc1, fc2, logits)]
            scaled = torch.cat([part / part.square().sum().div(len(part)).sqrt() for part in blocks], dim=1)
            energy = torch.linalg.svdvals(scaled.double()).square()
            exact.append(float(energy[:rank].sum() / energy.sum()))
    assert record.explained == pytest.approx(np.mean(exact), abs=2e-3)
    assert 0.3 < record.explained < 0.99


def test_layers_of_many_units_have_no_covariance(teacher: Classifier, statistics: Statistics) -> None:
    record = compute_statistics(teacher, *tiny_images(), replace(OPTIONS, max_units=12), nothing)
    assert [name for name, _ in record.record(LAYERS).blocks] == ["fc1", "fc2", "logits"]
    assert [graph.layers for graph in record.graphs[SPECTRAL_ALL]] == [("fc1", "fc2", "logits")]
    assert [graph.layers for graph in record.graphs[SPECTRAL_PAIRS]] == PAIRS[1:]
    assert record.layers == statistics.layers
    for name in UNITS:
        assert torch.equal(record.means[name], statistics.means[name])
        assert torch.equal(record.variances[name], statistics.variances[name])


@pytest.mark.parametrize("spectral", [True, False])
def test_a_limit_that_leaves_the_logits_out_is_refused(spectral: bool, teacher: Classifier) -> None:
    """Every method draws the logits, so no method can use a record without them."""
    with pytest.raises(ConfigError, match="max-units"):
        compute_statistics(
            teacher,
            *tiny_images(),
            replace(OPTIONS, max_units=2, spectra=OPTIONS.spectra if spectral else None),
            nothing,
        )


def test_classes_of_different_sizes_share_one_record(teacher: Classifier) -> None:
    images, labels = tiny_images()
    rows = torch.cat([(labels == 0).nonzero()[:5, 0], (labels == 1).nonzero()[:, 0], (labels == 2).nonzero()[:3, 0]])
    statistics = compute_statistics(teacher, images[rows], labels[rows], OPTIONS, nothing)
    assert statistics.counts.tolist() == [5, 45, 3]
    values = activations_by_hand(teacher, images[(labels == 2).nonzero()[:3, 0]])
    factor = statistics.record(LAYERS).factor[2].double().numpy()
    assert relative_difference(factor @ factor.T, np.cov(stacked(values), rowvar=False, bias=True)) < 1e-3


def test_class_of_equal_images_gives_finite_records(teacher: Classifier) -> None:
    images, labels = tiny_images()
    images[labels == 1] = images[labels == 1][:1].clone()
    statistics = compute_statistics(teacher, images, labels, OPTIONS, nothing)
    tensors, _ = statistics.to_tensors()
    assert all(torch.isfinite(tensor).all() for tensor in tensors.values())
    record = statistics.record(LAYERS)
    means = record.split(record.mean[1])
    drawn = record.sample(torch.ones(50, dtype=torch.int64), torch.Generator().manual_seed(0))
    for name, target in drawn.items():
        torch.testing.assert_close(target, means[name].expand(50, -1), rtol=1e-3, atol=1e-3)


def test_teacher_is_unchanged(teacher: Classifier) -> None:
    before = {name: value.clone() for name, value in teacher.state_dict().items()}
    compute_statistics(teacher, *tiny_images(), OPTIONS, nothing)
    assert all(torch.equal(before[name], value) for name, value in teacher.state_dict().items())
    assert num_hooks(teacher) == 0


# ---- networks of other kinds ------------------------------------------------------------------------------------


class Windows(nn.Module):
    """A linear layer whose leading dimension is four windows of each image, as in attention in windows."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(4, 6)
        self.head = nn.Linear(6, 2)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        windows = images.unflatten(2, (2, 2)).unflatten(4, (2, 2)).permute(0, 2, 4, 3, 5, 1).reshape(-1, 4, 1)
        return self.head(self.inner(windows.transpose(1, 2)).view(len(images), 4, 6).mean(1))


class Normed(nn.Module):
    """Two convolutions, with or without batch normalization."""

    def __init__(self, channels: int, num_classes: int, batch_norm: bool) -> None:
        super().__init__()
        self.first = nn.Conv2d(channels, 6, 3, padding=1)
        self.norm = nn.BatchNorm2d(6) if batch_norm else nn.Identity()
        self.second = nn.Conv2d(6, 4, 3)
        self.head = nn.Linear(4, num_classes)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.head(self.second(self.norm(self.first(images)).relu()).mean((2, 3)))


def outputs_by_hand(teacher: Classifier, pixels: torch.Tensor) -> dict[str, list[torch.Tensor]]:
    """Return module name -> its outputs in one pass over all images, call by call."""
    seen: dict[str, list[torch.Tensor]] = {}
    handles = [
        module.register_forward_hook(lambda m, i, output, name=name: seen.setdefault(name, []).append(output.double()))
        for name, module in teacher.network.named_modules()
        if isinstance(module, nn.Conv2d | nn.Linear)
    ]
    with torch.no_grad():
        teacher(pixels)
    for handle in handles:
        handle.remove()
    return seen


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("num_classes", [2, 10, pytest.param(100, marks=pytest.mark.slow)])
@pytest.mark.parametrize("kind", ["tokens", "batch norm", "plain", "channels last"])
@pytest.mark.parametrize("max_units", [100, 1000])
def test_figures_per_channel_are_those_of_all_images_and_places(
    channels: int, num_classes: int, kind: str, max_units: int
) -> None:
    """Also of a layer that is used twice, and of tokens, whose channels come last; whatever the memory layout."""
    torch.manual_seed(channels + num_classes)
    network = Tokens(channels, num_classes) if kind == "tokens" else Normed(channels, num_classes, kind == "batch norm")
    teacher = statistics_teacher(network, (channels, 6, 6), num_classes)
    if kind == "channels last":
        teacher.placed(torch.device("cpu"))
    labels = torch.arange(num_classes).repeat_interleave(torch.arange(num_classes) % 3 + 2)
    labels = labels[torch.randperm(len(labels))]
    images = torch.randint(0, 256, (len(labels), channels, 6, 6), dtype=torch.uint8)
    spectra = SpectralOptions(0.1, 4) if max_units == 100 else None
    statistics = compute_statistics(teacher, images, labels, StatisticsOptions(max_units, 3, spectra), nothing, 3)
    seen = outputs_by_hand(teacher, to_pixels(images))
    assert len(statistics.layers) == sum(map(len, seen.values())) == (4 if kind == "tokens" else 3)
    for layer in statistics.layers:
        module, _, call = layer.name.partition("#")
        output = seen[module][int(call or 1) - 1]
        rows = output if output.dim() == 2 else output.movedim(-1 if module == "mix" else 1, -1).flatten(0, -2)
        assert layer.channels == rows.shape[1]
        torch.testing.assert_close(statistics.means[layer.name].double(), rows.mean(0), rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(
            statistics.variances[layer.name].double(), rows.var(0, correction=0), rtol=1e-4, atol=1e-6
        )
    assert statistics.counts.tolist() == labels.bincount(minlength=num_classes).tolist()
    joined = [layer.units for layer in statistics.layers if layer.units <= max_units]
    assert statistics.record(LAYERS).mean.shape == (num_classes, sum(joined))
    assert statistics.record(LAYERS).factor.shape == (num_classes, sum(joined), 3)


def test_layers_with_several_rows_per_image_are_not_joined() -> None:
    """They would cause an error of PyTorch about tensors of different lengths."""
    torch.manual_seed(0)
    teacher = statistics_teacher(Windows(), (1, 4, 4), 2)
    images = torch.randint(0, 256, (9, 1, 4, 4), dtype=torch.uint8)
    labels = torch.arange(9) % 2
    statistics = compute_statistics(teacher, images, labels, StatisticsOptions(100, 3, SPECTRA), nothing, 4)
    assert [name for name, _ in statistics.record(LAYERS).blocks] == ["head"]
    (inner,) = outputs_by_hand(teacher, to_pixels(images))["inner"]
    assert inner.shape == (36, 1, 6)
    torch.testing.assert_close(statistics.means["inner"].double(), inner.mean((0, 1)), rtol=1e-4, atol=1e-6)


def test_a_teacher_in_double_precision_has_statistics() -> None:
    torch.manual_seed(0)
    teacher = statistics_teacher(Normed(3, 4, True).double(), (3, 6, 6), 4)
    images = torch.randint(0, 256, (16, 3, 6, 6), dtype=torch.uint8)
    statistics = compute_statistics(teacher, images, torch.arange(16) % 4, OPTIONS, nothing)
    tensors, _ = statistics.to_tensors()
    assert {tensor.dtype for name, tensor in tensors.items() if name != "counts"} == {torch.float32}


def test_small_deviations_are_exact_beside_large_means() -> None:
    """Sums of squares in single precision would lose the variance here."""
    sums = ChannelSums(2, 1, torch.device("cpu"))
    values = torch.randn((40, 2, 50), generator=torch.Generator().manual_seed(0)) * 0.1 + 1000
    for part in values.split(7):
        sums.add(part)
    torch.testing.assert_close(sums.variance.double(), values.double().var((0, 2), correction=0), rtol=1e-6, atol=0)


def test_parts_of_a_batch_have_the_sums_of_the_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    values = torch.randn((10, 3, 4, 4), generator=torch.Generator().manual_seed(0))
    whole, parts = (ChannelSums(3, 1, torch.device("cpu")) for _ in range(2))
    whole.add(values.contiguous(memory_format=torch.channels_last))
    monkeypatch.setattr(ChannelSums, "VALUES_AT_A_TIME", 20)  # less than an image
    parts.add(values)
    torch.testing.assert_close(whole.mean, parts.mean)
    torch.testing.assert_close(whole.variance, parts.variance)


# ---- sampling ---------------------------------------------------------------------------------------------------


def empirical_covariance(record: ActivationRecord, label: int, count: int = 40_000) -> np.ndarray:
    drawn = record.sample(torch.full((count,), label), torch.Generator().manual_seed(3))
    return np.cov(torch.cat(list(drawn.values()), dim=1).double().numpy(), rowvar=False, bias=True)


@pytest.mark.parametrize("label", [0, 1, 2])
def test_samples_have_the_recorded_covariance(label: int, statistics: Statistics) -> None:
    """Noise times the covariance itself, as in the 2017 code, would have its square as covariance."""
    record = statistics.record(LAYERS)
    factor = record.factor[label].double().numpy()
    covariance = factor @ factor.T
    tolerance = 0.05
    assert relative_difference(empirical_covariance(record, label), covariance) < tolerance

    noise = np.random.default_rng(4).normal(size=(40_000, len(covariance)))
    assert relative_difference(np.cov(noise @ covariance, rowvar=False), covariance) > 5 * tolerance


def test_samples_of_different_layers_belong_together(statistics: Statistics) -> None:
    record = statistics.record(LAYERS)
    drawn = record.sample(torch.zeros(40_000, dtype=torch.int64), torch.Generator().manual_seed(5))
    fc2, logits = (drawn[name].double().numpy() for name in ("fc2", "logits"))
    between = np.cov(fc2, logits, rowvar=False, bias=True)[:10, 10:]
    parts = record.split(record.factor[0].T)
    expected = (parts["fc2"].T @ parts["logits"]).numpy()
    assert relative_difference(between, expected) < 0.05
    assert np.abs(np.corrcoef(fc2, logits, rowvar=False)[:10, 10:]).max() > 0.3


def test_samples_follow_their_labels(statistics: Statistics, per_class: list[dict[str, np.ndarray]]) -> None:
    labels = torch.arange(3).repeat(8_000)
    drawn = statistics.record(LAYERS).sample(labels, torch.Generator().manual_seed(6))
    for name in UNITS:
        assert drawn[name].shape == (24_000, UNITS[name])
        for label in range(3):
            rows = drawn[name][labels == label]
            mean, deviation = (torch.from_numpy(part(per_class[label][name], 0)) for part in (np.mean, np.std))
            error = (rows.mean(0) - mean).abs()
            assert (error < 6 * deviation / 8_000**0.5 + 1e-4).all()
            torch.testing.assert_close(rows.std(0).double(), deviation, rtol=0.06, atol=1e-3)


def test_sampling_depends_only_on_the_random_generator(statistics: Statistics) -> None:
    record, labels = statistics.record(LAYERS), torch.tensor([2, 0, 1, 1])
    mean = record.mean.clone()
    once, again, other = (record.sample(labels, torch.Generator().manual_seed(seed)) for seed in (7, 7, 8))
    assert all(torch.equal(once[name], again[name]) for name in UNITS)
    assert not any(torch.equal(once[name], other[name]) for name in UNITS)
    assert not torch.equal(once["fc1"][2], once["fc1"][3]), "two images of one class have one target"
    assert torch.equal(record.mean, mean)


def test_variance_is_the_mean_of_the_units(statistics: Statistics, per_class: list[dict[str, np.ndarray]]) -> None:
    variance = statistics.record(LAYERS).variance()
    for name in UNITS:
        expected = np.mean([values[name].var(0).mean() for values in per_class])
        assert float(variance[name]) == pytest.approx(expected, rel=1e-3)


def test_variance_of_a_constant_block_is_above_zero() -> None:
    record = ActivationRecord((("a", 2), ("b", 1)), torch.zeros(2, 3), torch.zeros(2, 3, 4))
    assert all(float(value) > 0 for value in record.variance().values())


# ---- spectra ----------------------------------------------------------------------------------------------------


def dense_laplacian(values: dict[str, np.ndarray], layers: tuple[str, ...]) -> np.ndarray:
    """L = I - D^(-1/2) W D^(-1/2), with W = E[relu(a_i) relu(a_j)] between units of adjacent layers."""
    starts = np.cumsum([0, *(UNITS[name] for name in layers)])
    weights = np.zeros((starts[-1], starts[-1]))
    for index, (first, second) in enumerate(pairwise(layers)):
        rows, columns = slice(*starts[index : index + 2]), slice(*starts[index + 1 : index + 3])
        weights[rows, columns] = np.maximum(values[first], 0).T @ np.maximum(values[second], 0) / len(values[first])
    weights += weights.T
    degrees = weights.sum(1)
    roots = np.divide(1, np.sqrt(degrees), out=np.zeros_like(degrees), where=degrees > 0)
    return np.eye(len(weights)) - roots[:, None] * weights * roots


def all_graphs(statistics: Statistics) -> list[Any]:
    return [graph for graphs in statistics.graphs.values() for graph in graphs]


def test_graphs_are_one_over_all_layers_and_one_per_pair(statistics: Statistics) -> None:
    assert [graph.layers for graph in statistics.graphs[SPECTRAL_ALL]] == [tuple(UNITS)]
    assert [graph.layers for graph in statistics.graphs[SPECTRAL_PAIRS]] == PAIRS
    for graph in all_graphs(statistics):
        nodes = sum(UNITS[name] for name in graph.layers)
        assert graph.basis.shape[:2] == (3, nodes)
        assert graph.eigenvalues.shape == (3, graph.basis.shape[2])
        assert graph.basis.shape[2] >= 0.3 * nodes - 1


def test_basis_holds_eigenvectors_of_the_laplacian(
    statistics: Statistics, per_class: list[dict[str, np.ndarray]]
) -> None:
    for graph in all_graphs(statistics):
        for label, values in enumerate(per_class):
            laplacian = dense_laplacian(values, graph.layers)
            basis, eigenvalues = graph.basis[label].double().numpy(), graph.eigenvalues[label].double().numpy()
            np.testing.assert_allclose(laplacian @ basis, basis * eigenvalues, atol=2e-4, err_msg=graph.name)
            np.testing.assert_allclose(basis.T @ basis, np.eye(len(eigenvalues)), atol=1e-3, err_msg=graph.name)
            assert eigenvalues.min() > -1e-4
            assert eigenvalues.max() < 2 + 1e-4
            assert eigenvalues.min() == pytest.approx(0, abs=1e-4), "a connected graph has the eigenvalue 0"


def test_eigenvectors_of_the_eigenvalues_farthest_from_one_are_kept(
    statistics: Statistics, per_class: list[dict[str, np.ndarray]]
) -> None:
    for graph in all_graphs(statistics):
        for label, values in enumerate(per_class):
            every = np.linalg.eigvalsh(dense_laplacian(values, graph.layers))
            every = every[np.argsort(-np.abs(every - 1), kind="stable")]
            kept = np.sort(graph.eigenvalues[label].double().numpy())
            np.testing.assert_allclose(kept, np.sort(every[: len(kept)]), atol=2e-3, err_msg=graph.name)


def test_few_eigenvectors_keep_more_of_the_weights_than_those_of_the_smallest_eigenvalues(
    teacher: Classifier, per_class: list[dict[str, np.ndarray]]
) -> None:
    options = replace(OPTIONS, spectra=replace(SPECTRA, maximum=4))
    (graph,) = compute_statistics(teacher, *tiny_images(), options, nothing).graphs[SPECTRAL_ALL]
    assert (graph.eigenvalues > 1.5).any()
    smallest = [np.linalg.eigvalsh(dense_laplacian(values, graph.layers))[:4] for values in per_class]
    assert float((1 - graph.eigenvalues).square().sum()) > np.square(1 - np.array(smallest)).sum()


@pytest.mark.parametrize(("fraction", "most", "expected"), [(0.1, 64, 5), (0.3, 64, 13), (0.3, 6, 6), (0.3, 5, 5)])
def test_fraction_and_limit_determine_the_number_of_eigenvectors(
    fraction: float, most: int, expected: int, teacher: Classifier
) -> None:
    options = replace(OPTIONS, spectra=SpectralOptions(fraction, most))
    (graph,) = compute_statistics(teacher, *tiny_images(), options, nothing).graphs[SPECTRAL_ALL]
    kept = graph.basis.shape[2]
    assert kept % 2 == 0, "eigenvectors come in pairs of eigenvalues 1 - s and 1 + s"
    assert expected - 1 <= kept <= min(most, expected + 1)


def test_unit_that_is_never_active_is_left_out_of_the_graph() -> None:
    teacher = tiny_teacher()
    with torch.no_grad():
        teacher.network.fc1.weight[4] = 0
        teacher.network.fc1.bias[4] = -1
    statistics = compute_statistics(teacher, *tiny_images(), OPTIONS, nothing)
    for graph in all_graphs(statistics):
        assert torch.isfinite(graph.basis).all()
        if "fc1" in graph.layers:
            node = sum(UNITS[name] for name in graph.layers[: graph.layers.index("fc1")]) + 4
            assert float(graph.basis[:, node].abs().max()) < 1e-4


def test_spectrum_is_the_product_with_the_basis_of_each_class(statistics: Statistics) -> None:
    rng = torch.Generator().manual_seed(9)
    labels = torch.tensor([2, 0, 1, 1, 0, 2, 2])
    activations = {name: torch.randn((7, units), generator=rng) for name, units in UNITS.items()}
    activations["conv1"] = activations["conv1"].view(7, 2, 3, 3)
    for graph in all_graphs(statistics):
        nodes = np.concatenate([activations[name].flatten(1).numpy() for name in graph.layers], axis=1)
        expected = np.stack([graph.basis[label].numpy().T @ a for label, a in zip(labels, nodes, strict=True)])
        np.testing.assert_allclose(graph.spectrum(activations, labels).numpy(), expected, rtol=1e-4, atol=1e-5)


def test_spectrum_passes_gradients_on(statistics: Statistics) -> None:
    (graph,) = statistics.graphs[SPECTRAL_ALL]
    labels = torch.tensor([1, 0, 1])
    activations = {name: torch.randn(3, units, requires_grad=True) for name, units in UNITS.items()}
    weights = torch.randn(3, graph.basis.shape[2])
    (weights * graph.spectrum(activations, labels)).sum().backward()
    gradient = torch.cat([activations[name].grad for name in UNITS], dim=1)
    expected = torch.stack([graph.basis[label] @ weight for label, weight in zip(labels, weights, strict=True)])
    torch.testing.assert_close(gradient, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", [SPECTRAL_ALL, SPECTRAL_PAIRS])
def test_spectral_record_is_of_spectra_and_logits(
    name: str, statistics: Statistics, per_class: list[dict[str, np.ndarray]]
) -> None:
    record, graphs = statistics.record(name), statistics.graphs[name]
    assert record.blocks == (*((graph.name, graph.basis.shape[2]) for graph in graphs), ("logits", 3))
    for label, values in enumerate(per_class):
        spectra = [
            np.concatenate([values[layer] for layer in graph.layers], axis=1) @ graph.basis[label].double().numpy()
            for graph in graphs
        ]
        together = np.concatenate([*spectra, values["logits"]], axis=1)
        np.testing.assert_allclose(record.mean[label], together.mean(0), rtol=1e-3, atol=1e-4)
        factor = record.factor[label].double().numpy()
        assert relative_difference(factor @ factor.T, np.cov(together, rowvar=False, bias=True)) < 2e-3


def test_without_spectra_there_is_one_record(teacher: Classifier) -> None:
    statistics = compute_statistics(teacher, *tiny_images(), replace(OPTIONS, spectra=None), nothing)
    assert list(statistics.records) == [LAYERS]
    assert statistics.graphs == {}
    with pytest.raises(ConfigError, match="kdx compute-stats --force --spectral"):
        statistics.record(SPECTRAL_PAIRS)


# ---- files ------------------------------------------------------------------------------------------------------


def assert_same(one: Statistics, other: Statistics) -> None:
    assert one.layers == other.layers
    assert {n: (r.blocks, r.explained) for n, r in one.records.items()} == {
        n: (r.blocks, r.explained) for n, r in other.records.items()
    }
    assert {n: [(g.name, g.layers) for g in gs] for n, gs in one.graphs.items()} == {
        n: [(g.name, g.layers) for g in gs] for n, gs in other.graphs.items()
    }
    tensors, others = one.to_tensors()[0], other.to_tensors()[0]
    assert tensors.keys() == others.keys()
    assert all(torch.equal(tensor, others[name]) for name, tensor in tensors.items())


def test_statistics_can_be_saved_and_loaded(statistics: Statistics, tmp_path: Path) -> None:
    path = tmp_path / "statistics.safetensors"
    path.write_bytes(encode_safetensors(*statistics.to_tensors()))
    restored = Statistics.from_tensors(*read_safetensors(path))
    assert_same(restored, statistics)
    labels = torch.tensor([0, 2, 1])
    drawn, again = (
        s.record(SPECTRAL_ALL).sample(labels, torch.Generator().manual_seed(1)) for s in (statistics, restored)
    )
    assert all(torch.equal(drawn[name], again[name]) for name in drawn)


def test_statistics_move_to_a_device(statistics: Statistics) -> None:
    assert_same(statistics.to(torch.device("cpu")), statistics)


def as_version_0_1(
    statistics: Statistics, per_class: list[dict[str, np.ndarray]]
) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Return the tensors and metadata of the file that version 0.1 wrote: figures of each class and unit."""
    tensors, metadata = statistics.to_tensors()
    tensors = {name: tensor for name, tensor in tensors.items() if not name.startswith("channel_")}
    for name in UNITS:
        for kind, figure in (("mean", np.mean), ("std", np.std)):
            rows = [torch.from_numpy(figure(values[name], 0)).float() for values in per_class]
            tensors[f"{kind}.{name}"] = torch.stack(rows)
    metadata = json.loads(json.dumps(metadata))
    for entry in metadata["layers"]:
        del entry["channel_axis"]
    return tensors, metadata


def test_a_file_of_version_0_1_is_read(
    statistics: Statistics, per_class: list[dict[str, np.ndarray]], tmp_path: Path
) -> None:
    path = tmp_path / "statistics.safetensors"
    path.write_bytes(encode_safetensors(*as_version_0_1(statistics, per_class)))
    restored = Statistics.from_tensors(*read_safetensors(path))
    for name in UNITS:
        torch.testing.assert_close(restored.means[name], statistics.means[name], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(restored.variances[name], statistics.variances[name], rtol=1e-4, atol=1e-5)
    rounded = replace(restored, means=statistics.means, variances=statistics.variances)
    assert_same(rounded, statistics)
    again = encode_safetensors(*restored.to_tensors())
    assert len(again) < path.stat().st_size
    assert_same(Statistics.from_tensors(*restored.to_tensors()), restored)


def test_tokens_of_version_0_1_have_their_channels_last() -> None:
    torch.manual_seed(0)
    teacher = statistics_teacher(Tokens(1, 2), (1, 6, 6), 2)
    images, labels = torch.randint(0, 256, (8, 1, 6, 6), dtype=torch.uint8), torch.arange(8) % 2
    statistics = compute_statistics(teacher, images, labels, StatisticsOptions(10, 3, None), nothing)
    tensors, metadata = statistics.to_tensors()
    metadata = json.loads(json.dumps(metadata))
    old = {name: tensor for name, tensor in tensors.items() if not name.startswith("channel_")}
    seen = outputs_by_hand(teacher, to_pixels(images))
    for entry in metadata["layers"]:
        del entry["channel_axis"]
        module, _, call = entry["name"].partition("#")
        output = seen[module][int(call or 1) - 1].flatten(1)
        of_class = [output[labels == label] for label in range(2)]
        old[f"mean.{entry['name']}"] = torch.stack([rows.mean(0).float() for rows in of_class])
        old[f"std.{entry['name']}"] = torch.stack([rows.std(0, correction=0).float() for rows in of_class])
    restored = Statistics.from_tensors(old, metadata)
    assert restored.layers == statistics.layers
    for name, mean in statistics.means.items():
        torch.testing.assert_close(restored.means[name], mean, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(restored.variances[name], statistics.variances[name], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["mean.fc1", "std.fc1"])
def test_damaged_files_of_version_0_1_are_refused(
    name: str, statistics: Statistics, per_class: list[dict[str, np.ndarray]]
) -> None:
    tensors, metadata = as_version_0_1(statistics, per_class)
    for wrong in (tensors[name][:-1], tensors[name].unsqueeze(0), torch.cat([tensors[name]] * 2, dim=-1)):
        with pytest.raises(ArtifactError):
            Statistics.from_tensors(tensors | {name: wrong}, metadata)
    with pytest.raises(ArtifactError):
        Statistics.from_tensors({other: tensor for other, tensor in tensors.items() if other != name}, metadata)


def plain_metadata(statistics: Statistics) -> dict[str, Any]:
    return json.loads(json.dumps(statistics.to_tensors()[1]))


def test_statistics_that_lack_a_tensor_are_refused(statistics: Statistics) -> None:
    tensors, _ = statistics.to_tensors()
    assert len(tensors) == 1 + 2 * 4 + 2 * 3 + 2 * 4
    for name in tensors:
        rest = {other: tensor for other, tensor in tensors.items() if other != name}
        with pytest.raises(ArtifactError, match="not a statistics record"):
            Statistics.from_tensors(rest, plain_metadata(statistics))


@pytest.mark.parametrize("key", ["layers", "records", "graphs"])
@pytest.mark.parametrize("value", [None, 3, "text", ["text"], [3]], ids=str)
def test_statistics_with_malformed_metadata_are_refused(key: str, value: Any, statistics: Statistics) -> None:
    metadata = plain_metadata(statistics)
    if value is None:
        del metadata[key]
    else:
        metadata[key] = value
    with pytest.raises(ArtifactError):
        Statistics.from_tensors(statistics.to_tensors()[0], metadata)


@pytest.mark.parametrize(
    "name",
    ["counts", "channel_mean.fc1", "channel_variance.fc1", "record.layers.mean", "record.layers.factor",
     "graph.all.basis", "graph.all.eigenvalues"],
)  # fmt: skip
def test_statistics_with_a_tensor_of_another_size_are_refused(name: str, statistics: Statistics) -> None:
    tensors, _ = statistics.to_tensors()
    changed = [tensors[name][:-1], tensors[name].unsqueeze(0), torch.cat([tensors[name]] * 2, dim=-1)]
    if name.endswith("factor"):
        changed.pop()  # a factor may have any number of columns
    for wrong in changed:
        with pytest.raises(ArtifactError):
            Statistics.from_tensors(tensors | {name: wrong}, plain_metadata(statistics))
