"""`kdx compress`: a smaller network from the teacher's weights, by Tucker decomposition of its layers."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from ..errors import ConfigError, UsageError
from ..options.declare import NamedStageConfig, TeacherConfig, option
from ..storage.run_dir import RunDir
from .running.runner import Plan, Stage, StageContext

if TYPE_CHECKING:
    import torch
    from torch import nn

    from ..models.classifier import Classifier
    from ..models.factorized import LayerRanks

EVBMF = "evbmf"
PRESETS = {
    "kegnet-1": {
        "lenet5": "conv3",
        "resnet14": "block3_1.conv1,block3_2.conv1",
        "kegnet_mlp": ",".join(f"fc{index}=10x10" for index in range(2, 11)),
    },
    "kegnet-2": {
        "lenet5": "conv2,conv3",
        "resnet14": "block3_1.conv2,block3_2.conv2",
        "kegnet_mlp": ",".join(f"fc{index}=5x5" for index in range(2, 11)),
    },
    "kegnet-3": {
        "lenet5": "conv2,conv3=5x8",
        "resnet14": "block3_1.conv1,block3_1.conv2,block3_2.conv1,block3_2.conv2",
    },
    "bdnf-1": {
        "lenet5": "conv3=0.15",
        "resnet14": "block2_1.conv1=0.9,block2_2.conv1=0.9,block3_1.conv1=0.4,block3_2.conv1=0.4",
        "resnet14 on grey images": "block2_1.conv1=0.9,block2_2.conv1=0.9,block3_1.conv1=0.6,block3_2.conv1=0.6",
    },
    "bdnf-2": {
        "lenet5": "conv2=0.5,conv3=0.15",
        "resnet14": "block2_1.conv2=0.6,block2_2.conv2=0.6,block3_1.conv2=0.2,block3_2.conv2=0.2",
        "resnet14 on grey images": "block2_1.conv2=0.6,block2_2.conv2=0.6,block3_1.conv2=0.3,block3_2.conv2=0.3",
    },
}
"""Published students: preset -> architecture of the teacher -> its layers and ranks, in the syntax of `--layers`."""
PRESETS["bdnf-3"] = {"lenet5": "conv2=0.3,conv3=0.15"} | {
    name: f"{PRESETS['bdnf-1'][name]},{PRESETS['bdnf-2'][name]}" for name in ("resnet14", "resnet14 on grey images")
}


@dataclass(frozen=True, kw_only=True)
class CompressConfig(NamedStageConfig, TeacherConfig):
    """Decompose the teacher's layers (Tucker-2).

    A layer is replaced by three smaller layers. The ranks of a layer are computed from its weights (--tucker evbmf, the
    default) or from its number of channels (--tucker-ratio), or given (--tucker-ranks). --layers names the layers, each
    with its own rule if needed: NAME, NAME=evbmf, NAME=0.3 or NAME=5x8. The result is an initial student: `kdx distill
    --student compressed/NAME` trains it.

    Examples:

      kdx compress
      kdx compress --tucker-ratio 0.3 --layers conv2,conv3
      kdx compress --preset kegnet-3 && kdx distill --student compressed/kegnet-3
    """

    tucker: str | None = option(
        None,
        "Rule for the ranks: EVBMF of the singular values of the weights.",
        choices=[EVBMF],
        panel="Ranks",
        otherwise="evbmf",
    )
    tucker_ratio: float | None = option(
        None, "Ranks as a share N of a layer's inputs and outputs.", above=0, maximum=1, panel="Ranks"
    )
    tucker_ranks: str | None = option(None, "Ranks of every layer: inputs,outputs.", metavar="I,O", panel="Ranks")
    layers: str | None = option(
        None,
        "Layers to decompose, separated by commas, each with a rule if needed.",
        metavar="LAYERS",
        panel="Ranks",
        otherwise="all convolutions and linear layers but the first and the last",
    )
    preset: str | None = option(
        None,
        "Layers and ranks of a published student of lenet5, resnet14 or kegnet_mlp.",
        choices=sorted(PRESETS),
        panel="Ranks",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        rules = [name for name in ("tucker", "tucker_ratio", "tucker_ranks") if getattr(self, name) is not None]
        if len(rules) > 1:
            raise UsageError(f"--{rules[0].replace('_', '-')} and --{rules[1].replace('_', '-')} exclude each other")
        if self.preset is not None and (rules or self.layers is not None):
            raise UsageError("--preset sets both layers and ranks; leave out --layers and --tucker...")
        if self.preset is None:
            self.rules_by_layer("", 0)

    def common_rule(self) -> Rule:
        """The rule of layers without a rule of their own."""
        if self.tucker_ratio is not None:
            return self.tucker_ratio
        return EVBMF if self.tucker_ranks is None else _ranks(self.tucker_ranks.replace(",", "x"), self.tucker_ranks)

    def rules_by_layer(self, architecture: str, channels: int) -> dict[str, Rule] | None:
        """Layer -> rule, None if no layer is named.

        Raises:
            ConfigError: the preset has no layers for this architecture.
        """
        common = self.common_rule()
        text = self.layers
        if self.preset is not None:
            known = PRESETS[self.preset]
            text = known.get(
                architecture if channels > 1 else f"{architecture} on grey images", known.get(architecture)
            )
            if text is None:
                raise ConfigError(
                    f"--preset {self.preset} is for {', '.join(known)}, and the teacher is {architecture}"
                )
        if text is None:
            return None
        rules: dict[str, Rule] = {}
        for entry in text.split(","):
            name, _, rule = entry.strip().partition("=")
            if not name or name in rules:
                raise UsageError(f"--layers names layers once each, such as conv2,conv3=0.3, got {text!r}")
            rules[name] = _rule(rule) if rule else common
        return rules


Rule = str | float | tuple[int, int]
"""`evbmf`, a share of the channels, or (in rank, out rank)."""


def _rule(text: str) -> Rule:
    if text == EVBMF:
        return EVBMF
    if re.fullmatch(r"0?\.\d+|1(\.0*)?", text) and float(text) > 0:
        return float(text)
    return _ranks(text, text)


def _ranks(text: str, typed: str) -> tuple[int, int]:
    match = re.fullmatch(r"([1-9]\d{0,6})x([1-9]\d{0,6})", text)
    if match is None:
        raise UsageError(f"ranks are evbmf, a share in (0, 1], or inputs and outputs such as 5x8 (5,8), got {typed!r}")
    return int(match[1]), int(match[2])


def plan(config: CompressConfig, run: RunDir) -> Plan[None]:
    """Plan: reads the teacher alone."""
    teacher = run.artifact(run.teacher()).input("teacher")
    return Plan(run.place("compressed", config.name or config.preset or "tucker"), (teacher,), "teacher", None)


def execute(config: CompressConfig, resolved: None, context: StageContext) -> dict[str, Any]:
    """Choose ranks, decompose, write `model.safetensors`."""
    import torch

    from ..models.classifier import Classifier, encode_classifier
    from ..models.hooks import count_multiply_adds

    teacher = context.teacher().to("cpu")
    if teacher.spec.factors:
        raise ConfigError("the teacher's layers are decomposed already")
    if teacher.spec.kept:
        raise ConfigError("the teacher's channels were cut; decompose the layers first, and cut the result")
    rules = config.rules_by_layer(teacher.spec.architecture, teacher.input_shape[0])
    layers = choose_ranks(teacher.network, rules, config.common_rule())
    compressed = Classifier(replace(teacher.spec, factors=tuple(layers)))
    with context.phase("decomposition"):
        errors = fill(teacher, compressed)
    context.write("model.safetensors", encode_classifier(compressed))
    blank = torch.zeros(1, *teacher.input_shape)
    costs = [count_multiply_adds(classifier.eval().network, blank) for classifier in (teacher, compressed)]
    return {
        "model": teacher.spec.architecture,
        "num_parameters": compressed.num_parameters,
        "teacher_parameters": teacher.num_parameters,
        "multiply_adds": costs[1],
        "teacher_multiply_adds": costs[0],
        "ranks": [f"{name} {inwards}x{outwards}" for name, inwards, outwards in layers],
        "weight_errors": [f"{name} {errors[name]:.3f}" for name, _, _ in layers],
    }


def choose_ranks(network: nn.Module, rules: dict[str, Rule] | None, common: Rule) -> list[LayerRanks]:
    """Return (layer, in rank, out rank) for the layers that have a rule, or for all but the first and the last.

    Raises:
        ConfigError: the network has no such layer.
    """
    from ..models.factorized import factorizable_layers
    from ..models.tucker import evbmf_ranks

    present = factorizable_layers(network)
    if rules is None:
        rules = dict.fromkeys(list(present)[1:-1], common)
        if not rules:
            raise ConfigError("the teacher has no layers between its first and its last; name some with --layers")
    chosen: list[LayerRanks] = []
    for name, rule in rules.items():
        if name not in present:
            raise ConfigError(f"the teacher has no convolution or linear layer {name!r}; it has {', '.join(present)}")
        weight = present[name].weight
        outputs, inputs = weight.shape[:2]
        if isinstance(rule, tuple):
            ranks = rule
        elif isinstance(rule, float):
            ranks = max(1, int(rule * inputs)), max(1, int(rule * outputs))
        else:
            ranks = evbmf_ranks(weight)
        chosen.append((name, *ranks))
    return chosen


def fill(teacher: Classifier, compressed: Classifier) -> dict[str, float]:
    """Copy the teacher's weights into the compressed network, decomposed for the layers that it has as factors.

    Returns:
        Layer -> relative error of its weight.
    """
    import torch

    from ..models.tucker import tucker2

    weights: dict[str, torch.Tensor] = dict(teacher.network.state_dict())
    errors = {}
    for name, in_rank, out_rank in compressed.spec.factors:
        weight = weights.pop(f"{name}.weight")
        parts = tucker2(weight, in_rank, out_rank)
        flat = (1,) * (weight.dim() - 2)
        weights[f"{name}.inwards.weight"] = parts.inwards.reshape(*parts.inwards.shape, *flat)
        weights[f"{name}.core.weight"] = parts.core
        weights[f"{name}.outwards.weight"] = parts.outwards.reshape(*parts.outwards.shape, *flat)
        if f"{name}.bias" in weights:
            weights[f"{name}.outwards.bias"] = weights.pop(f"{name}.bias")
        errors[name] = parts.error
    with torch.no_grad():
        compressed.network.load_state_dict(weights)
    return errors


STAGE = Stage("compress", CompressConfig, plan, execute)
