"""Memory for the recording of statistics, computed from the shapes of layers and measured with a small network."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import ROOT, environment
from helpers import num_hooks, statistics_teacher
from torch import nn
from torchvision.models import resnet50

import kdextract
from kdextract import api
from kdextract.models.classifier import MOST_BYTES, MOST_IMAGES, Classifier
from kdextract.stages import compute_stats
from kdextract.stages.compute_stats import ComputeStatsConfig
from kdextract.synthesis.statistics.memory import Work, statistics_memory
from kdextract.synthesis.statistics.recorded import (
    Layer,
    RecordedLayers,
    StatisticsOptions,
    compute_statistics,
    recorded_layers,
)
from kdextract.synthesis.statistics.spectra import SpectralOptions
from kdextract.training.progress import Reporter

DEFAULTS = ComputeStatsConfig()
OPTIONS = StatisticsOptions(
    DEFAULTS.max_units,
    DEFAULTS.covariance_rank,
    SpectralOptions(DEFAULTS.spectral_fraction, DEFAULTS.spectral_max),
)


def on_meta(network: Any, shape: tuple[int, int, int], num_classes: int, options: StatisticsOptions) -> RecordedLayers:
    """Return the recorded layers of a network on the meta device."""
    teacher = statistics_teacher(network.to("meta"), shape, num_classes)
    teacher.mean = teacher.mean.to("meta")
    return recorded_layers(teacher, options.max_units)


def images_per_pass(found: RecordedLayers) -> int:
    """Return the number of images that have 1 GB of outputs, at most 500."""
    return min(MOST_IMAGES, MOST_BYTES // (4 * sum(layer.units for layer in found.layers)))


def old_bytes(layers: tuple[Layer, ...], num_classes: int) -> int:
    """Return the bytes of a mean and a deviation per unit, class and layer, as in version 0.1."""
    return num_classes * sum(layer.units for layer in layers) * 2 * 4


def test_resnet50_with_1000_classes_fits_into_8_gb() -> None:
    """With 32 images per class, the least that --min-count takes, held in memory; and with 1,300 in the largest one."""
    with torch.device("meta"):
        network = resnet50(num_classes=1000)
    found = on_meta(network, (3, 224, 224), 1000, OPTIONS)
    assert len(found.layers) == 54
    assert [layer.name for layer in found.joined] == ["fc"]
    assert old_bytes(found.layers, 1000) > 80e9
    assert 500 * 4 * sum(layer.units for layer in found.layers) > 20e9, "outputs of 500 images, all at once"
    weights = sum(tensor.numel() for tensor in network.state_dict().values())
    assert weights > 25e6
    batch_size = images_per_pass(found)
    assert 8 <= batch_size < 100
    needed = statistics_memory(found, OPTIONS, Work((3, 224, 224), 1000, weights, 32 * 1000, 1300, batch_size))
    assert needed.kept < 0.5e9
    assert needed.most < 8e9
    unreduced = statistics_memory(found, OPTIONS, Work((3, 224, 224), 1000, weights, 32 * 1000, 1300, 500))
    assert unreduced.most > 20e9, "500 images at a time do not fit"


class Bottlenecks(nn.Sequential):
    """Convolutions of 1x1 and 3x3 with batch normalization, as in ResNet-50, and many classes."""

    def __init__(self, num_classes: int, width: int = 16) -> None:
        parts: list[nn.Module] = [nn.Conv2d(3, width, 7, stride=2, padding=3, bias=False), nn.BatchNorm2d(width)]
        wide = width
        for stage in range(3):
            narrow = width * 2**stage
            for inwards, outwards, kernel, stride in (
                (wide, narrow, 1, 1),
                (narrow, narrow, 3, 2 if stage else 1),
                (narrow, 4 * narrow, 1, 1),
            ):
                parts += [
                    nn.Conv2d(inwards, outwards, kernel, stride, kernel // 2, bias=False),
                    nn.BatchNorm2d(outwards),
                    nn.ReLU(inplace=True),
                ]
            wide = 4 * narrow
        super().__init__(*parts, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(wide, num_classes))


STAND_IN = (3, 96, 96), 40
CASES = {
    "large layers": (StatisticsOptions(8192, 100, SpectralOptions(0.1, 64)), 2, 250),
    "records": (StatisticsOptions(9216, 100, SpectralOptions(0.1, 64)), 4, 8),
}


def measure(case: str) -> dict[str, int]:
    """Return how much the peak of this process's memory grows while statistics are recorded and put into a file."""
    from kdextract.stages.running.attempts import peak_bytes
    from kdextract.storage.tensor_files import encode_safetensors

    options, per_class, batch_size = CASES[case]
    shape, num_classes = STAND_IN
    teacher = statistics_teacher(Bottlenecks(num_classes), shape, num_classes)
    small = torch.zeros(2 * num_classes, *shape, dtype=torch.uint8)
    compute_statistics(
        teacher, small, torch.arange(2 * num_classes) % num_classes,
        StatisticsOptions(num_classes, 2, None), lambda amount: None, 1,
    )  # fmt: skip
    before = peak_bytes()
    labels = torch.arange(per_class * num_classes) % num_classes
    if case == "large layers":
        labels = torch.cat([labels, torch.zeros(batch_size, dtype=torch.int64)])
    images = torch.randint(0, 256, (len(labels), *shape), dtype=torch.uint8)
    statistics = compute_statistics(teacher, images, labels, options, lambda amount: None, batch_size)
    content = encode_safetensors(*statistics.to_tensors())
    work = Work(shape, num_classes, 0, len(images), int(labels.bincount().max()), batch_size)
    needed = statistics_memory(recorded_layers(teacher, options.max_units), options, work)
    return {
        "measured": peak_bytes() - before,
        "most": needed.most,
        "kept": needed.kept,
        "written": len(content),
        "old": old_bytes(statistics.layers, num_classes),
    }


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_the_computed_memory_is_an_upper_bound_of_the_measured_one(case: str) -> None:
    """The computed memory is at least the measured one, and not many times more.

    The measured memory is that in addition to the memory of a first pass with few images.
    """
    code = f"import json, test_memory; print(json.dumps(test_memory.measure({case!r})))"
    folders = (Path(__file__).parent, ROOT / "tests", Path(kdextract.__file__).parents[1])
    paths = {"PYTHONPATH": ":".join(map(str, folders))}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment(paths), text=True, capture_output=True, timeout=280, check=False
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["kept"] == pytest.approx(found["written"], rel=0.02)
    assert found["most"] / 5 < found["measured"] < found["most"], found


