"""The loops that train networks: their sources, their losses, and how they resume after a stop."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from conftest import rounding
from helpers import StopAt, equal, weights
from torch import nn

from kdextract.data.load import load_data
from kdextract.errors import ConfigError, DivergedError, Interrupted
from kdextract.models.classifier import Classifier, ClassifierSpec, encode_classifier
from kdextract.models.pixels import fit_images, to_pixels
from kdextract.stages.distill.budget import NoCheckpoints
from kdextract.stages.distill.student import StudentStart
from kdextract.storage.run_dir import RunDir
from kdextract.storage.tensor_files import read_safetensors
from kdextract.training import loop as training
from kdextract.training.augmentation import Augmenter
from kdextract.training.distill import DistillationLossOptions, DistillationOptions, distill
from kdextract.training.loop import OPTIMIZERS, Row, Schedule, random_states, set_random_states, take_steps
from kdextract.training.losses import DISTILLATION_LOSSES, kl_divergence
from kdextract.training.observer import Probe
from kdextract.training.progress import Reporter
from kdextract.training.sources import ImagePool, NoiseSource, Source
from kdextract.training.supervised import fit, predict

CPU = torch.device("cpu")
KL = DistillationLossOptions("kl", 4.0, True)
QUIET = Reporter(quiet=True)


def plain() -> Augmenter:
    return Augmenter(shift=0, flip=False, warp=0.0, seed=0)


def shifting() -> Augmenter:
    return Augmenter(shift=2, flip=True, warp=0.1, seed=1)


def make_teacher() -> Classifier:
    torch.manual_seed(0)
    return Classifier(ClassifierSpec("lenet", (1, 32, 32), tuple("0123456789"), (0.3,), (0.35,))).frozen()


def make_student(architecture: str = "lenet_half", seed: int = 1) -> Classifier:
    torch.manual_seed(seed)
    return Classifier(make_teacher().spec.student(architecture))


@pytest.fixture(scope="module")
def teacher() -> Classifier:
    return make_teacher()


@pytest.fixture(scope="module")
def images() -> torch.Tensor:
    """200 digits in the input size of the teacher."""
    return fit_images(load_data("digits", "train", Path()).images[:200], (1, 32, 32))


def run(
    teacher: Classifier,
    student: Classifier,
    source: Source,
    *,
    steps: int = 20,
    batch_size: int = 32,
    lr: float = 1e-3,
    loss: DistillationLossOptions = KL,
    augmenter: Augmenter | None = None,
    checkpoints: Any = None,
    batch_norm: str = "train",
) -> list[Row]:
    options = DistillationOptions(batch_size, Schedule(steps, lr), loss, augmenter or plain(), batch_norm)
    return distill(teacher, student, source, options, checkpoints or NoCheckpoints(), QUIET)


def distance(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> float:
    """Return the Euclidean distance of two networks' weights."""
    assert one.keys() == other.keys()
    return float(torch.cat([(value - other[name]).flatten() for name, value in one.items()]).norm())


# ---- teacher and student ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "parameters"), [("lenet_half", 35_820), ("lenet5_half", 15_738), ("lenet", 61_706)])
def test_student_has_the_requested_architecture(
    name: str, parameters: int, teacher: Classifier, images: torch.Tensor
) -> None:
    """In the 2017 code the student had the teacher's architecture, whatever was requested."""
    student = make_student(name)
    start = weights(student)
    run(teacher, student, ImagePool(images, None, 0, CPU), steps=3)
    assert student.spec.architecture == name
    assert student.num_parameters == parameters
    assert (student.spec.mean, student.spec.std) == (teacher.spec.mean, teacher.spec.std)
    assert (student.input_shape, student.spec.class_names) == (teacher.input_shape, teacher.spec.class_names)
    assert not student.training
    assert not equal(start, weights(student))
    if name == "lenet":
        assert not equal(weights(teacher), start), "the student starts as the teacher"


