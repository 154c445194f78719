"""DeepDream, DeepInversion and its adaptive form: terms against NumPy, the schedule of a batch, the growing pool."""

from __future__ import annotations

import copy
import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import kdx, sha256s
from helpers import Tokens, classifier, num_hooks, seeded, statistics_of, statistics_teacher
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from scipy.spatial.distance import jensenshannon
from torch.utils._python_dispatch import TorchDispatchMode

from kdextract import api
from kdextract.errors import ArtifactError, ConfigError, UsageError
from kdextract.methods.adaptive_deep_inversion import AdaptiveConfig, LiveAdaptiveConfig
from kdextract.methods.deep_dream import DreamConfig, LiveDreamConfig
from kdextract.methods.deep_inversion import DeepInversionConfig
from kdextract.models.architectures import architecture
from kdextract.models.classifier import Classifier, load_classifier
from kdextract.models.hooks import record_activations
from kdextract.models.pixels import fit_images, to_pixels, to_uint8
from kdextract.storage.artifacts import read_manifest
from kdextract.synthesis.interface import Inverted
from kdextract.synthesis.inversion.activation_matching import INITIALIZERS
from kdextract.synthesis.inversion.deep_inversion import (
    PixelSchedule,
    TermWeights,
    _network_input,
    channel_statistics,
    invert,
    terms_of,
    watch_statistics,
)
from kdextract.synthesis.inversion.pool import GrowingPool
from kdextract.synthesis.losses import js_similarity, mean_variation, pixel_variation
from kdextract.synthesis.options import INITS, PRESETS, resolve
from kdextract.synthesis.statistics.recorded import StatisticsOptions, compute_statistics

repeatable = settings(derandomize=True, database=None, deadline=None, max_examples=25)
PLAIN = PixelSchedule(steps=5, lr=0.1, betas=(0.9, 0.999))


# ---- terms, against NumPy ---------------------------------------------------------------------------------------


@repeatable
@given(batch=st.integers(1, 3), channels=st.integers(1, 4), height=st.integers(2, 6), width=st.integers(2, 6))
def test_variation_is_that_of_numpy(batch: int, channels: int, height: int, width: int) -> None:
    images = torch.randn((batch, channels, height, width), generator=seeded(height * width), dtype=torch.float64)
    x = images.numpy()
    shifted = [
        x[..., :, 1:] - x[..., :, :-1],
        x[..., 1:, :] - x[..., :-1, :],
        x[..., 1:, 1:] - x[..., :-1, :-1],
        x[..., 1:, :-1] - x[..., :-1, 1:],
    ]
    norms, means = pixel_variation(images), mean_variation(images)
    assert float(norms) == pytest.approx(sum(np.sqrt((part**2).sum()) for part in shifted))
    assert float(means) == pytest.approx(sum(np.abs(part).mean() for part in shifted))


