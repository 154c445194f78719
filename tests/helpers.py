"""Helpers for several test modules: small classifiers, sources of images, files of data sets."""

from __future__ import annotations

import dataclasses
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, settings
from torch import nn

from kdextract.errors import Interrupted
from kdextract.methods import Given, live_method
from kdextract.models.classifier import Classifier, ClassifierSpec
from kdextract.options.declare import option_fields, option_info
from kdextract.storage.artifacts import Output, file_sha256, read_manifest, write_manifest
from kdextract.storage.tensor_files import encode_safetensors, read_safetensors
from kdextract.synthesis.statistics.recorded import Statistics, StatisticsOptions, compute_statistics
from kdextract.synthesis.structured_noise.patterns import structured_images
from kdextract.training.sources import Batch, Source

SMALL = {
    "pool": 100, "fresh": 4, "generator_batch": 6, "student_steps": 2, "repeat": 2,
    "pool_batch": 12, "period": 2, "pixel_steps": 4, "trials": 6, "warmup": 2,
}  # fmt: skip
"""Values of options, for those methods that have them, with which a test need not wait."""
repeatable = settings(
    derandomize=True,
    database=None,
    deadline=None,
    max_examples=60,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
"""The same examples in every run, each of which may write into the directory of its test."""
DEVICES = ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]
"""The kinds of device that this machine has."""
IDX_NAMES = {"train": "train", "test": "t10k"}
"""Split -> how the names of MNIST's files begin."""


def seeded(seed: int = 0) -> torch.Generator:
    """Return a random generator with this seed."""
    return torch.Generator().manual_seed(seed)


def network(channels: int, num_classes: int, batch_norm: bool, dropout: float = 0.0) -> nn.Module:
    """A small network for images of any size."""
    return nn.Sequential(
        nn.Conv2d(channels, 6, 3, stride=2),
        nn.BatchNorm2d(6) if batch_norm else nn.Identity(),
        nn.ReLU(),
        nn.Dropout(dropout),
        nn.Conv2d(6, 8, 3, stride=2),
        nn.BatchNorm2d(8) if batch_norm else nn.Identity(),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Linear(32, num_classes),
    )


def classifier(
    shape: tuple[int, int, int] = (1, 28, 28),
    num_classes: int = 4,
    batch_norm: bool = True,
    seed: int = 0,
    dropout: float = 0.0,
) -> Classifier:
    """An untrained classifier whose batch normalization, if it has any, keeps statistics of its own."""
    torch.manual_seed(seed)
    names = tuple(f"class {index}" for index in range(num_classes))
    spec = ClassifierSpec("hinton800", shape, names, (0.2,) * shape[0], (0.3,) * shape[0])
    made = Classifier(spec)
    made.network = network(shape[0], num_classes, batch_norm, dropout)
    for module in made.network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean = torch.randn(module.num_features) * 0.3
            module.running_var = torch.rand(module.num_features) + 0.5
        elif isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=1.0)
    return made.placed(torch.device("cpu"))


def statistics_teacher(network: nn.Module, shape: tuple[int, int, int], num_classes: int) -> Classifier:
    """A frozen classifier of a network of any kind."""
    names = tuple(f"class {index}" for index in range(num_classes))
    spec = ClassifierSpec("hinton800", shape, names, (0.4,) * shape[0], (0.3,) * shape[0])
    return Classifier(spec, network).frozen()


class Tokens(nn.Module):
    """Patches of 2x2 pixels as tokens, through one linear layer that is used twice."""

    def __init__(self, channels: int, num_classes: int) -> None:
        super().__init__()
        self.patches = nn.Conv2d(channels, 5, 2, stride=2)
        self.mix = nn.Linear(5, 5)
        self.head = nn.Linear(5, num_classes)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        tokens = self.patches(images).flatten(2).transpose(1, 2)
        for _ in range(2):
            tokens = self.mix(tokens).relu()
        return self.head(tokens.mean(1))


def statistics_of(teacher: Classifier) -> Statistics:
    """Statistics of random images."""
    rng = torch.Generator().manual_seed(3)
    labels = torch.arange(4 * teacher.num_classes) % teacher.num_classes
    images = torch.randint(0, 256, (len(labels), *teacher.input_shape), generator=rng, dtype=torch.uint8)
    return compute_statistics(teacher, images, labels, StatisticsOptions(4096, 4, None), lambda amount: None)


def num_hooks(network: nn.Module) -> int:
    """Return the number of hooks of a network and all its modules."""
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) + len(m._backward_hooks) for m in network.modules())


