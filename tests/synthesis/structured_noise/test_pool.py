"""The pool of images that are replaced continually, and the structured images in it."""

from __future__ import annotations

import copy

import pytest
import torch
from conftest import rounding

from kdextract.models.classifier import Classifier, ClassifierSpec
from kdextract.models.pixels import to_pixels
from kdextract.models.queries import Queries
from kdextract.synthesis.structured_noise.by_class import (
    PERIOD,
    POOL_COST,
    images_of_classes,
    maker,
    pool_sizes,
    structured_pool,
)
from kdextract.synthesis.structured_noise.pool import RefreshedPool
from kdextract.training.sources import ImagePool


@pytest.fixture(scope="module")
def teacher() -> Classifier:
    torch.manual_seed(0)
    names = tuple("abcd")
    classifier = Classifier(ClassifierSpec("lenet_half", (1, 32, 32), names, (0.2,), (0.3,))).frozen()
    assert classifier.images_per_pass == 500, "and the blank image that tells is not counted with a pool's"
    return classifier


def uniform(count: int, rng: torch.Generator) -> torch.Tensor:
    return torch.rand((count, 1, 32, 32), generator=rng)


def make_pool(teacher: Classifier, period: int = 2, seed: int = 3) -> RefreshedPool:
    return RefreshedPool(uniform, teacher, size=40, chunk=10, period=period, seed=seed)


def test_it_stores_the_teachers_logits(teacher: Classifier) -> None:
    batch = make_pool(teacher).sample(30)
    assert batch.targets is not None
    with torch.no_grad():
        expected = teacher(batch.images)
    torch.testing.assert_close(batch.targets, expected, rtol=0, atol=rounding(expected))


def test_new_images_enter_and_the_oldest_leave(teacher: Classifier) -> None:
    asked = teacher.queries.total
    pool = make_pool(teacher)
    first = pool._images.clone()
    pool.update(teacher)
    assert torch.equal(pool._images, first), "not before the period is over"
    pool.update(teacher)
    assert not torch.equal(pool._images[:10], first[:10])
    assert torch.equal(pool._images[10:], first[10:])
    assert pool.num_images == teacher.queries.total - asked == 50
    for _ in range(8):
        pool.update(teacher)
    assert not any(torch.equal(pool._images[i], first[i]) for i in range(40))


def test_without_a_period_nothing_enters(teacher: Classifier) -> None:
    pool = make_pool(teacher, period=0)
    for _ in range(50):
        pool.update(teacher)
    assert pool.num_images == 40


def test_classes_are_drawn_equally_often() -> None:
    """For a teacher that predicts one class for nine of ten images."""

    class Bright(torch.nn.Module):
        mean = torch.zeros(1)
        input_shape, num_classes, device, training = (1, 4, 4), 2, torch.device("cpu"), False
        queries, images_per_pass = Queries(), 500

        def forward(self, pixels: torch.Tensor) -> torch.Tensor:
            bright = (pixels[:, 0, 0, 0] > 0.9).float()
            return torch.stack([1 - bright, bright], dim=1)

    def make(count: int, rng: torch.Generator) -> torch.Tensor:
        return torch.rand((count, 1, 4, 4), generator=rng)

    teacher = Bright().eval()
    pool = RefreshedPool(make, teacher, size=2000, chunk=500, period=0, seed=0)  # type: ignore[arg-type]
    share = float(pool.sample(4000).targets.argmax(1).float().mean())  # type: ignore[union-attr]
    assert share == pytest.approx(0.5, abs=0.03)


def test_a_restored_pool_continues_with_the_same_samples(teacher: Classifier) -> None:
    pool = make_pool(teacher)
    for _ in range(7):
        pool.update(teacher)
        pool.sample(5)
    state = copy.deepcopy(pool.state())
    expected = []
    for _ in range(5):
        pool.update(teacher)
        expected.append(pool.sample(6).images)
    for other in (pool, make_pool(teacher)):
        other.restore(state)
        for images in expected:
            other.update(teacher)
            assert torch.equal(other.sample(6).images, images)


