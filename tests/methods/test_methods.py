"""The contract that every registered method keeps, and the differences between the methods."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from helpers import num_hooks, options_of, other_value

from kdextract.data.load import load_data
from kdextract.errors import ConfigError, DivergedError, UsageError
from kdextract.methods import Given, objective, objective_names, register_objective
from kdextract.models.classifier import Classifier, ClassifierSpec
from kdextract.models.hooks import record_activations
from kdextract.models.pixels import fit_images, to_pixels
from kdextract.options.declare import OptionSet, option_fields, option_info
from kdextract.synthesis.interface import Inverted
from kdextract.synthesis.inversion import activation_matching as inversion
from kdextract.synthesis.inversion.activation_matching import INITIALIZERS, DropoutMasks
from kdextract.synthesis.options import INITS, DreamTerms, PixelConfig
from kdextract.synthesis.statistics.recorded import ActivationRecord, Statistics, StatisticsOptions, compute_statistics
from kdextract.synthesis.statistics.spectra import SpectralOptions

OPTIONS = StatisticsOptions(max_units=2000, rank=15, spectra=SpectralOptions(0.1, 30))
SPECTRAL = ["spectral_all_layers", "spectral_layer_pairs"]

PIXEL_METHODS = [name for name in objective_names() if issubclass(objective(name).config, PixelConfig)]

every_method = pytest.mark.parametrize("name", objective_names())
every_pixel_method = pytest.mark.parametrize("name", PIXEL_METHODS)


@pytest.fixture(scope="module")
def teacher() -> Classifier:
    """A small network, trained for few steps on digits."""
    torch.manual_seed(0)
    digits = load_data("digits", "train", Path())
    classifier = Classifier(ClassifierSpec("lenet_half", (1, 32, 32), digits.class_names, (0.3,), (0.35,)))
    pixels = to_pixels(fit_images(digits.images, (1, 32, 32)))
    optimizer = torch.optim.Adam(classifier.parameters(), lr=2e-3)
    for step in range(60):
        rows = slice(64 * step % 1400, 64 * step % 1400 + 64)
        optimizer.zero_grad()
        F.cross_entropy(classifier(pixels[rows]), digits.labels[rows]).backward()
        optimizer.step()
    optimizer.zero_grad()
    return classifier.frozen()


@pytest.fixture(scope="module")
def statistics(teacher: Classifier) -> Statistics:
    """Statistics of 30 images per class."""
    digits = load_data("digits", "train", Path())
    rows = torch.cat([(digits.labels == label).nonzero()[:30, 0] for label in range(10)])
    images = fit_images(digits.images[rows], teacher.input_shape)
    return compute_statistics(teacher, images, digits.labels[rows], OPTIONS, lambda amount: None)


def untrained(num_classes: int, channels: int) -> tuple[Classifier, Statistics]:
    """A teacher of random weights, and statistics of random images."""
    torch.manual_seed(1)
    names = tuple(f"class {index}" for index in range(num_classes))
    spec = ClassifierSpec("lenet", (channels, 32, 32), names, (0.5,) * channels, (0.3,) * channels)
    classifier = Classifier(spec).frozen()
    rng = torch.Generator().manual_seed(2)
    images = torch.randint(0, 256, (num_classes * 6, channels, 32, 32), generator=rng, dtype=torch.uint8)
    labels = torch.arange(len(images)) % num_classes
    return classifier, compute_statistics(classifier, images, labels, OPTIONS, lambda amount: None)


FEW_TRIALS = 14
"""Settings that are compared to fit a mixture: enough for a fit, and quick."""


def make(
    name: str, teacher: Classifier, statistics: Statistics, labels: torch.Tensor, seed: int = 0, **options: Any
) -> Inverted:
    """Make images; options that a method does not have are left out."""
    chosen = objective(name)
    known = {field.name for field in option_fields(chosen.config)}
    options = {option: value for option, value in ({"trials": FEW_TRIALS} | options).items() if option in known}
    student = None
    if chosen.needs_student:
        with torch.random.fork_rng():
            torch.manual_seed(99)
            student = Classifier(teacher.spec).frozen()
    given = Given(teacher, statistics if chosen.record or chosen.matches_batch_norm else None, student)
    return chosen.synthesize(given, labels, chosen.config(**options), torch.Generator().manual_seed(seed))


def contents(classifier: Classifier) -> dict[str, torch.Tensor]:
    tensors = {f"parameter {name}": value.clone() for name, value in classifier.named_parameters()}
    return tensors | {f"buffer {name}": value.clone() for name, value in classifier.named_buffers()}


# ---- the contract -----------------------------------------------------------------------------------------------


@every_method
@pytest.mark.parametrize("batch", [1, 7, 20])
def test_makes_one_valid_image_per_label(name: str, batch: int, teacher: Classifier, statistics: Statistics) -> None:
    made = make(name, teacher, statistics, torch.arange(batch) % 10, steps=3)
    assert made.images.shape == (batch, 1, 32, 32)
    assert made.images.dtype == torch.float32
    assert torch.isfinite(made.images).all()
    assert float(made.images.min()) >= 0
    assert float(made.images.max()) <= 1
    assert not made.images.requires_grad
    assert np.isfinite(made.loss)
    assert float(made.images.std()) > 0.01
    if batch > 1:
        assert not torch.equal(made.images[0], made.images[1])


@every_method
@pytest.mark.parametrize(("num_classes", "channels"), [(2, 1), (5, 3), (12, 1)])
def test_takes_any_number_of_classes_and_channels(name: str, num_classes: int, channels: int) -> None:
    classifier, record = untrained(num_classes, channels)
    made = make(name, classifier, record, torch.arange(7) % num_classes, steps=2)
    assert made.images.shape == (7, channels, 32, 32)
    assert 0 <= float(made.images.min()) <= float(made.images.max()) <= 1
    if channels == 3:
        assert not torch.equal(made.images[:, 0], made.images[:, 1])


@every_method
def test_takes_labels_in_any_order(name: str, teacher: Classifier, statistics: Statistics) -> None:
    for labels in ([4, 4, 4], [9, 0, 9, 3, 0]):
        assert len(make(name, teacher, statistics, torch.tensor(labels), steps=2).images) == len(labels)


@every_method
def test_teacher_is_unchanged_in_every_bit(name: str, teacher: Classifier, statistics: Statistics) -> None:
    before = contents(teacher)
    tensors = {name: value.clone() for name, value in statistics.to_tensors()[0].items()}
    make(name, teacher, statistics, torch.arange(5), steps=3)
    after = contents(teacher)
    assert before.keys() == after.keys()
    assert all(torch.equal(before[key], after[key]) for key in before)
    assert not teacher.training
    assert all(parameter.grad is None and not parameter.requires_grad for parameter in teacher.parameters())
    assert num_hooks(teacher) == 0
    assert all(torch.equal(tensors[key], value) for key, value in statistics.to_tensors()[0].items())


@every_pixel_method
def test_images_that_diverge_are_an_error_and_leave_no_hook(
    name: str, teacher: Classifier, statistics: Statistics
) -> None:
    with pytest.raises(DivergedError, match="--lr"):
        make(name, teacher, statistics, torch.arange(3), steps=8, lr=1e39)
    assert num_hooks(teacher) == 0


@every_method
def test_images_depend_on_the_seed(name: str, teacher: Classifier, statistics: Statistics) -> None:
    labels = torch.arange(6)
    torch.manual_seed(1)
    once = make(name, teacher, statistics, labels, seed=4, steps=4)
    torch.manual_seed(2)
    again = make(name, teacher, statistics, labels, seed=4, steps=4)
    other = make(name, teacher, statistics, labels, seed=5, steps=4)
    assert torch.equal(once.images, again.images)
    assert once.loss == again.loss
    assert float((once.images - other.images).abs().mean()) > 1e-3


@every_pixel_method
def test_loss_falls(name: str, teacher: Classifier, statistics: Statistics) -> None:
    labels = torch.arange(20) % 10
    first, last = (make(name, teacher, statistics, labels, steps=steps, tv=0.0).loss for steps in (1, 40))
    assert last < 0.7 * first


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=() if name in ("deep_inversion", "top_layer", "natural_noise") else pytest.mark.slow)
        for name in objective_names()
    ],
)
def test_teacher_predicts_the_class_more_often(name: str, teacher: Classifier, statistics: Statistics) -> None:
    """Twice as often as for noise, and as for images of other classes."""
    labels = torch.arange(100) % 10
    images = make(name, teacher, statistics, labels, steps=60, lr=0.1, tv=0.0, ce=30.0).images
    noise = torch.rand(images.shape, generator=torch.Generator().manual_seed(0))

    def seen(pixels: torch.Tensor, classes: torch.Tensor) -> float:
        with torch.no_grad():
            return float((teacher(pixels).argmax(1) == classes).float().mean())

    assert seen(images, labels) > 2 * max(seen(noise, labels), seen(images, labels.roll(1)))


OPTIONS_OF_METHODS = options_of({name: objective(name).config for name in objective_names()})


@pytest.mark.parametrize(("name", "option"), OPTIONS_OF_METHODS)
def test_every_option_has_an_effect(name: str, option: str, teacher: Classifier, statistics: Statistics) -> None:
    base: dict[str, Any] = {"steps": 6, "lr": 0.1} if name in PIXEL_METHODS else {}
    if issubclass(objective(name).config, DreamTerms):
        base = {"steps": 12}
    config = objective(name).config(**base)
    (declared,) = [field for field in option_fields(config) if field.name == option]
    changed = base | {option: other_value(declared, getattr(config, option))}
    labels = torch.arange(8)
    one, other = (make(name, teacher, statistics, labels, **options).images for options in (base, changed))
    assert float((one - other).abs().max()) > 1e-3


@pytest.mark.parametrize(
    ("option", "value"),
    [("steps", 0), ("lr", 0.0), ("lr", float("nan")), ("init", "normall"), ("blur_every", -1), ("tv", -0.1)],
)
@every_pixel_method
def test_values_out_of_range_are_refused(name: str, option: str, value: Any) -> None:
    with pytest.raises(UsageError, match=f"--{option.replace('_', '-')}"):
        objective(name).config(**{option: value})


@every_method
def test_declares_its_source(name: str) -> None:
    chosen = objective(name)
    assert chosen.name == name
    assert len(chosen.source) > 10
    assert chosen.summary.endswith(".")
    assert issubclass(chosen.config, OptionSet)
    assert all(option_info(field).help for field in option_fields(chosen.config))


@every_pixel_method
def test_missing_record_is_refused_with_the_command_that_makes_it(
    name: str, teacher: Classifier, statistics: Statistics
) -> None:
    record = objective(name).record
    assert record in statistics.records
    rest = {other: value for other, value in statistics.records.items() if other != record}
    with pytest.raises(ConfigError, match=f"no record {record}.*kdx compute-stats"):
        make(name, teacher, dataclasses.replace(statistics, records=rest), torch.arange(2), steps=1)
    assert num_hooks(teacher) == 0


def test_unknown_method_is_refused_with_the_most_similar_name() -> None:
    with pytest.raises(UsageError, match=r"'all_layer'.* Did you mean 'all_layers'"):
        objective("all_layer")


def test_registering_a_name_twice_is_refused() -> None:
    before = objective("all_layers")
    with pytest.raises(ValueError, match="'all_layers' is registered twice"):
        register_objective("all_layers", config=PixelConfig, record="layers", source="nowhere")(lambda *arguments: None)
    assert objective("all_layers") is before


# ---- starting images and the pixel loop -------------------------------------------------------------------------


def test_every_start_is_offered_and_valid() -> None:
    assert set(INITS) == set(INITIALIZERS)
    starts = {}
    for init in INITS:
        start, again = (INITIALIZERS[init]((30, 3, 20, 24), 0.5, torch.Generator().manual_seed(6)) for _ in range(2))
        assert torch.equal(start, again)
        assert start.shape == (30, 3, 20, 24)
        assert 0 <= float(start.min()) < float(start.max()) <= 1
        assert len({tuple(image.flatten().tolist()) for image in start}) == 30
        starts[init] = start
    neighbours = {init: float((s[..., 1:] - s[..., :-1]).abs().mean() / s.std()) for init, s in starts.items()}
    assert max(neighbours["smooth"], neighbours["strokes"]) < 0.5 * min(neighbours["normal"], neighbours["uniform"])


def quadratic(goal: float) -> Callable[[torch.Tensor], torch.Tensor]:
    return lambda images: (images - goal).square().sum()


def optimized(goal: float, **options: Any) -> torch.Tensor:
    config = PixelConfig(**({"steps": 40, "lr": 0.1, "init": "uniform"} | options))
    return inversion.optimize_pixels(quadratic(goal), uniform_start(2, 1, 12, 12), config).images


def uniform_start(*shape: int) -> torch.Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(0))


def test_pixels_reach_the_minimum_and_stay_valid() -> None:
    assert float((optimized(0.6) - 0.6).abs().max()) < 0.1
    assert float((optimized(1.5) - 1).abs().max()) < 0.02


def test_pixels_are_clipped_after_every_step() -> None:
    seen: list[float] = []

    def loss(images: torch.Tensor) -> torch.Tensor:
        seen.append(float(images.detach().max()))
        return (images - 3).square().sum()

    config = PixelConfig(steps=30, lr=0.2, init="uniform")
    inversion.optimize_pixels(loss, uniform_start(1, 1, 8, 8), config)
    assert len(seen) == 30
    assert max(seen[1:]) == 1, "without clipping they would be larger"


def test_blur_and_total_variation_smooth_the_images() -> None:
    def roughness(**options: Any) -> float:
        images = optimized(0.5, steps=5, lr=0.001, **options)
        return float((images[..., 1:] - images[..., :-1]).abs().mean())

    assert roughness(blur_every=1) < roughness(blur_every=3) < roughness() / 1.5
    weighted = [float(optimized(0.5, tv=tv, lr=0.01).std()) for tv in (0.0, 1000.0)]
    assert weighted[0] != weighted[1]
    assert roughness(blur_every=6) == roughness(), "a blur after more steps than there are"


def test_learning_rate_falls_along_a_cosine() -> None:
    """Adam moves a pixel by the rate where the gradient's sign is constant."""
    seen: list[float] = []

    def loss(images: torch.Tensor) -> torch.Tensor:
        seen.append(float(images.detach()[0, 0, 0, 0]))
        return -images.sum()

    config = PixelConfig(steps=20, lr=0.01, init="uniform")
    result = inversion.optimize_pixels(loss, 0.5 * uniform_start(1, 1, 4, 4), config)
    moves = np.diff([*seen, float(result.images[0, 0, 0, 0])])
    expected = 0.01 * 0.5 * (1 + np.cos(np.pi * np.arange(20) / 20))
    np.testing.assert_allclose(moves, expected, atol=1e-5)


