"""The adversarial game: its start, the turns of generator and student, and that the generator reduces its loss."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import classifier, drawn, opened

from kdextract import api
from kdextract.errors import DivergedError, UsageError
from kdextract.methods import live_method
from kdextract.models.classifier import Classifier
from kdextract.models.hooks import count_multiply_adds
from kdextract.storage.artifacts import read_manifest
from kdextract.synthesis.adversarial_game import AdversarialSource, GameSchedule, NetworkOutputs, open_game
from kdextract.synthesis.generators.game_networks import (
    GAME_GENERATORS,
    LATENT,
    NARROWEST,
    WIDEST,
    fitting_width,
    game_multiply_adds,
)
from kdextract.synthesis.losses import Terms, class_imbalance, one_hot_error
from kdextract.synthesis.options import STARTS, GameConfig
from kdextract.synthesis.structured_noise.by_class import structured_pool
from kdextract.training.losses import kl_divergence, logit_l1

GAMES = ["zskt", "dfad", "dfq", "dafl"]
SHAPES = [(1, 28, 28), (3, 32, 32), (2, 21, 30), (3, 5, 4), (1, 64, 48)]

every_game = pytest.mark.parametrize("name", GAMES)
every_start = pytest.mark.parametrize("start", STARTS)
every_shape = pytest.mark.parametrize("shape", SHAPES)


@pytest.fixture
def teacher() -> Classifier:
    return classifier().frozen()


@pytest.fixture
def student() -> Classifier:
    return classifier(seed=1).train()


def difference(outputs: NetworkOutputs) -> Terms:
    return {"l1": -logit_l1(outputs.student, outputs.teacher, 1.0, False)}


# ---- generators ---------------------------------------------------------------------------------------------------


@every_start
@every_shape
@pytest.mark.parametrize("count", [1, 6])
def test_generators_make_pixels_of_any_shape(start: str, shape: tuple[int, int, int], count: int) -> None:
    torch.manual_seed(0)
    generator = GAME_GENERATORS[start](shape, 5)
    inputs = torch.randn((count, *generator.noise_shape))
    if generator.edits:
        inputs = torch.cat([torch.rand((count, *shape)), inputs], 1)
        for parameter in generator.parameters():
            torch.nn.init.normal_(parameter)
    images = generator(inputs)
    torch.autograd.grad(images.sum(), list(generator.parameters()))
    assert images.shape == (count, *shape)
    assert 0 <= float(images.detach().min()) < float(images.detach().max()) <= 1


@every_shape
def test_a_new_editor_changes_nothing(shape: tuple[int, int, int]) -> None:
    images = torch.rand((3, *shape))
    assert torch.equal(
        GAME_GENERATORS["structured"](shape, 4)(torch.cat([images, torch.randn(3, 1, *shape[1:])], 1)), images
    )


@every_start
@pytest.mark.parametrize("shape", [(1, 32, 32), (3, 33, 20)])
def test_a_generator_costs_what_is_affordable(start: str, shape: tuple[int, int, int]) -> None:
    generator = GAME_GENERATORS[start](shape, 9)
    inputs = torch.zeros((2, LATENT) if start == "noise" else (2, shape[0] + 1, *shape[1:]))
    assert game_multiply_adds(start, shape, 9) == count_multiply_adds(generator, inputs)
    for width in (NARROWEST, 7, 30):
        cost = game_multiply_adds(start, shape, width)
        assert fitting_width(start, shape, cost) == width
        assert fitting_width(start, shape, cost + 1) == width
        assert fitting_width(start, shape, cost - 1) == max(NARROWEST, width - 1)
    assert fitting_width(start, shape, 10**12) == WIDEST


@every_start
def test_the_width_depends_on_the_teacher_and_is_recorded(start: str, teacher: Classifier) -> None:
    game = opened("dfad", teacher, start=start)
    assert isinstance(game, AdversarialSource)
    cost = count_multiply_adds(teacher, torch.zeros(1, 1, 28, 28))
    assert game.facts["teacher_multiply_adds"] == cost
    assert game.facts["generator_width"] == fitting_width(start, (1, 28, 28), cost)
    chosen = opened("dfad", teacher, start=start, generator_width=11)
    assert isinstance(chosen, AdversarialSource)
    assert chosen.facts["generator_width"] == 11
    assert chosen.facts["generator_multiply_adds"] == game_multiply_adds(start, (1, 28, 28), 11)


# ---- start and replay ---------------------------------------------------------------------------------------------


@every_game
def test_it_begins_with_structured_noise(name: str, teacher: Classifier, student: Classifier) -> None:
    game = opened(name, teacher, seed=3, replay=0.0, student_steps=4)
    pool = structured_pool(teacher, 100, 4, seed=3)
    game.update(student)
    assert torch.equal(game.sample(12).images, pool.sample(12).images)
    for _ in range(6):
        game.update(student)
    stored = (structured_pool(teacher, 100, 4, seed=3)._images / 255).unsqueeze(0)
    changes = (game.sample(11).images.unsqueeze(1) - stored).abs().flatten(2).amax(2)
    assert float((changes.amin(1) > 0).float().mean()) > 0.5, "what would leave [0, 1] is cut off"


@pytest.mark.parametrize(("replay", "replayed"), [(0.0, 0), (0.25, 3), (0.5, 6), (1.0, 11)])
@every_start
def test_replayed_images_are_structured_noise_as_it_is(
    start: str, replay: float, replayed: int, teacher: Classifier, student: Classifier
) -> None:
    game = opened("dfad", teacher, start=start, replay=replay, student_steps=1, fresh=0, generator_lr=0.01)
    batch = drawn(game, student, steps=6, num_images=12)[-1]
    pool = {image.numpy().tobytes() for image in structured_pool(teacher, 100, 0, seed=0)._images}
    inside = [(image * 255).round().to(torch.uint8).numpy().tobytes() in pool for image in batch.images]
    assert inside == [False] * (12 - replayed) + [True] * replayed


def test_a_game_from_noise_alone_needs_no_pool(teacher: Classifier, student: Classifier) -> None:
    game = opened("dfad", teacher, start="noise", replay=0.0)
    assert game.num_images == 0
    assert teacher.queries.counts == {"blank": 1}, "for its cost"
    drawn(game, student, steps=5, num_images=10)
    assert game.num_images == 50
    assert teacher.queries.counts == {"blank": 1, "targets": 50, "synthesis": 2 * 6}, "two steps of the generator"


# ---- turns --------------------------------------------------------------------------------------------------------


@every_game
@pytest.mark.parametrize("student_steps", [1, 3])
def test_the_generator_moves_after_so_many_student_steps(
    name: str, student_steps: int, teacher: Classifier, student: Classifier
) -> None:
    game = opened(name, teacher, student_steps=student_steps)
    moved = ["generator_loss" in game.update(student) for _ in range(8)]
    assert moved == [step > 0 and step % student_steps == 0 for step in range(8)]


@pytest.mark.parametrize("repeat", [1, 3])
def test_images_are_repeated_but_the_teacher_processes_them_once(
    repeat: int, teacher: Classifier, student: Classifier
) -> None:
    game = opened("zskt", teacher, student_steps=100, repeat=repeat, replay=0.0, fresh=0)
    before = teacher.queries.total
    batches = drawn(game, student, steps=7)
    for index in range(1, 7):
        assert torch.equal(batches[index].images, batches[index - 1].images) == (index % repeat != 0)
    assert teacher.queries.total - before == 10 * -(-7 // repeat)


def test_published_values_are_the_defaults() -> None:
    turns = {name: live_method(name).config().student_steps for name in GAMES}  # type: ignore[attr-defined]
    assert turns == {"zskt": 10, "dfad": 5, "dfq": 10, "dafl": 1}
    dfq: Any = live_method("dfq").config()
    assert (dfq.bn, dfq.oh, dfq.adv, dfq.bal) == (1, 1, 1, 20)
    dafl: Any = live_method("dafl").config()
    assert (dafl.oh, dafl.ie, dafl.act) == (1, 5, 0.1)


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("start", "strokes"),
        ("generator_lr", 0.0),
        ("generator_batch", 1),
        ("generator_width", 0),
        ("replay", 1.1),
        ("student_steps", 0),
    ],
)
@every_game
def test_values_out_of_range_are_refused(name: str, option: str, value: Any) -> None:
    with pytest.raises(UsageError, match=f"--{option.replace('_', '-')}"):
        live_method(name).config(**{option: value})


# ---- terms of the generator -----------------------------------------------------------------------------------------


def gap(name: str, teacher: Classifier, student: Classifier, images: torch.Tensor) -> float:
    """Return the difference of student and teacher, as measured by the game `name`."""
    with torch.no_grad():
        answers = student(images), teacher(images)
        return float(logit_l1(*answers, 1.0, False) if name == "dfad" else kl_divergence(*answers, 1.0, False))


@pytest.mark.parametrize("name", ["zskt", "dfad"])
@every_start
def test_disagreement_rises_while_the_student_is_fixed(name: str, start: str, teacher: Classifier) -> None:
    student = classifier(seed=1).eval()
    game = opened(name, teacher, start=start, replay=0.0, student_steps=1, generator_batch=32, generator_lr=5e-3)
    before = gap(name, teacher, student, game.sample(100).images)
    for _ in range(31):
        game.update(student)
    assert gap(name, teacher, student, game.sample(101).images) > 1.3 * before


@every_start
def test_dfq_reaches_each_of_its_aims(start: str, teacher: Classifier) -> None:
    student = classifier(seed=1).eval()

    def made(**weights: float) -> torch.Tensor:
        """Logits of the teacher on images of a generator that learned with these weights alone."""
        options: dict[str, Any] = {"bn": 0.0, "oh": 0.0, "adv": 0.0, "bal": 0.0, "generator_lr": 5e-3} | weights
        game = opened("dfq", teacher, start=start, replay=0.0, student_steps=1, generator_batch=32, **options)
        for _ in range(31):
            game.update(student)
        with torch.no_grad():
            return teacher(game.sample(200).images)

    untouched = made()
    assert one_hot_error(made(oh=1.0)) < 0.9 * one_hot_error(untouched)
    assert class_imbalance(made(bal=1.0)) < class_imbalance(untouched)
    assert not torch.equal(made(adv=1.0), untouched)
    assert not torch.equal(made(bn=1.0), untouched)


def features_of(teacher: Classifier, images: torch.Tensor) -> torch.Tensor:
    """Return the inputs of the last layer."""
    with torch.no_grad():
        return teacher.network[:-1]((images - teacher.mean) / teacher.std)  # type: ignore[index]


@every_start
def test_dafl_reaches_each_of_its_aims(start: str, teacher: Classifier) -> None:
    student = classifier(seed=1).eval()

    def made(**weights: float) -> torch.Tensor:
        """Images of a generator that learned with these weights alone."""
        options: dict[str, Any] = {"oh": 0.0, "act": 0.0, "ie": 0.0, "generator_lr": 5e-3} | weights
        game = opened("dafl", teacher, start=start, replay=0.0, student_steps=1, generator_batch=32, **options)
        for _ in range(31):
            game.update(student)
        return game.sample(200).images

    untouched = made()
    sure, even, strong = made(oh=1.0), made(ie=1.0), made(act=1.0)
    with torch.no_grad():
        assert one_hot_error(teacher(sure)) < 0.9 * one_hot_error(teacher(untouched))
        assert class_imbalance(teacher(even)) < class_imbalance(teacher(untouched))
    assert features_of(teacher, strong).abs().mean() > 1.1 * features_of(teacher, untouched).abs().mean()


def test_the_loss_of_dafl_is_the_sum_of_its_terms(teacher: Classifier, student: Classifier) -> None:
    """Each computed here from the images that the generator made, by the paper's formulas in NumPy."""
    game = opened("dafl", teacher, student_steps=1, generator_batch=16, oh=0.7, act=0.3, ie=2.0)
    assert isinstance(game, AdversarialSource)
    seen: list[torch.Tensor] = []
    teacher.network.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0].detach()))
    game.update(student)
    told = game.update(student)["generator_loss"]
    images = seen[-1] * teacher.std + teacher.mean
    with torch.no_grad():
        logits = teacher(images).double().numpy()
    shares = np.exp(logits - logits.max(1, keepdims=True))
    shares /= shares.sum(1, keepdims=True)
    mean = shares.mean(0)
    expected = (
        0.7 * -np.log(shares.max(1)).mean()
        - 0.3 * np.abs(features_of(teacher, images).double().numpy()).mean()
        + 2.0 * (mean * np.log10(mean)).sum() / np.log10(4)
    )
    assert told == pytest.approx(expected, rel=1e-4)