def test_samples_depend_on_the_seed(teacher: Classifier) -> None:
    samples = [make_pool(teacher, seed=seed).sample(8).images for seed in (3, 3, 4)]
    assert torch.equal(samples[0], samples[1])
    assert not torch.equal(samples[0], samples[2])


def test_held_out_images_are_others_and_always_the_same(teacher: Classifier) -> None:
    pool = structured_pool(teacher, 300, 20, seed=0)
    held_out = pool.held_out(30)
    for _ in range(40):
        pool.update(teacher)
    assert torch.equal(pool.held_out(30), held_out)
    known = {image.numpy().tobytes() for image in pool._images}
    assert not any(image.numpy().tobytes() in known for image in held_out)


def test_images_of_classes_are_those_that_the_teacher_predicts(teacher: Classifier) -> None:
    """An untrained teacher predicts few classes: other classes get the images with their highest probability."""
    labels = torch.arange(40) % 4
    found = images_of_classes(maker(teacher), teacher, labels, 8, torch.Generator().manual_seed(0))
    assert found.images.shape == (40, 1, 32, 32)
    assert found.teacher_queries == 320
    with torch.no_grad():
        answers = teacher(to_pixels((found.images * 255).round().to(torch.uint8))).argmax(1)
        chance = teacher(found.images[torch.randperm(40)]).argmax(1)
    assert float((answers == labels).float().mean()) >= float((chance == labels).float().mean())


def test_a_stored_pool_holds_images_out_only_on_request() -> None:
    images = torch.arange(60, dtype=torch.uint8).view(60, 1, 1, 1)
    keeps, gives_all = (ImagePool(images, None, 0, torch.device("cpu"), holds_out=h) for h in (True, False))
    held_out = set(keeps.held_out(100).flatten().tolist())
    assert len(held_out) == 3
    assert len(gives_all.held_out(100)) == 0
    drawn = {round(255 * float(value)) for value in keeps.sample(57).images.flatten()}
    assert drawn == set(range(60)) - held_out
    assert len({round(255 * float(value)) for value in gives_all.sample(60).images.flatten()}) == 60


def test_pools_of_large_images_are_smaller() -> None:
    from kdextract.synthesis.structured_noise.pool import at_most

    shapes = {(1, 32, 32): 20_000, (3, 32, 32): 20_000, (3, 224, 224): 2**29 // (3 * 224 * 224)}
    for shape, expected in shapes.items():
        spec = ClassifierSpec("hinton800", shape, ("a", "b"), (0.0,) * shape[0], (1.0,) * shape[0])
        with torch.device("meta"):
            assert at_most(20_000, 2**29, Classifier(spec)) == expected


@pytest.mark.parametrize(
    ("architecture", "shape", "expected"),
    [
        ("lenet5", (1, 32, 32), 20_000),  # cheap
        ("resnet14", (3, 32, 32), None),  # in between
        ("resnet18", (3, 32, 32), 2000),  # expensive
    ],
)
def test_the_usual_pool_is_smaller_for_a_teacher_that_takes_long(
    architecture: str, shape: tuple[int, int, int], expected: int | None
) -> None:
    ones = (0.5,) * shape[0]
    teacher = Classifier(ClassifierSpec(architecture, shape, ("a", "b"), ones, ones))
    size, chunk, period = pool_sizes(teacher, None, 32)
    if expected is None:
        assert 2000 < size < 20_000
        assert size * teacher.multiply_adds() <= POOL_COST < (size + 1) * teacher.multiply_adds()
    else:
        assert size == expected
    assert (chunk, period) == (32 * PERIOD, PERIOD)
    assert pool_sizes(teacher, 15_000, 32)[0] == 15_000, "an option is kept"
