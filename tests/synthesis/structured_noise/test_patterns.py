"""Images from formulas: valid, varied, of any size, and the same for the same seed."""

from __future__ import annotations

import pytest
import torch
from helpers import seeded
from hypothesis import given, settings
from hypothesis import strategies as st

from kdextract.synthesis.structured_noise.patterns import PATTERNS, SHARES, masks, smooth_fields, structured_images


@pytest.mark.parametrize("name", list(PATTERNS))
def test_every_pattern_is_a_mask_that_is_not_empty(name: str) -> None:
    drawn = PATTERNS[name](64, 28, 36, seeded())
    assert drawn.shape == (64, 28, 36)
    assert 0 <= float(drawn.min()) <= float(drawn.max()) <= 1
    spread = drawn.flatten(1).std(dim=1)
    assert float((spread > 0.02).float().mean()) > 0.7, "most images show something"
    assert float((drawn[1:] - drawn[:-1]).abs().mean()) > 0.01, "images differ"


@pytest.mark.parametrize("name", list(PATTERNS))
def test_patterns_depend_only_on_the_random_generator(name: str) -> None:
    torch.manual_seed(1)
    once = PATTERNS[name](9, 16, 16, seeded(5))
    torch.manual_seed(2)
    assert torch.equal(once, PATTERNS[name](9, 16, 16, seeded(5)))
    assert not torch.equal(once, PATTERNS[name](9, 16, 16, seeded(6)))


@pytest.mark.parametrize("name", list(PATTERNS))
def test_patterns_scale_with_the_image(name: str) -> None:
    """The share of ink is about the same at any size: pens and shapes grow with the image."""
    small, large = (float(PATTERNS[name](300, size, size, seeded(3)).mean()) for size in (24, 72))
    assert large == pytest.approx(small, rel=0.3, abs=0.02)


@settings(max_examples=25, deadline=None)
@given(
    count=st.integers(1, 9),
    channels=st.sampled_from([1, 3, 4]),
    height=st.integers(5, 40),
    width=st.integers(5, 40),
    brightness=st.floats(0, 1),
    seed=st.integers(0, 2**31),
)
def test_images_are_valid_at_any_size(
    count: int, channels: int, height: int, width: int, brightness: float, seed: int
) -> None:
    images = structured_images(count, (channels, height, width), brightness, seeded(seed))
    assert images.shape == (count, channels, height, width)
    assert images.dtype == torch.float32
    assert torch.isfinite(images).all()
    assert 0 <= float(images.min()) <= float(images.max()) <= 1


def test_brightness_selects_a_black_or_white_background() -> None:
    means = [float(structured_images(500, (1, 24, 24), b, seeded()).mean()) for b in (0.05, 0.5, 0.95)]
    assert means[0] < 0.25 < 0.4 < means[1] < 0.6 < 0.75 < means[2]


def test_colour_images_have_colours_and_grey_ones_none() -> None:
    colour = structured_images(200, (3, 24, 24), 0.5, seeded())
    assert float((colour[:, 0] - colour[:, 1]).abs().mean()) > 0.02


def test_shares_name_every_pattern_and_add_up_to_one() -> None:
    assert set(SHARES) == set(PATTERNS)
    assert sum(SHARES.values()) == pytest.approx(1)


def test_masks_mix_all_patterns(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each pattern is asked for about as many images as its share says."""
    asked = dict.fromkeys(PATTERNS, 0)
    for name in PATTERNS:

        def blank(count: int, height: int, width: int, rng: torch.Generator, name: str = name) -> torch.Tensor:
            asked[name] += count
            return torch.zeros((count, height, width))

        monkeypatch.setitem(PATTERNS, name, blank)
    masks(20_000, 1, 1, seeded())
    assert sum(asked.values()) == 20_000
    for name, share in SHARES.items():
        assert asked[name] / 20_000 == pytest.approx(share, abs=0.02)


def test_a_batch_of_many_images_is_made_in_chunks() -> None:
    images = structured_images(700, (1, 32, 32), 0.1, seeded())
    assert len(images) == 700
    assert len(torch.unique(images.flatten(1).sum(1))) > 650


def test_smooth_fields_are_smooth_and_centred() -> None:
    fields = smooth_fields(500, 32, 32, seeded())
    assert float(fields.mean()) == pytest.approx(0, abs=0.1)
    step = (fields[:, 1:] - fields[:, :-1]).abs().mean()
    assert float(step) < 0.35 * float(fields.std())
