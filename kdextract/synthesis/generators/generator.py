"""`Generator`: a network from noise and labels to images, with all data that is needed to rebuild it from a file."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ...models.architectures import InputShape
from ...storage.tensor_files import encode_safetensors, read_safetensors, rebuilding
from .encodings import SHARE, Encodings
from .flows import Flow
from .networks import NETWORKS

ENCODINGS = "encodings."
"""Prefix of the names of tensors that are encodings."""


@dataclass(frozen=True)
class GeneratorSpec:
    """What a generator's file holds besides the weights.

    Attributes:
        network: a key of `networks.NETWORKS`.
        input_shape: (channels, height, width) of the images.
        num_classes: K.
        options: arguments with which the network is built.
        mean, std: one value per channel, of the teacher's training data, for pixels in [0, 1].
        noise_scale: standard deviation of the noise in training.
        widen: factor of this standard deviation when a student is trained.
        encoded: number of stored encodings (`encodings.Encodings`).
    """

    network: str
    input_shape: InputShape
    num_classes: int
    options: dict[str, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    noise_scale: float = 1.0
    widen: float = 1.0
    encoded: int = 0

    def build(self) -> nn.Module:
        """Return the network, newly initialized."""
        return NETWORKS[self.network](self.input_shape, self.num_classes, **self.options)


class Generator(nn.Module):
    """Noise [batch, *noise_shape] and labels (int64 [batch]) -> pixels [batch, channels, height, width] in [0, 1].

    A network whose `conditional` is False ignores labels. The output of a `standardized` network is in the teacher's
    normalized coordinates; many of its values correspond to pixels outside [0, 1]. Such a generator is trained through
    `normalized`, where all values have gradients; `forward` clips pixels, for files and for students. The output of a
    flow are pixels; an untrained flow has the mean brightness of the teacher's data.
    """

    mean: torch.Tensor
    std: torch.Tensor

    def __init__(self, spec: GeneratorSpec) -> None:
        super().__init__()
        self.spec = spec
        self.network = spec.build()
        self.encodings = Encodings(spec.encoded, self.noise_shape) if spec.encoded else None
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
        """Whether images depend on the labels."""
        return bool(self.network.conditional)

    @property
    def num_parameters(self) -> int:
        """Number of trainable values."""
        return sum(p.numel() for p in self.network.parameters())

    @property
    def device(self) -> torch.device:
        """Device of the weights."""
        return next(self.network.parameters()).device

    def draw(
        self,
        count: int,
        rng: torch.Generator,
        scale: float | None = None,
        labels: torch.Tensor | None = None,
        near: float = SHARE,
    ) -> torch.Tensor:
        """Return normal noise [count, *noise_shape] on the generator's device.

        Args:
            rng: on the CPU.
            scale: standard deviation; None: that of training.
            labels: wanted classes, int64 [count]; a share of the noise is then drawn near encodings, if there are any.
            near: this share, in [0, 1].
        """
        noise = torch.randn((count, *self.noise_shape), generator=rng)
        noise = noise.mul_(self.spec.noise_scale if scale is None else scale).to(self.device)
        if labels is None or self.encodings is None:
            return noise
        return self.encodings.mixed_in(noise, labels, rng, near)

    def remember(self, noise: torch.Tensor, labels: torch.Tensor) -> None:
        """Store encodings of images, noise [N, *noise_shape] and labels [N], from which `draw` makes similar noise."""
        self.encodings = Encodings.of(noise, labels)
        self.spec = replace(self.spec, encoded=len(noise))

    def tensors(self) -> dict[str, torch.Tensor]:
        """Return the tensors of the generator's file, by name."""
        own = self.network.state_dict()
        if self.encodings is not None:
            own |= {f"{ENCODINGS}{name}": value for name, value in self.encodings.state_dict().items()}
        return own

    def load(self, tensors: dict[str, torch.Tensor]) -> None:
        """Load what `tensors` returned. Raises `ValueError` if labels of encodings are not classes."""
        if self.encodings is not None:
            kept = {name: value for name, value in tensors.items() if name.startswith(ENCODINGS)}
            self.encodings.load_state_dict({name.removeprefix(ENCODINGS): value for name, value in kept.items()})
            self.encodings.check(self.spec.num_classes)
            tensors = {name: value for name, value in tensors.items() if name not in kept}
        self.network.load_state_dict(tensors)

    def normalized(self, noise: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Return images in the teacher's normalized coordinates, unclipped, for `Classifier.of_normalized`."""
        images = self.network(noise, labels.to(noise.device))
        return images if self.network.standardized else (images - self.mean) / self.std

    def forward(self, noise: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Return pixels, clipped to [0, 1] but not rounded to 256 levels."""
        images = self.network(noise, labels.to(noise.device))
        return (self.mean + self.std * images).clamp(0, 1) if self.network.standardized else images

    def frozen(self) -> Generator:
        """Put the generator into evaluation mode, stop gradients to its weights, and return it."""
        return self.eval().requires_grad_(False)


def new_generator(spec: GeneratorSpec, seed: int) -> Generator:
    """Return an untrained generator whose weights depend only on the seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Generator(spec)


def encode_generator(generator: Generator) -> bytes:
    """Return the bytes of the generator's file."""
    return encode_safetensors(generator.tensors(), {"generator": asdict(generator.spec)})


def load_generator(path: Path) -> Generator:
    """Return the generator of a file, frozen, on the CPU.

    Raises:
        ArtifactError: the file is missing or malformed, or its weights do not fit the network that it names.
    """
    tensors, metadata = read_safetensors(path)
    with rebuilding(path, "generator"):
        spec = _generator_spec(metadata["generator"])
        with torch.device("meta"):
            expected = {name: tensor.shape for name, tensor in Generator(spec).tensors().items()}
        if {name: tensor.shape for name, tensor in tensors.items()} != expected:
            raise ValueError(f"its tensors are not those of {spec.network}")
        generator = Generator(spec)
        generator.load(tensors)
    return generator.frozen()


def _generator_spec(record: dict[str, Any]) -> GeneratorSpec:
    channels, height, width = (int(n) for n in record["input_shape"])
    return GeneratorSpec(
        network=str(record["network"]),
        input_shape=(channels, height, width),
        num_classes=int(record["num_classes"]),
        options={str(name): int(value) for name, value in record["options"].items()},
        mean=tuple(float(value) for value in record["mean"]),
        std=tuple(float(value) for value in record["std"]),
        noise_scale=float(record["noise_scale"]),
        widen=float(record.get("widen", 1.0)),
        encoded=int(record.get("encoded", 0)),
    )
