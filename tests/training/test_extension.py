"""The losses of an extension against their formulas, and what its training changes."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from helpers import StopAt, classifier, equal, opened, weights

from kdextract.errors import Interrupted
from kdextract.models.classifier import Classifier
from kdextract.models.more_classes import first_classes
from kdextract.training.augmentation import Augmenter
from kdextract.training.crossing import Crossings
from kdextract.training.extension import (
    SURE,
    TEMPERATURE,
    ExtensionOptions,
    balanced,
    crossed_loss,
    extend,
    kept_answers,
    new_images_loss,
    not_new,
    old_images_loss,
)
from kdextract.training.loop import Schedule
from kdextract.training.progress import Reporter
from kdextract.training.sources import ImagePool


def softmax(row: list[float]) -> list[float]:
    """Return probabilities in plain Python."""
    powers = [math.exp(value) for value in row]
    return [power / sum(powers) for power in powers]


def kl(target: list[float], given: list[float]) -> float:
    """Return KL(target || given) of probabilities."""
    return sum(p * math.log(p / q) for p, q in zip(target, given, strict=True) if p > 0)


def mean(values: list[float]) -> float:
    return sum(values) / len(values)


@pytest.fixture(params=[(2, 1), (3, 4), (10, 90)], ids=str)
def logits(request: pytest.FixtureRequest) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits of all classes by the new classifier, and of the old ones by the old classifier, for five images."""
    old, added = request.param
    rng = torch.Generator().manual_seed(old)
    return torch.randn(5, old + added, generator=rng) * 3, torch.randn(5, old, generator=rng) * 3


def test_the_kept_answers_are_a_divergence_among_the_old_classes(logits: tuple[torch.Tensor, torch.Tensor]) -> None:
    new, old = logits
    count = old.shape[1]
    expected = mean(
        [
            kl(softmax([v / TEMPERATURE for v in o]), softmax([v / TEMPERATURE for v in n[:count]])) * TEMPERATURE**2
            for n, o in zip(new.tolist(), old.tolist(), strict=True)
        ]
    )
    assert float(kept_answers(new, old)) == pytest.approx(expected, rel=1e-4)
    shifted = torch.cat([new[:, :count], new[:, count:] + 5], 1)
    assert float(kept_answers(shifted, old)) == pytest.approx(expected, rel=1e-4), "new classes have no part in it"


def test_the_probability_of_a_new_class_is_pushed_to_zero(logits: tuple[torch.Tensor, torch.Tensor]) -> None:
    new, old = logits
    count = old.shape[1]
    expected = mean([-math.log(sum(softmax(row)[:count])) for row in new.tolist()])
    assert float(not_new(new, count)) == pytest.approx(expected, rel=1e-4)
    for weight in (1.0, 10.0):
        both = float(kept_answers(new, old)) + weight * expected
        assert float(old_images_loss(new, old, weight)) == pytest.approx(both, rel=1e-4)


