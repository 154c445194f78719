"""Batched image operations against slicing, Pillow and SciPy."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.ndimage
import torch
from helpers import seeded
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from kdextract.models.pixels import fit_images, to_pixels, to_uint8
from kdextract.training.augmentation import augment, binomial_blur, warp

repeatable = settings(derandomize=True, database=None, deadline=None, max_examples=30)


def shifted_by_slicing(image: np.ndarray, shift: int) -> dict[tuple[int, int], np.ndarray]:
    """Offsets (down, right) -> the window of the edge-padded image [channels, height, width] that starts there."""
    height, width = image.shape[1:]
    padded = np.pad(image, ((0, 0), (shift, shift), (shift, shift)), mode="edge")
    moves = range(-shift, shift + 1)
    return {
        (down, right): padded[:, shift + down : shift + down + height, shift + right : shift + right + width]
        for down in moves
        for right in moves
    }


@pytest.mark.parametrize(("channels", "shift"), [(1, 1), (3, 2), (1, 12)])
def test_shift_is_a_window_of_the_edge_padded_image(channels: int, shift: int) -> None:
    images = torch.rand((60, channels, 10, 7), generator=seeded(1))
    moved = augment(images, shift, False, seeded(2)).numpy()
    offsets = []
    for image, result in zip(images.numpy(), moved, strict=True):
        found = [move for move, window in shifted_by_slicing(image, shift).items() if np.array_equal(window, result)]
        assert found, "an image that is no shift of its original"
        offsets.append(found[0])
    if shift < 7:  # beyond the image's size different offsets look the same
        assert {down for down, _ in offsets} == set(range(-shift, shift + 1))
        assert {right for _, right in offsets} == set(range(-shift, shift + 1))
        assert any(down != right for down, right in offsets)


def test_flip_mirrors_half_of_the_images() -> None:
    images = torch.rand((400, 3, 4, 5), generator=seeded(3))
    result = augment(images, 0, True, seeded(4))
    mirrored = [torch.equal(a, b.flip(2)) for a, b in zip(result, images, strict=True)]
    kept = [torch.equal(a, b) for a, b in zip(result, images, strict=True)]
    assert all(a != b for a, b in zip(mirrored, kept, strict=True))
    assert 150 < sum(mirrored) < 250


@given(
    batch=st.integers(1, 5),
    channels=st.sampled_from([1, 3]),
    height=st.integers(1, 9),
    width=st.integers(1, 9),
    shift=st.integers(0, 4),
    flip=st.booleans(),
    seed=st.integers(0, 10**6),
)
@repeatable
def test_augment_keeps_shape_range_and_input(
    batch: int, channels: int, height: int, width: int, shift: int, flip: bool, seed: int
) -> None:
    images = torch.rand((batch, channels, height, width), generator=seeded(seed))
    before = images.clone()
    result = augment(images, shift, flip, seeded(seed))
    assert result.shape == images.shape
    assert result.dtype == images.dtype
    assert torch.equal(images, before)
    assert set(result.unique().tolist()) <= set(images.unique().tolist()), "a pixel that was not there before"
    assert torch.equal(result, augment(images, shift, flip, seeded(seed)))
    if not shift and not flip:
        assert torch.equal(result, images)


def test_augment_differs_between_images_and_seeds() -> None:
    images = torch.rand((1, 1, 12, 12), generator=seeded(5)).expand(30, 1, 12, 12)
    result = augment(images, 2, False, seeded(6))
    assert len({tuple(image.flatten().tolist()) for image in result}) > 10
    assert not torch.equal(result, augment(images, 2, False, seeded(7)))


def test_augment_takes_the_layout_of_stored_images() -> None:
    stored = torch.randint(0, 256, (6, 3, 8, 8), generator=seeded(8), dtype=torch.uint8)
    pixels = to_pixels(stored)
    assert torch.equal(augment(pixels, 2, True, seeded(9)), augment(pixels.contiguous(), 2, True, seeded(9)))


def maps_of(warped: torch.Tensor, grid: np.ndarray, inner: slice) -> np.ndarray:
    """Return the 2x2 map of each image, computed from the warped image of its coordinates."""
    points = grid[:, inner, inner].reshape(2, -1).T
    return np.stack(
        [np.linalg.lstsq(points, (w[:, inner, inner].reshape(2, -1).T - 0.5) * 4)[0].T for w in warped.numpy()]
    )


def test_warp_is_a_random_linear_map_about_the_centre() -> None:
    size, count, amount = 32, 500, 0.1
    axis = (np.arange(size) * 2 + 1) / size - 1
    grid = np.stack(np.meshgrid(axis, axis))  # the two channels hold x and y, in [-1, 1]
    images = torch.tensor(0.5 + grid / 4, dtype=torch.float32).expand(count, 2, size, size)
    maps = maps_of(warp(images, amount, seeded(1)), grid, slice(10, 22))
    np.testing.assert_allclose(maps.mean(0), np.eye(2), atol=5 * amount / count**0.5)
    np.testing.assert_allclose(maps.std(0), amount, rtol=0.15)
    assert np.abs(np.corrcoef(maps.reshape(count, 4), rowvar=False) - np.eye(4)).max() < 0.2


def test_warp_keeps_shape_range_and_input() -> None:
    images = torch.rand((20, 3, 14, 10), generator=seeded(2))
    before = images.clone()
    warped = warp(images, 0.2, seeded(3))
    assert warped.shape == images.shape
    assert 0 <= float(warped.min()) < float(warped.max()) <= 1
    assert torch.equal(images, before)
    assert torch.equal(warped, warp(images, 0.2, seeded(3)))
    assert not torch.equal(warped, warp(images, 0.2, seeded(4)))
    assert torch.allclose(warp(images, 0.0, seeded(5)), images, atol=1e-5)
    flat = torch.full((2, 1, 8, 8), 0.3)
    assert torch.allclose(warp(flat, 0.5, seeded(6)), flat, atol=1e-6)


@pytest.mark.parametrize(("size", "target"), [((28, 28), (32, 32)), ((8, 8), (32, 32)), ((40, 30), (16, 20))])
def test_fit_images_resizes_like_pillow(size: tuple[int, int], target: tuple[int, int]) -> None:
    stored = torch.randint(0, 256, (5, 1, *size), generator=seeded(10), dtype=torch.uint8)
    fitted = fit_images(stored, (1, *target))
    assert fitted.dtype == torch.uint8
    assert fitted.shape == (5, 1, *target)
    for ours, original in zip(fitted, stored, strict=True):
        picture = Image.fromarray(original[0].numpy()).resize(target[::-1], Image.Resampling.BILINEAR)
        difference = ours[0].numpy().astype(int) - np.array(picture).astype(int)
        assert np.abs(difference).max() <= 1
        assert np.abs(difference).mean() < 0.2


def test_fit_images_keeps_fitting_images() -> None:
    stored = torch.randint(0, 256, (5, 3, 9, 8), generator=seeded(11), dtype=torch.uint8)
    assert fit_images(stored, (3, 9, 8)) is stored


def test_fit_images_repeats_grey_and_weighs_colour() -> None:
    grey = torch.randint(0, 256, (4, 1, 9, 8), generator=seeded(12), dtype=torch.uint8)
    coloured = fit_images(grey, (3, 9, 8))
    assert torch.equal(coloured, grey.expand(4, 3, 9, 8))
    assert torch.equal(fit_images(coloured, (1, 9, 8)), grey)

    colour = torch.randint(0, 256, (4, 3, 9, 8), generator=seeded(13), dtype=torch.uint8)
    fitted = fit_images(colour, (1, 9, 8))
    for ours, original in zip(fitted, colour, strict=True):
        picture = Image.fromarray(original.permute(1, 2, 0).numpy()).convert("L")
        assert np.abs(ours[0].numpy().astype(int) - np.array(picture).astype(int)).max() <= 1


def test_fit_images_changes_channels_and_size_together() -> None:
    grey = torch.randint(0, 256, (3, 1, 28, 28), generator=seeded(14), dtype=torch.uint8)
    both = fit_images(grey, (3, 32, 32))
    assert torch.equal(both, fit_images(grey, (1, 32, 32)).expand(3, 3, 32, 32))
    assert fit_images(both, (1, 16, 16)).shape == (3, 1, 16, 16)


def test_fit_images_does_not_depend_on_the_chunk() -> None:
    stored = torch.randint(0, 256, (7, 3, 9, 8), generator=seeded(15), dtype=torch.uint8)
    assert torch.equal(fit_images(stored, (1, 16, 16), chunk=3), fit_images(stored, (1, 16, 16)))


def test_fit_images_takes_no_images() -> None:
    assert fit_images(torch.empty((0, 1, 28, 28), dtype=torch.uint8), (3, 32, 32)).shape == (0, 3, 32, 32)


@pytest.mark.parametrize("channels", [1, 3])
def test_binomial_blur_equals_scipy(channels: int) -> None:
    images = torch.rand((2, channels, 9, 7), generator=seeded(16), dtype=torch.float64)
    kernel = np.outer([1, 2, 1], [1, 2, 1]) / 16
    blurred = binomial_blur(images)
    for image, ours in zip(images.flatten(0, 1).numpy(), blurred.flatten(0, 1).numpy(), strict=True):
        np.testing.assert_allclose(ours, scipy.ndimage.correlate(image, kernel, mode="mirror"), rtol=1e-12)


def test_binomial_blur_keeps_flat_images_and_smooths_others() -> None:
    assert torch.allclose(binomial_blur(torch.full((1, 3, 5, 5), 0.3)), torch.full((1, 3, 5, 5), 0.3))
    noise = torch.rand((1, 1, 20, 20), generator=seeded(17))
    assert float(binomial_blur(noise).std()) < 0.6 * float(noise.std())


def test_all_levels_survive_the_round_trip() -> None:
    levels = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16)
    pixels = to_pixels(levels)
    assert pixels.dtype == torch.float32
    assert float(pixels.min()) == 0
    assert float(pixels.max()) == 1
    assert torch.equal(to_uint8(pixels), levels)


def test_pixels_are_laid_out_channels_last() -> None:
    assert to_pixels(torch.zeros((2, 3, 4, 5), dtype=torch.uint8)).is_contiguous(memory_format=torch.channels_last)


def test_to_uint8_rounds_and_clips() -> None:
    pixels = torch.tensor([-0.5, 0.0, 0.49 / 255, 0.51 / 255, 1 - 0.51 / 255, 1 - 0.49 / 255, 1.0, 1.7])
    before = pixels.clone()
    assert to_uint8(pixels).tolist() == [0, 0, 0, 1, 254, 255, 255, 255]
    assert torch.equal(pixels, before)


@given(seed=st.integers(0, 10**6))
@repeatable
def test_to_uint8_is_off_by_half_a_level_at_most(seed: int) -> None:
    pixels = torch.rand((1, 1, 6, 6), generator=seeded(seed))
    assert float((to_pixels(to_uint8(pixels)) - pixels).abs().max()) <= 0.5 / 255 + 1e-6
