"""A set of generators that make images in turn."""

from __future__ import annotations

import torch

from ...errors import ConfigError
from .generator import Generator


class GeneratorMix:
    """Makes images with several generators: image i of a batch is made by generator i modulo their number.

    Args:
        generators: at least one, for images of equal shape and an equal number of classes, on one device.

    Raises:
        ConfigError: their image shapes or numbers of classes differ.
    """

    def __init__(self, generators: list[Generator]) -> None:
        self._generators = [generator.frozen() for generator in generators]
        first = generators[0].spec
        for generator in generators:
            other = generator.spec
            if (other.input_shape, other.num_classes) != (first.input_shape, first.num_classes):
                raise ConfigError("these generators make images of different shapes or classes; they cannot be mixed")

    @property
    def conditional(self) -> bool:
        """Whether the images of all generators depend on the labels."""
        return all(generator.conditional for generator in self._generators)

    def sample(
        self, labels: torch.Tensor, rng: torch.Generator, scale: float | None = None, widened: bool = False
    ) -> torch.Tensor:
        """Return pixels [batch, channels, height, width] in [0, 1], one image for each of the labels [batch].

        Args:
            rng: draws the noise, on the CPU.
            scale: standard deviation of the noise; None: that of each generator's training.
            widened: use the standard deviation for students, `noise_scale` * `widen` of each generator, instead.
        """
        count = len(self._generators)
        parts: list[torch.Tensor] = []
        rows: list[torch.Tensor] = []
        with torch.no_grad():
            for index, generator in enumerate(self._generators):
                own = torch.arange(index, len(labels), count)
                if len(own):
                    width = generator.spec.noise_scale * generator.spec.widen if widened else scale
                    parts.append(generator(generator.draw(len(own), rng, width, labels[own]), labels[own]))
                    rows.append(own)
        images = torch.empty((len(labels), *parts[0].shape[1:]), device=parts[0].device)
        images[torch.cat(rows).to(images.device)] = torch.cat(parts)
        return images.contiguous(memory_format=torch.channels_last)
