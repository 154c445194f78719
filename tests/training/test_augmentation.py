"""Changes of images before they are given to the networks."""

from __future__ import annotations

import copy

import pytest
import torch
from helpers import drawings, seeded
from hypothesis import given, settings
from hypothesis import strategies as st

from kdextract.training.augmentation import Augmenter, redrawn, spliced


@settings(derandomize=True, database=None, deadline=None, max_examples=30)
@given(
    batch=st.integers(1, 6),
    shape=st.tuples(st.sampled_from([1, 3, 4]), st.integers(1, 12), st.integers(1, 12)),
    background=st.sampled_from([0.0, 1.0]),
    seed=st.integers(0, 1000),
)
def test_redrawn_images_are_valid(batch: int, shape: tuple[int, int, int], background: float, seed: int) -> None:
    images = torch.rand((batch, *shape), generator=seeded(seed))
    result = redrawn(images, background, seeded(seed))
    assert result.shape == images.shape
    assert result.isfinite().all()
    assert 0 <= result.min() <= result.max() <= 1
    assert torch.equal(result, redrawn(images, background, seeded(seed)))


@pytest.mark.parametrize("background", [0.0, 1.0])
def test_a_blank_background_stays_blank(background: float) -> None:
    assert torch.equal(
        redrawn(torch.full((8, 1, 9, 9), background), background, seeded()), torch.full((8, 1, 9, 9), background)
    )


def test_dark_ink_is_treated_like_bright_ink() -> None:
    images = drawings(40)
    assert torch.allclose(redrawn(1 - images, 1.0, seeded(2)), 1 - redrawn(images, 0.0, seeded(2)), atol=1e-6)


def test_full_ink_stays_in_the_middle_and_fades_at_some_corners() -> None:
    result = redrawn(torch.ones((300, 1, 28, 28)), 0.0, seeded(1))
    assert result[:, :, 13:15, 13:15].min() > 0.6
    corners = result[:, 0, 0, 0]
    assert (corners < 0.1).float().mean() > 0.6
    edges = result[:, 0, 14, 0]
    assert (edges < 0.1).any()
    assert (edges > 0.9).any()


def test_one_grey_level_becomes_many_in_the_same_order() -> None:
    dark, bright = (redrawn(torch.full((300, 1, 5, 5), grey), 0.0, seeded(3))[:, 0, 2, 2] for grey in (0.4, 0.6))
    assert (dark <= bright).all()
    assert dark.std() > 0.2
    assert dark.min() < 0.2 < 0.8 < bright.max()


def test_half_of_the_images_contain_a_part_of_another() -> None:
    images = torch.zeros((400, 2, 11, 11))
    images[:200, 0], images[200:, 1] = 1, 1
    result = redrawn(images, 0.0, seeded(4))
    both = ((result[:, 0].amax((1, 2)) > 0.5) & (result[:, 1].amax((1, 2)) > 0.5)).float().mean()
    assert 0.15 < both < 0.3, "of the half that are joined, half are joined to the other kind"


@pytest.mark.parametrize("channels", [1, 3])
def test_half_of_the_images_are_joined_with_another(channels: int) -> None:
    images = torch.linspace(0, 1, 400).view(-1, 1, 1, 1).expand(400, channels, 12, 9).contiguous()
    result = spliced(images, seeded(5))
    changed = (result != images).flatten(1).any(1)
    assert 0.4 < float(changed.float().mean()) < 0.6
    low, high = result.flatten(1).aminmax(dim=1)
    own = images[:, 0, 0, 0]
    inside = torch.minimum((low - own).abs(), (high - own).abs()) < 0.05
    assert inside.float().mean() > 0.9, "a part of the image itself is left"
    assert torch.equal(result[:, 0], result[:, -1]), "all channels are joined along the same line"
    augmenter = Augmenter(shift=0, flip=False, warp=0.0, seed=5, splice=True)
    assert augmenter.active
    assert torch.equal(augmenter(images), result)


def test_the_augmenter_remixes_first_and_resumes() -> None:
    images = drawings(12)
    augmenter = Augmenter(shift=0, flip=False, warp=0.0, seed=3, background=0.0)
    assert augmenter.active
    assert torch.equal(augmenter(images), redrawn(images, 0.0, seeded(3)))
    saved = copy.deepcopy(augmenter.state())
    following = augmenter(images)
    augmenter.restore(saved)
    assert torch.equal(augmenter(images), following)
    assert not torch.equal(augmenter(images), following)
