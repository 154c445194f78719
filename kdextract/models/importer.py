"""From what a user says of a model of their own to a classifier, saying what was found on the way."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from torch import nn

from ..errors import ArtifactError, ConfigError, UsageError, did_you_mean
from .architectures import InputShape, architecture, model_names
from .classifier import Classifier, ClassifierSpec
from .external import libraries
from .external.blueprint import Blueprint, program_blueprint
from .external.names import LIBRARIES, NetworkName, parse_input_size, parse_name
from .external.normalizations import NORMALIZATIONS
from .external.probe import Probed, number_type, probe
from .external.user_code import as_file, read_code
from .external.weights import StateDict, fit_weights, read_weights
from .hooks import evaluation_mode, record_features

WEIGHTS_ENDINGS = (".pth", ".pt", ".tar", ".bin", ".ckpt")


@dataclass(frozen=True)
class ModelOptions:
    """What a user says of a model, as the options of `kdx import-model`; None where it is to be found."""

    model: str
    weights: str | None = None
    input_size: str | None = None
    num_classes: int | None = None
    class_names: str | None = None
    mean: str | None = None
    std: str | None = None
    feature_layer: str | None = None
    download: bool = False


@dataclass
class Findings:
    """What was found of a model, in words, in the order in which it was."""

    lines: list[str] = field(default_factory=list)

    def say(self, what: str, value: object, how: str) -> None:
        """Add `what: value (how)`."""
        self.lines.append(f"{what}: {value} ({how})")


def blueprint_of(text: str) -> Blueprint:
    """Return the blueprint of a network that a user has typed, whose code may run from now on.

    Raises:
        UsageError: there is no such network.
        ArtifactError: its file cannot be read.
    """
    name = as_file(parse_name(text))
    if name.kind == "program":
        return program_blueprint(Path(name.target).read_bytes())
    if name.kind in LIBRARIES:
        libraries.check_library_name(name)
        return Blueprint(name)
    if name.function:
        code = read_code(name)
        kept = name if code is None else NetworkName(f"{code.name}:{name.function}", name.arguments)
        return Blueprint(kept, code)
    if name.target.endswith(".py"):
        raise UsageError(f"{text} is a file of code; say which function or class of it, such as {name.target}:build")
    if name.target.endswith(WEIGHTS_ENDINGS):
        raise UsageError(f"{text} is a file of weights; name the network that they are of, and give it as --weights")
    if name.target not in model_names():
        forms = "torchvision/NAME, timm/NAME, FILE.py:FUNCTION, MODULE:FUNCTION, FILE.pt2, FILE.safetensors"
        raise UsageError(f"unknown model {text!r}.{did_you_mean(name.target, model_names())} Or: {forms}.")
    return Blueprint(name)


def read_model(options: ModelOptions, findings: Findings) -> Classifier:
    """Return the classifier that the options describe, in evaluation mode on the CPU, and say what was found.

    Raises:
        KdxError: it cannot be built, or its weights do not fit, or it is no classifier.
    """
    blueprint = blueprint_of(options.model)
    facts = libraries.facts(blueprint.name) if blueprint.name.kind in LIBRARIES else None
    shape = _known_shape(options, blueprint.name, facts, findings)
    network, blueprint = _with_weights(options, blueprint, shape, findings)
    blueprint = blueprint.with_what_it_imports()
    if blueprint.code is not None and blueprint.code.beside:
        needed = ", ".join(path for path, _ in blueprint.code.beside)
        findings.say("needs", needed, f"imported by {blueprint.code.name}; has to stay as it is")
    facts = facts or libraries.facts_within(network)
    probed = _probed(network, blueprint.name, shape, facts, findings)
    if options.num_classes not in (None, probed.num_classes):
        raise ConfigError(f"{blueprint.name} answers with {probed.num_classes} classes, not {options.num_classes}")
    if options.num_classes is None and not any(line.startswith("classes:") for line in findings.lines):
        findings.say("classes", probed.num_classes, "as its answer has")
    findings.say("answer", probed.head.words, "found by giving it noise")
    if number_type(network) != torch.float32:
        findings.say("computes in", str(number_type(network)).removeprefix("torch."), "the type of its weights")
    classifier = Classifier(_spec(options, blueprint, probed, facts, findings), network).eval()
    _require_sound(classifier, blueprint)
    classifier.spec = replace(classifier.spec, feature_layer=classifier.feature_layer)
    return classifier


def _known_shape(
    options: ModelOptions, name: NetworkName, facts: libraries.Facts | None, findings: Findings
) -> InputShape | None:
    if options.input_size is not None:
        return parse_input_size(options.input_size)
    if facts is not None:
        findings.say("input size", "x".join(map(str, facts.input_shape)), f"from {facts.source}")
        return facts.input_shape
    if not name.is_foreign:
        own = architecture(name.target).input_shape
        findings.say("input size", "x".join(map(str, own)), f"that of {name.target}")
        return own
    return None


def _probed(
    network: nn.Module,
    name: NetworkName,
    shape: InputShape | None,
    facts: libraries.Facts | None,
    findings: Findings,
) -> Probed:
    """Return what the network takes and answers; its own configuration goes before sizes that are tried."""
    if shape is None and facts is not None:
        with suppress(ConfigError):
            probed = probe(network, name, facts.input_shape)
            findings.say("input size", "x".join(map(str, probed.input_shape)), f"from {facts.source}")
            return probed
    probed = probe(network, name, shape)
    if shape is None:
        findings.say("input size", "x".join(map(str, probed.input_shape)), "found by trying")
    return probed


def _with_weights(
    options: ModelOptions, blueprint: Blueprint, shape: InputShape | None, findings: Findings
) -> tuple[nn.Module, Blueprint]:
    """Return the network with its weights, and its blueprint with the number of classes that these have."""
    usual = 10 if options.num_classes is None else options.num_classes
    said = shape if options.input_size else None
    if options.weights is None:
        blueprint = blueprint.with_inferred_arguments(said, options.num_classes)
        if blueprint.name.kind in LIBRARIES:
            findings.say("weights", f"those of {blueprint.name.kind}", "fetched, or fetched before")
            return libraries.build(blueprint.name, pretrained=True), blueprint
        if blueprint.program is None:
            findings.say("weights", "as the code leaves them", "no --weights")
        network = blueprint.build(shape, usual)
        _require_finite(network, str(blueprint.name))
        return network, blueprint
    path = Path(options.weights)
    weights = read_weights(path)
    try:
        blueprint = blueprint.with_inferred_arguments(said, options.num_classes)
    except UsageError:  # a parameter for the number of classes may have no default
        rows = _last_rows(weights) if options.num_classes is None else None
        blueprint = blueprint.with_inferred_arguments(said, rows)
        findings.say("classes", rows, "rows of the last layer of the weights")
    network = blueprint.build(shape, usual)
    classes = _classes_in(weights, network) if options.num_classes is None else None
    if classes is not None:
        fitted = blueprint.with_inferred_arguments(None, classes)
        if fitted.name != blueprint.name or not blueprint.name.is_foreign:
            network, blueprint = fitted.build(shape, classes), fitted
            findings.say("classes", classes, "rows of the last layer of the weights")
    for line in (*weights.found, *fit_weights(network, weights, str(path))):
        findings.lines.append(f"weights: {line}")
    _require_finite(network, str(path))
    return network, blueprint


def _require_finite(network: nn.Module, source: str) -> None:
    """Raise `ArtifactError`, naming the tensor, if a weight is not finite."""
    for name, tensor in network.state_dict().items():
        if tensor.is_floating_point() and not tensor.isfinite().all():
            count = int((~tensor.isfinite()).sum())
            raise ArtifactError(f"{source}: {name} has {count} values that are not finite")


def _last_rows(weights: StateDict) -> int | None:
    """Return the number of rows of the last tensor with rows, which most networks have at their end."""
    rows = [len(tensor) for tensor in weights.tensors.values() if tensor.dim() in (2, 4)]
    return rows[-1] if rows else None


def _classes_in(weights: StateDict, network: nn.Module) -> int | None:
    """Return how many rows the weights have where the network's last layer has another number; None if that is all
    equal, or more than the last layer differs."""
    own = {name: tensor.shape for name, tensor in network.state_dict().items()}
    rows = set()
    for name, shape in own.items():
        theirs = [t.shape for key, t in weights.tensors.items() if key == name or key.endswith(f".{name}")]
        if len(theirs) == 1 and theirs[0] != shape:
            if not shape or not theirs[0] or theirs[0][1:] != shape[1:]:
                return None
            rows.add(theirs[0][0])
    return rows.pop() if len(rows) == 1 else None


def _spec(
    options: ModelOptions,
    blueprint: Blueprint,
    probed: Probed,
    facts: libraries.Facts | None,
    findings: Findings,
) -> ClassifierSpec:
    mean, std = _normalization(options, probed.input_shape[0], facts, findings)
    if options.class_names is not None:
        names = tuple(name.strip() for name in options.class_names.split(","))
        if len(names) != probed.num_classes or len(set(names)) != len(names):
            several = f"{len(set(names))} different names"
            raise UsageError(f"--class-names gives {several}, the network has {probed.num_classes} classes")
    elif facts is not None and facts.class_names is not None and len(facts.class_names) == probed.num_classes:
        names = facts.class_names
    else:
        names = tuple(map(str, range(probed.num_classes)))
    return ClassifierSpec(
        architecture=str(blueprint.name),
        input_shape=probed.input_shape,
        class_names=names,
        mean=mean,
        std=std,
        code=blueprint.code,
        head=probed.head,
        feature_layer=options.feature_layer,
    )


def _normalization(
    options: ModelOptions, channels: int, facts: libraries.Facts | None, findings: Findings
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return mean and standard deviation per channel: as given, as the library says, or 0 and 1."""
    found = []
    for position, option in enumerate(("mean", "std")):
        given = getattr(options, option)
        if given is not None:
            found.append(parse_channels(option, given, channels))
        elif facts is not None and facts.mean:
            values = (facts.mean, facts.std)[position]
            values = values if len(values) == channels else (sum(values) / len(values),) * channels
            findings.say(option, ", ".join(f"{value:g}" for value in values), f"from {facts.source}")
            found.append(values)
        else:
            found.append((float(position),) * channels)
            findings.say(option, position, f"nothing says it: give --{option} if it was trained on normalized images")
    return found[0], found[1]


