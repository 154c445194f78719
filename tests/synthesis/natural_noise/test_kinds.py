"""Images with statistics of photographs: valid at any size, the same for the same seed, as their settings say."""

from __future__ import annotations

import pytest
import torch
from helpers import DEVICES, seeded
from hypothesis import given, settings
from hypothesis import strategies as st

from kdextract.synthesis.natural_noise.fields import colours, palette_colours, power_law_fields
from kdextract.synthesis.natural_noise.kinds import KINDS, SETTINGS, Component, Mixture, natural_images, photographed
from kdextract.synthesis.natural_noise.leaves import coverage, edges, half_planes, power_law_radii, visible
from kdextract.synthesis.natural_noise.mixture import equal_mixture
from kdextract.synthesis.natural_noise.names import ALL_KINDS, MIXTURES

every_kind = pytest.mark.parametrize("kind", ALL_KINDS)
MEAN = torch.tensor([0.485, 0.456, 0.406])


def images_of(kind: str, count: int, shape: tuple[int, int, int], seed: int = 0, device: str = "cpu") -> torch.Tensor:
    mean = torch.full((shape[0],), 0.45, device=device)
    return natural_images(count, Mixture((Component.whole(kind),), (1.0,)), shape, mean, seeded(seed))


def fixed(**values: float) -> dict[str, torch.Tensor]:
    """Settings of 100 images in the middle of their ranges, except `values`."""
    middles = {name: sum(bounds) / 2 for name, bounds in SETTINGS.items()}
    return {name: torch.full((100,), value) for name, value in (middles | values).items()}


def neighbour_difference(images: torch.Tensor) -> float:
    return float((images[..., 1:] - images[..., :-1]).abs().mean() / images.std())


def test_every_kind_has_a_name_that_a_user_can_give() -> None:
    assert set(KINDS) < set(ALL_KINDS) < set(MIXTURES)
    assert len(ALL_KINDS) == len(KINDS) + 1


@every_kind
@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 32, 32), (3, 21, 30), (4, 9, 16), (1, 64, 48)])
def test_images_are_valid_and_differ(kind: str, shape: tuple[int, int, int]) -> None:
    images = images_of(kind, 40, shape)
    assert images.shape == (40, *shape)
    assert images.dtype == torch.float32
    assert torch.isfinite(images).all()
    assert 0 <= float(images.min()) <= float(images.max()) <= 1
    assert float((images.flatten(1).std(dim=1) > 0.02).float().mean()) > 0.8, "most images show something"
    assert float((images[1:] - images[:-1]).abs().mean()) > 0.05
    assert images.is_contiguous(memory_format=torch.channels_last)


@every_kind
@pytest.mark.parametrize("device", DEVICES)
def test_images_depend_only_on_the_random_generator(kind: str, device: str) -> None:
    torch.manual_seed(1)
    once = images_of(kind, 9, (3, 16, 16), 5, device)
    torch.manual_seed(2)
    assert torch.equal(once, images_of(kind, 9, (3, 16, 16), 5, device))
    assert not torch.equal(once, images_of(kind, 9, (3, 16, 16), 6, device))
    assert once.device.type == device


@settings(max_examples=20, deadline=None)
@given(
    count=st.integers(1, 9),
    channels=st.sampled_from([1, 3, 5]),
    height=st.integers(8, 40),
    width=st.integers(8, 40),
    brightness=st.floats(0, 1),
    seed=st.integers(0, 2**31),
)
def test_mixtures_are_valid_at_any_size(
    count: int, channels: int, height: int, width: int, brightness: float, seed: int
) -> None:
    mean = torch.full((channels,), brightness)
    images = natural_images(count, equal_mixture(), (channels, height, width), mean, seeded(seed))
    assert images.shape == (count, channels, height, width)
    assert torch.isfinite(images).all()
    assert 0 <= float(images.min()) <= float(images.max()) <= 1


def test_images_are_made_in_parts_of_the_wanted_number() -> None:
    images = images_of("flat_leaves", 200, (1, 32, 32))
    assert len(torch.unique(images.flatten(1).sum(1))) == 200


@pytest.mark.parametrize("kind", list(KINDS))
def test_images_have_the_mean_of_the_teachers_data(kind: str) -> None:
    images = natural_images(400, Mixture((Component.whole(kind),), (1.0,)), (3, 16, 16), MEAN, seeded())
    assert torch.allclose(images.mean((0, 2, 3)), MEAN, rtol=0, atol=0.03)


def test_a_mixture_contains_its_kinds_in_their_shares() -> None:
    """One of the two has neither contrast nor noise."""
    whole = Component.whole("spectrum")
    none = tuple(0.0 if name in ("contrast", "noise") else low for name, (low, _) in SETTINGS.items())
    mixture = Mixture((whole, Component("spectrum", none, none)), (0.7, 0.3))
    images = natural_images(2000, mixture, (3, 8, 8), MEAN, seeded())
    blank = images.std((2, 3)).amax(1) < 1e-3
    assert float(blank.float().mean()) == pytest.approx(0.3, abs=0.04)
    assert bool(blank[:100].any()), "in random order"
    assert not bool(blank[:100].all())


