"""Optimizers of colour images, compared with PyTorch's plain Adam, which respects every stride."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import DEVICES, SMALL, drawn
from hypothesis import given, settings
from hypothesis import strategies as st

from kdextract.methods import (
    Given,
    generator_method,
    generator_names,
    live_method,
    live_names,
    objective,
    objective_names,
)
from kdextract.models.classifier import Classifier, ClassifierSpec
from kdextract.models.importer import Findings, ModelOptions, read_model
from kdextract.options.declare import option_fields
from kdextract.stages.distill.budget import NoCheckpoints
from kdextract.synthesis.inversion.pixel_optimizer import PixelAdam
from kdextract.synthesis.statistics.recorded import Statistics, StatisticsOptions, compute_statistics
from kdextract.synthesis.statistics.spectra import SpectralOptions
from kdextract.training.loop import take_steps
from kdextract.training.progress import Reporter

SHAPE, NUM_CLASSES = (3, 32, 32), 4
CONTIGUOUS = """
from torch import nn


class Net(nn.Module):
    def __init__(self, num_classes=4):
        super().__init__()
        self.conv1, self.norm1 = nn.Conv2d(3, 6, 3, 2), nn.BatchNorm2d(6)
        self.conv2, self.norm2 = nn.Conv2d(6, 8, 3, 2), nn.BatchNorm2d(8)
        self.fc = nn.Linear(8 * 7 * 7, num_classes)

    def forward(self, images):
        rows = images.view(len(images), -1).view(images.shape)  # takes contiguous images alone
        hidden = self.norm1(self.conv1(rows.contiguous())).relu()
        return self.fc(self.norm2(self.conv2(hidden)).relu().flatten(1))