def test_batch_norm_terms_are_used_if_the_teacher_has_batch_norm() -> None:
    student = classifier(seed=1)
    for batch_norm, layers in ((True, 2), (False, 0)):
        teacher = classifier(batch_norm=batch_norm).frozen()
        losses = []
        for weight in (1.0, 2.0):
            game = opened("dfq", teacher, student_steps=1, bn=weight)
            assert isinstance(game, AdversarialSource)
            assert game.facts["batch_norm_layers"] == layers
            game.update(student)
            losses.append(game.update(student)["generator_loss"])
        assert (losses[0] < losses[1]) if batch_norm else (losses[0] == losses[1])


def test_only_a_game_that_uses_batch_norm_gets_its_statistics(teacher: Classifier, student: Classifier) -> None:
    seen = []

    def terms(outputs: NetworkOutputs) -> Terms:
        seen.append(len(outputs.batch_norm))
        assert outputs.student.shape == outputs.teacher.shape == (6, 4)
        return difference(outputs)

    config = GameConfig(pool=100, fresh=4, generator_batch=6)
    for watches in (False, True):
        drawn(open_game(teacher, GameSchedule(terms, 1, uses_batch_norm=watches), config, 0), student, steps=2)
    assert seen == [0, 2]


def test_gradients_are_clipped(teacher: Classifier, student: Classifier) -> None:
    """Adam's first moment is a tenth of the first gradient."""
    config = GameConfig(start="noise", replay=0.0, generator_batch=6)
    game = open_game(teacher, GameSchedule(lambda outputs: {"l1": 1e4 * difference(outputs)["l1"]}, 1), config, 0)
    drawn(game, student, steps=2)
    moments = [tensor.square().sum() for name, tensor in game.state()[0].items() if name.endswith("exp_avg")]
    assert float(torch.stack(moments).sum().sqrt()) == pytest.approx(0.5, rel=1e-3)