def test_student_can_start_from_a_file_of_the_same_shape(tmp_path: Path, teacher: Classifier) -> None:
    start = make_student("lenet5_half")
    path = tmp_path / "model.safetensors"
    path.write_bytes(encode_classifier(start))
    student, kept = StudentStart("student", (), RunDir(tmp_path).file(path)).build(teacher, True, print)
    assert not kept
    assert student.spec == start.spec
    assert equal(weights(student), weights(start))
    for spec in (
        ClassifierSpec("lenet_half", (3, 32, 32), tuple("0123456789"), (0.5,) * 3, (0.3,) * 3),
        ClassifierSpec("lenet_half", (1, 32, 32), tuple("abc"), (0.5,), (0.3,)),
    ):
        path.write_bytes(encode_classifier(Classifier(spec)))
        with pytest.raises(ConfigError, match="must be equal"):
            StudentStart("student", (), RunDir(tmp_path).file(path)).build(teacher, True, print)


@pytest.mark.parametrize("augmenter", [plain, shifting])
def test_teacher_is_unchanged_in_every_bit(augmenter: Callable[[], Augmenter], images: torch.Tensor) -> None:
    teacher = make_teacher().train().requires_grad_(True)
    before = {name: value.clone() for name, value in teacher.state_dict().items()}
    run(teacher, make_student(), ImagePool(images, None, 0, CPU), steps=4, augmenter=augmenter())
    assert all(torch.equal(before[name], value) for name, value in teacher.state_dict().items())
    assert not teacher.training
    assert all(parameter.grad is None and not parameter.requires_grad for parameter in teacher.parameters())


# ---- targets ----------------------------------------------------------------------------------------------------


def watch(classifier: Classifier) -> list[torch.Tensor]:
    """Return a list to which the input of every forward pass is appended."""
    seen: list[torch.Tensor] = []
    classifier.register_forward_hook(lambda module, inputs, output: seen.append(inputs[0].detach().clone()))
    return seen


def test_given_targets_are_used_without_the_teacher(images: torch.Tensor) -> None:
    teacher = make_teacher()
    targets = predict(teacher, images)
    asked = watch(teacher)
    cached, fresh = make_student(), make_student()
    before = teacher.queries.total
    run(teacher, cached, ImagePool(images, targets, 0, CPU), steps=12)
    assert asked == []
    assert teacher.queries.total == before
    run(teacher, fresh, ImagePool(images, None, 0, CPU), steps=12)
    assert len(asked) == 12
    assert teacher.queries.counts["targets"] == 12 * 32
    start, end = weights(make_student()), weights(fresh)
    assert distance(weights(cached), end) < 0.01 * distance(start, end), "apart by rounding alone"


def test_the_student_learns_the_given_targets(teacher: Classifier, images: torch.Tensor) -> None:
    """The targets are the digit after the one in the image, which the teacher does not predict."""
    wanted = (load_data("digits", "train", Path()).labels[:200] + 1) % 10
    student = make_student()

    def errors(network: Classifier) -> float:
        return float((predict(network, images).argmax(1) != wanted).float().mean())

    before = errors(student.eval())
    run(teacher, student, ImagePool(images, 10 * F.one_hot(wanted, 10).float(), 0, CPU), steps=60, lr=3e-3)
    assert errors(student) < 0.5 * min(before, errors(teacher))


def test_teacher_and_student_get_the_same_augmented_images(images: torch.Tensor) -> None:
    teacher, student = make_teacher(), make_student()
    targets = predict(teacher, images)
    asked, shown = watch(teacher), watch(student)
    run(teacher, student, ImagePool(images, targets, 0, CPU), steps=5, augmenter=shifting())
    assert teacher.queries.counts["targets"] == 5 * 32
    assert len(asked) == len(shown) == 5
    assert all(torch.equal(a, b) for a, b in zip(asked, shown, strict=True))
    originals = {tuple(image.flatten().tolist()) for image in to_pixels(images)}
    changed = [tuple(image.flatten().tolist()) not in originals for batch in shown for image in batch]
    assert sum(changed) > 0.9 * len(changed)


# ---- the loss and the final weights -----------------------------------------------------------------------------