@pytest.mark.parametrize("exponent", [0.5, 1.0, 1.8])
def test_fields_have_the_spectrum_of_their_exponent(exponent: float) -> None:
    fields = power_law_fields(torch.full((60, 2), exponent), 64, 64, seeded())
    window = torch.hann_window(64).view(-1, 1) * torch.hann_window(64)
    power = torch.fft.rfft2(fields * window).abs().square().mean((0, 1))
    frequency = torch.hypot(torch.fft.fftfreq(64).view(-1, 1), torch.fft.rfftfreq(64))
    used = (frequency > 0.06) & (frequency < 0.4)
    x, y = frequency[used].log(), power[used].log()
    slope = float(((x - x.mean()) * (y - y.mean())).sum() / (x - x.mean()).square().sum())
    assert slope == pytest.approx(-2 * exponent, abs=0.25)
    assert torch.allclose(fields.std((2, 3), correction=0), torch.ones(60, 2), rtol=1e-4, atol=0)


def test_radii_follow_their_power_law() -> None:
    law, smallest = torch.tensor([1.5, 3.0]), torch.tensor([0.1, 0.2])
    radii = power_law_radii(50_000, smallest, law, seeded())
    for row, (exponent, least) in enumerate(zip(law.tolist(), smallest.tolist(), strict=True)):
        assert least <= float(radii[row].min()) < float(radii[row].max()) <= 1.5001
        power = 1 - exponent
        share = (0.5**power - least**power) / (1.5**power - least**power)
        assert float((radii[row] < 0.5).float().mean()) == pytest.approx(share, abs=0.01)


def test_leaves_cover_each_other_from_the_front() -> None:
    covered = torch.tensor([[[1.0, 0.5, 0.0], [1.0, 1.0, 0.0], [1.0, 1.0, 1.0]]])
    seen = visible(covered.clone())
    assert torch.equal(seen, torch.tensor([[[1.0, 0.5, 0.0], [0.0, 0.5, 0.0], [0.0, 0.0, 1.0]]]))


@pytest.mark.parametrize("side", [32, 128])
def test_leaves_lie_around_their_centres_at_any_size(side: int) -> None:
    centres = torch.tensor([0.5, -0.25]).expand(1, 300, 2)
    inside = coverage(edges(centres, torch.full((1, 300), 0.3), side, seeded()), side, side).view(300, side, side)
    area = inside.mean((1, 2)) * 4
    assert 0.02 < float(area.min()) < float(area.max()) < 1.1 * torch.pi * 0.3**2 * 2
    rows, columns = (inside.sum(axis).argmax(1).float().mean() / side * 2 - 1 for axis in (2, 1))
    assert (float(columns), float(rows)) == (pytest.approx(0.5, abs=0.1), pytest.approx(-0.25, abs=0.1))


def test_edges_are_one_pixel_wide() -> None:
    """A pixel on the edge is covered in part, one that is two pixels away is not or wholly."""
    inside = coverage(half_planes(torch.zeros(200, 1, 2), 64, seeded()), 64, 64)
    partly = ((inside > 0.01) & (inside < 0.99)).float().mean()
    assert 0.5 / 64 < float(partly) < 3.5 / 64
    assert float(inside.mean()) == pytest.approx(0.5, abs=0.1)


@pytest.mark.parametrize("make", [colours, palette_colours])
def test_channels_are_correlated_as_the_saturation_says(make: object) -> None:
    correlations = []
    for saturation in (0.0, 0.2, 0.7):
        drawn = make(8, torch.full((2000,), saturation), 3, seeded()).flatten(0, 1)  # type: ignore[operator]
        matrix = torch.corrcoef(drawn.T)
        assert float(matrix[0, 2]) <= float(matrix[0, 1]) + 1e-5, "red is most like green, in photographs as here"
        correlations.append(float(matrix[0, 2]))
    assert correlations[0] == pytest.approx(1, abs=1e-4)
    assert correlations[0] > correlations[1] > correlations[2] > -0.5


def test_blur_smooths_contrast_scales_and_noise_roughens() -> None:
    scenes = KINDS["flat_leaves"](fixed(), (3, 32, 32), seeded())

    def taken(**values: float) -> torch.Tensor:
        return photographed(scenes.clone(), fixed(**values), MEAN, seeded())

    assert neighbour_difference(taken(blur=1.4, noise=0)) < 0.8 * neighbour_difference(taken(blur=0, noise=0))
    assert neighbour_difference(taken(noise=0.04)) > 1.02 * neighbour_difference(taken(noise=0))
    within = [float(taken(contrast=contrast).std((1, 2, 3)).mean()) for contrast in (0.1, 0.2)]
    assert within[1] == pytest.approx(2 * within[0], rel=0.15)


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        ("spectrum", "exponent"),
        ("flat_leaves", "law"),
        ("flat_leaves", "smallest"),
        ("textured_leaves", "texture"),
        ("areas", "texture"),
        ("landscapes", "exponent"),
        ("objects", "smallest"),
    ],
)
def test_every_setting_changes_its_kinds(kind: str, name: str) -> None:
    """Smooth settings give smaller differences of neighbours, whatever else is drawn."""
    low, high = (
        neighbour_difference(KINDS[kind](fixed(**{name: bound}), (1, 32, 32), seeded())) for bound in SETTINGS[name]
    )
    assert abs(high - low) > 0.02 * low