def test_a_loss_that_is_not_finite_is_an_error(teacher: Classifier, student: Classifier) -> None:
    config = GameConfig(start="noise", replay=0.0, generator_batch=6)
    game = open_game(teacher, GameSchedule(lambda outputs: {"l1": difference(outputs)["l1"] / 0}, 1), config, 0)
    with pytest.raises(DivergedError, match="--generator-lr"):
        drawn(game, student, steps=2)


def test_a_batch_of_another_size_is_not_the_kept_one(teacher: Classifier, student: Classifier) -> None:
    game = opened("zskt", teacher, repeat=5, replay=0.0)
    assert [len(game.sample(count).images) for count in (6, 6, 3)] == [6, 6, 3]


def test_the_curve_has_every_step_and_term(teacher: Classifier, student: Classifier) -> None:
    game = opened("dafl", teacher, student_steps=2)
    assert isinstance(game, AdversarialSource)
    assert game.curve == []
    told = [game.update(student).get("generator_loss") for _ in range(7)]
    losses = [loss for loss in told if loss is not None]
    assert [row["generator step"] for row in game.curve] == [1, 2, 3]
    assert [row["loss"] for row in game.curve] == losses
    for row in game.curve:
        assert row.keys() == {"generator step", "loss", "oh", "ie", "act"}
        assert row["oh"] + row["ie"] + row["act"] == pytest.approx(row["loss"], rel=1e-5)
    other = opened("dafl", teacher, student_steps=2)
    assert isinstance(other, AdversarialSource)
    other.restore(game.state())
    assert other.curve == game.curve


def test_rules_are_frozen() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        GameSchedule(difference, 1).repeat = 2  # type: ignore[misc]


# ---- manifest -----------------------------------------------------------------------------------------------------


def test_the_chosen_values_are_in_the_manifest(run_copy: Path) -> None:
    options: dict[str, Any] = {"method": "dfq", "steps": 12, "pool": 100, "fresh": 4, "batch_size": 10}
    outcome = api.distill(run=run_copy, name="game", threads=1, **options)
    metrics = read_manifest(outcome.directory).metrics
    assert metrics["source_facts"]["batch_norm_layers"] == 0
    assert metrics["source_facts"]["teacher_multiply_adds"] == 416_520
    assert metrics["settings"]["temperature"] == 20
    assert "source_facts" not in read_manifest(run_copy / "students" / "lenet_half").metrics