@pytest.mark.parametrize("kind", sorted(DISTILLATION_LOSSES))
def test_each_loss_falls(kind: str, teacher: Classifier, images: torch.Tensor) -> None:
    student, targets = make_student(), predict(teacher, images)
    loss = DistillationLossOptions(kind, 4.0, True)
    rows = run(teacher, student, ImagePool(images, targets, 0, CPU), steps=60, lr=3e-3, loss=loss)
    first, last = rows[0]["loss"], rows[-1]["loss"]
    floor = float(DISTILLATION_LOSSES[kind](targets, targets, 4.0, True))  # the cross-entropy's is not zero
    assert last - floor < 0.6 * (first - floor)


def test_loss_options_matter(teacher: Classifier, images: torch.Tensor) -> None:
    made = {}
    for kind in sorted(DISTILLATION_LOSSES):
        for temperature, scale in ((4.0, True), (1.0, True), (4.0, False)):
            options = DistillationLossOptions(kind, temperature, scale)
            student = make_student()
            rows = run(teacher, student, ImagePool(images, None, 0, CPU), steps=1, loss=options)
            made[kind, temperature, scale] = rows[0]["loss"]
    assert len(set(made.values())) >= 10
    for kind, power in (("kl", 2), ("ce", 2), ("l1", 1), ("mse", 2)):
        assert made[kind, 4.0, True] == pytest.approx(made[kind, 4.0, False] * 4**power, rel=1e-2)


def test_last_weights_are_kept_and_nothing_is_averaged(teacher: Classifier, images: torch.Tensor) -> None:
    """The student has the weights of plain Adam after the last step."""
    steps, lr, batch_size = 15, 2e-3, 32
    targets = predict(teacher, images)
    student, by_hand = make_student(), make_student()
    start = weights(student)
    run(teacher, student, ImagePool(images, targets, 7, CPU), steps=steps, lr=lr, batch_size=batch_size)

    pool, schedule = ImagePool(images, targets, 7, CPU), Schedule(steps, lr)
    optimizer = torch.optim.Adam(by_hand.network.parameters())
    for step in range(steps):
        batch = pool.sample(batch_size)
        for group in optimizer.param_groups:
            group["lr"] = schedule.rate(step)
        optimizer.zero_grad()
        kl_divergence(by_hand(batch.images), batch.targets, 4.0, True).backward()
        optimizer.step()
    end = weights(by_hand)
    assert distance(weights(student), end) < 0.01 * distance(start, end), "apart by rounding alone"


def test_same_seed_gives_the_same_student(teacher: Classifier, images: torch.Tensor) -> None:
    made = []
    for seed in (0, 0, 1):
        student = make_student()
        run(teacher, student, ImagePool(images, None, seed, CPU), steps=5, augmenter=shifting())
        made.append(weights(student))
    assert equal(made[0], made[1])
    assert not equal(made[0], made[2])


def test_divergence_is_an_error(teacher: Classifier, images: torch.Tensor) -> None:
    with pytest.raises(DivergedError, match=r"not finite at step .*--lr"):
        run(teacher, make_student(), ImagePool(images, None, 0, CPU), lr=1e30)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_loss_that_is_not_finite_is_an_error(value: float) -> None:
    student = make_student()
    parameter = next(student.network.parameters())
    with pytest.raises(DivergedError):
        take_steps(student, lambda: parameter.sum() * 0 + value, Schedule(5, 1e-3), {}, NoCheckpoints(), QUIET, "test")


def test_rows_hold_the_mean_loss_of_the_steps_between(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training, "METRIC_ROWS", 4)
    student = make_student("lenet5_half")
    parameter = next(student.network.parameters())
    step = iter(range(1, 100))
    schedule = Schedule(14, 1e-3)
    rows = take_steps(student, lambda: parameter.sum() * 0 + next(step), schedule, {}, NoCheckpoints(), QUIET, "test")
    assert [row["step"] for row in rows] == [3, 6, 9, 12, 14]
    assert [row["loss"] for row in rows] == [2, 5, 8, 11, 13.5]
    assert [row["lr"] for row in rows] == [schedule.rate(row["step"] - 1) for row in rows]


# ---- resuming after a stop --------------------------------------------------------------------------------------


def pool_source(images: torch.Tensor, teacher: Classifier) -> Source:
    return ImagePool(images, None, 5, CPU)


