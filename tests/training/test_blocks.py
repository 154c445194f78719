"""Block matching: which blocks correspond, its loss, and what it leaves unchanged."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from helpers import StopAt, equal, weights
from torch import nn

from kdextract.errors import Interrupted
from kdextract.models.blocks import MOST_BLOCKS, BlockPair, find_pairs, trace
from kdextract.models.classifier import Classifier, ClassifierSpec
from kdextract.models.external.names import Share
from kdextract.models.hooks import record_activations
from kdextract.models.pruning.cut import cut_to, kept_outputs
from kdextract.stages.distill.budget import NoCheckpoints
from kdextract.training.augmentation import Augmenter
from kdextract.training.blocks import FLOOR, BlockLoss, BlockOptions, channel_scale
from kdextract.training.distill import DistillationLossOptions, DistillationOptions, distill
from kdextract.training.loop import Schedule
from kdextract.training.progress import Reporter
from kdextract.training.sources import ImagePool

CPU = torch.device("cpu")
QUIET = Reporter(quiet=True)


class Residual(nn.Module):
    """A residual block; `passes` times over its own weights."""

    def __init__(self, channels: int, norm: Callable[[int], nn.Module], passes: int = 1) -> None:
        super().__init__()
        self.conv1, self.norm1 = nn.Conv2d(channels, channels, 3, padding=1), norm(channels)
        self.conv2, self.norm2 = nn.Conv2d(channels, channels, 3, padding=1), norm(channels)
        self.passes = passes

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for _ in range(self.passes):
            x = x + self.norm2(self.conv2(torch.relu(self.norm1(self.conv1(x)))))
        return x


class Blocky(nn.Module):
    """A stem, residual blocks in a stage, each followed by ReLU in place, and a linear layer."""

    def __init__(self, channels: int, classes: int, norm: Callable[[int], nn.Module] = nn.BatchNorm2d) -> None:
        super().__init__()
        self.stem = nn.Conv2d(channels, 8, 3, padding=1)
        self.stage = nn.ModuleList([Residual(8, norm) for _ in range(2)])
        self.fc = nn.Linear(8, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        for block in self.stage:
            x = F.relu(block(x), inplace=True)
        return self.fc(x.mean((2, 3)))


class Twice(nn.Module):
    """A block that runs twice, and a layer whose output is a tuple."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.fc = nn.Conv2d(1, 4, 3, padding=1), nn.Linear(4, 3)
        self.shared, self.pair = Residual(4, nn.BatchNorm2d), Tupled()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x, _ = self.pair(self.shared(self.shared(self.stem(x))))
        return self.fc(x.mean((2, 3)))


class Tupled(nn.Conv2d):
    """A layer with two outputs."""

    def __init__(self) -> None:
        super().__init__(4, 4, 1)

    def forward(self, x: torch.Tensor) -> Any:
        return super().forward(x), x


def of(network: nn.Module, shape: tuple[int, int, int] = (3, 8, 8), classes: int = 3) -> Classifier:
    """Return a classifier with this network, which no file can hold."""
    names = tuple(f"class {index}" for index in range(classes))
    spec = ClassifierSpec("hinton800", shape, names, (0.4,) * shape[0], (0.3,) * shape[0])
    return Classifier(spec, network).eval()


def made(name: str, shape: tuple[int, int, int] = (1, 32, 32), classes: int = 10) -> Classifier:
    torch.manual_seed(0)
    names = tuple(f"class {index}" for index in range(classes))
    return Classifier(ClassifierSpec(name, shape, names, (0.3,) * shape[0], (0.35,) * shape[0])).eval()


def names(pairs: list[BlockPair]) -> list[str]:
    return [pair.teacher for pair in pairs]


def norm_of(kind: str) -> Callable[[int], nn.Module]:
    kinds: dict[str, Callable[[int], nn.Module]] = {
        "batch": nn.BatchNorm2d,
        "none": lambda channels: nn.Identity(),
        "group": lambda channels: nn.GroupNorm(2, channels),
    }
    return kinds[kind]


# ---- which blocks ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "shape", "expected"),
    [
        ("resnet14", (3, 32, 32), [f"block{stage}_{index}" for stage in (1, 2, 3) for index in (1, 2)]),
        ("lenet5_bn", (1, 32, 32), ["bn1", "bn2", "conv3", "fc1"]),
        ("hinton800", (1, 28, 28), ["fc1", "fc2"]),
    ],
)
def test_blocks_of_our_networks(name: str, shape: tuple[int, int, int], expected: list[str]) -> None:
    network = made(name, shape)
    before = weights(network)
    assert trace(network).blocks() == expected
    assert equal(weights(network), before)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in network.modules())