def test_both_terms_unweighted_at_temperature_1_are_the_divergence_over_all_classes(
    logits: tuple[torch.Tensor, torch.Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The old classifier's target for its own image is 0 for every new class."""
    monkeypatch.setattr("kdextract.training.extension.TEMPERATURE", 1.0)
    new, old = logits
    targets = [[*softmax(row), *[0.0] * (new.shape[1] - old.shape[1])] for row in old.tolist()]
    expected = mean([kl(t, softmax(row)) for t, row in zip(targets, new.tolist(), strict=True)])
    assert float(old_images_loss(new, old)) == pytest.approx(expected, rel=1e-4)


def test_crossed_images_count_where_classes_differ_and_the_old_classifier_is_sure(
    logits: tuple[torch.Tensor, torch.Tensor],
) -> None:
    new, old = logits
    old = 20 * old
    old[1] = 0  # not sure
    differ = torch.tensor([False, True, True, True, False])
    sure = [row for row in range(5) if differ[row] and max(softmax(old[row].tolist())) >= SURE]
    assert sure
    assert 1 not in sure
    expected = mean([float(old_images_loss(new[row : row + 1], old[row : row + 1])) for row in sure])
    assert float(crossed_loss(new, old, differ)) == pytest.approx(expected, rel=1e-4)
    assert float(crossed_loss(new, old, torch.zeros(5, dtype=torch.bool))) == 0.0


@pytest.mark.parametrize("channels", [1, 3])
def test_crossed_images_have_parts_of_two_images(channels: int) -> None:
    labels = torch.arange(64) % 2
    images = (labels.float().view(-1, 1, 1, 1) + 0.25).expand(-1, channels, 20, 16).contiguous()
    crossings = Crossings(0)
    state = crossings.state()
    crossed, differ = crossings(images, labels)
    own, others = crossed.sub(images).abs() < 0.1, crossed.sub(1.5 - images).abs() < 0.1
    assert torch.equal(crossed[~differ], images[~differ])
    assert 16 <= int(differ.sum()) <= 48
    for part in (own, others):
        shares = part[differ].flatten(1).float().mean(1)
        assert 0.2 < float(shares.mean()) < 0.6
        assert float(shares.max()) > 0.5
    again = Crossings(1)
    again.restore(state)
    assert torch.equal(again(images, labels)[0], crossed)


def test_labels_count_among_all_classes(logits: tuple[torch.Tensor, torch.Tensor]) -> None:
    new, old = logits
    labels = torch.full((5,), new.shape[1] - 1)
    expected = mean([-math.log(softmax(row)[-1]) for row in new.tolist()])
    assert float(new_images_loss(new, labels, None)) == pytest.approx(expected, rel=1e-4)
    both = expected + float(kept_answers(new, old))
    assert float(new_images_loss(new, labels, old)) == pytest.approx(both, rel=1e-4)


def test_every_class_counts_as_much() -> None:
    of_old, of_new = torch.tensor(2.0), torch.tensor(7.0)
    assert float(balanced(of_old, of_new, 8, 10)) == pytest.approx(0.8 * 2 + 0.2 * 7)
    assert float(balanced(of_old, of_new, 1, 10)) == pytest.approx(0.1 * 2 + 0.9 * 7)


def pair(channels: int, batch_norm: bool) -> tuple[Classifier, Classifier, ImagePool]:
    """A frozen classifier of three classes, one that has two more, and random images of these."""
    shape = (channels, 20, 16)
    old = classifier(shape, num_classes=3, batch_norm=batch_norm, seed=1).frozen()
    new = classifier(shape, num_classes=5, batch_norm=batch_norm, seed=2)
    rng = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (40, *shape), generator=rng, dtype=torch.uint8)
    return old, new, ImagePool(images, 3 + torch.arange(40) % 2, 0, torch.device("cpu"))


def options(steps: int = 6, keep_on_new: bool = True) -> ExtensionOptions:
    new, old = (Augmenter(1, False, 0.1, seed) for seed in (3, 4))
    return ExtensionOptions(8, Schedule(steps, 1e-2), new, old, keep_on_new, Crossings(5))


class Nothing:
    """Saves nothing."""

    def load(self) -> None:
        return None

    def offer(self, state: object) -> None:
        pass


@pytest.mark.parametrize("method", [None, "structured_noise", "dfq"])
@pytest.mark.parametrize(("channels", "batch_norm"), [(1, True), (3, False)])
def test_only_the_new_classifier_is_trained_and_a_stop_changes_nothing(
    channels: int, batch_norm: bool, method: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kdextract.training.extension.SURE", 0.0)  # every crossed image counts

    def run(saver: object) -> Classifier:
        old, new, pool = pair(channels, batch_norm)
        before, first = weights(old), weights(new)
        source = None if method is None else opened(method, old)
        try:
            rows = extend(old, new, pool, source, options(), saver, Reporter(quiet=True))  # type: ignore[arg-type]
            assert rows[-1]["step"] == 6
            assert not new.training
        finally:
            assert equal(weights(old), before)
        trained = weights(new)
        changed = {name.rpartition(".")[2] for name, value in trained.items() if not torch.equal(value, first[name])}
        assert changed == {"weight", "bias"}, "batch normalization keeps its statistics"
        return new

    straight = weights(run(Nothing()))
    path = tmp_path / "state.safetensors"
    with pytest.raises(Interrupted):
        run(StopAt(path, 4))
    assert equal(weights(run(StopAt(path, None))), straight)


def test_the_term_on_new_images_can_be_left_out() -> None:
    trained = []
    for keep in (True, False):
        old, new, pool = pair(1, True)
        extend(old, new, pool, None, options(keep_on_new=keep), Nothing(), Reporter(quiet=True))
        trained.append(weights(new))
        asked = old.queries.total
        assert asked == (6 * 8 if keep else 0)
    assert not equal(*trained)


def test_a_source_gets_a_student_with_the_old_classes() -> None:
    _, new, _ = pair(1, True)
    student = first_classes(new.train(), 3)
    images = torch.rand(4, 1, 20, 16)
    assert student.training
    new.eval()
    assert torch.equal(student(images), new(images)[:, :3])
    assert student.num_classes == 3
    assert {p.data_ptr() for p in student.parameters()} == {p.data_ptr() for p in new.parameters()}
