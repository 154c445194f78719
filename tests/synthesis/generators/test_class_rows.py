"""The generator of the teacher's rows of the classes: what it gets, what is drawn anew, and its life."""

from __future__ import annotations

import pytest
import torch
from helpers import classifier, drawn, seeded, weights
from torch import nn

from kdextract.models.classifier import Classifier
from kdextract.synthesis.generators.bank import BatchLoss, BatchWeights, GeneratorBank
from kdextract.synthesis.generators.class_rows import NOISY, RowGenerator, RowMaker, RowOptions, class_rows


def teacher_of(num_classes: int = 4, channels: int = 3) -> Classifier:
    return classifier((channels, 12, 12), num_classes).frozen()


def maker_of(teacher: Classifier, steps: int = 2, life: int = 20) -> RowMaker:
    return RowMaker(teacher, BatchLoss(teacher, None, BatchWeights(0.5, 10.0, 1.33)), RowOptions(steps, 4e-3, life), 0)


def test_rows_are_the_weights_of_the_last_layer() -> None:
    teacher = teacher_of()
    last = [module for module in teacher.network.modules() if isinstance(module, nn.Linear)][-1]
    assert torch.equal(class_rows(teacher), last.weight)


@pytest.mark.parametrize("num_classes", [2, 4, 10, 100])
@pytest.mark.parametrize("channels", [1, 3])
def test_every_label_gets_an_image(num_classes: int, channels: int) -> None:
    teacher = teacher_of(num_classes, channels)
    labels = (torch.arange(12) + 5) % num_classes
    before = weights(teacher)
    made = maker_of(teacher).make(labels, None, seeded(), None)
    assert made.images.shape == (12, channels, 12, 12)
    assert 0 <= float(made.images.min()) < float(made.images.max()) <= 1
    assert made.teacher_queries == 24
    assert len({bytes(image.numpy()) for image in made.images}) == 12, "images of one class differ"
    assert all(torch.equal(value, before[name]) for name, value in weights(teacher).items())


def test_an_image_depends_on_its_class_and_on_the_noisy_layer_of_its_group() -> None:
    teacher = teacher_of()
    generator = RowGenerator(class_rows(teacher), teacher, 4).eval()
    noisy = torch.randn((2, class_rows(teacher).shape[1], NOISY), generator=seeded())
    latents = []
    generator.decoder.register_forward_pre_hook(lambda module, inputs: latents.append(inputs[0].detach()))
    generator(torch.tensor([0, 1, 2, 3, 0, 1]), noisy)
    rows = (class_rows(teacher) - class_rows(teacher).mean(0)) / class_rows(teacher).std(0, correction=0)
    for place, (label, group) in enumerate([(0, 0), (1, 0), (2, 0), (3, 0), (0, 1), (1, 1)]):
        assert torch.allclose(latents[0][place], rows[label] @ noisy[group], atol=1e-2)


def test_a_generator_goes_on_until_its_life_ends() -> None:
    maker = maker_of(teacher_of(), life=2)
    labels, seen = torch.arange(8) % 4, []
    for number in range(5):
        maker.make(labels, None, seeded(number), None)
        seen.append(maker._generator)
    assert seen[0] is seen[1]
    assert seen[2] is seen[3]
    assert len({id(generator) for generator in seen}) == 3


def test_a_restored_bank_goes_on_in_the_same_way() -> None:
    teacher, student = teacher_of(), classifier((3, 12, 12), seed=1).train()

    def bank() -> GeneratorBank:
        return GeneratorBank(maker_of(teacher, life=3), teacher, 12, 1, 1, 0)

    def following(source: GeneratorBank) -> torch.Tensor:
        return torch.cat([batch.images for batch in drawn(source, student, 4, 5)])

    first = bank()
    first.update(student)
    tensors, values = first.state()
    saved = {name: value.clone() for name, value in tensors.items()}, dict(values)
    expected = following(first)
    again = bank()
    again.restore(saved)
    assert torch.equal(following(again), expected)