def test_wrappers_containers_and_second_calls_do_not_hide_blocks() -> None:
    torch.manual_seed(0)
    found = trace(of(nn.Sequential(Blocky(3, 5)), classes=5)).blocks()
    assert found == ["0.stage.0", "0.stage.1"]
    assert trace(of(Twice(), (1, 8, 8))).blocks() == ["shared", "shared#2"], "and the tuple is left out"
    many = nn.Sequential(*[layer for _ in range(20) for layer in (nn.Linear(8, 8), nn.ReLU(inplace=True))])
    flat = nn.Sequential(nn.Flatten(), nn.Linear(3 * 64, 8), many, nn.Linear(8, 3))
    calls = trace(of(flat)).blocks()
    assert len(calls) == MOST_BLOCKS
    assert (calls[0], calls[-1]) == ("1", "2.38")


@pytest.mark.parametrize(
    ("name", "count", "first"),
    [
        ("resnet18", 8, "layer1.0"),
        ("vgg11", 10, "features.0"),
        ("vgg11_bn", 10, "features.1"),
        ("mobilenet_v2", MOST_BLOCKS, "features.1"),
        ("squeezenet1_1", 8, "features.3"),
        ("efficientnet_b0", MOST_BLOCKS, "features.1.0"),
        ("shufflenet_v2_x0_5", MOST_BLOCKS, "stage2.0"),
        ("vit_b_16", 12, "encoder.layers.encoder_layer_0"),
        ("convnext_tiny", MOST_BLOCKS, "features.1.0"),
        ("swin_t", 12, "features.1.0"),
    ],
)
@pytest.mark.slow
def test_blocks_of_torchvision_networks(name: str, count: int, first: str) -> None:
    torchvision = pytest.importorskip("torchvision")
    network = torchvision.models.get_model(name, weights=None, num_classes=5)
    size = 224 if name == "vit_b_16" else 64
    found = trace(of(network, (3, size, size), 5)).blocks()
    assert len(found) == count, found
    assert found[0] == first


# ---- which pairs -------------------------------------------------------------------------------------------------


def test_a_cut_student_has_the_channels_of_the_teacher_that_were_kept() -> None:
    """Without batch normalization or biases to estimate, each kept channel of the first layer is the teacher's."""
    teacher = made("lenet5_bn")
    cut = cut_to(teacher, Share("width", 0.5))
    pairs = find_pairs(teacher, cut.classifier, kept_outputs(teacher, cut))
    assert names(pairs) == ["bn1", "bn2", "conv3", "fc1"]
    assert [len(pair.channels or ()) for pair in pairs] == [3, 8, 60, 42]
    outputs = []
    for one in (teacher, cut.classifier):
        with record_activations(one.network, ["bn1"]) as recorded, torch.no_grad():
            one(torch.rand(4, 1, 32, 32, generator=torch.Generator().manual_seed(0)))
        outputs.append(recorded["bn1"])
    torch.testing.assert_close(outputs[1], outputs[0][:, list(pairs[0].channels or ())])
    assert not find_pairs(teacher, cut.classifier, {}), "without the indices, no shapes are equal"


def test_a_cut_residual_stream_is_matched_by_the_channels_that_were_kept() -> None:
    torch.manual_seed(0)
    teacher = made("wrn16_1", (3, 32, 32))
    cut = cut_to(teacher, Share("width", 0.5))
    kept = kept_outputs(teacher, cut)
    pairs = find_pairs(teacher, cut.classifier, kept)
    assert len(pairs) == 6
    for pair in pairs:
        assert pair.channels is not None
        layer = cut.classifier.network.get_submodule(pair.student).conv2
        assert len(pair.channels) == layer.out_channels < teacher.network.get_submodule(pair.teacher).conv2.out_channels
        assert list(pair.channels) == kept[f"{pair.teacher}.conv2"]


def test_factorized_students_are_matched_and_other_networks_by_the_last_block_of_a_shape() -> None:
    teacher = made("resnet14", (3, 32, 32))
    spec = replace(teacher.spec, factors=(("block1_1.conv1", 4, 4),))
    assert len(find_pairs(teacher, Classifier(spec), {})) == 6
    assert [
        (p.teacher, p.student) for p in find_pairs(made("resnet34", (3, 32, 32)), made("resnet18", (3, 32, 32)), {})
    ] == [
        ("block1_3", "block1_2"),
        ("block2_4", "block2_2"),
        ("block3_6", "block3_2"),
        ("block4_3", "block4_2"),
    ]
    assert not find_pairs(made("lenet5_bn"), made("lenet5_half"), {})


# ---- the loss ----------------------------------------------------------------------------------------------------