def test_the_gradient_of_variation_is_that_of_finite_differences() -> None:
    images = torch.randn((2, 2, 4, 5), generator=seeded(), dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(pixel_variation, (images,))
    flat = torch.zeros((2, 1, 3, 3), requires_grad=True)
    (gradient,) = torch.autograd.grad(pixel_variation(flat), flat)
    assert torch.equal(gradient, torch.zeros_like(flat))


@repeatable
@given(batch=st.integers(1, 4), classes=st.integers(2, 6), temperature=st.floats(0.5, 20))
def test_likeness_is_one_minus_the_divergence_of_scipy(batch: int, classes: int, temperature: float) -> None:
    one, other = (3 * torch.randn((batch, classes), generator=seeded(k), dtype=torch.float64) for k in (classes, 99))
    p, q = ((logits / temperature).softmax(1).numpy() for logits in (one, other))
    expected = 1 - np.mean([jensenshannon(a, b) ** 2 for a, b in zip(p, q, strict=True)])
    assert float(js_similarity(one, other, temperature)) == pytest.approx(expected, abs=1e-9)
    assert float(js_similarity(one, one, temperature)) == pytest.approx(1)


@pytest.mark.parametrize("batch_norm", [True, False])
def test_terms_are_those_of_a_forward_pass_by_hand(batch_norm: bool) -> None:
    teacher, student = classifier(batch_norm=batch_norm).frozen(), classifier(seed=1).frozen()
    statistics = None if batch_norm else statistics_of(teacher)
    values = torch.randn((6, *teacher.input_shape), generator=seeded(1))
    labels = torch.arange(6) % teacher.num_classes
    weights = TermWeights(ce=2.0, tv=0.3, tv_l1=0.7, l2=0.1, bn=5.0, first_bn=3.0, compete=4.0)
    with torch.no_grad(), watch_statistics(teacher, statistics) as watch:
        terms = terms_of(teacher, student, values, labels, weights, watch)
    pixels = values * teacher.std + teacher.mean
    with torch.no_grad():
        logits = teacher(pixels).numpy().astype(np.float64)
        answers = student(pixels)
    shifted = logits - logits.max(1, keepdims=True)
    log_p = shifted - np.log(np.exp(shifted).sum(1, keepdims=True))
    norms, means = pixel_variation(values), mean_variation(values)
    expected = {
        "ce": -2 * log_p[np.arange(6), labels.numpy()].mean(),
        "tv": 0.3 * float(norms) + 0.7 * float(means),
        "l2": 0.1 * np.sqrt((values.numpy() ** 2).sum()),
        "bn": 5 * by_hand(teacher, pixels, 3.0, None if statistics is None else channel_statistics(statistics)),
        "compete": 4 * float(js_similarity(answers, torch.from_numpy(logits).float(), 3.0)),
    }
    assert terms.keys() == expected.keys()
    for name, value in expected.items():
        assert float(terms[name]) == pytest.approx(value, rel=1e-4), name
    assert num_hooks(teacher) == 0


def by_hand(teacher: Classifier, pixels: torch.Tensor, first: float, kept: Any) -> float:
    """Return the distance to the statistics of the layers, computed from their inputs or outputs."""
    norms = [name for name, m in teacher.network.named_modules() if isinstance(m, torch.nn.BatchNorm2d)]
    names = norms if kept is None else list(kept)
    total = 0.0
    for index, name in enumerate(names):
        seen: list[np.ndarray] = []
        module = teacher.network.get_submodule(name)
        handle = module.register_forward_hook(
            lambda m, inputs, output, seen=seen: seen.append((inputs[0] if kept is None else output).numpy())
        )
        with torch.no_grad():
            teacher(pixels)
        handle.remove()
        x = np.moveaxis(seen[0].astype(np.float64), 1, 0).reshape(seen[0].shape[1], -1)
        if kept is None:
            mean, variance = module.running_mean.numpy(), module.running_var.numpy()  # type: ignore[union-attr,operator]
        else:
            mean, variance = (tensor.numpy() for tensor in kept[name])
        distance = np.linalg.norm(x.mean(1) - mean) + np.linalg.norm(x.var(1) - variance)
        total += distance * (first if index == 0 else 1)
    return total


def test_pooled_statistics_are_those_of_all_images_and_places() -> None:
    teacher = classifier(batch_norm=False).frozen()
    images = torch.randint(0, 256, (40, *teacher.input_shape), generator=seeded(3), dtype=torch.uint8)
    labels = torch.cat([torch.zeros(25), torch.ones(5), torch.full((5,), 2), torch.full((5,), 3)]).long()
    statistics = compute_statistics(teacher, images, labels, StatisticsOptions(4096, 4, None), lambda amount: None)
    pooled = channel_statistics(statistics)
    assert list(pooled) == [layer.name for layer in statistics.layers[:-1]]
    with torch.no_grad(), record_activations(teacher.network, list(pooled)) as activations:
        teacher(to_pixels(images))
    for name, (mean, variance) in pooled.items():
        values = activations[name].transpose(0, 1).flatten(1).double()
        assert torch.allclose(mean.double(), values.mean(1), rtol=1e-3, atol=1e-4)
        assert torch.allclose(variance.double(), values.var(1, correction=0), rtol=1e-3, atol=1e-4)


def test_tokens_are_matched_by_the_channels_of_their_last_dimension() -> None:
    """Images with the recorded statistics have distance 0, for any number of tokens."""
    torch.manual_seed(0)
    teacher = statistics_teacher(Tokens(3, 4), (3, 6, 6), 4)
    images, labels = torch.randint(0, 256, (16, 3, 6, 6), dtype=torch.uint8), torch.arange(16) % 4
    statistics = compute_statistics(teacher, images, labels, StatisticsOptions(10, 3, None), lambda amount: None)
    with torch.no_grad(), watch_statistics(teacher, statistics) as watch:
        teacher(to_pixels(images))
        seen = watch()
    assert [len(layer.mean) for layer in seen] == [5, 5, 5]
    for layer in seen:
        torch.testing.assert_close(layer.mean, layer.kept_mean, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(layer.variance, layer.kept_variance, rtol=1e-4, atol=1e-5)


# ---- the schedule of a batch --------------------------------------------------------------------------------------


def test_the_rate_rises_and_falls() -> None:
    schedule = PixelSchedule(steps=100, lr=0.2, betas=(0.5, 0.9), warmup=10)
    rates = [schedule.rate(step, 100) for step in range(100)]
    assert rates[0] == pytest.approx(0.02)
    assert rates[9] == rates[10] == pytest.approx(0.2)
    assert rates[55] == pytest.approx(0.1)
    assert 0 < rates[99] < 1e-3
    assert {PLAIN.rate(step, 5) for step in range(5)} == {0.1}


def test_the_teacher_gets_the_batch_rolled_and_mirrored() -> None:
    values = torch.randn((3, 2, 8, 9), generator=seeded())
    schedule = PixelSchedule(steps=1, lr=0.1, betas=(0.9, 0.999), jitter=2, flip=True)
    seen = set()
    for seed in range(60):
        shown = _network_input(values, 1, schedule, seeded(seed))
        found = [
            (down, right, mirrored)
            for down in range(-2, 3)
            for right in range(-2, 3)
            for mirrored in (False, True)
            if torch.equal(shown, torch.roll(values, (down, right), (2, 3)).flip(3) if mirrored else
                           torch.roll(values, (down, right), (2, 3)))
        ]  # fmt: skip
        assert len(found) == 1
        seen.add(found[0])
    assert len({down for down, _, _ in seen}) == len({right for _, right, _ in seen}) == 5
    assert {mirrored for _, _, mirrored in seen} == {False, True}
    still = PixelSchedule(steps=1, lr=0.1, betas=(0.9, 0.999))
    halved = _network_input(values, 2, still, seeded())
    assert torch.allclose(halved[:, :, 0, 0], values[:, :, :2, :2].mean((2, 3)))


@pytest.mark.parametrize("channels", [1, 3, 4])
@pytest.mark.parametrize("num_classes", [2, 11])
def test_the_kept_batch_has_the_smallest_loss(channels: int, num_classes: int) -> None:
    teacher = classifier((channels, 16, 16), num_classes).frozen()
    weights = TermWeights(ce=1.0, tv=1e-3, tv_l1=0.0, l2=1e-3, bn=1.0)
    labels = torch.arange(9) % num_classes
    before = {name: tensor.clone() for name, tensor in teacher.state_dict().items()}
    made = invert(teacher, None, None, labels, weights, PixelSchedule(steps=30, lr=0.5, betas=(0.9, 0.999)), seeded(2))
    values = (made.images - teacher.mean) / teacher.std
    with torch.no_grad(), watch_statistics(teacher, None) as watch:
        terms = terms_of(teacher, None, values, labels, weights, watch)
    assert sum(map(float, terms.values())) == pytest.approx(made.loss, rel=1e-3)
    assert made.loss <= min(row["loss"] for row in made.curve) * (1 + 1e-5)
    assert made.loss < made.curve[0]["loss"]
    assert [row["step"] for row in made.curve] == list(range(1, 31))
    assert made.curve[0].keys() == {"step", "loss", "ce", "tv", "l2", "bn"}
    assert all(torch.equal(before[name], tensor) for name, tensor in teacher.state_dict().items())
    assert made.teacher_queries == 9 * 30
    assert num_hooks(teacher) == 0


def test_no_hook_is_left_after_an_error() -> None:
    teacher = classifier().frozen()
    with pytest.raises(IndexError):
        invert(teacher, None, None, torch.full((3,), 999), TermWeights(1, 0, 0, 0, bn=1.0), PLAIN, seeded())
    assert num_hooks(teacher) == 0


def test_half_size_comes_first_and_other_images_of_it() -> None:
    teacher = classifier((1, 16, 16)).frozen()
    weights = TermWeights(ce=1.0, tv=0.0, tv_l1=0.0, l2=0.0, bn=1.0)
    labels = torch.arange(8) % teacher.num_classes
    plain = invert(teacher, None, None, labels, weights, PLAIN, seeded())
    coarse = PixelSchedule(steps=5, lr=0.1, betas=(0.9, 0.999), coarse_steps=7)
    both = invert(teacher, None, None, labels, weights, coarse, seeded())
    assert both.teacher_queries == 8 * 12
    assert [row["step"] for row in both.curve] == list(range(1, 13))
    assert not torch.equal(plain.images, both.images)


def test_half_size_is_left_out_for_a_teacher_of_one_size() -> None:
    teacher = statistics_teacher(architecture("lenet").build((1, 32, 32), 10), (1, 32, 32), 10).frozen()
    weights = TermWeights(ce=1.0, tv=0.0, tv_l1=0.0, l2=0.0)
    plain, coarse = (
        invert(teacher, None, None, torch.arange(8), weights, schedule, seeded())
        for schedule in (PLAIN, dataclasses.replace(PLAIN, coarse_steps=7))
    )
    assert coarse.teacher_queries == plain.teacher_queries
    assert torch.equal(plain.images, coarse.images)


def test_competition_finds_images_on_which_the_student_differs() -> None:
    teacher, student = classifier().frozen(), classifier(seed=5).frozen()
    labels = torch.arange(20) % teacher.num_classes
    schedule = PixelSchedule(steps=60, lr=0.1, betas=(0.9, 0.999))
    apart = []
    for compete in (0.0, 10.0):
        weights = TermWeights(ce=1.0, tv=0.0, tv_l1=0.0, l2=0.0, bn=0.1, compete=compete)
        images = invert(teacher, student, None, labels, weights, schedule, seeded()).images
        with torch.no_grad():
            apart.append(1 - float(js_similarity(student(images), teacher(images), 3.0)))
    assert apart[1] > 1.5 * apart[0]


def test_settings_are_those_of_the_preset() -> None:
    assert resolve(DeepInversionConfig(), (3, 32, 32)) == dataclasses.replace(PRESETS["cifar"], compete=0.0)
    assert resolve(AdaptiveConfig(), (1, 28, 28)) == dataclasses.replace(PRESETS["small"], from_noise=0)
    assert resolve(AdaptiveConfig(), (3, 224, 224)) == PRESETS["imagenet"]
    assert resolve(DreamConfig(preset="cifar"), (3, 224, 224)) == dataclasses.replace(
        PRESETS["cifar"], bn=0.0, compete=0.0
    )
    assert resolve(LiveDreamConfig(), (3, 96, 96)) == dataclasses.replace(PRESETS["imagenet"], bn=0.0, compete=0.0)
    assert resolve(LiveAdaptiveConfig(), (1, 28, 28)) == dataclasses.replace(PRESETS["small"], compete=100.0)
    assert resolve(LiveAdaptiveConfig(), (3, 32, 32)) == PRESETS["cifar"]


def test_settings_that_are_given_replace_the_preset() -> None:
    found = resolve(DreamConfig(jitter=0, tv=0.5, init="strokes", warmup=9, ce=2.0, steps=3, lr=0.7), (3, 224, 224))
    assert (found.jitter, found.tv, found.init, found.warmup, found.ce, found.steps, found.lr) == (
        0, 0.5, "strokes", 9, 2.0, 3, 0.7,
    )  # fmt: skip
    assert found.flip
    assert not resolve(DreamConfig(flip=False), (3, 224, 224)).flip
    live = LiveAdaptiveConfig(compete=3.0, pixel_steps=7, pixel_lr=0.1, pixel_flip=True, from_noise=2, adapt_steps=4)
    found = resolve(live, (1, 28, 28))
    assert (found.compete, found.steps, found.lr, found.flip) == (3, 7, 0.1, True)
    assert (found.from_noise, found.adapt_steps) == (2, 4)


# ---- the growing pool -------------------------------------------------------------------------------------------


class Counting:
    """Makes numbered batches: all pixels of the n-th batch are n / 255."""

    def __init__(self, shape: tuple[int, int, int]) -> None:
        self.shape, self.made = shape, 0
        self.students: list[bool | None] = []
        self.starts: list[tuple[torch.Tensor, torch.Tensor | None]] = []

    def __call__(
        self, labels: torch.Tensor, student: Classifier | None, rng: torch.Generator, start: torch.Tensor | None
    ) -> Inverted:
        self.students.append(student if student is None else student.network.training)
        self.starts.append((labels, start))
        self.made += 1
        images = torch.full((len(labels), *self.shape), self.made / 255)
        return Inverted(images, 1.0, 0, [{"step": 1, "loss": float(self.made), "ce": 2.0}])


def pool_images(make: Counting, count: int) -> torch.Tensor:
    """Return an image of each of the first batches."""
    values = torch.arange(1, count + 1, dtype=torch.uint8).view(-1, 1, 1, 1)
    return values.expand(-1, *make.shape)


def labels_made(make: Counting) -> torch.Tensor:
    return torch.cat([labels for labels, _ in make.starts])


@repeatable
@given(
    num_classes=st.sampled_from([2, 3, 10, 100, 1000]),
    batch=st.sampled_from([7, 64, 128, 256]),
    batches=st.integers(1, 10),
    from_noise=st.sampled_from([0, 2]),
    resumed=st.booleans(),
)
def test_every_class_is_made_equally_often(
    num_classes: int, batch: int, batches: int, from_noise: int, resumed: bool
) -> None:
    shape = (3, 4, 4)
    teacher = classifier((3, 28, 28), num_classes, batch_norm=False).frozen()
    teacher.network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(48, num_classes))
    teacher.spec = dataclasses.replace(teacher.spec, input_shape=shape)
    make = Counting(shape)
    pool = GrowingPool(make, teacher, batch, 1, 0, from_noise)
    pool.sample(2)
    for index in range(1, batches):
        if resumed and index == batches // 2:
            state = copy.deepcopy(pool.state())
            made = make.made
            pool = GrowingPool(make, teacher, batch, 1, 0, from_noise)
            pool.restore(state)
            assert make.made == made
        pool.update(teacher)
    counts = torch.bincount(labels_made(make), minlength=num_classes)
    assert counts.sum() == batch * batches == pool.num_images
    assert counts.max() - counts.min() <= 1
    if from_noise:
        begun = [start is not None for _, start in make.starts]
        assert begun == [i >= 2 and batch * i >= num_classes for i in range(batches)]


@pytest.mark.parametrize("num_classes", [2, 10, 100, 1000])
def test_held_out_images_are_spread_over_the_classes(num_classes: int) -> None:
    teacher = classifier(num_classes=num_classes).frozen()
    make = Counting(teacher.input_shape)
    pool = GrowingPool(make, teacher, 64, 1, 0)
    assert len(pool.held_out(1000)) == 64
    counts = torch.bincount(labels_made(make), minlength=num_classes)
    assert counts.max() - counts.min() <= 1
    made = counts.nonzero().squeeze(1)
    assert int(made.diff().max()) <= -(-num_classes // min(64, num_classes))
    assert made[-1] >= num_classes - 1 - num_classes // 64


def test_a_student_has_no_weight_gradients_while_images_are_made() -> None:
    teacher, student = classifier().frozen(), classifier(seed=1).train()
    frozen = next(student.network.parameters()).requires_grad_(False)
    seen = []

    def make(
        labels: torch.Tensor, student: Classifier | None, rng: torch.Generator, start: torch.Tensor | None
    ) -> Inverted:
        seen.append(None if student is None else [p.requires_grad for p in student.parameters()])
        return Inverted(torch.zeros((len(labels), *teacher.input_shape)), 1.0, 0, [{"step": 1, "loss": 1.0}])

    GrowingPool(make, teacher, 8, 1, 0).update(student)
    wanted = [parameter.requires_grad for parameter in student.network.parameters()]
    assert seen == [None, [False] * len(wanted)]
    assert not frozen.requires_grad
    assert wanted == [False] + [True] * (len(wanted) - 1)


def test_the_first_samples_are_of_the_new_batch() -> None:
    teacher, student = classifier().frozen(), classifier(seed=1).train()
    make = Counting(teacher.input_shape)
    pool = GrowingPool(make, teacher, batch=12, period=5, seed=0)
    seen = []
    for _ in range(24):
        pool.update(student)
        images = to_uint8(pool.sample(6).images)[:, 0, 0, 0]
        seen.append(set(images.tolist()))
    assert seen[:4] == [{1}] * 4
    assert seen[4:6] == [{2}, {2}]
    assert seen[9:11] == [{3}, {3}]
    assert set().union(*seen[21:]) > {1, 2}
    assert make.students == [None, False, False, False, False]
    assert student.network.training
    assert pool.num_images == 60
    assert len(pool.held_out(5)) == 5


def test_later_batches_start_from_images_of_the_pool() -> None:
    teacher, student = classifier().frozen(), classifier(seed=1)
    make = Counting(teacher.input_shape)
    pool = GrowingPool(make, teacher, batch=12, period=1, seed=0, from_noise=2)
    for _ in range(4):
        pool.update(student)
    assert [start is None for _, start in make.starts] == [True, True, False, False, False]
    for count, (labels, start) in list(enumerate(make.starts))[2:]:
        assert start is not None
        assert set(to_uint8(start)[:, 0, 0, 0].tolist()) <= set(range(1, count + 1))
        assert torch.equal(labels, torch.arange(12 * count, 12 * count + 12) % teacher.num_classes)
        with torch.no_grad():
            answers = teacher(start).argmax(1)
            known = teacher(to_pixels(pool_images(make, count))).argmax(1)
        for label, answer in zip(labels.tolist(), answers.tolist(), strict=True):
            assert answer == label or label not in known
    assert pool.curve[-1] == {"batch": 5, "loss": 5.0, "ce": 2.0, "tv": 0.0, "l2": 0.0, "bn": 0.0, "compete": 0.0}


def test_a_batch_that_begins_from_images_stays_near_them() -> None:
    teacher = classifier().frozen()
    start = torch.rand((6, *teacher.input_shape), generator=seeded())
    schedule = PixelSchedule(steps=2, lr=1e-4, betas=(0.9, 0.999))
    labels = torch.arange(6) % teacher.num_classes
    made = invert(teacher, None, None, labels, TermWeights(1, 0, 0, 0, bn=1.0), schedule, seeded(), start)
    moves = schedule.steps * schedule.lr * float(teacher.std.max())  # Adam's first steps are as long as its rate
    assert 0 < float((made.images - start).abs().max()) < 2 * moves


@pytest.mark.parametrize("init", INITS)
def test_where_images_start(init: str) -> None:
    teacher = classifier((1, 32, 32)).frozen()
    labels = torch.arange(64) % teacher.num_classes
    schedule = PixelSchedule(steps=1, lr=1e-6, betas=(0.9, 0.999))
    images = invert(teacher, None, None, labels, TermWeights(1, 0, 0, 0), schedule, seeded(), init=init).images
    if init == "normal":
        noise = torch.randn((64, 1, 32, 32), generator=seeded())
    else:
        noise = INITIALIZERS[init]((64, 1, 32, 32), float(teacher.mean), seeded())
        noise = (noise - teacher.mean) / teacher.std
    assert torch.allclose(images, (teacher.mean + teacher.std * noise).clamp(0, 1), atol=1e-4)


def test_nothing_is_read_from_the_device_while_pixels_are_optimized() -> None:
    teacher, student = classifier().frozen(), classifier(seed=1).frozen()
    weights = TermWeights(ce=1.0, tv=0.1, tv_l1=0.1, l2=0.1, bn=1.0, compete=1.0)

    def reads(steps: int) -> int:
        with Reads() as counted:
            schedule = PixelSchedule(steps=steps, lr=0.1, betas=(0.9, 0.999), jitter=1)
            invert(teacher, student, None, torch.arange(6) % teacher.num_classes, weights, schedule, seeded())
        return counted.count

    assert reads(160) == reads(80) > 0, "the curve, of as many points, is read at the end"


class Reads(TorchDispatchMode):
    """Counts how often a value is copied from its device to Python."""

    count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += func is torch.ops.aten._local_scalar_dense.default
        return func(*args, **(kwargs or {}))


# ---- as stages --------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_teacher_without_batch_normalization_needs_statistics(teacher_run: Path) -> None:
    options: dict[str, Any] = {"run": teacher_run, "threads": 1}
    few = {"images_per_class": 2, "steps": 3}
    with pytest.raises(ConfigError, match=r"no batch normalization.*kdx compute-stats, or use a method"):
        api.optimize_dataset(objective="deep_inversion", **few, **options)
    with pytest.raises(ConfigError, match="no batch normalization"):
        api.distill(method="adaptive_deep_inversion", steps=2, **options)
    assert api.optimize_dataset(objective="deep_dream", **few, **options).manifest.needs == "teacher"
    api.compute_stats(**options)
    made = api.optimize_dataset(objective="deep_inversion", **few, **options)
    assert made.manifest.needs == "teacher+statistics"
    assert {entry.role for entry in made.manifest.inputs} == {"teacher", "statistics"}
    student = api.distill(method="adaptive_deep_inversion", steps=2, pool_batch=8, pixel_steps=2, **options)
    assert student.manifest.needs == "teacher+statistics"
    assert Image.open(made.directory / "terms.png").size == (640, 360)


@pytest.fixture(scope="module")
def verifier(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The file of a classifier other than the teacher."""
    run = tmp_path_factory.mktemp("other") / "run"
    other = api.train(run=run, model="hinton800", epochs=8, seed=5, threads=1)
    return other.directory / "model.safetensors"


@pytest.mark.parametrize("stage", ["optimize_dataset", "generate"])
def test_the_verifiers_agreement_is_recorded(stage: str, teacher_run: Path, verifier: Path) -> None:
    options: dict[str, Any] = {"run": teacher_run, "images_per_class": 4, "threads": 1}
    if stage == "generate":
        api.train_generator(method="kegnet", run=teacher_run, generators=1, steps=3, width=4, threads=1)
    else:
        options |= {"objective": "deep_dream", "steps": 5}
    make = getattr(api, stage)
    plain = make(**options, name="plain")
    made = make(**options, name="verified", verifier=str(verifier))
    images, labels = (np.load(made.directory / name) for name in ("images.npy", "labels.npy"))
    classifier = load_classifier(verifier).frozen()
    with torch.no_grad():
        answers = classifier(to_pixels(fit_images(torch.from_numpy(images), classifier.input_shape))).argmax(1)
    share = float((answers.numpy() == labels).mean())
    assert made.manifest.metrics["verifier_agrees_with_label"] == pytest.approx(share, abs=1e-4)
    assert made.manifest.needs == plain.manifest.needs == "teacher"
    assert sha256s(made.directory)["images.npy"] == sha256s(plain.directory)["images.npy"]
    assert [entry.role for entry in made.manifest.inputs][-1] == "verifier"
    with pytest.raises(ConfigError, match="--verifier is the teacher, for which"):
        make(**options, name="own", verifier=str(teacher_run / "teacher" / "model.safetensors"))
    with pytest.raises(ArtifactError, match="does not exist"):
        make(**options, name="none", verifier="nowhere.safetensors")


@pytest.mark.slow
def test_batch_normalization_is_preferred_to_statistics(tmp_path: Path) -> None:
    options: dict[str, Any] = {"run": tmp_path / "run", "threads": 1}
    api.train(model="lenet5_bn", epochs=1, **options)
    api.compute_stats(**options)
    made = api.optimize_dataset(objective="deep_inversion", images_per_class=2, steps=3, **options)
    assert made.manifest.needs == "teacher"
    assert [entry.role for entry in made.manifest.inputs] == ["teacher"]


def test_the_student_to_compete_with(finished_run: Path, tmp_path: Path) -> None:
    run = shutil.copytree(finished_run, tmp_path / "run")
    options: dict[str, Any] = {"run": run, "images_per_class": 2, "steps": 3, "threads": 1}
    with pytest.raises(UsageError, match="--student has no effect on deep_inversion"):
        api.optimize_dataset(objective="deep_inversion", student="x", **options)
    with pytest.raises(UsageError, match="needs --student: a student of the run, with which its images compete"):
        api.optimize_dataset(objective="adaptive_deep_inversion", **options)
    with pytest.raises(UsageError, match="no artifact 'nobody'"):
        api.optimize_dataset(objective="adaptive_deep_inversion", student="nobody", **options)
    name = next((run / "students").iterdir()).name
    made = api.optimize_dataset(objective="adaptive_deep_inversion", student=name, **options)
    needs = read_manifest(run / "students" / name).needs
    assert made.manifest.needs == max(needs, "teacher+statistics", key=len)
    assert {entry.role for entry in made.manifest.inputs} == {"teacher", "statistics", "student"}


def test_images_of_a_live_method_are_drawn(teacher_run: Path, verifier: Path) -> None:
    options: dict[str, Any] = {"run": teacher_run, "steps": 4, "batch_size": 8, "threads": 1, "verifier": str(verifier)}
    made = api.distill(method="deep_dream", period=2, pool_batch=16, pixel_steps=3, **options)
    assert 0 <= made.manifest.metrics["verifier_agrees_with_teacher"] <= 1
    assert {"grid.png", "terms.png"} <= set(sha256s(made.directory))
    assert Image.open(made.directory / "terms.png").size == (640, 360)
    made = api.distill(method="structured_noise", pool=400, name="noise", **options)
    assert "grid.png" in sha256s(made.directory)
    assert "terms.png" not in sha256s(made.directory)
    with pytest.raises(UsageError, match="--verifier has no effect here"):
        api.distill(data="noise:normal", name="floor", **options)


def test_methods_list_what_a_run_needs(finished_run: Path, teacher_run: Path, tmp_path: Path) -> None:
    def missing(run: Path) -> dict[tuple[str, str], str]:
        done = kdx("methods", "--json", "--run", run, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        return {
            (row["command"].split()[0], row["method"]): row.get("missing") for row in json.loads(done.stdout)["methods"]
        }

    alone = missing(teacher_run)
    assert "no batch normalization" in alone["distill", "deep_inversion"]
    assert "kdx compute-stats" in alone["optimize-dataset", "all_layers"]
    assert "no batch normalization" in alone["optimize-dataset", "adaptive_deep_inversion"]
    assert alone["distill", "deep_dream"] == alone["train-generator", "kegnet"] == ""
    finished = missing(finished_run)
    assert set(finished.values()) == {""}
    assert set(missing(tmp_path / "nowhere").values()) == {None}
    api.train(run=tmp_path / "table", model="kegnet_mlp", data="iris", epochs=1, threads=1)
    table = missing(tmp_path / "table")
    assert table["distill", "deep_dream"] == "images: the teacher takes rows of a table"
    assert table["train-generator", "kegnet"] == ""
    assert "kdx compute-stats" in table["optimize-dataset", "all_layers"]
