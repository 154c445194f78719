"""Real images that are mirrored in every second epoch."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch

from kdextract.training.sources import MirroringPool

CPU = torch.device("cpu")
COUNT = 20


def pool(seed: int = 3) -> MirroringPool:
    """Images of one row of three pixels: their number, 0, and 255."""
    numbers = torch.arange(COUNT, dtype=torch.uint8)
    images = torch.stack([numbers, torch.zeros_like(numbers), torch.full_like(numbers, 255)], dim=1)
    return MirroringPool(images.view(COUNT, 1, 1, 3), numbers.long(), seed, CPU)


def drawn(source: MirroringPool, count: int) -> list[tuple[int, bool]]:
    """Return the number of each of the next images, and whether it is mirrored."""
    batch = source.sample(count)
    assert batch.targets is not None
    rows = (batch.images.flatten(1) * 255).round().int().tolist()
    mirrored = [row[2] != 255 for row in rows]
    assert [row[2 if is_mirrored else 0] for row, is_mirrored in zip(rows, mirrored, strict=True)] == (
        batch.targets.tolist()
    )
    return list(zip(batch.targets.tolist(), mirrored, strict=True))


@pytest.mark.parametrize("batch", [1, 4, 7, 20])
def test_each_image_is_seen_in_both_ways_in_any_two_epochs(batch: int) -> None:
    source = pool()
    seen: list[tuple[int, bool]] = []
    while len(seen) < 5 * COUNT:
        seen += drawn(source, batch)
    epochs = [dict(seen[start : start + COUNT]) for start in range(0, 5 * COUNT, COUNT)]
    for one, following in pairwise(epochs):
        assert following == {number: not mirrored for number, mirrored in one.items()}
    assert 2 < sum(epochs[0].values()) < COUNT - 2


def test_the_first_epoch_depends_on_the_seed_alone() -> None:
    torch.manual_seed(1)
    once = drawn(pool(), COUNT)
    torch.manual_seed(2)
    assert drawn(pool(), COUNT) == once
    assert dict(drawn(pool(seed=4), COUNT)) != dict(once)


def test_continues_after_a_restore() -> None:
    source = pool()
    drawn(source, 27)
    tensors, values = source.state()
    tensors = {name: tensor.clone() for name, tensor in tensors.items()}
    expected = drawn(source, 50)
    other = pool(seed=3)
    other.restore((tensors, values))
    assert drawn(other, 50) == expected
