"""Statistics of batch normalization that are estimated anew."""

from __future__ import annotations

import pytest
import torch
from helpers import classifier, equal, seeded, weights
from torch import nn

from kdextract.models.classifier import Classifier
from kdextract.training.batch_norm import NUM_IMAGES, estimate_batch_norm
from kdextract.training.sources import Batch, FreshImages


class Uniform(FreshImages):
    """Uniform noise; it keeps what it gives."""

    def __init__(self, shape: tuple[int, int, int]) -> None:
        super().__init__(0)
        self.given: list[torch.Tensor] = []
        self._shape = shape

    def sample(self, num_images: int) -> Batch:
        self._drawn += num_images
        self.given.append(torch.rand(num_images, *self._shape, generator=self._rng))
        return Batch(self.given[-1], None)

    def held_out(self, num_images: int) -> torch.Tensor:
        raise AssertionError("no held-out image is used")


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("batch_size", [128, 96])
def test_running_statistics_become_the_means_over_the_images(channels: int, batch_size: int) -> None:
    student = classifier((channels, 20, 20), 10, seed=2, dropout=0.5).train()
    before, source = weights(student), Uniform((channels, 20, 20))
    torch.manual_seed(4)
    state = torch.get_rng_state()
    estimate_batch_norm(student, source, batch_size)
    assert torch.equal(torch.get_rng_state(), state), "dropout draws nothing"
    assert NUM_IMAGES <= source.num_images < NUM_IMAGES + batch_size
    first, norm = student.network[0], student.network[1]
    assert isinstance(norm, nn.BatchNorm2d)
    with torch.no_grad():
        outputs = [first((images - student.mean) / student.std) for images in source.given]
    means = torch.stack([batch.mean((0, 2, 3)) for batch in outputs]).mean(0)
    variances = torch.stack([batch.transpose(0, 1).flatten(1).var(1) for batch in outputs]).mean(0)
    torch.testing.assert_close(norm.running_mean, means, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(norm.running_var, variances, rtol=1e-4, atol=1e-5)
    assert norm.momentum == 0.1
    changed = {name for name, value in weights(student).items() if not torch.equal(value, before[name])}
    assert {name.rpartition(".")[2] for name in changed} == {"running_mean", "running_var", "num_batches_tracked"}
    assert not any(module.training for module in student.modules())


def test_images_are_drawn_only_for_networks_with_running_statistics() -> None:
    source = Uniform((1, 20, 20))
    plain = classifier((1, 20, 20), batch_norm=False)
    without = Classifier(plain.spec, nn.Sequential(nn.Flatten(), nn.BatchNorm1d(400, track_running_stats=False)))
    for student in (plain, without):
        before = weights(student)
        estimate_batch_norm(student, source, 64)
        assert equal(weights(student), before)
    assert source.num_images == 0
    assert torch.equal(source.sample(2).images, torch.rand(2, 1, 20, 20, generator=seeded()))