def noise_source(images: torch.Tensor, teacher: Classifier) -> Source:
    return NoiseSource("normal", teacher, 5)


@pytest.mark.parametrize("architecture", ["lenet_half", "hinton1200"], ids=["without dropout", "with dropout"])
@pytest.mark.parametrize("make_source", [pool_source, noise_source])
@pytest.mark.parametrize("rows", [200, 3], ids=["a row per step", "a row per six steps"])
def test_a_resumed_student_equals_one_that_was_not_stopped(
    architecture: str,
    make_source: Callable[[torch.Tensor, Classifier], Source],
    rows: int,
    teacher: Classifier,
    images: torch.Tensor,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(training, "METRIC_ROWS", rows)
    small = {"steps": 18, "batch_size": 24, "lr": 3e-3}
    path = tmp_path / "checkpoint.safetensors"

    def attempt(stop: int | None, seed: int) -> tuple[list[Row], dict[str, torch.Tensor]]:
        torch.manual_seed(seed)
        student = make_student(architecture, seed)
        source, checkpoints = make_source(images, teacher), StopAt(path, stop)
        metric_rows = run(teacher, student, source, augmenter=shifting(), checkpoints=checkpoints, **small)
        return metric_rows, weights(student)

    straight, expected = attempt(None, seed=1)
    for stop in (5, 11):
        with pytest.raises(Interrupted):
            attempt(stop, seed=1 if stop == 5 else 99)
    assert read_safetensors(path)[1]["rows"][-1]["step"] in (11, 12)
    resumed, got = attempt(None, seed=77)  # other weights and other randomness, all of which the checkpoint replaces
    assert equal(got, expected)
    assert resumed == straight


# ---- sources ----------------------------------------------------------------------------------------------------


def numbered(count: int) -> torch.Tensor:
    """Images of one pixel, whose value is their number."""
    return torch.arange(count, dtype=torch.uint8).view(-1, 1, 1, 1)


def numbers(pixels: torch.Tensor) -> list[int]:
    return (pixels.flatten() * 255).round().int().tolist()


@pytest.mark.parametrize("batch", [1, 4, 10, 7, 25])
def test_pool_gives_each_image_once_per_epoch(batch: int) -> None:
    pool = ImagePool(numbered(20), None, 3, CPU)
    drawn: list[int] = []
    while len(drawn) < 100:
        sample = pool.sample(batch)
        assert sample.images.shape == (batch, 1, 1, 1)
        assert sample.targets is None
        drawn += numbers(sample.images)
    epochs = [drawn[start : start + 20] for start in range(0, 100, 20)]
    assert all(sorted(epoch) == list(range(20)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 5, "two epochs in the same order"
    assert pool.num_images == 20
    assert pool.update(make_student("lenet5_half")) == {}


def test_pool_keeps_images_and_targets_together() -> None:
    targets = torch.stack([torch.arange(20.0), -torch.arange(20.0)], dim=1)
    pool = ImagePool(numbered(20), targets, 3, CPU)
    for _ in range(9):
        batch = pool.sample(7)
        assert batch.targets is not None
        assert batch.targets[:, 0].int().tolist() == numbers(batch.images)
        assert batch.targets.shape == (7, 2)


def test_pool_order_depends_on_its_seed_alone() -> None:
    def drawn(seed: int) -> list[int]:
        return numbers(ImagePool(numbered(20), None, seed, CPU).sample(40).images)

    torch.manual_seed(1)
    once = drawn(3)
    torch.manual_seed(2)
    assert drawn(3) == once
    assert drawn(4) != once


def test_pool_gives_pixels_of_stored_images() -> None:
    batch = ImagePool(torch.tensor([0, 51, 255], dtype=torch.uint8).view(3, 1, 1, 1), None, 0, CPU).sample(3)
    assert sorted(batch.images.flatten().tolist()) == pytest.approx([0, 0.2, 1])


def make_noise(kind: str, seed: int = 3) -> NoiseSource:
    return NoiseSource(kind, make_teacher(), seed)


@pytest.mark.parametrize("kind", ["normal", "uniform"])
def test_noise_is_valid_and_new_every_time(kind: str) -> None:
    source = make_noise(kind)
    one, two = source.sample(50), source.sample(50)
    for batch in (one, two):
        assert batch.targets is None
        assert batch.images.shape == (50, 1, 32, 32)
        assert 0 <= float(batch.images.min()) < float(batch.images.max()) <= 1
    assert not torch.equal(one.images, two.images)
    assert torch.equal(make_noise(kind).sample(50).images, one.images)
    assert not torch.equal(make_noise(kind, seed=4).sample(50).images, one.images)
    assert source.update(make_student("lenet5_half")) == {}


def test_kinds_of_noise_differ() -> None:
    normal, uniform = (make_noise(kind).sample(100).images for kind in ("normal", "uniform"))
    assert float(uniform.mean()) == pytest.approx(0.5, abs=0.01)
    assert float(uniform.std()) == pytest.approx(12**-0.5, abs=0.01)
    inside = normal[(normal > 0) & (normal < 1)]
    assert float((normal == 0).float().mean()) == pytest.approx(0.196, abs=0.02)  # P(z < -0.3 / 0.35)
    assert float((normal == 1).float().mean()) == pytest.approx(0.023, abs=0.01)  # P(z > 0.7 / 0.35)
    assert float(inside.median()) < 0.45


@pytest.mark.parametrize("kind", ["pool", "normal", "uniform", "augmenter"])
def test_restored_state_continues_with_the_same_samples(kind: str) -> None:
    pixels = torch.rand((9, 1, 12, 12), generator=torch.Generator().manual_seed(0))

    def make(seed: int) -> tuple[Any, Callable[[], torch.Tensor]]:
        if kind == "augmenter":
            augmenter = Augmenter(shift=2, flip=True, warp=0.1, seed=seed)
            return augmenter, lambda: augmenter(pixels)
        source = ImagePool(numbered(20), None, seed, CPU) if kind == "pool" else make_noise(kind, seed)
        return source, lambda: source.sample(9).images

    original, draw = make(1)
    draw()
    state = copy.deepcopy(original.state())
    following = [draw() for _ in range(4)]
    other, draw_other = make(2)
    draw_other()
    other.restore(state)
    assert all(torch.equal(draw_other(), expected) for expected in following)


# ---- schedules, augmentation, supervised training -----------------------------------------------------------------


def test_cosine_falls_from_the_full_rate_to_zero() -> None:
    schedule = Schedule(100, 0.4)
    rates = [schedule.rate(step) for step in range(100)]
    assert rates[0] == 0.4
    assert rates[50] == pytest.approx(0.2)
    assert 0 < rates[-1] < 1e-3
    assert rates == sorted(rates, reverse=True)


def test_warm_up_rises_linearly_to_the_full_rate() -> None:
    cosine, warm = Schedule(100, 0.4), Schedule(100, 0.4, warmup=9)
    shares = [warm.rate(step) / cosine.rate(step) for step in range(10)]
    assert shares == pytest.approx([0.1 * step for step in range(1, 11)])
    assert [warm.rate(step) for step in range(9, 100)] == [cosine.rate(step) for step in range(9, 100)]
    assert all(warm.rate(step) < cosine.rate(step) for step in range(9))


@pytest.mark.parametrize("warmup", [0, 9, 23])
def test_a_linear_rate_rises_and_falls_in_equal_steps(warmup: int) -> None:
    schedule = Schedule(100, 0.4, warmup=warmup, linear=True)
    rates = [schedule.rate(step) for step in range(101)]
    assert max(rates) == rates[warmup] == 0.4
    assert rates[100] == 0
    rising = [0.4 * (step + 1) / (warmup + 1) for step in range(warmup + 1)]
    falling = [0.4 * (100 - step) / (100 - warmup) for step in range(warmup, 101)]
    assert rates == pytest.approx([*rising, *falling[1:]])


def test_augmenter_changes_images_only_with_its_options() -> None:
    pixels = torch.rand((40, 1, 12, 12), generator=torch.Generator().manual_seed(0))
    assert not plain().active
    assert plain()(pixels) is pixels
    for options in ({"shift": 2}, {"flip": True}, {"warp": 0.1}):
        augmenter = Augmenter(**({"shift": 0, "flip": False, "warp": 0.0, "seed": 0} | options))
        assert augmenter.active
        changed = augmenter(pixels)
        assert changed.shape == pixels.shape
        assert not torch.equal(changed, pixels)


def test_supervised_training_learns_the_labels() -> None:
    digits = load_data("digits", "train", Path())
    images = fit_images(digits.images[:400], (1, 32, 32))
    classifier = make_student("lenet").eval()
    test = load_data("digits", "test", Path())

    def errors() -> float:
        answers = predict(classifier, fit_images(test.images, (1, 32, 32))).argmax(1)
        return float((answers != test.labels).float().mean())

    before = errors()
    pool = ImagePool(images, digits.labels[:400], 0, CPU)
    rows = fit(classifier, pool, 64, Schedule(80, 3e-3, warmup=5), plain(), NoCheckpoints(), QUIET)
    assert not classifier.training
    assert rows[-1]["step"] == 80
    assert rows[-1]["loss"] < 0.3 * rows[0]["loss"]
    assert errors() < 0.25 * before


def test_predict_does_not_depend_on_the_batch(teacher: Classifier, images: torch.Tensor) -> None:
    with torch.no_grad():
        expected = teacher(to_pixels(images))
    for batch_size in (1, 64, 500):
        answers = predict(teacher, images[:70], batch_size)
        torch.testing.assert_close(answers, expected[:70], rtol=0, atol=rounding(expected))


# ---- batch normalization of the student ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("mode", "statistics_move", "scales_move"),
    [("train", True, True), ("frozen", False, True), ("frozen-affine", False, False)],
)
@pytest.mark.parametrize("optimizer", sorted(OPTIMIZERS))
def test_batch_normalization_updates_what_its_option_allows(
    teacher: Classifier,
    images: torch.Tensor,
    mode: str,
    statistics_move: bool,
    scales_move: bool,
    optimizer: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    student = make_student()
    student.network = nn.Sequential(
        nn.Conv2d(1, 4, 3, stride=4), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(256, 10)
    )
    monkeypatch.setitem(OPTIMIZERS, "adam", OPTIMIZERS[optimizer])
    before = weights(student)
    run(teacher, student, ImagePool(images, None, 0, CPU), steps=5, batch_norm=mode)
    after = weights(student)
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert {"0.weight", "4.weight"} <= moved
    assert {name in moved for name in ("1.running_mean", "1.running_var")} == {statistics_move}
    assert {name in moved for name in ("1.weight", "1.bias")} == {scales_move}
    assert all(parameter.requires_grad for parameter in student.parameters())


def test_an_evaluation_keeps_batch_normalization_frozen(teacher: Classifier, images: torch.Tensor) -> None:
    student = make_student()
    student.network = nn.Sequential(nn.BatchNorm2d(1), nn.Flatten(), nn.Linear(1024, 10))
    student.train()
    student.network[0].eval()
    Probe.of(teacher, images).agreement(student)
    assert student.training
    assert not student.network[0].training


def test_a_checkpoint_keeps_the_random_states_of_cpu_and_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """So dropout on a GPU resumes as well; that the state is saved is tested without a GPU."""
    on_gpu = {1: torch.arange(16, dtype=torch.uint8)}
    monkeypatch.setattr(torch.cuda, "get_rng_state", lambda device: on_gpu[device.index])
    monkeypatch.setattr(torch.cuda, "set_rng_state", lambda state, device: on_gpu.update({device.index: state}))
    gpu = torch.device("cuda", 1)
    torch.manual_seed(5)
    saved = {name: state.clone() for name, state in random_states(gpu).items()}
    expected = torch.rand(3)
    on_gpu[1] = torch.zeros(16, dtype=torch.uint8)
    set_random_states(saved, gpu)
    assert torch.equal(on_gpu[1], torch.arange(16, dtype=torch.uint8))
    assert torch.equal(torch.rand(3), expected)
    set_random_states(random_states(CPU), gpu)  # saved on a CPU: the GPU keeps what it has
    assert torch.equal(on_gpu[1], torch.arange(16, dtype=torch.uint8))
    assert "cuda_rng" not in random_states(CPU)
