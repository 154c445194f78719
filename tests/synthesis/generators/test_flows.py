"""Flows: two directions that are inverses, and log-determinants and densities against their definitions."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from conftest import rounding
from hypothesis import given, settings
from hypothesis import strategies as st

from kdextract.errors import ConfigError
from kdextract.synthesis.generators.flow_steps import CONTRAST, CosinePrior
from kdextract.synthesis.generators.flows import MARGIN, Flow, dequantized, edge, glow, nice, nice_affine, realnvp

CLASSES = 3
Shape = tuple[int, int, int]
Build = Callable[[Shape], Flow]

BUILDERS: dict[str, Build] = {
    "nice": lambda shape: nice(shape, CLASSES, couplings=4, width=16),
    "nice_affine": lambda shape: nice_affine(shape, CLASSES, couplings=4, width=16),
    "realnvp": lambda shape: realnvp(shape, CLASSES, width=8, blocks=1),
    "glow": lambda shape: glow(shape, CLASSES, width=8, levels=2, steps=2),
}
VECTORS, IMAGES = ("nice", "nice_affine"), ("realnvp", "glow")
SMALL = [
    *((name, shape) for name in VECTORS for shape in [(1, 1, 5), (2, 1, 1), (3, 2, 2)]),
    *((name, (1, 4, 4)) for name in IMAGES),
]
LARGER = [
    *((name, shape) for name in VECTORS for shape in [(1, 1, 30), (1, 1, 31), (1, 8, 8), (3, 5, 7)]),
    *((name, shape) for name in IMAGES for shape in [(1, 4, 4), (1, 8, 12), (3, 8, 8)]),
]
repeatable = settings(derandomize=True, database=None, deadline=None, max_examples=6)
seeds = st.integers(0, 10**6)


@pytest.fixture(autouse=True)
def _own_randomness() -> None:
    torch.manual_seed(0)


def built(name: str, shape: Shape, seed: int = 0, spread: float = 0.05) -> Flow:
    """Return a flow with every parameter moved by normal noise of standard deviation `spread`."""
    torch.manual_seed(seed)
    flow = BUILDERS[name](shape)
    with torch.no_grad():
        for parameter in flow.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=spread)
    return flow


def some_input(flow: Flow, count: int, dtype: torch.dtype = torch.float32) -> tuple[torch.Tensor, torch.Tensor]:
    return 0.5 * torch.randn(count, *flow.noise_shape, dtype=dtype), torch.randint(0, CLASSES, (count,))


@pytest.mark.parametrize("spread", [0.0, 0.05], ids=["fresh", "perturbed"])
@pytest.mark.parametrize(("name", "shape"), LARGER)
def test_the_two_directions_undo_each_other(name: str, shape: Shape, spread: float) -> None:
    @repeatable
    @given(seed=seeds, count=st.integers(1, 9))
    def check(seed: int, count: int) -> None:
        flow = built(name, shape, seed, spread)
        noise, labels = some_input(flow, count)
        with torch.no_grad():
            pixels, logdet = flow.transform(noise, labels)
            back, inverse_logdet = flow.inverse(pixels, labels)
            again, _ = flow.transform(back, labels)
            assert torch.equal(flow(noise, labels), pixels)
            precise = flow.double()
            exactly, exact_logdet = precise.transform(noise.double(), labels)
            exact, exact_inverse = precise.inverse(exactly, labels)
        assert pixels.shape == (count, *shape)
        assert 0 < float(pixels.min()) <= float(pixels.max()) < 1
        assert back.shape == noise.shape
        assert float((again - pixels).abs().max()) < rounding(pixels)
        assert float((exact - noise).abs().max()) < 1000 * rounding(exactly), "pixels near 0 and 1 lose digits"
        assert logdet.shape == inverse_logdet.shape == (count,)
        assert bool(logdet.isfinite().all())
        torch.testing.assert_close(exact_inverse, -exact_logdet, rtol=1e-6, atol=1e-6)

    check()


@pytest.mark.parametrize(("name", "shape"), SMALL)
def test_log_determinants_are_those_of_autograds_jacobians(name: str, shape: Shape) -> None:
    for seed in range(3):
        flow = built(name, shape, seed).double().requires_grad_(False)
        noise, labels = some_input(flow, 1, torch.float64)
        pixels, logdet = flow.transform(noise, labels)
        back, inverse_logdet = flow.inverse(pixels, labels)

        def generate(one: torch.Tensor, flow: Flow = flow, labels: torch.Tensor = labels) -> torch.Tensor:
            return flow(one[None], labels).flatten()

        def invert(one: torch.Tensor, flow: Flow = flow, labels: torch.Tensor = labels) -> torch.Tensor:
            return flow.inverse(one.view(1, *shape), labels)[0].flatten()

        for function, at, claimed in [(generate, noise[0], logdet), (invert, pixels.flatten(), inverse_logdet)]:
            jacobian = torch.autograd.functional.jacobian(function, at)
            assert claimed.dtype == torch.float64
            assert float(claimed) == pytest.approx(float(torch.linalg.slogdet(jacobian).logabsdet), rel=1e-6)
        torch.testing.assert_close(back, noise, rtol=0, atol=1e-9)
        torch.testing.assert_close(inverse_logdet, -logdet, rtol=1e-9, atol=0)


@pytest.mark.parametrize("name", VECTORS)
def test_densities_of_points_in_the_plane_integrate_to_one(name: str) -> None:
    flow = built(name, (2, 1, 1), spread=0.3).double()
    side = 160
    axis = (torch.arange(side, dtype=torch.float64) + 0.5) / side
    points = torch.cartesian_prod(axis, axis).view(-1, 2, 1, 1)
    for label in range(CLASSES):
        with torch.no_grad():
            density = flow.log_prob(points, torch.full((len(points),), label)).exp()
        assert float(density.mean()) == pytest.approx(1, abs=0.02)


@pytest.mark.parametrize(("name", "shape"), SMALL)
def test_log_prob_is_the_change_of_variables(name: str, shape: Shape) -> None:
    flow = built(name, shape).double()
    noise, labels = some_input(flow, 5, torch.float64)
    pixels, logdet = flow.transform(noise, labels)
    expected = torch.distributions.Normal(0.0, 1.0).log_prob(noise).sum(dim=1) - logdet
    torch.testing.assert_close(flow.log_prob(pixels, labels), expected)


@pytest.mark.parametrize(("name", "shape"), SMALL)
def test_outputs_depend_on_labels_and_not_on_other_images(name: str, shape: Shape) -> None:
    flow = built(name, shape).train().requires_grad_(False)
    noise, _ = some_input(flow, 1)
    by_label = flow(noise.expand(CLASSES, -1), torch.arange(CLASSES))
    distances = torch.pdist(by_label.flatten(1))
    assert float(distances.min()) > 1e-5
    for label in range(CLASSES):
        torch.testing.assert_close(flow(noise, torch.tensor([label]))[0], by_label[label])


@pytest.mark.parametrize(("name", "shape"), [*SMALL, ("realnvp", (3, 8, 8)), ("glow", (3, 8, 8))])
def test_both_directions_have_gradients_for_every_parameter(name: str, shape: Shape) -> None:
    flow = built(name, shape)
    noise, labels = some_input(flow, 6)
    pixels, logdet = flow.transform(noise, labels)
    losses = {"generation": pixels.square().sum() + logdet.sum(), "density": flow.log_prob(pixels.detach(), labels)}
    for direction, loss in losses.items():
        gradients = torch.autograd.grad(loss.sum(), list(flow.parameters()), allow_unused=True)
        for (parameter, _), gradient in zip(flow.named_parameters(), gradients, strict=True):
            assert gradient is not None, (direction, parameter)
            assert bool(gradient.isfinite().all()), (direction, parameter)
            assert float(gradient.abs().max()) > 0, (direction, parameter)


@pytest.mark.parametrize(("name", "shape"), SMALL)
def test_a_fresh_flow_is_a_sigmoid_of_waves(name: str, shape: Shape) -> None:
    flow = BUILDERS[name](shape).double().requires_grad_(False)
    noise, labels = some_input(flow, 4, torch.float64)
    pixels, logdet = flow.transform(noise, labels)
    waves = [step for step in flow.steps.modules() if isinstance(step, CosinePrior)]
    assert len(waves) == (min(shape[1:]) > 1)
    field, of_waves = waves[0](noise, labels) if waves else (noise, torch.zeros(1))
    torch.testing.assert_close(pixels.flatten(1), field.sigmoid())
    torch.testing.assert_close(logdet, of_waves + (pixels * (1 - pixels)).log().flatten(1).sum(dim=1))


@pytest.mark.parametrize(("name", "shape"), SMALL)
def test_divergence_is_that_of_densities_and_zero_for_a_fresh_flow_of_images(name: str, shape: Shape) -> None:
    fresh, moved = BUILDERS[name](shape).double(), built(name, shape).double()
    noise, labels = some_input(moved, 6, torch.float64)
    pixels, divergence = moved.transform_with_divergence(noise, labels)
    torch.testing.assert_close(pixels, moved(noise, labels))
    prior = fresh.log_prob(pixels, labels) if min(shape[1:]) > 1 else torch.zeros(6, dtype=torch.float64)
    torch.testing.assert_close(divergence, moved.log_prob(pixels, labels) - prior, rtol=1e-6, atol=1e-6)
    if min(shape[1:]) > 1:
        assert float(fresh.transform_with_divergence(noise, labels)[1].abs().max()) < 1e-9


def test_waves_make_smooth_fields_of_the_same_contrast_at_any_size() -> None:
    for shape in ((1, 32, 32), (3, 16, 24)):
        waves = CosinePrior(shape)
        noise = torch.randn(500, math.prod(shape), generator=torch.Generator().manual_seed(0))
        field, logdet = waves(noise, noise)
        assert float(field.std()) == pytest.approx(CONTRAST, rel=0.05)
        back, inverse_logdet = waves.inverse(field, noise)
        torch.testing.assert_close(back, noise, atol=1e-3, rtol=0)
        assert torch.equal(logdet, -inverse_logdet)
        images = field.view(-1, *shape)
        steps = (images[..., 1:] - images[..., :-1]).std()
        assert float(steps) < 0.6 * CONTRAST  # white noise: 1.41


@pytest.mark.parametrize(("name", "shape"), SMALL)
def test_a_flow_depends_on_the_seed_and_its_weights_alone(name: str, shape: Shape) -> None:
    once, again, other = built(name, shape, 1), built(name, shape, 1), built(name, shape, 2)
    noise, labels = some_input(once, 2)
    assert torch.equal(once(noise, labels), again(noise, labels))
    assert not torch.equal(once(noise, labels), other(noise, labels))
    assert set(once.state_dict()) == {parameter for parameter, _ in once.named_parameters()}
    other.load_state_dict(once.state_dict())
    assert torch.equal(once(noise, labels), other(noise, labels))
    with torch.device("meta"):
        shapes = {part: tensor.shape for part, tensor in BUILDERS[name](shape).state_dict().items()}
    assert shapes == {part: tensor.shape for part, tensor in once.state_dict().items()}
    assert once.conditional
    assert once.noise_shape == (math.prod(shape),)


def test_only_the_additive_flow_keeps_volumes_equal_before_the_sigmoid() -> None:
    for name, equal in {"nice": True, "nice_affine": False}.items():
        flow = built(name, (1, 2, 3)).double().requires_grad_(False)
        noise, labels = some_input(flow, 5, torch.float64)
        pixels, logdet = flow.transform(noise, labels)
        before = logdet - (pixels * (1 - pixels)).log().flatten(1).sum(dim=1)
        assert (float(before.std()) < 1e-9) == equal


def test_glow_turns_channels_and_later_couplings_move_every_pixel() -> None:
    flow = BUILDERS["glow"]((1, 4, 4)).requires_grad_(False)
    noise, labels = some_input(flow, 1)
    assert not torch.allclose(torch.logit(flow(noise, labels)).flatten(1), noise, atol=0.1)
    for name, shape in SMALL:
        flow = built(name, shape).double().requires_grad_(False)
        noise, labels = some_input(flow, 1, torch.float64)
        jacobian = torch.autograd.functional.jacobian(
            lambda one, flow=flow, labels=labels: flow(one[None], labels).flatten(), noise[0]
        )
        off_diagonal = jacobian - jacobian.diag().diag()
        assert bool((off_diagonal.abs().sum(dim=1) > 0).all()), (name, "every pixel depends on other noise")


@pytest.mark.parametrize("name", list(BUILDERS))
def test_pixels_of_0_and_1_still_have_noise_and_a_density(name: str) -> None:
    flow = built(name, (1, 4, 4)).requires_grad_(False)
    extremes = torch.tensor([0.0, 1.0]).repeat(8).view(1, 1, 4, 4)
    labels = torch.tensor([1])
    assert bool(flow.inverse(extremes, labels)[0].isfinite().all())
    assert torch.equal(
        flow.log_prob(extremes, labels),
        flow.log_prob(extremes.clamp(edge(torch.float32), 1 - edge(torch.float32)), labels),
    )


@pytest.mark.parametrize("shape", [(1, 1, 5), (2, 1, 1), (1, 28, 27), (1, 2, 2), (3, 6, 1)])
@pytest.mark.parametrize("name", IMAGES)
def test_sides_that_cannot_be_halved_are_refused(name: str, shape: Shape) -> None:
    with pytest.raises(ConfigError, match=f"{shape[1]}x{shape[2]}; nice and nice_affine take any"):
        BUILDERS[name](shape)


@pytest.mark.parametrize("name", VECTORS)
def test_one_value_has_no_other_half(name: str) -> None:
    with pytest.raises(ConfigError, match="at least 2 values, not 1"):
        BUILDERS[name]((1, 1, 1))


@pytest.mark.parametrize("name", list(BUILDERS))
def test_tensors_of_another_shape_are_refused(name: str) -> None:
    flow = BUILDERS[name]((1, 4, 4))
    labels = torch.zeros(2, dtype=torch.int64)
    with pytest.raises(ConfigError, match=r"noise of shape \(16,\)"):
        flow.transform(torch.zeros(2, 8), labels)
    with pytest.raises(ConfigError, match=r"pixels of shape \(1, 4, 4\)"):
        flow.log_prob(torch.zeros(2, 1, 4, 8), labels)


@given(seed=seeds, level=st.integers(0, 255))
@repeatable
def test_dequantized_pixels_fill_the_interval_of_their_level(seed: int, level: int) -> None:
    images = torch.full((2, 3, 20, 20), level / 255)
    pixels = dequantized(images, torch.Generator().manual_seed(seed))
    assert pixels.shape == images.shape
    assert MARGIN - 1e-6 <= float(pixels.min()) <= float(pixels.max()) <= 1 - MARGIN + 1e-6
    levels = (pixels.double() - MARGIN) / (1 - 2 * MARGIN) * 256 - level
    assert -1e-3 < float(levels.min()) < 0.02 < 0.98 < float(levels.max()) < 1 + 1e-3
    assert float(levels.mean()) == pytest.approx(0.5, abs=0.03)
    assert torch.equal(pixels, dequantized(images, torch.Generator().manual_seed(seed)))


@pytest.mark.parametrize("mean", [0.1, 0.5, 0.8])
def test_a_new_flow_has_the_given_brightness(mean: float) -> None:
    for shape, name in (((1, 16, 16), "realnvp"), ((1, 1, 6), "nice")):
        flow = BUILDERS[name](shape)
        flow.set_brightness(torch.full((1, 1, 1), mean))
        noise = torch.randn(400, *flow.noise_shape, generator=torch.Generator().manual_seed(0))
        pixels = flow(noise, torch.zeros(400, dtype=torch.int64))
        assert float(pixels.mean()) == pytest.approx(mean, abs=0.03)