"""


class PlainAdam(torch.optim.Adam):
    """Adam one tensor at a time."""

    def __init__(self, parameters: Any, **options: Any) -> None:
        super().__init__(parameters, **{**options, "fused": False, "foreach": False})


class PlainAdamW(torch.optim.AdamW):
    """AdamW one tensor at a time."""

    def __init__(self, parameters: Any, **options: Any) -> None:
        super().__init__(parameters, **{**options, "fused": False, "foreach": False})


def ours(architecture: str, device: torch.device) -> Classifier:
    torch.manual_seed(0)
    names = tuple(map(str, range(NUM_CLASSES)))
    made = Classifier(ClassifierSpec(architecture, SHAPE, names, (0.5, 0.4, 0.3), (0.3, 0.25, 0.2)))
    return made.placed(device)


def imported(folder: Path, device: torch.device) -> Classifier:
    """An external network for contiguous images."""
    torch.manual_seed(0)
    (folder / "contiguous.py").write_text(CONTIGUOUS)
    options = ModelOptions(f"{folder / 'contiguous.py'}:Net", input_size="3x32x32", mean="0.5", std="0.3")
    return read_model(options, Findings()).placed(device)


@pytest.fixture(scope="module", params=DEVICES)
def device(request: pytest.FixtureRequest) -> torch.device:
    return torch.device(request.param)


@pytest.fixture(scope="module", params=["lenet", "resnet14_half", "imported"])
def teacher(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, device: torch.device
) -> Classifier:
    """Teachers without batch normalization, with it, and of an external network."""
    if request.param == "imported":
        return imported(tmp_path_factory.mktemp("code"), device).frozen()
    return ours(request.param, device).frozen()


@pytest.fixture(scope="module")
def statistics(teacher: Classifier) -> Statistics:
    rng = torch.Generator().manual_seed(1)
    images = torch.randint(0, 256, (12 * NUM_CLASSES, *SHAPE), generator=rng, dtype=torch.uint8)
    options = StatisticsOptions(2048, 8, SpectralOptions(0.1, 8))
    labels = torch.arange(len(images)) % NUM_CLASSES
    return compute_statistics(teacher, images, labels, options, lambda amount: None).to(teacher.device)


def compare(make: Callable[[float], torch.Tensor], lr: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """Assert that the result of `make(lr)` is that of plain Adam at this rate, within 1 % of the change."""
    start, reached = make(1e-12), make(lr)
    with monkeypatch.context() as patch:
        patch.setattr(torch.optim, "Adam", PlainAdam)
        patch.setattr(torch.optim, "AdamW", PlainAdamW)
        expected = make(lr)
    way = float((expected - start).square().mean().sqrt())
    assert way > 1e-4
    assert float((reached - expected).square().mean().sqrt()) < 0.01 * way


def chosen(config: Any, **options: Any) -> Any:
    """Return the options of a method, with those of the given values that it has."""
    known = {declared.name for declared in option_fields(config)}
    return config(**{name: value for name, value in options.items() if name in known})


@pytest.mark.parametrize("name", [name for name in objective_names() if not objective(name).gradient_free])
def test_pixels_of_every_objective(
    name: str, teacher: Classifier, statistics: Statistics, monkeypatch: pytest.MonkeyPatch
) -> None:
    method, student = objective(name), ours("lenet_half", teacher.device).frozen()
    labels = torch.arange(8) % NUM_CLASSES

    def make(lr: float) -> torch.Tensor:
        config = chosen(method.config, steps=6, lr=lr, jitter=2, preset="cifar", blur_every=3)
        given = Given(teacher, statistics, student)
        return method.synthesize(given, labels, config, torch.Generator().manual_seed(0)).images

    compare(make, 0.05, monkeypatch)


RATES = {
    "fast": ("kdextract.methods.fast.LR", "kdextract.methods.fast.NOISE_LR"),
    "nayer": ("kdextract.methods.nayer.LR",),
    "natural_inversion": ("kdextract.synthesis.natural_noise.inverted.LR",),
}
"""Learning rates that are constants of a method."""


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=() if name in ("deep_inversion", "dfq") else pytest.mark.slow)
        for name in live_names()
        if not live_method(name).gradient_free
    ],
)
def test_images_of_every_live_method(
    name: str, teacher: Classifier, statistics: Statistics, monkeypatch: pytest.MonkeyPatch
) -> None:
    method = live_method(name)

    def make(lr: float) -> torch.Tensor:
        options = {
            **SMALL,
            "pixel_steps": 5,
            "pixel_lr": lr,
            "generator_lr": lr,
            "jitter": 2,
            "preset": "cifar",
            "replay": 0.5,
        }
        for constant in RATES.get(name, ()):
            monkeypatch.setattr(constant, lr)
        config = chosen(method.config, **options)
        source = method.open_source(Given(teacher, statistics if method.matches_batch_norm else None), config, 0)
        return torch.cat([batch.images for batch in drawn(source, ours("lenet_half", teacher.device))])

    compare(make, 0.1 if method.config.__dataclass_fields__.get("pixel_lr") else 0.01, monkeypatch)


@pytest.mark.parametrize("name", generator_names())
def test_images_of_every_generator(name: str, teacher: Classifier, monkeypatch: pytest.MonkeyPatch) -> None:
    method = generator_method(name)

    def make(lr: float) -> torch.Tensor:
        training = method.build_training(teacher, chosen(method.config, batch_size=8, lr=lr, width=4, steps=5), 0, None)
        training.network.train()
        checkpoints, silent = NoCheckpoints(), Reporter(quiet=True)
        take_steps(training, training.loss, training.schedule(5), {}, checkpoints, silent, "test", training.log)
        noise = training.generator.draw(16, torch.Generator().manual_seed(1))
        with torch.no_grad():  # images: a bias before batch normalization has no gradient but rounding errors
            return training.generator(noise, torch.arange(16) % NUM_CLASSES)

    compare(make, 1e-3, monkeypatch)


LAYOUTS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "as it is": lambda x: x,
    "contiguous": lambda x: x.contiguous(),
    "shifted": lambda x: torch.roll(x, (1, 0), dims=(2, 3)),
    "mirrored": lambda x: x.flip(3),
    "transposed": lambda x: x.transpose(2, 3).contiguous(),
    "columns": lambda x: x.permute(3, 0, 1, 2).contiguous(),
    "cropped": lambda x: x[..., 1:, 1:],
    "summed": lambda x: x.sum(1, keepdim=True),
}
"""What happens to images before a loss; some of it changes the layout of the gradient."""


@pytest.mark.parametrize("on", DEVICES)
@settings(derandomize=True, database=None, deadline=None, max_examples=60)
@given(
    batch=st.integers(1, 3),
    channels=st.sampled_from([1, 2, 3]),
    height=st.integers(2, 5),
    width=st.integers(2, 5),
    start_layout=st.sampled_from([torch.contiguous_format, torch.channels_last]),
    change=st.sampled_from(sorted(LAYOUTS)),
    restart=st.booleans(),
)
def test_a_gradient_of_any_layout_moves_the_pixels_that_it_is_of(
    on: str,
    batch: int,
    channels: int,
    height: int,
    width: int,
    start_layout: torch.memory_format,
    change: str,
    restart: bool,
) -> None:
    rng = torch.Generator().manual_seed(channels)
    start = torch.rand((batch, channels, height, width), generator=rng).to(on, memory_format=start_layout)
    target = torch.rand(start.shape, generator=rng).to(on)
    kept = start.clone()

    def loss(images: torch.Tensor) -> torch.Tensor:
        return (LAYOUTS[change](images) - LAYOUTS[change](target)).square().sum()

    pixels = PixelAdam(start, 0.1)
    plain = start.clone(memory_format=torch.contiguous_format).requires_grad_(True)
    adam = PlainAdam([plain], lr=0.1)
    for step in range(12):
        if restart and step == 6:
            pixels.restart(0.1)
            adam = PlainAdam([plain], lr=0.1)
        pixels.step(loss(pixels.values), 0.1)
        adam.zero_grad()
        loss(plain).backward()
        adam.step()
    assert torch.allclose(pixels.values, plain, atol=1e-5)
    assert torch.equal(start, kept)