def test_loss_is_reported_per_image(teacher: Classifier, statistics: Statistics) -> None:
    losses = [make("all_layers", teacher, statistics, torch.arange(n) % 10, steps=1).loss for n in (10, 40)]
    assert losses[1] == pytest.approx(losses[0], rel=0.3)


# ---- losses of the objectives -----------------------------------------------------------------------------------


@pytest.fixture
def targets_are_means(monkeypatch: pytest.MonkeyPatch) -> None:
    """Draw every target at its mean, so that a loss is a fixed function of the images."""
    monkeypatch.setattr(ActivationRecord, "sample", lambda self, labels, rng: self.split(self.mean[labels].clone()))


def loss_and_gradient(
    name: str,
    teacher: Classifier,
    statistics: Statistics,
    images: torch.Tensor,
    labels: torch.Tensor,
    monkeypatch: pytest.MonkeyPatch,
    **options: Any,
) -> tuple[float, torch.Tensor]:
    """Return a method's loss at given images, summed over them, and its gradient."""
    result: list[tuple[float, torch.Tensor]] = []

    def evaluate(loss: Callable[[torch.Tensor], torch.Tensor], *rest: Any) -> Inverted:
        pixels = images.clone().requires_grad_(True)
        value = loss(pixels)
        result.append((float(value.detach()), torch.autograd.grad(value, pixels)[0]))
        return Inverted(images, result[0][0], 0)

    with monkeypatch.context() as patch:
        patch.setattr(inversion, "optimize_pixels", evaluate)
        make(name, teacher, statistics, labels, **options)
    return result[0]


