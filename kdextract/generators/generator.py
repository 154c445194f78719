"""`Generator`: a network from noise and labels to pixels in [0, 1] that carries everything needed to rebuild it."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..models import InputShape
from ..tensor_files import encode_safetensors, read_safetensors, rebuilding
from .flows import Flow
from .networks import NETWORKS


@dataclass(frozen=True)
class GeneratorSpec:
    """What a generator's file says about it, besides the weights.

    `network` is one of `networks.NETWORKS`, built with `options`. `mean` and `std` hold one value per channel, those of
    the teacher's training data in pixel units of [0, 1]. `noise_scale` is the standard deviation of the noise that it
    was trained with.
    """

    network: str
    input_shape: InputShape
    num_classes: int
    options: dict[str, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    noise_scale: float = 1.0

    def build(self) -> nn.Module:
        """Return the network, freshly initialized."""
        return NETWORKS[self.network](self.input_shape, self.num_classes, **self.options)


class Generator(nn.Module):
    """Noise [batch, *noise_shape] and labels (int64 [batch]) -> pixels [batch, channels, height, width] in [0, 1].

    A network whose `conditional` is False takes no notice of the labels. Images of a `standardized` one get the mean
    and the standard deviation of the teacher's data, and are clipped; a flow's are about as bright as these at first.
    """

    mean: torch.Tensor
    std: torch.Tensor

    def __init__(self, spec: GeneratorSpec) -> None:
        super().__init__()
        self.spec = spec
        self.network = spec.build()
        self.register_buffer("mean", torch.tensor(spec.mean).view(1, -1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(spec.std).view(1, -1, 1, 1), persistent=False)
        if isinstance(self.network, Flow):
            self.network.set_brightness(self.mean[0])

    @property
    def noise_shape(self) -> tuple[int, ...]:
        """Shape of the noise of one image."""
        return tuple(self.network.noise_shape)  # type: ignore[arg-type]

    @property
    def conditional(self) -> bool:
        """Whether the label has a say."""
        return bool(self.network.conditional)

    @property
    def num_parameters(self) -> int:
        """Number of trainable values."""
        return sum(p.numel() for p in self.network.parameters())

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.network.parameters()).device

    def draw(self, count: int, random: torch.Generator, scale: float | None = None) -> torch.Tensor:
        """Return normal noise [count, *noise_shape] on the generator's device; `random` is on the CPU.

        Args:
            scale: its standard deviation; the default is the one of training.
        """
        noise = torch.randn((count, *self.noise_shape), generator=random)
        return noise.mul_(self.spec.noise_scale if scale is None else scale).to(self.device)

    def forward(self, noise: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Return pixels in [0, 1]."""
        images = self.network(noise, labels.to(noise.device))
        return (self.mean + self.std * images).clamp(0, 1) if self.network.standardized else images

    def frozen(self) -> Generator:
        """Put the generator into evaluation mode, stop gradients to its weights, and return it."""
        return self.eval().requires_grad_(False)


def new_generator(spec: GeneratorSpec, seed: int) -> Generator:
    """Return a generator whose initial weights depend on the seed alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Generator(spec)


def encode_generator(generator: Generator) -> bytes:
    """Return the bytes of the file that rebuilds this generator."""
    return encode_safetensors(generator.network.state_dict(), {"generator": asdict(generator.spec)})


def load_generator(path: Path) -> Generator:
    """Return the generator of a file, frozen, on the CPU.

    Raises:
        ArtifactError: the file is missing or malformed, or its weights do not fit the network that it names.
    """
    tensors, metadata = read_safetensors(path)
    with rebuilding(path, "generator"):
        spec = _spec_from_record(metadata["generator"])
        with torch.device("meta"):
            expected = {name: tensor.shape for name, tensor in spec.build().state_dict().items()}
        if {name: tensor.shape for name, tensor in tensors.items()} != expected:
            raise ValueError(f"its tensors are not those of {spec.network}")
        generator = Generator(spec)
        generator.network.load_state_dict(tensors)
    return generator.frozen()


def _spec_from_record(record: dict[str, Any]) -> GeneratorSpec:
    channels, height, width = (int(n) for n in record["input_shape"])
    return GeneratorSpec(
        network=str(record["network"]),
        input_shape=(channels, height, width),
        num_classes=int(record["num_classes"]),
        options={str(name): int(value) for name, value in record["options"].items()},
        mean=tuple(float(value) for value in record["mean"]),
        std=tuple(float(value) for value in record["std"]),
        noise_scale=float(record["noise_scale"]),
    )
