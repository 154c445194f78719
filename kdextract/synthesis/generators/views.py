"""Images of generators for pictures: classes by noise, and a walk between two noise vectors."""

from __future__ import annotations

import torch

from .generator import Generator


def class_by_noise(generators: list[Generator], columns: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return images of every class, where the images of one column have the same noise; generators alternate.

    For a generator with encodings, the second half of the columns uses noise near encodings instead.

    Returns:
        Pixels [columns * K, channels, height, width] and labels [columns * K].
    """
    rng = torch.Generator().manual_seed(seed)
    num_classes = generators[0].spec.num_classes
    labels = torch.arange(num_classes)
    strips = []
    with torch.no_grad():
        for column in range(columns):
            generator = generators[column % len(generators)]
            if generator.encodings is not None and column >= columns // 2:
                noise = generator.draw(num_classes, rng, labels=labels, near=1.0)
            else:
                noise = generator.draw(1, rng).expand(num_classes, *generator.noise_shape)
            strips.append(generator(noise, labels))
    return torch.cat(strips), labels.repeat(columns)


def latent_walk(generator: Generator, columns: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return images along a path from one noise vector a to another one b, `columns` for each class.

    The path is the arc `cos(t) a + sin(t) b`, whose points have the same distribution as a and b. A conditional
    generator uses the same path for every class, another one uses a different path in each row.

    Returns:
        Pixels [K * columns, channels, height, width] and row numbers [K * columns].
    """
    rng = torch.Generator().manual_seed(seed)
    num_rows = generator.spec.num_classes
    angles = torch.linspace(0, torch.pi / 2, columns, device=generator.device)
    angles = angles.view(-1, *[1] * len(generator.noise_shape))
    images = []
    start, end = generator.draw(2, rng)
    with torch.no_grad():
        for row in range(num_rows):
            if not generator.conditional:
                start, end = generator.draw(2, rng)
            noise = torch.cos(angles) * start + torch.sin(angles) * end
            images.append(generator(noise, torch.full((columns,), row)))
    return torch.cat(images), torch.arange(num_rows).repeat_interleave(columns)