def some_images(teacher: Classifier) -> tuple[torch.Tensor, torch.Tensor]:
    digits = load_data("digits", "test", Path())
    return to_pixels(fit_images(digits.images[:6], teacher.input_shape)), digits.labels[:6]


def reference_loss(
    name: str, teacher: Classifier, statistics: Statistics, images: torch.Tensor, labels: torch.Tensor
) -> float:
    """The loss in NumPy: over blocks, images' mean squared errors to the class mean in units of the mean variance."""
    with torch.no_grad(), record_activations(teacher.network, [layer.name for layer in statistics.layers]) as seen:
        teacher(images)
    values = {layer: value.flatten(1).double().numpy() for layer, value in seen.items()}
    record = statistics.records[objective(name).record]
    for graph in statistics.graphs.get(name, ()):
        nodes = np.concatenate([values[layer] for layer in graph.layers], axis=1)
        basis = graph.basis.double().numpy()
        values[graph.name] = np.stack([basis[label].T @ row for label, row in zip(labels, nodes, strict=True)])
    factor, means = record.factor.double().numpy(), record.mean.double().numpy()
    total, start = 0.0, 0
    for block, size in record.blocks:
        columns = slice(start, start + size)
        start += size
        if name == "top_layer" and block != statistics.logits:
            continue
        error = ((values[block] - means[labels.numpy(), columns]) ** 2).mean(axis=1).sum()
        total += error / (factor[:, columns] ** 2).sum(axis=2).mean()
    return float(total)