def test_statistics_that_cannot_fit_are_refused(monkeypatch: pytest.MonkeyPatch, teacher_run: Path) -> None:
    monkeypatch.setattr(compute_stats, "_machine_memory", lambda: 100_000)
    with pytest.raises(
        kdextract.errors.ConfigError, match=r"smaller --max-units or --covariance-rank, or --no-spectral"
    ):
        api.compute_stats(run=teacher_run, threads=1)
    assert not (teacher_run / "statistics").exists()


def test_statistics_that_may_not_fit_are_reported_in_a_line(monkeypatch: pytest.MonkeyPatch, teacher_run: Path) -> None:
    lines: list[str] = []
    monkeypatch.setattr(Reporter, "line", lambda self, text: lines.append(text))
    monkeypatch.setattr(compute_stats, "_machine_memory", lambda: 40_000_000)
    api.compute_stats(run=teacher_run, threads=1, covariance_rank=2, spectral=False)
    assert [line for line in lines if "may take 0.1 GB of memory, and this machine has 0.0 GB" in line]
    assert (teacher_run / "statistics").is_dir()


def test_the_batch_size_depends_on_the_sizes_of_layers() -> None:
    tiny: Classifier = statistics_teacher(nn.Sequential(nn.Flatten(), nn.Linear(12, 2)), (3, 2, 2), 2)
    assert tiny.images_per_pass == MOST_IMAGES
    wide = nn.Sequential(nn.Conv2d(1, 100, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(100, 2))
    large = statistics_teacher(wide, (1, 512, 512), 2)
    assert large.images_per_pass == MOST_BYTES // (4 * (100 * 512 * 512 + 2))
    assert num_hooks(large) == 0