def weights(classifier: Classifier) -> dict[str, torch.Tensor]:
    """Return copies of parameters and buffers by name."""
    return {name: value.clone() for name, value in classifier.network.state_dict().items()}


def equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    """Return whether names and values are equal in every bit."""
    return one.keys() == other.keys() and all(torch.equal(value, other[name]) for name, value in one.items())


class StopAt:
    """Saves to a file and stops the loop after N steps."""

    def __init__(self, path: Path, step: int | None) -> None:
        self._path, self._step = path, step

    def load(self) -> Any:
        """Return the saved state, or None."""
        return read_safetensors(self._path) if self._path.exists() else None

    def offer(self, state: Callable[[], Any]) -> None:
        """Save and stop, if the number of steps is reached."""
        tensors, values = state()
        if self._step is not None and values["rows"][-1]["step"] >= self._step:
            self._path.write_bytes(encode_safetensors(tensors, values))
            raise Interrupted(signal.SIGINT)


def opened(name: str, teacher: Classifier, seed: int = 0, **options: Any) -> Source:
    """Return the source of images that a live method opens for this teacher, with the values of `SMALL`."""
    method = live_method(name)
    known = {declared.name for declared in option_fields(method.config)}
    small = {option: value for option, value in SMALL.items() if option in known}
    given = Given(teacher, statistics_of(teacher) if method.matches_batch_norm else None)
    return method.open_source(given, method.config(**(small | options)), seed)


def other_value(declared: dataclasses.Field[Any], value: Any) -> Any:
    """Return an allowed value of an option that differs from `value` by much."""
    info = option_info(declared)
    if info.choices is not None:
        return next(choice for choice in info.choices() if choice != value)
    if isinstance(value, bool):
        return not value
    if isinstance(value, int):
        return value + max(2, int(info.minimum or 0))
    if value is None and "bool" in str(declared.type):
        return True
    if value is None and "int" in str(declared.type):
        return 7
    return value / 2 if value else 0.5


def drawn(source: Source, student: Classifier, steps: int = 7, num_images: int = 10) -> list[Batch]:
    """Return the batches of N steps, as the distillation loop draws them."""
    batches = []
    for _ in range(steps):
        source.update(student)
        batch = source.sample(num_images)
        batches.append(Batch(batch.images.clone(), batch.targets))
    return batches


def drawings(count: int, shape: tuple[int, int, int] = (1, 20, 16), background: float = 0.0) -> torch.Tensor:
    """Return structured images on a background of 0 or 1, the same every time."""
    return structured_images(count, shape, 0.1 if background == 0 else 0.9, seeded(5))


def write_idx(folder: Path, images: dict[str, np.ndarray], labels: dict[str, np.ndarray]) -> None:
    """Write the files of MNIST and its relatives: a big-endian header (type 8, dimensions, sizes), then the bytes."""
    folder.mkdir(parents=True, exist_ok=True)
    for split, prefix in IDX_NAMES.items():
        for kind, array in (("images-idx3", images[split]), ("labels-idx1", labels[split])):
            header = bytes([0, 0, 8, array.ndim]) + b"".join(size.to_bytes(4, "big") for size in array.shape)
            (folder / f"{prefix}-{kind}-ubyte").write_bytes(header + array.astype(np.uint8).tobytes())


def add_snapshots(student: Path, steps: tuple[int, ...], models: list[Path]) -> None:
    """Put copies of classifier files into a student's directory as snapshots of these steps, as `distill` would."""
    manifest = read_manifest(student)
    outputs, entries = list(manifest.outputs), []
    for step, model in zip(steps, models, strict=True):
        file = student / f"snapshot-{step:06d}.safetensors"
        file.write_bytes(model.read_bytes())
        outputs.append(Output(file.name, file_sha256(file), file.stat().st_size))
        entries.append({"file": file.name, "step": step, "seconds": step / 100})
    budget = {**manifest.budget, "snapshots": entries}
    write_manifest(student, dataclasses.replace(manifest, outputs=tuple(outputs), budget=budget))


def options_of(configs: dict[str, Any]) -> list[Any]:
    """Return parameters (name, option) of all options of the classes, by name of a method.

    An option that several classes inherit from one class is tested with the first of them; `slow` has the others.
    """
    found, seen = [], set()
    for name, config in configs.items():
        for declared in option_fields(config):
            bases = [
                base for base in reversed(config.__mro__) if declared.name in vars(base).get("__annotations__", {})
            ]
            origin = bases[0]
            marks = pytest.mark.slow if (origin, declared.name) in seen else ()
            seen.add((origin, declared.name))
            found.append(pytest.param(name, declared.name, marks=marks))
    return found