@pytest.mark.usefixtures("targets_are_means")
@pytest.mark.parametrize("name", ["all_layers", "top_layer", *SPECTRAL])
def test_loss_equals_numpy(
    name: str, teacher: Classifier, statistics: Statistics, monkeypatch: pytest.MonkeyPatch
) -> None:
    images, labels = some_images(teacher)
    value, gradient = loss_and_gradient(name, teacher, statistics, images, labels, monkeypatch)
    assert value == pytest.approx(reference_loss(name, teacher, statistics, images, labels), rel=1e-3)
    assert float(gradient.flatten(1).norm(dim=1).min()) > 0


@pytest.mark.usefixtures("targets_are_means")
def test_objectives_differ_at_the_same_images(
    teacher: Classifier, statistics: Statistics, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the 2017 code the spectral objectives were the all-layers objective under other names."""
    images, labels = some_images(teacher)
    names = ["all_layers", "top_layer", *SPECTRAL]
    found = {n: loss_and_gradient(n, teacher, statistics, images, labels, monkeypatch) for n in names}
    for index, one in enumerate(names):
        for other in names[:index]:
            values = found[one][0], found[other][0]
            assert abs(values[0] - values[1]) > 0.05 * min(values), (one, other)
            similarity = torch.cosine_similarity(found[one][1].flatten(1), found[other][1].flatten(1))
            assert float(similarity.mean()) < 0.99, (one, other)


@pytest.mark.usefixtures("targets_are_means")
def test_objectives_make_different_images(
    teacher: Classifier, statistics: Statistics, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From the same start, towards the same kind of target."""
    start = torch.rand((6, 1, 32, 32), generator=torch.Generator().manual_seed(0))
    monkeypatch.setitem(INITIALIZERS, "uniform", lambda shape, brightness, rng: start.clone())
    options = {"steps": 20, "lr": 0.1, "init": "uniform", "tv": 0.0}
    made = {n: make(n, teacher, statistics, torch.arange(6), **options).images for n in PIXEL_METHODS}
    way = min(float((images - start).abs().mean()) for images in made.values())
    for index, one in enumerate(made):
        for other in list(made)[:index]:
            assert float((made[one] - made[other]).abs().mean()) > 0.1 * way, (one, other)


# What one image becomes alone and among others differs by the order of floating-point sums alone. Adam divides each
# gradient by its size, so where a gradient is close to zero that difference can turn a step around: a few pixels may
# move by a step or two, but the mean stays far below what the pixels move in all.
@pytest.mark.usefixtures("targets_are_means")
@every_pixel_method
def test_image_does_not_depend_on_the_rest_of_its_batch(
    name: str, teacher: Classifier, statistics: Statistics, monkeypatch: pytest.MonkeyPatch
) -> None:
    labels = torch.tensor([3, 1, 4, 1, 5, 9, 2, 6])
    start = torch.rand((8, 1, 32, 32), generator=torch.Generator().manual_seed(0))
    options: dict[str, Any] = {"steps": 5, "lr": 0.01, "init": "uniform"}
    if name == "all_layers_dropout":  # otherwise the masks differ
        options |= {"keep_input": 1.0, "keep_hidden": 1.0}

    def made(rows: slice) -> torch.Tensor:
        with monkeypatch.context() as patch:
            patch.setitem(INITIALIZERS, "uniform", lambda shape, brightness, rng: start[rows].clone())
            return make(name, teacher, statistics, labels[rows], **options).images

    together = made(slice(None))
    for rows in (slice(2, 3), slice(5, 8)):
        difference, moved = (made(rows) - together[rows]).abs(), (together[rows] - start[rows]).abs()
        assert float(difference.mean()) < 0.01 * float(moved.mean())
        assert float((difference > 0.1 * options["lr"]).float().mean()) < 0.01


# ---- dropout ----------------------------------------------------------------------------------------------------


def test_mean_over_masks_is_the_unmasked_input() -> None:
    inputs = torch.randn((4, 30), generator=torch.Generator().manual_seed(0))
    rng = torch.Generator().manual_seed(1)
    for keep in (0.25, 0.5, 0.8):
        total = torch.zeros_like(inputs)
        for _ in range(4000):
            total += DropoutMasks({"layer": keep}, rng)("layer", inputs)
        error = (total / 4000 - inputs).abs()
        assert float((error / inputs.abs()).max()) < 6 * ((1 - keep) / keep / 4000) ** 0.5


def test_mask_keeps_its_share_scaled_and_stays() -> None:
    inputs = torch.ones(50, 3, 10, 10)
    masks = DropoutMasks({"first": 0.8, "second": 0.5}, torch.Generator().manual_seed(2))
    once, second = masks("first", inputs), masks("second", inputs)
    assert set(once.unique().tolist()) == {0.0, 1.25}
    assert set(second.unique().tolist()) == {0.0, 2.0}
    assert float((once > 0).float().mean()) == pytest.approx(0.8, abs=0.02)
    assert float((second > 0).float().mean()) == pytest.approx(0.5, abs=0.02)
    assert torch.equal(masks("first", inputs), once)
    assert torch.equal(masks("first", 3 * inputs), 3 * once)
    assert not torch.equal(once[0], once[1]), "two images share a mask"
    assert not torch.equal(once > 0, second > 0)


def test_masks_are_fixed_for_a_batch_and_new_for_the_next(
    teacher: Classifier, statistics: Statistics, monkeypatch: pytest.MonkeyPatch
) -> None:
    used: dict[str, list[torch.Tensor]] = {}

    class Watched(DropoutMasks):
        def __call__(self, layer: str, inputs: torch.Tensor) -> torch.Tensor:
            used.setdefault(layer, []).append(super().__call__(layer, torch.ones_like(inputs)).detach())
            return super().__call__(layer, inputs)

    monkeypatch.setattr(inversion, "DropoutMasks", Watched)
    make("all_layers_dropout", teacher, statistics, torch.arange(4), steps=5, keep_input=0.9, keep_hidden=0.6)
    assert list(used) == [layer.name for layer in statistics.layers]
    for index, masks in enumerate(used.values()):
        keep = 0.9 if index == 0 else 0.6
        assert len(masks) == 5
        assert all(torch.equal(mask, masks[0]) for mask in masks)
        assert float(masks[0].max()) == pytest.approx(1 / keep)
        error = (keep * (1 - keep) / masks[0].numel()) ** 0.5
        assert float((masks[0] > 0).float().mean()) == pytest.approx(keep, abs=5 * error)
    first = {layer: masks[0] for layer, masks in used.items()}
    used.clear()
    make("all_layers_dropout", teacher, statistics, torch.arange(4), seed=1, steps=1)
    assert not any(torch.equal(used[layer][0] > 0, mask > 0) for layer, mask in first.items())


def test_dropout_that_keeps_everything_is_no_dropout(teacher: Classifier, statistics: Statistics) -> None:
    labels = torch.arange(5)
    options = {"steps": 4, "lr": 0.1, "init": "uniform"}
    plain = make("all_layers", teacher, statistics, labels, **options)
    kept = make("all_layers_dropout", teacher, statistics, labels, keep_input=1.0, keep_hidden=1.0, **options)
    thinned = make("all_layers_dropout", teacher, statistics, labels, keep_input=1.0, keep_hidden=0.5, **options)
    assert torch.equal(plain.images, kept.images)
    assert not torch.equal(plain.images, thinned.images)
