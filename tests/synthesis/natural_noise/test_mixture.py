"""The choice of a mixture by the teacher: what it measures, the shares that it finds, and what is counted."""

from __future__ import annotations

import pytest
import torch
from helpers import classifier, num_hooks, seeded, statistics_teacher
from torch import nn

from kdextract.errors import ConfigError
from kdextract.models.classifier import Classifier, ClassifierSpec
from kdextract.synthesis.natural_noise.criteria import BatchNormDistance, ClassSpread, criterion
from kdextract.synthesis.natural_noise.kinds import Component, Mixture, natural_images
from kdextract.synthesis.natural_noise.mixture import Fitted, best_shares, equal_mixture, fitted_mixture
from kdextract.synthesis.natural_noise.names import ALL_KINDS
from kdextract.synthesis.natural_noise.pool import natural_images_of_classes, natural_pool

SHAPE = (3, 16, 16)


def alone(*kinds: str) -> Mixture:
    return Mixture(tuple(map(Component.whole, kinds)), (1 / len(kinds),) * len(kinds))


def drawn(mixture: Mixture, count: int, seed: int = 0) -> torch.Tensor:
    return natural_images(count, mixture, SHAPE, torch.full((3,), 0.4), seeded(seed))


def trained_on(images: torch.Tensor) -> Classifier:
    """A network whose batch normalization keeps the statistics of these images."""
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(3, 12, 3), nn.BatchNorm2d(12, momentum=None), nn.ReLU(),
        nn.Conv2d(12, 16, 3, stride=2), nn.BatchNorm2d(16, momentum=None), nn.ReLU(),
        nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(64, 5),
    )  # fmt: skip
    teacher = statistics_teacher(network, SHAPE, 5)
    for _ in range(2):  # the second layer's statistics are those after the first layer with its own
        for module in network.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.train().reset_running_stats()
        teacher(images)
        network.eval()
    return teacher


@pytest.fixture(scope="module")
def of_leaves_and_strokes() -> Classifier:
    return trained_on(drawn(alone("flat_leaves", "structured"), 3000))


# ---- criteria ---------------------------------------------------------------------------------------------------


def test_the_distance_is_least_for_the_images_of_the_statistics(of_leaves_and_strokes: Classifier) -> None:
    judge = criterion(of_leaves_and_strokes)
    assert isinstance(judge, BatchNormDistance)
    own = float(judge.loss(judge.measure(drawn(alone("flat_leaves", "structured"), 1000, seed=9))))
    others = [float(judge.loss(judge.measure(drawn(alone(kind), 500)))) for kind in ALL_KINDS]
    assert 0 <= own < 0.01
    assert own < 0.5 * min(others)
    assert num_hooks(of_leaves_and_strokes.network) == 0


def test_the_distance_is_the_divergence_of_normal_distributions() -> None:
    """For one channel whose kept statistics are 0 and 1, up to the floor of the variance."""
    network = nn.Sequential(nn.BatchNorm2d(1), nn.Flatten(), nn.Linear(16, 2))
    judge = BatchNormDistance(statistics_teacher(network, (1, 4, 4), 2))
    judge._teacher.network[0].running_mean.fill_(0.0)
    images = torch.rand((50, 1, 4, 4), generator=seeded())
    inputs = (images - 0.4) / 0.3
    mean, variance = inputs.mean().double(), inputs.var(correction=0).double() + 0.01
    mean, variance = mean / 1.01**0.5, variance / 1.01
    expected = torch.distributions.kl_divergence(
        torch.distributions.Normal(mean, variance.sqrt()),
        torch.distributions.Normal(torch.zeros_like(mean), torch.ones_like(mean)),
    )
    assert float(judge.loss(judge.measure(images))) == pytest.approx(float(expected), rel=1e-4)


