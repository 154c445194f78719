"""The meta generator and its bank: what is learned from a batch, what a checkpoint holds, and held-out images."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
from helpers import classifier, drawn, num_hooks, seeded, statistics_of, weights

from kdextract.errors import ConfigError
from kdextract.models.classifier import Classifier
from kdextract.models.hooks import record_batch_statistics
from kdextract.synthesis.generators import meta
from kdextract.synthesis.generators.bank import BatchLoss, BatchWeights, GeneratorBank
from kdextract.synthesis.generators.meta import MetaGenerator, MetaOptions
from kdextract.synthesis.statistics.recorded import Statistics

LABELS = torch.arange(12) % 4


def teacher_of(shape: tuple[int, int, int] = (3, 12, 12), batch_norm: bool = True) -> Classifier:
    return classifier(shape, batch_norm=batch_norm).frozen()


def maker_of(
    teacher: Classifier,
    statistics: Statistics | None = None,
    compete: float = 1.1,
    **changed: float,
) -> MetaGenerator:
    options: dict[str, Any] = {"steps": 3, "lr": 3e-3, "noise_lr": 1e-2, "warmup": 2} | changed
    loss = BatchLoss(teacher, statistics, BatchWeights(0.4, 10.0, compete))
    return MetaGenerator(teacher, loss, MetaOptions(**options), 0)


def bank_of(teacher: Classifier) -> GeneratorBank:
    return GeneratorBank(maker_of(teacher), teacher, 12, 2, 2, 0)


@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 12, 12), (3, 9, 14)])
@pytest.mark.parametrize("batch_norm", [True, False])
def test_a_batch_has_an_image_per_label_and_leaves_the_networks_alone(
    shape: tuple[int, int, int], batch_norm: bool
) -> None:
    teacher, student = teacher_of(shape, batch_norm), classifier(shape, batch_norm=batch_norm, seed=1).eval()
    before, hooks = (weights(teacher), weights(student)), num_hooks(teacher)
    made = maker_of(teacher, None if batch_norm else statistics_of(teacher)).make(LABELS, student, seeded(), None)
    assert made.images.shape == (12, *shape)
    assert 0 <= float(made.images.min()) < float(made.images.max()) <= 1
    assert made.teacher_queries == 3 * 12
    assert set(made.curve[0]) == {"step", "loss", "ce", "bn", "compete"}
    assert num_hooks(teacher) == hooks
    for network, weights_before in zip((teacher, student), before, strict=True):
        assert all(torch.equal(value, weights_before[name]) for name, value in weights(network).items())


def test_later_batches_begin_nearer_to_the_statistics() -> None:
    teacher = teacher_of()
    maker = maker_of(teacher)
    distances = []
    for number in range(40):
        maker._loss._tracked = []  # the statistics of this batch alone
        distances.append(maker.make(LABELS, None, seeded(number), None).curve[0]["bn"])
    assert sum(distances[-5:]) < 0.9 * sum(distances[:5])


def test_the_generator_learns_from_the_sum_of_the_gradients_of_its_copy() -> None:
    """With one step the copy equals the generator, so that the first step is Adam's on its own gradient."""
    teacher = teacher_of()
    maker = maker_of(teacher, steps=1, lr=1e-3)
    before = copy.deepcopy(maker._generator.state_dict())
    maker.make(LABELS, None, seeded(), None)
    moved = {
        name: (value - before[name]).abs().max().item()
        for name, value in maker._generator.named_parameters()
        if value.grad is not None and bool(value.grad.abs().gt(1e-6).all())
    }
    assert moved
    assert all(math.isclose(change, 1e-3, rel_tol=0.05) for change in moved.values())


def test_statistics_are_matched_with_those_of_the_batches_before() -> None:
    teacher = teacher_of()
    loss = BatchLoss(teacher, None, BatchWeights(0.0, 1.0, 0.0))
    pixels = torch.rand((12, 3, 12, 12), generator=seeded(), requires_grad=True)
    optimizer = torch.optim.SGD([pixels], 0.0)
    moments, distances = [], []
    for number in (1, 2):
        with torch.no_grad():
            pixels.copy_(torch.rand((12, 3, 1, 1), generator=seeded(number)).expand_as(pixels))  # shifts change nothing
            with record_batch_statistics(teacher.network) as recorded:
                teacher(pixels)
            layers = list(recorded.values())
        moments.append([(layer.mean, layer.variance) for layer in layers])
        distances.append(loss.minimize(lambda: pixels, optimizer, 1, LABELS, None, seeded(), lambda: None).loss)
    expected = [0.0, 0.0]
    for index, layer in enumerate(layers):
        first, second = (pair[index] for pair in moments)
        mixed = [0.9 * old + 0.1 * new for old, new in zip(first, second, strict=True)]
        for number, (mean, variance) in enumerate((first, mixed)):
            apart = (mean - layer.kept_mean).norm() + (variance - layer.kept_variance).norm()
            expected[number] += float(apart)
    assert distances == pytest.approx(expected, rel=1e-4)


def test_the_first_layer_is_made_anew_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(meta, "RESET_AFTER", 1)
    maker = maker_of(teacher_of(), lr=1e-9, warmup=1)
    stds = []
    for number in range(4):
        maker.make(LABELS, None, seeded(number), None)
        stds.append(float(maker._generator.start.weight.detach().std()))
    assert stds[0] > 0.05
    assert stds[1:] == pytest.approx([0.02] * 3, rel=0.05)


def test_a_student_that_agrees_is_avoided() -> None:
    teacher = teacher_of()
    terms = [maker_of(teacher, compete=weight).make(LABELS, teacher, seeded(), None).curve[-1] for weight in (0.0, 5.0)]
    assert terms[0]["compete"] == terms[1]["compete"] == pytest.approx(0, abs=1e-5), "the same network never disagrees"
    other = classifier((3, 12, 12), seed=3).eval()
    disagreement = maker_of(teacher, compete=5.0).make(LABELS, other, seeded(), None).curve
    assert disagreement[-1]["compete"] <= 0


def test_the_warm_up_has_no_student_and_comes_first() -> None:
    teacher = teacher_of()
    bank = bank_of(teacher)
    bank.sample(4)
    assert bank.num_images == 24
    student = classifier((3, 12, 12), seed=1).train()
    for _ in range(4):
        bank.update(student)
    assert bank.num_images == 48
    assert ["compete" in row and row["compete"] != 0 for row in bank.curve[:2]] == [False, False]


def test_a_restored_bank_goes_on_in_the_same_way() -> None:
    teacher, student = teacher_of(), classifier((3, 12, 12), seed=1).train()
    bank = bank_of(teacher)
    for _ in range(3):
        bank.update(student)
        bank.sample(5)
    tensors, values = bank.state()
    saved = {name: value.clone() for name, value in tensors.items()}, copy.deepcopy(values)

    def following(source: GeneratorBank) -> torch.Tensor:
        return torch.cat([batch.images for batch in drawn(source, student, 5, 5)])

    expected = following(bank)
    again = bank_of(teacher)
    again.restore(saved)
    assert torch.equal(following(again), expected)


def test_held_out_images_do_not_change_the_generator() -> None:
    teacher = teacher_of()
    bank, other = bank_of(teacher), bank_of(teacher)
    held_out = bank.held_out(20)
    assert torch.equal(held_out, bank.held_out(20))
    assert torch.equal(bank.sample(6).images, other.sample(6).images)


def test_a_teacher_without_batch_normalization_needs_statistics() -> None:
    with pytest.raises(ConfigError, match="compute-stats"):
        maker_of(teacher_of(batch_norm=False))
