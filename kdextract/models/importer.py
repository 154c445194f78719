"""Make a classifier of a model that a user describes, and report what was detected: input size, classes, outputs."""

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
from .external.names import LIBRARIES, NetworkName, format_input_size, parse_input_size, parse_name
from .external.normalizations import NORMALIZATIONS
from .external.probe import Probed, number_type, probe
from .external.user_code import as_file, read_code
from .external.weights import StateDict, fit_weights, read_weights
from .hooks import evaluation_mode, record_features

WEIGHTS_ENDINGS = (".pth", ".pt", ".tar", ".bin", ".ckpt")


@dataclass(frozen=True)
class ModelOptions:
    """The options of `kdx import-model` that describe a model; None for what is to be detected."""

    model: str
    weights: str | None = None
    input_size: str | None = None
    num_classes: int | None = None
    class_names: str | None = None
    mean: str | None = None
    std: str | None = None
    feature_layer: str | None = None
    download: bool = False


@dataclass(frozen=True)
class Finding:
    """A property of a model, its value, and how it was detected ('' where that is obvious)."""

    subject: str
    value: str
    source: str = ""

    def __str__(self) -> str:
        return f"{self.subject}: {self.value} ({self.source})" if self.source else f"{self.subject}: {self.value}"


@dataclass
class Findings:
    """What was detected of a model, in order."""

    entries: list[Finding] = field(default_factory=list)

    def add(self, subject: str, value: object, source: str = "") -> None:
        """Add a finding."""
        self.entries.append(Finding(subject, str(value), source))

    def has(self, subject: str) -> bool:
        """Return whether there is a finding on this subject."""
        return any(entry.subject == subject for entry in self.entries)

    @property
    def lines(self) -> list[str]:
        """One line `subject: value (source)` for each finding."""
        return [str(entry) for entry in self.entries]


