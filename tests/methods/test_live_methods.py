"""The contract that every live method keeps."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import rounding
from helpers import (
    SMALL,
    StopAt,
    classifier,
    drawn,
    equal,
    num_hooks,
    opened,
    options_of,
    other_value,
    statistics_of,
    weights,
)
from torch import nn

from kdextract.errors import UsageError
from kdextract.methods import Given, live_method, live_names, register_live
from kdextract.models.classifier import Classifier
from kdextract.options.declare import OptionSet, option_fields, option_info
from kdextract.stages.distill.budget import NoCheckpoints
from kdextract.stages.inputs.distill_settings import USUAL_SETTINGS
from kdextract.storage.tensor_files import encode_safetensors, read_safetensors
from kdextract.training.augmentation import Augmenter
from kdextract.training.distill import DistillationLossOptions, DistillationOptions, distill
from kdextract.training.loop import Schedule
from kdextract.training.progress import Reporter
from kdextract.training.sources import Batch, Described, Optimized

every_method = pytest.mark.parametrize(
    "name",  # nayer and fast make batches in the same way
    [pytest.param(name, marks=pytest.mark.slow if name == "nayer" else ()) for name in live_names()],
)


@pytest.fixture
def teacher() -> Classifier:
    return classifier().frozen()


@pytest.fixture
def student() -> Classifier:
    """A student with all layers that behave differently in training and in eval mode."""
    return classifier(seed=1, dropout=0.3).train()


def same(one: list[Batch], other: list[Batch]) -> bool:
    return all(torch.equal(a.images, b.images) for a, b in zip(one, other, strict=True))


def everything(network: Classifier) -> dict[str, torch.Tensor]:
    """Return copies of weights, buffers and modes."""
    tensors = {f"weight {name}": value.detach().clone() for name, value in network.named_parameters()}
    tensors |= {f"buffer {name}": value.clone() for name, value in network.named_buffers()}
    modes = {f"mode {name}": torch.tensor(module.training) for name, module in network.named_modules()}
    return tensors | modes | {f"grad {n}": torch.tensor(p.requires_grad) for n, p in network.named_parameters()}


@every_method
@pytest.mark.parametrize(
    ("shape", "num_classes", "batch_norm"),
    [
        ((1, 28, 28), 10, False),
        ((3, 32, 32), 2, True),
        ((1, 21, 30), 5, True),
        ((3, 8, 8), 3, False),
        pytest.param((1, 28, 28), 10, True, marks=pytest.mark.slow),
        pytest.param((3, 32, 32), 2, False, marks=pytest.mark.slow),
        pytest.param((3, 8, 8), 1000, True, marks=pytest.mark.slow),
        pytest.param((3, 64, 48), 100, True, marks=pytest.mark.slow),
    ],
)
def test_images_are_valid(name: str, batch_norm: bool, shape: tuple[int, int, int], num_classes: int) -> None:
    teacher = classifier(shape, num_classes, batch_norm).frozen()
    student = classifier(shape, num_classes, batch_norm, seed=1).train()
    source = opened(name, teacher)
    for num_images in (1, 7, 12):
        for batch in drawn(source, student, 3, num_images):
            assert batch.images.shape == (num_images, *shape)
            assert batch.images.dtype == torch.float32
            assert torch.isfinite(batch.images).all()
            assert float(batch.images.min()) >= 0
            assert float(batch.images.max()) <= 1
            assert not batch.images.requires_grad
            assert batch.images.is_contiguous(memory_format=torch.channels_last)
    assert float(batch.images.std()) > 0.01
    assert not torch.equal(batch.images[0], batch.images[1])


@every_method
def test_targets_are_the_logits_of_the_teacher(name: str, teacher: Classifier, student: Classifier) -> None:
    for batch in drawn(opened(name, teacher), student):
        if batch.targets is not None:
            with torch.no_grad():
                expected = teacher(batch.images)
            assert torch.allclose(batch.targets, expected, rtol=0, atol=rounding(expected))
            assert not batch.targets.requires_grad


@every_method
@pytest.mark.parametrize("batch_norm", [True, False])
def test_teacher_is_unchanged_in_every_bit(name: str, batch_norm: bool, student: Classifier) -> None:
    teacher = classifier(batch_norm=batch_norm).frozen()
    before = everything(teacher)
    drawn(opened(name, teacher), student)
    after = everything(teacher)
    assert all(torch.equal(before[key], after[key]) for key in before)
    assert not teacher.training
    assert all(parameter.grad is None and not parameter.requires_grad for parameter in teacher.parameters())
    assert num_hooks(teacher) == 0


@every_method
def test_student_is_unchanged(name: str, teacher: Classifier, student: Classifier) -> None:
    """Including batch normalization and dropout: only the loop trains it."""
    student.network[1].eval()
    before = everything(student)
    drawn(opened(name, teacher), student)
    after = everything(student)
    assert all(torch.equal(before[key], after[key]) for key in before)
    assert all(parameter.grad is None for parameter in student.parameters())
    assert num_hooks(student) == 0


@every_method
def test_images_depend_on_the_seed_alone(name: str, teacher: Classifier, student: Classifier) -> None:
    torch.manual_seed(1)
    once = drawn(opened(name, teacher, seed=4), student)
    torch.manual_seed(2)
    before = torch.get_rng_state()
    again = drawn(opened(name, teacher, seed=4), student)
    assert torch.equal(before, torch.get_rng_state()), "draws from the generator that the loop uses"
    assert same(once, again)
    assert not same(once, drawn(opened(name, teacher, seed=5), student))


@every_method
@pytest.mark.parametrize("steps", [1, 5, *(pytest.param(steps, marks=pytest.mark.slow) for steps in (0, 4))])
def test_continues_after_a_restore(
    name: str, steps: int, teacher: Classifier, student: Classifier, tmp_path: Path
) -> None:
    source = opened(name, teacher)
    drawn(source, student, steps)
    state = source.state()
    (tmp_path / "state").write_bytes(encode_safetensors(*state))
    expected, num_images = drawn(source, student), source.num_images
    fresh = opened(name, teacher)
    fresh.restore(read_safetensors(tmp_path / "state"))
    assert same(drawn(fresh, student), expected)
    assert fresh.num_images == num_images
    source.restore(state)
    assert same(drawn(source, student), expected), "the state changed while the source went on"


@every_method
@pytest.mark.parametrize("stop", [4, *(pytest.param(stop, marks=pytest.mark.slow) for stop in (1, 7))])
def test_distillation_ends_with_the_same_bytes_after_a_stop(name: str, stop: int, tmp_path: Path) -> None:
    from kdextract.errors import Interrupted

    teacher = classifier().frozen()
    settings = USUAL_SETTINGS | live_method(name).settings
    loss = DistillationLossOptions(settings["loss"], settings["temperature"], True)

    def run(checkpoints: Any) -> dict[str, torch.Tensor]:
        student = classifier(seed=1)
        torch.manual_seed(3)
        source, augmenter = opened(name, teacher), Augmenter(settings["shift"], False, settings["warp"], 1)
        options = DistillationOptions(10, Schedule(9, 1e-3), loss, augmenter)
        distill(teacher, student, source, options, checkpoints, Reporter(quiet=True))
        return weights(student)

    with pytest.raises(Interrupted):
        run(StopAt(tmp_path / "checkpoint", stop))
    assert equal(run(StopAt(tmp_path / "checkpoint", None)), run(NoCheckpoints()))


class Counting(nn.Module):
    """A network that counts its input images."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.inner, self.seen = network, 0

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        self.seen += len(images)
        answers = self.inner(images)
        assert isinstance(answers, torch.Tensor)
        return answers