def parse_channels(option: str, text: str, channels: int) -> tuple[float, ...]:
    """Return `--mean` or `--std` as one value per channel: numbers with commas, or the name of a normalization.

    Raises:
        UsageError: it is neither, or there are not as many numbers as channels, or a deviation is not above 0.
    """
    if text in NORMALIZATIONS:
        values = NORMALIZATIONS[text][option == "std"]
    else:
        try:
            values = tuple(float(part) for part in text.split(","))
        except ValueError as error:
            names = ", ".join(NORMALIZATIONS)
            raise UsageError(f"--{option} is a number for each channel, such as 0.5,0.5,0.5, or {names}") from error
    if len(values) == 1:
        values *= channels
    if len(values) != channels:
        raise UsageError(f"--{option} has {len(values)} values; channels: {channels}")
    if not all(abs(value) < 1e6 for value in values) or (option == "std" and min(values) <= 0):
        raise UsageError(f"--{option} has values that no images have: {text}")
    return values


def require_features(classifier: Classifier) -> None:
    """Raise `ConfigError` unless the layer whose inputs are its features is there and takes part in the answer."""
    blank = torch.zeros(2, *classifier.input_shape, device=classifier.device)
    layer = classifier.feature_layer
    with evaluation_mode(classifier), torch.no_grad(), record_features(classifier.network, layer) as seen:
        classifier(blank)
    if not seen:
        raise ConfigError(f"the layer {layer!r} takes no part in the answer; name another one")


def _require_sound(classifier: Classifier, blueprint: Blueprint) -> None:
    """Raise `ConfigError` unless it answers alike when asked twice, and when built again from its file."""
    require_features(classifier)
    rng = torch.Generator().manual_seed(0)
    pixels = torch.rand(3, *classifier.input_shape, generator=rng)
    with evaluation_mode(classifier), torch.no_grad():
        answer = classifier(pixels)
        if not torch.allclose(answer, classifier(pixels), rtol=1e-4, atol=1e-4):
            raise ConfigError(f"{blueprint.name} answers differently to equal images, even in evaluation mode")
        again = blueprint.build(classifier.input_shape, classifier.num_classes)
        again.load_state_dict(classifier.network.state_dict())
        twin = Classifier(classifier.spec, again).eval().placed(pixels.device)
        if not torch.allclose(answer, twin(pixels.contiguous(memory_format=torch.channels_last)), rtol=1e-4, atol=1e-4):
            raise ConfigError(
                f"{blueprint.name} keeps something that its state_dict does not have: built twice with equal weights, "
                "it answers differently"
            )