@pytest.mark.parametrize("batch_norm", [True, False])
def test_a_mixture_has_the_mean_features_of_its_parts(batch_norm: bool) -> None:
    """Also if the images are more than one forward pass takes."""
    teacher = classifier(SHAPE, 5, batch_norm).frozen()
    judge = criterion(teacher)
    assert isinstance(judge, BatchNormDistance if batch_norm else ClassSpread)
    first, second = drawn(alone("areas"), teacher.images_per_pass + 30), drawn(alone("structured"), 90)
    whole = judge.measure(torch.cat([first, second]))
    share = len(first) / (len(first) + len(second))
    expected = share * judge.measure(first) + (1 - share) * judge.measure(second)
    torch.testing.assert_close(whole, expected, rtol=1e-4, atol=1e-5)


def test_the_spread_is_the_information_about_the_class() -> None:
    class Chosen(nn.Module):
        """Certain of class 0 for dark images, of class 1 for bright ones, uncertain of both for grey ones."""

        def forward(self, pixels: torch.Tensor) -> torch.Tensor:
            score = 1000 * pixels.mean((1, 2, 3))
            return torch.stack([-score, score], dim=1)

    judge = ClassSpread(statistics_teacher(Chosen(), (1, 4, 4), 2))
    dark, grey, bright = (torch.full((10, 1, 4, 4), value) for value in (0.0, 0.4, 0.8))
    assert float(judge.loss(judge.measure(torch.cat([dark, bright])))) == pytest.approx(-torch.log(torch.tensor(2.0)))
    for images in (dark, bright, grey):
        assert float(judge.loss(judge.measure(images))) == pytest.approx(0, abs=1e-3)


# ---- shares -----------------------------------------------------------------------------------------------------


def test_shares_are_those_from_which_the_features_were_mixed() -> None:
    features = torch.rand((4, 30), dtype=torch.float64, generator=seeded())
    shares = torch.tensor([0.6, 0.0, 0.3, 0.1], dtype=torch.float64)
    target = shares @ features
    found = best_shares(features, lambda mixed: (mixed - target).square().sum())
    assert float(found.sum()) == pytest.approx(1)
    torch.testing.assert_close(found, shares, rtol=0, atol=0.02)


def test_one_component_gets_all_where_it_alone_is_best() -> None:
    features = torch.tensor([[1.0], [2.0], [3.0]], dtype=torch.float64)
    assert float(best_shares(features, lambda mixed: mixed.sum())[0]) > 0.99
    assert float(best_shares(features[:1], lambda mixed: mixed.sum())[0]) == 1


def test_no_change_of_the_shares_is_better(of_leaves_and_strokes: Classifier) -> None:
    judge = criterion(of_leaves_and_strokes)
    features = torch.stack([judge.measure(drawn(alone(kind), 200)) for kind in ALL_KINDS])
    shares = best_shares(features, judge.loss)
    least = float(judge.loss(shares @ features))
    for kind in range(len(ALL_KINDS)):
        moved = 0.95 * shares
        moved[kind] += 0.05
        assert float(judge.loss(moved @ features)) >= 0.998 * least


# ---- the fit ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["structured", "spectrum", "areas"])
def test_the_fit_finds_the_kind_of_the_statistics(kind: str) -> None:
    teacher = trained_on(drawn(alone(kind), 2000))
    fitted = fitted_mixture(teacher, 30, seeded())
    assert fitted.facts[kind] == max(fitted.facts.get(name, 0.0) for name in ALL_KINDS)
    assert fitted.facts[kind] > 2 / len(ALL_KINDS)
    assert fitted.loss is not None
    assert fitted.loss_of_equal is not None
    assert 0 <= fitted.loss < 0.3 * fitted.loss_of_equal
    judge = criterion(teacher)
    fresh, equal = (
        float(judge.loss(judge.measure(drawn(mixture, 1000, seed=5)))) for mixture in (fitted.mixture, equal_mixture())
    )
    assert fresh < 0.5 * equal, "on other images than those of the fit"


