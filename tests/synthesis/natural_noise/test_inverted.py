"""The pool of natural inversion: what the steps reach, what they cost, and held-out images."""

from __future__ import annotations

import pytest
import torch
from helpers import classifier, statistics_teacher
from torch import nn

from kdextract.errors import ConfigError
from kdextract.models.classifier import Classifier
from kdextract.models.hooks import record_batch_statistics
from kdextract.models.pixels import to_pixels
from kdextract.synthesis.interface import Given
from kdextract.synthesis.natural_noise import inverted, pool
from kdextract.synthesis.natural_noise.inverted import InvertedPool, inverted_pool
from kdextract.synthesis.natural_noise.mixture import Fitted, equal_mixture
from kdextract.synthesis.natural_noise.pool import NaturalPool, maker, natural_pool
from kdextract.synthesis.structured_noise.by_class import pool_sizes


def teacher_of(channels: int = 3, size: int = 12, seed: int = 0) -> Classifier:
    """A network whose batch normalization keeps other statistics than those of natural noise."""
    torch.manual_seed(seed)
    network = nn.Sequential(
        nn.Conv2d(channels, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3, stride=2), nn.BatchNorm2d(8),
        nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(32, 4),
    )  # fmt: skip
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.3)  # type: ignore[union-attr]
            module.running_var.uniform_(0.1, 0.5)  # type: ignore[union-attr]
    return statistics_teacher(network, (channels, size, size), 4).frozen()


def distance(teacher: Classifier, images: torch.Tensor) -> float:
    """Sum over layers of the distances between the means and variances of the images and those that are kept."""
    with record_batch_statistics(teacher.network) as recorded, torch.no_grad():
        teacher(to_pixels(images))
    return sum(
        float((found.mean - found.kept_mean).norm() + (found.variance - found.kept_variance).norm())
        for found in recorded.values()
    )


def pool_of(teacher: Classifier, steps: int, size: int = 100, fresh: int = 0, seed: int = 0) -> InvertedPool:
    return InvertedPool(Fitted(equal_mixture()), Given(teacher), steps, size, fresh, seed)


def all_images(pool: InvertedPool | NaturalPool) -> torch.Tensor:
    return pool._images


@pytest.mark.parametrize("channels", [1, 3])
def test_more_steps_bring_the_images_nearer_to_the_statistics(channels: int) -> None:
    teacher = teacher_of(channels)
    plain = NaturalPool(Fitted(equal_mixture()), teacher, 100, 0, 0)
    distances = [distance(teacher, all_images(plain))]
    distances += [distance(teacher, all_images(pool_of(teacher, steps))) for steps in (2, 6, 20)]
    assert distances == sorted(distances, reverse=True)
    assert distances[-1] < 0.95 * distances[0]


def test_images_stay_near_those_that_they_start_from() -> None:
    teacher = teacher_of()
    plain, moved = (all_images(p).float() for p in (NaturalPool(Fitted(equal_mixture()), teacher, 100, 0, 0),
                                                    pool_of(teacher, 3)))  # fmt: skip
    assert plain.shape == moved.shape
    assert not torch.equal(plain, moved)
    together = torch.corrcoef(torch.stack([plain.flatten(), moved.flatten()]))[0, 1]
    assert together > 0.8


def test_held_out_images_are_other_ones_and_are_optimized() -> None:
    teacher = teacher_of()
    pool = pool_of(teacher, 10)
    held_out = pool.held_out(60)
    assert held_out.shape == (60, 3, 12, 12)
    assert torch.equal(held_out, pool.held_out(60))
    assert not set(map(bytes, held_out.flatten(1).numpy())) & set(map(bytes, all_images(pool).flatten(1).numpy()))
    assert distance(teacher, held_out) < distance(teacher, pool.held_out_of(maker(equal_mixture(), teacher), 60))


def test_every_step_is_a_query_and_every_image_gets_a_target() -> None:
    teacher = teacher_of()
    before = teacher.queries.total
    pool = pool_of(teacher, 4, size=1000)
    assert pool.num_images == 1000
    blank = 1  # to count multiply-adds
    assert teacher.queries.total - before == 1000 * (4 + 1) + blank


def test_large_images_are_optimized_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = []
    invert = inverted.invert
    monkeypatch.setattr(
        inverted, "invert", lambda *given: (sizes.append(len(given[3])), invert(*given))[1]
    )  # fmt: skip
    monkeypatch.setattr(inverted, "PIXELS_TOGETHER", 12 * 12 * 300)
    pool_of(teacher_of(), 1, size=1000)
    assert sizes == [250] * 4


def test_the_pool_is_smaller_the_more_its_images_cost() -> None:
    teacher = teacher_of()
    teacher.multiply_adds = lambda: 2 * 10**7  # type: ignore[method-assign]
    sizes = [pool_sizes(teacher, None, 0, passes)[0] for passes in (1.0, 2.0, 4.0, 1000.0)]
    assert sizes == [10_000, 5_000, 2_500, 2_000]
    assert pool_sizes(teacher, 300, 0, 4.0)[0] == 300


def test_a_teacher_without_batch_normalization_needs_statistics() -> None:
    with pytest.raises(ConfigError, match="compute-stats"):
        inverted_pool(Given(classifier((3, 12, 12), 4, batch_norm=False).frozen()), "equal", 0, 100, 0, 2, 0)


def test_a_mixture_is_fitted_once_for_a_teacher_and_seed(monkeypatch: pytest.MonkeyPatch) -> None:
    """By `natural_noise` and `natural_inversion` together."""
    fits: list[tuple[Classifier, int]] = []
    fitted = pool.fitted_mixture

    def counting(teacher: Classifier, trials: int, rng: torch.Generator) -> Fitted:
        fits.append((teacher, trials))
        return fitted(teacher, trials, rng)

    monkeypatch.setattr(pool, "fitted_mixture", counting)
    one, other = teacher_of(seed=0), teacher_of(seed=1)
    first = natural_pool(one, "fitted", 10, 20, 0, seed=0)
    again = inverted_pool(Given(one), "fitted", 10, 20, 0, 1, seed=0)
    assert fits == [(one, 10)]
    assert first.facts == again.facts
    natural_pool(other, "fitted", 10, 20, 0, seed=0)
    natural_pool(one, "fitted", 12, 20, 0, seed=0)
    assert natural_pool(one, "fitted", 10, 20, 0, seed=1).facts != first.facts
    assert len(fits) == 4