@every_method
@pytest.mark.parametrize("batch_norm", [True, False])
@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 32, 32)])
def test_counts_every_image_that_the_teacher_gets(name: str, batch_norm: bool, shape: tuple[int, int, int]) -> None:
    """In opening, steps and held-out images, at full and at half size."""
    teacher = classifier(shape, batch_norm=batch_norm).frozen()
    teacher.network = counting = Counting(teacher.network)
    statistics = statistics_of(teacher)
    known = {declared.name for declared in option_fields(live_method(name).config)}
    options = {option: value for option, value in SMALL.items() if option in known}
    method = live_method(name)
    source = method.open_source(
        Given(teacher, statistics if method.matches_batch_norm else None), method.config(**options), 0
    )
    drawn(source, classifier(shape, batch_norm=batch_norm, seed=1).train())
    with teacher.queries.purpose("probe"):
        source.held_out(12)
    assert teacher.queries.total == counting.seen
    assert teacher.queries.counts["targets"] > 0
    assert teacher.queries.counts.get("probe", 0) > 0, "the outermost purpose is what counts"
    assert "held_out" not in teacher.queries.counts


OF_ONE_BATCH = ("fast-warmup", "fast-pool_batch", "fast-ce", "fast-bn")


def is_slow(name: str, option: str) -> bool:
    """Whether an option is tested elsewhere, or like others of its method, for less time."""
    return name == "nayer" or f"{name}-{option}" in OF_ONE_BATCH