def blueprint_of(text: str) -> Blueprint:
    """Return the blueprint of the network that a user has typed, and allow the call of its code from now on.

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
        raise UsageError(f"{text} is a file of code; name a function or class in it, such as {name.target}:build")
    if name.target.endswith(WEIGHTS_ENDINGS):
        raise UsageError(f"{text} is a file of weights; name the network as MODEL, and give this file as --weights")
    if name.target not in model_names():
        forms = "torchvision/NAME, timm/NAME, FILE.py:FUNCTION, MODULE:FUNCTION, FILE.pt2, FILE.safetensors"
        raise UsageError(f"unknown model {text!r}.{did_you_mean(name.target, model_names())} Other forms: {forms}.")
    return Blueprint(name)


def read_model(options: ModelOptions, findings: Findings) -> Classifier:
    """Return the classifier that the options describe, in evaluation mode on the CPU.

    Args:
        findings: what was detected is added to it.

    Raises:
        UsageError: the model's name or an option is wrong.
        ArtifactError: a file cannot be read, or its code was not allowed.
        ConfigError: the network cannot be built, its weights do not fit, or its outputs are not those of a classifier.
    """
    blueprint = blueprint_of(options.model)
    facts = libraries.facts(blueprint.name) if blueprint.name.kind in LIBRARIES else None
    shape = _known_shape(options, blueprint.name, facts, findings)
    network, blueprint = _with_weights(options, blueprint, shape, findings)
    blueprint = blueprint.with_imported_files()
    if blueprint.code is not None and blueprint.code.beside:
        needed = ", ".join(path for path, _ in blueprint.code.beside)
        findings.add("needs", needed, f"imported by {blueprint.code.name}; keep it unchanged")
    facts = facts or libraries.facts_within(network)
    probed = _probed(network, blueprint.name, shape, facts, findings)
    if options.num_classes not in (None, probed.num_classes):
        raise ConfigError(
            f"{blueprint.name} has outputs for {probed.num_classes} classes, not for {options.num_classes}"
        )
    if options.num_classes is None and not findings.has("classes"):
        findings.add("classes", probed.num_classes, "the size of its output")
    findings.add("output", probed.head.description, "detected with noise as input")
    if number_type(network) != torch.float32:
        findings.add("computes in", str(number_type(network)).removeprefix("torch."), "the data type of its weights")
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
        findings.add("input size", format_input_size(facts.input_shape), f"from {facts.source}")
        return facts.input_shape
    if not name.is_foreign:
        own = architecture(name.target).input_shape
        findings.add("input size", format_input_size(own), f"the default of {name.target}")
        return own
    return None


def _probed(
    network: nn.Module,
    name: NetworkName,
    shape: InputShape | None,
    facts: libraries.Facts | None,
    findings: Findings,
) -> Probed:
    """Return input size and outputs of the network. The size in its configuration is tried before the usual sizes."""
    if shape is None and facts is not None:
        with suppress(ConfigError):
            probed = probe(network, name, facts.input_shape)
            findings.add("input size", format_input_size(probed.input_shape), f"from {facts.source}")
            return probed
    probed = probe(network, name, shape)
    if shape is None:
        findings.add("input size", format_input_size(probed.input_shape), "detected by trying sizes")
    return probed


def _with_weights(
    options: ModelOptions, blueprint: Blueprint, shape: InputShape | None, findings: Findings
) -> tuple[nn.Module, Blueprint]:
    """Return the network with its weights, and its blueprint with the number of classes of the weights."""
    usual = 10 if options.num_classes is None else options.num_classes
    said = shape if options.input_size else None
    if options.weights is None:
        blueprint = blueprint.with_inferred_arguments(said, options.num_classes)
        if blueprint.name.kind in LIBRARIES:
            findings.add("weights", f"those of {blueprint.name.kind}", "downloaded, or downloaded earlier")
            return libraries.build(blueprint.name, pretrained=True), blueprint
        if blueprint.program is None:
            findings.add("weights", "those that the code creates", "no --weights")
        network = blueprint.build(shape, usual)
        _require_finite(network, str(blueprint.name))
        return network, blueprint
    path = Path(options.weights)
    weights = read_weights(path)
    try:
        blueprint = blueprint.with_inferred_arguments(said, options.num_classes)
    except UsageError:  # the parameter for the number of classes may have no default
        rows = _last_rows(weights) if options.num_classes is None else None
        blueprint = blueprint.with_inferred_arguments(said, rows)
        findings.add("classes", rows, "number of rows of the last layer in the weights")
    network = blueprint.build(shape, usual)
    classes = _classes_in(weights, network) if options.num_classes is None else None
    if classes is not None:
        fitted = blueprint.with_inferred_arguments(None, classes)
        if fitted.name != blueprint.name or not blueprint.name.is_foreign:
            network, blueprint = fitted.build(shape, classes), fitted
            findings.add("classes", classes, "number of rows of the last layer in the weights")
    for line in (*weights.found, *fit_weights(network, weights, str(path))):
        findings.add("weights", line)
    _require_finite(network, str(path))
    return network, blueprint


def _require_finite(network: nn.Module, source: str) -> None:
    """Raise `ArtifactError` with the name of the tensor if a weight is not finite."""
    for name, tensor in network.state_dict().items():
        if tensor.is_floating_point() and not tensor.isfinite().all():
            count = int((~tensor.isfinite()).sum())
            raise ArtifactError(f"{source}: {name} has {count} values that are not finite")


def _last_rows(weights: StateDict) -> int | None:
    """Return the number of rows of the last weight matrix: in most networks it is the number of classes."""
    rows = [len(tensor) for tensor in weights.tensors.values() if tensor.dim() in (2, 4)]
    return rows[-1] if rows else None


def _classes_in(weights: StateDict, network: nn.Module) -> int | None:
    """Return the number of classes of the weights if only the rows of the last layer differ from the network.

    None if no shape differs, or others differ as well.
    """
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
            given = f"{len(set(names))} different names"
            raise UsageError(f"--class-names has {given}, the network has {probed.num_classes} classes")
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
    """Return mean and standard deviation per channel: from the options, from the library, or else 0 and 1."""
    found = []
    for position, option in enumerate(("mean", "std")):
        given = getattr(options, option)
        if given is not None:
            found.append(parse_channels(option, given, channels))
        elif facts is not None and facts.mean:
            values = (facts.mean, facts.std)[position]
            values = values if len(values) == channels else (sum(values) / len(values),) * channels
            findings.add(option, ", ".join(f"{value:g}" for value in values), f"from {facts.source}")
            found.append(values)
        else:
            found.append((float(position),) * channels)
            findings.add(option, position, f"default; give --{option} if the model was trained on normalized images")
    return found[0], found[1]


def parse_channels(option: str, text: str, channels: int) -> tuple[float, ...]:
    """Return `--mean` or `--std` as one value per channel: numbers with commas, or the name of a normalization.

    Raises:
        UsageError: the text is neither of them, the number of values is not that of channels, a value is 1e6 or more in
            size, or a standard deviation is not above 0.
    """
    if text in NORMALIZATIONS:
        values = NORMALIZATIONS[text][option == "std"]
    else:
        try:
            values = tuple(float(part) for part in text.split(","))
        except ValueError as error:
            names = ", ".join(NORMALIZATIONS)
            raise UsageError(
                f"--{option} takes one number per channel, such as 0.5,0.5,0.5, or one of {names}"
            ) from error
    if len(values) == 1:
        values *= channels
    if len(values) != channels:
        raise UsageError(f"--{option} has {len(values)} values, but the images have {channels} channels")
    if not all(abs(value) < 1e6 for value in values) or (option == "std" and min(values) <= 0):
        raise UsageError(f"--{option} has values outside of the possible range: {text}")
    return values


def require_features(classifier: Classifier) -> None:
    """Raise `ConfigError` unless the feature layer exists and is used in the forward pass."""
    blank = torch.zeros(2, *classifier.input_shape, device=classifier.device)
    layer = classifier.feature_layer
    with evaluation_mode(classifier), torch.no_grad(), record_features(classifier.network, layer) as seen:
        classifier(blank)
    if not seen:
        raise ConfigError(f"the layer {layer!r} is not used in the forward pass; name another one with --feature-layer")


def _require_sound(classifier: Classifier, blueprint: Blueprint) -> None:
    """Raise `ConfigError` unless equal images get equal logits: in a second pass, and in a second network that is built
    from the same blueprint with the same weights."""
    require_features(classifier)
    rng = torch.Generator().manual_seed(0)
    pixels = torch.rand(3, *classifier.input_shape, generator=rng)
    with evaluation_mode(classifier), torch.no_grad():
        logits = classifier(pixels)
        if not torch.allclose(logits, classifier(pixels), rtol=1e-4, atol=1e-4):
            raise ConfigError(f"{blueprint.name} gives different outputs for equal images, even in evaluation mode")
        again = blueprint.build(classifier.input_shape, classifier.num_classes)
        again.load_state_dict(classifier.network.state_dict())
        twin = Classifier(classifier.spec, again).eval().placed(pixels.device)
        if not torch.allclose(logits, twin(pixels.contiguous(memory_format=torch.channels_last)), rtol=1e-4, atol=1e-4):
            raise ConfigError(
                f"{blueprint.name} depends on values that are not in its state_dict: two networks with equal weights "
                "give different outputs"
            )