@pytest.mark.parametrize(("shape", "num_classes"), [((1, 28, 28), 10), ((3, 9, 12), 2), ((1, 8, 8), 100)])
@pytest.mark.parametrize("batch_norm", [True, False])
def test_every_fit_is_a_mixture(shape: tuple[int, int, int], num_classes: int, batch_norm: bool) -> None:
    teacher = classifier(shape, num_classes, batch_norm).frozen()
    fitted = fitted_mixture(teacher, 20, seeded(3))
    mixture = fitted.mixture
    assert sum(mixture.shares) == pytest.approx(1)
    assert min(mixture.shares) >= 0.009
    assert len(mixture.components) == len(mixture.shares) <= 20
    assert fitted == fitted_mixture(teacher, 20, seeded(3))
    assert fitted.loss is not None
    assert fitted.loss_of_equal is not None
    assert fitted.loss <= fitted.loss_of_equal + 1e-3
    facts = fitted.facts
    assert sum(facts.get(kind, 0) for kind in ALL_KINDS) == pytest.approx(1, abs=0.001)


def test_a_teacher_that_cannot_tell_images_apart_gets_them_all() -> None:
    """Every one of 120 trials has less than the share below which others are dropped."""

    class Constant(nn.Module):
        def forward(self, pixels: torch.Tensor) -> torch.Tensor:
            return pixels.new_zeros(len(pixels), 2)

    fitted = fitted_mixture(statistics_teacher(Constant(), (1, 8, 8), 2), 120, seeded())
    assert len(fitted.mixture.shares) == 120
    assert sum(fitted.mixture.shares) == pytest.approx(1)


def test_few_trials_give_equal_shares_without_a_query() -> None:
    teacher = classifier(SHAPE).frozen()
    asked = teacher.queries.total
    assert fitted_mixture(teacher, len(ALL_KINDS) - 1, seeded()) == Fitted(equal_mixture())
    assert teacher.queries.total == asked
    assert Fitted(equal_mixture()).facts["structured"] == pytest.approx(1 / len(ALL_KINDS), abs=1e-4)


# ---- the pool ---------------------------------------------------------------------------------------------------


def test_the_pool_records_the_fit_and_every_query_of_it() -> None:
    teacher = classifier(SHAPE).frozen()
    assert teacher.images_per_pass > 0  # found with a blank image, which is counted
    asked = teacher.queries.total
    pool = natural_pool(teacher, "fitted", 12, 200, 4, seed=1)
    assert pool.num_images == 240, "whole chunks"
    assert teacher.queries.total - asked == 240 + 12 * 100
    assert pool.facts == fitted_mixture(teacher, 12, seeded(1)).facts
    restored = natural_pool(teacher, "fitted", 12, 200, 4, seed=1)
    pool.update(teacher)
    state = pool.state()
    restored.restore(state)
    assert torch.equal(pool.sample(20).images, restored.sample(20).images)


def test_a_named_kind_is_drawn_alone_without_a_fit() -> None:
    teacher = classifier(SHAPE).frozen()
    assert teacher.images_per_pass > 0  # found with a blank image, which is counted
    asked = teacher.queries.total
    pool = natural_pool(teacher, "areas", 64, 100, 0, seed=1)
    assert pool.facts["areas"] == 1
    assert teacher.queries.total - asked == pool.num_images


def test_images_of_classes_count_the_images_of_the_fit() -> None:
    teacher = classifier(SHAPE).frozen()
    assert teacher.images_per_pass > 0  # found with a blank image, which is counted
    asked = teacher.queries.total
    made = natural_images_of_classes(teacher, "fitted", 10, torch.arange(20) % 4, 3, seeded())
    assert made.teacher_queries == teacher.queries.total - asked == 10 * 100 + 60
    assert made.images.shape == (20, *SHAPE)


def test_tables_are_refused() -> None:
    spec = ClassifierSpec("bdnf_mlp", (1, 1, 6), ("a", "b"), (0.0,), (1.0,))
    teacher = Classifier(spec).frozen()
    assert teacher.is_table
    for refused in (
        lambda: natural_pool(teacher, "equal", 0, 100, 0, 0),
        lambda: natural_images_of_classes(teacher, "equal", 0, torch.arange(2), 1, seeded()),
    ):
        with pytest.raises(ConfigError, match="rows of a table"):
            refused()