class Cloned:
    """Copies of the outputs of modules, made in the order of calls."""

    def __init__(self, network: nn.Module, name: str) -> None:
        self.outputs: list[torch.Tensor] = []
        network.get_submodule(name).register_forward_hook(lambda m, i, output: self.outputs.append(output.clone()))


def expected_loss(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    """The formula of the loss of one block [batch, channels, ...], in float64, channel by channel."""
    variances = [float(theirs[:, channel].double().var(correction=0)) for channel in range(theirs.shape[1])]
    least = FLOOR * sum(variances) / len(variances)
    squares = [
        float((ours[:, channel] - theirs[:, channel]).detach().double().square().mean()) / max(variance, least)
        for channel, variance in enumerate(variances)
    ]
    return sum(squares) / len(squares)


@pytest.mark.parametrize("kind", ["batch", "group", "none"])
@pytest.mark.parametrize(("shape", "count", "layout"), [((1, 8, 8), 5, None), ((3, 6, 9), 2, torch.channels_last)])
def test_the_loss_is_its_formula_where_the_outputs_are_changed_in_place(
    kind: str, shape: tuple[int, int, int], count: int, layout: torch.memory_format | None
) -> None:
    torch.manual_seed(0)
    teacher, student = (of(Blocky(shape[0], 3, norm_of(kind)), shape) for _ in range(2))
    pairs = find_pairs(teacher, student, {})
    assert names(pairs) == ["stage.0", "stage.1"]
    x = torch.rand(count, *shape)
    x = x if layout is None else x.contiguous(memory_format=layout)
    copies = {one: [Cloned(one.network, name) for name in names(pairs)] for one in (teacher, student)}
    loss = BlockLoss(BlockOptions(tuple(pairs), 2.5), CPU)
    with loss.attached(teacher, student):
        student(x), teacher(x)  # are not watched
        with loss.watching():
            with torch.no_grad():
                teacher(x)
            student(x)
    value = loss.value()
    value.backward()
    terms = [expected_loss(s.outputs[1], t.outputs[1]) for s, t in zip(copies[student], copies[teacher], strict=True)]
    assert float(value.detach()) == pytest.approx(2.5 * sum(terms) / 2, rel=1e-4)
    gradient = student.network.stem.weight.grad
    assert gradient is not None
    assert float(gradient.abs().max()) > 0


def test_the_loss_takes_the_kept_channels_and_does_not_depend_on_the_scale() -> None:
    torch.manual_seed(0)
    teacher, student = (
        of(Blocky(3, 3)),
        of(nn.Sequential(nn.Conv2d(3, 3, 3, padding=1), nn.Flatten(), nn.Linear(192, 3))),
    )
    x = torch.rand(4, 3, 8, 8)
    values = []
    for factor in (1.0, 100.0):
        mine, theirs = copy.deepcopy(student), copy.deepcopy(teacher)
        with torch.no_grad():
            for layer in (mine.network[0], theirs.network.stem):
                layer.weight *= factor
                layer.bias *= factor
        ours, reference = Cloned(mine.network, "0"), Cloned(theirs.network, "stem")
        loss = BlockLoss(BlockOptions((BlockPair("stem", "0", 1, (1, 4, 7)),), 1.0), CPU)
        with loss.attached(theirs, mine), loss.watching(), torch.no_grad():
            theirs(x)
            mine(x)
        values.append(float(loss.value()))
        assert values[-1] == pytest.approx(expected_loss(ours.outputs[0], reference.outputs[0][:, [1, 4, 7]]), rel=1e-4)
    assert values[0] == pytest.approx(values[1], rel=1e-4)


def test_channels_without_variance_leave_the_loss_finite() -> None:
    x = torch.zeros(4, 3, 2, 2)
    assert torch.equal(channel_scale(x, 1), torch.ones(1, 3, 1, 1))
    x[:, 0] = torch.randn(4, 2, 2)
    scale = channel_scale(x, 1).flatten()
    least = float(x[:, 0].var(correction=0)) * FLOOR / 3
    assert scale[1:].tolist() == pytest.approx([least**-0.5] * 2, rel=1e-5)
    assert channel_scale(torch.randn(4, 7, 5), 2).shape == (1, 1, 5)


# ---- in the loop -------------------------------------------------------------------------------------------------


def pool(shape: tuple[int, int, int], targets: torch.Tensor | None = None) -> ImagePool:
    pixels = torch.randint(0, 256, (40, *shape), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    return ImagePool(pixels, targets, 3, CPU)


def train(
    teacher: Classifier, student: Classifier, source: ImagePool, weight: float = 10.0, steps: int = 6, **options: Any
) -> Classifier:
    pairs = tuple(find_pairs(teacher, student, {}))
    assert pairs
    settings = DistillationOptions(
        8,
        Schedule(steps, 1e-3),
        DistillationLossOptions("kl", 4.0, True),
        Augmenter(0, False, 0.0, 0),
        options.pop("batch_norm", "train"),
        BlockOptions(pairs, weight) if weight else None,
    )
    distill(teacher, student, source, settings, options.pop("checkpoints", NoCheckpoints()), QUIET)
    return student


def blocky(seed: int, kind: str = "batch") -> Classifier:
    torch.manual_seed(seed)
    return of(Blocky(3, 3, norm_of(kind)))


@pytest.mark.parametrize("batch_norm", ["train", "frozen", "frozen-affine"])
def test_matching_makes_blocks_more_similar_and_leaves_the_teacher_as_it_is(batch_norm: str) -> None:
    teacher, results = blocky(0), {}
    before = weights(teacher)
    for weight in (0.0, 10.0):
        student = train(teacher, blocky(1), pool((3, 8, 8)), weight, 30, batch_norm=batch_norm)
        x = pool((3, 8, 8)).sample(40).images
        with torch.no_grad():
            with record_activations(teacher.network, ["stage.1"]) as ours:
                teacher(x)
            with record_activations(student.network, ["stage.1"]) as theirs:
                student(x)
        results[weight] = float((ours["stage.1"] - theirs["stage.1"]).square().mean())
        assert equal(weights(teacher), before)
        assert not teacher.training
        assert not any(m._forward_hooks or m._forward_pre_hooks for one in (teacher, student) for m in one.modules())
    assert results[10.0] < 0.8 * results[0.0]


def test_one_query_per_image_gives_logits_and_blocks_and_supplied_targets_stay() -> None:
    supplied = torch.randn(40, 3, generator=torch.Generator().manual_seed(1))
    teacher = blocky(0)
    for targets, weight, queries in ((None, 10.0, 48), (supplied, 10.0, 48), (None, 0.0, 48), (supplied, 0.0, None)):
        teacher.queries.counts.clear()
        train(teacher, blocky(1), pool((3, 8, 8), targets), weight)
        assert teacher.queries.counts.get("targets") == queries
    ends = [weights(train(teacher, blocky(1), pool((3, 8, 8), t), 10.0)) for t in (supplied, supplied + 1.0, None)]
    layers = [end["fc.weight"] for end in ends]
    same, other = (float((layers[0] - layer).abs().max()) for layer in layers[1:])
    assert same < 0.01 * other, "softmax ignores the constant, and the teacher has other logits"


def test_a_resumed_run_ends_with_the_same_bytes(tmp_path: Path) -> None:
    straight = weights(train(blocky(0), blocky(1), pool((3, 8, 8)), steps=9))
    with pytest.raises(Interrupted):
        train(blocky(0), blocky(1), pool((3, 8, 8)), steps=9, checkpoints=StopAt(tmp_path / "state", 4))
    resumed = train(blocky(0), blocky(7), pool((3, 8, 8)), steps=9, checkpoints=StopAt(tmp_path / "state", None))
    assert equal(weights(resumed), straight)


def test_blocks_that_run_twice_are_compared_at_each_call() -> None:
    torch.manual_seed(0)
    teacher, student = of(Twice(), (1, 8, 8)), of(Twice(), (1, 8, 8))
    assert names(find_pairs(teacher, student, {})) == ["shared", "shared#2"]
    assert train(teacher, student, pool((1, 8, 8))) is student


def test_in_bfloat16_it_ends_near_float32() -> None:
    ends = [
        weights(train(*(blocky(seed).placed(CPU, precision) for seed in (0, 1)), pool((3, 8, 8)), steps=5))
        for precision in (None, torch.bfloat16)
    ]
    assert not equal(*ends)
    torch.testing.assert_close(ends[1]["stem.weight"], ends[0]["stem.weight"], rtol=0, atol=0.01)


@pytest.mark.slow
def test_compiled_networks_end_near_plain_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    compile_ = torch.nn.Module.compile
    monkeypatch.setattr(torch.nn.Module, "compile", lambda self: compile_(self, backend="aot_eager"))
    torch._dynamo.reset()
    plain, compiled, unmatched = (
        weights(train(*(blocky(seed).placed(CPU, compiled=compiled) for seed in (0, 1)), pool((3, 8, 8)), weight, 5))
        for compiled, weight in ((False, 10.0), (True, 10.0), (True, 0.0))
    )
    near, far = (float((plain[key] - end[key]).abs().max()) for key in ["stem.weight"] for end in (compiled, unmatched))
    assert near < 0.1 * far