OPTIONS = [
    pytest.param(*option.values, marks=(*option.marks, *([pytest.mark.slow] if is_slow(*option.values) else [])))
    for option in options_of({name: live_method(name).config for name in live_names()})
]


@cache
def with_usual_options(name: str, steps: int) -> list[Batch]:
    """What a method draws for new networks like `teacher` and `student`."""
    return drawn(opened(name, classifier().frozen()), classifier(seed=1, dropout=0.3).train(), steps)


@pytest.mark.parametrize(("name", "option"), OPTIONS)
def test_every_option_has_an_effect(name: str, option: str, teacher: Classifier, student: Classifier) -> None:
    (declared,) = [field for field in option_fields(live_method(name).config) if field.name == option]
    usual = SMALL.get(option, declared.default)
    changed = {option: other_value(declared, usual)}
    steps = 24  # in structured noise, new images come every 20 steps
    assert not same(with_usual_options(name, steps), drawn(opened(name, teacher, **changed), student, steps))


@every_method
def test_what_options_are_compared_with_is_the_same_again(name: str, teacher: Classifier, student: Classifier) -> None:
    assert same(with_usual_options(name, 24), drawn(opened(name, teacher), student, 24))


@every_method
def test_declares_its_source(name: str) -> None:
    method = live_method(name)
    assert method.name == name
    assert len(method.source) > 10
    assert method.summary.endswith(".")
    assert method.needs == ("teacher with batch norm, or statistics" if method.matches_batch_norm else "teacher")
    assert issubclass(method.config, OptionSet)
    assert all(option_info(field).help for field in option_fields(method.config))
    assert method.settings.keys() <= USUAL_SETTINGS.keys()


@every_method
def test_facts_are_numbers(name: str, teacher: Classifier) -> None:
    source = opened(name, teacher)
    if isinstance(source, Described):
        assert source.facts
        assert all(isinstance(value, int | float) for value in source.facts.values())


def test_unknown_method_is_refused_with_the_most_similar_name() -> None:
    with pytest.raises(UsageError, match=r"'zskd'.* Did you mean 'zskt'"):
        live_method("zskd")


def test_registering_a_name_twice_is_refused() -> None:
    before = live_method("dfad")
    with pytest.raises(ValueError, match="'dfad' is registered twice"):
        register_live("dfad", config=OptionSet, source="nowhere", settings={}, structured=False)(
            lambda *arguments: None
        )
    assert live_method("dfad") is before


@pytest.mark.parametrize("name", ["fast", pytest.param("nayer", marks=pytest.mark.slow)])
def test_only_the_terms_of_a_generators_loss_are_drawn(name: str, teacher: Classifier, student: Classifier) -> None:
    source = opened(name, teacher)
    drawn(source, student, 4)
    assert isinstance(source, Optimized)
    assert {key for row in source.curve for key in row} == {"batch", "loss", "ce", "bn", "compete"}
    assert all(any(row[term] for row in source.curve) for term in ("loss", "ce", "bn"))
