"""A user's own model: the options that describe it, its files, and how it is loaded."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...errors import ArtifactError, UsageError
from ...models.external import consent
from ...models.external.names import LIBRARIES, PROGRAM, NetworkName, parse_input_size, parse_name
from ...models.external.user_code import allow_call, as_file
from ...options.declare import OptionSet, option, option_fields, spelling
from ...storage.run_dir import MODEL_FILE, RUN_FILE, InputFile, RunDir

if TYPE_CHECKING:
    from ...models.classifier import Classifier
    from ...models.importer import Findings


@dataclass(frozen=True, kw_only=True)
class ModelConfig(OptionSet):
    """Options of an imported model; those that are not given are detected."""

    model: str | None = option(None, "The model, as described above.", positional=True)
    weights: str | None = option(
        None,
        "Weights: .safetensors, or .pth, .pt or .pth.tar, of which only tensors are read.",
        metavar="FILE",
        panel="Model",
    )
    input_size: str | None = option(
        None, "Image size that the model takes.", metavar="CxHxW", panel="Model", otherwise="detected"
    )
    num_classes: int | None = option(
        None, "Number of classes.", minimum=2, panel="Model", otherwise="detected from the weights"
    )
    class_names: str | None = option(
        None, "Class names, separated by commas.", metavar="A,B,C", panel="Model", otherwise="their numbers"
    )
    mean: str | None = option(
        None,
        "Mean that is subtracted from pixels in [0, 1]: a number, one per channel, imagenet, half (0.5), or bytes (the "
        "model takes 0 to 255).",
        metavar="NUMBERS",
        panel="Model",
        otherwise="the library's, or 0",
    )
    std: str | None = option(
        None,
        "Standard deviation that pixels are then divided by, written as --mean.",
        metavar="NUMBERS",
        panel="Model",
        otherwise="the library's, or 1",
    )
    feature_layer: str | None = option(
        None,
        "Layer whose inputs are the features.",
        metavar="NAME",
        panel="Model",
        otherwise="the layer that gives the output",
    )
    download: bool = option(False, "Download a library's weights if --weights is not given.", panel="Model")
    trust_code: bool = option(
        False, "Run the code in a .pt2 program or in a kdx file from elsewhere.", recorded=False, panel="Model"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.input_size is not None:
            parse_input_size(self.input_size)


def kdx_file(spec: str) -> Path | None:
    """Return the path of a kdx classifier: a file, or that of an artifact or of a run's teacher; None for other specs.

    Raises:
        ArtifactError: `spec` is a directory without one.
    """
    path = Path(spec)
    if not path.is_dir():
        return path if spec.endswith(".safetensors") else None
    if (path / RUN_FILE).is_file():
        path = RunDir(path).teacher().directory
    if not (path / MODEL_FILE).is_file():
        raise ArtifactError(f"{spec} is a directory without {MODEL_FILE}")
    return path / MODEL_FILE


def model_files(config: ModelConfig, run: RunDir) -> dict[str, InputFile]:
    """Return the files that a model is made from, by role. The checks run none of its code.

    Args:
        run: the run of the command.

    Raises:
        UsageError: there is no such network, or an option has no effect on it.
        ArtifactError: a file is missing or malformed, or would run code.
    """
    from ...models.external.weight_files import check_weights_file

    assert config.model is not None
    ours = kdx_file(config.model)
    if ours is not None:
        _refuse_options(config, ours)
        files = {"model": run.file(ours)}
        check_weights_file(ours)
        if config.trust_code:
            trust_code(ours)
        return files
    name = as_file(parse_name(config.model))
    files = {}
    if config.weights is not None:
        files["weights"] = run.file(Path(config.weights))
        check_weights_file(Path(config.weights))
    if name.kind == "program":
        if config.weights is not None:
            raise UsageError("--weights has no effect on a .pt2 program, which contains its weights")
        files["program"] = run.file(Path(name.target))
        _require_trusted(Path(name.target), config.trust_code)
    elif name.kind == "file":
        files["code"] = run.file(Path(name.place))
    elif name.kind != "module" and config.weights is None and not (config.download and name.kind in LIBRARIES):
        fetch = ", or download the library's own with --download" if name.kind in LIBRARIES else ""
        _require_known(config.model)
        raise UsageError(f"{config.model} comes without weights; give them with --weights FILE{fetch}")
    return files


def _require_known(spec: str) -> None:
    from ...models.importer import blueprint_of

    blueprint_of(spec)


def _refuse_options(config: ModelConfig, ours: Path) -> None:
    for declared in option_fields(ModelConfig):
        if declared.name in ("model", "feature_layer", "trust_code"):
            continue
        if getattr(config, declared.name) != declared.default:
            raise UsageError(f"{spelling(declared.name)} has no effect on {ours}, which contains this")


def trust_code(ours: Path) -> None:
    """Allow the code of a classifier's file to run: a function with its arguments, or the program in the file.

    Raises:
        ArtifactError: the file is malformed, or its code does not itself define the function.
    """
    from ...models.classifier import PROGRAM_TENSOR, read_spec
    from ...storage.tensor_files import read_safetensors, rebuilding

    spec = read_spec(ours)
    with rebuilding(ours, "classifier"):
        name = parse_name(spec.architecture)
        if name.kind == "program":
            consent.allow(read_safetensors(ours)[0][PROGRAM_TENSOR].numpy().tobytes(), NetworkName(PROGRAM), ours)
        elif name.function:
            allow_call(name, spec.code, ours)


def _require_trusted(path: Path, trusted: bool) -> None:
    """Raise `ArtifactError` unless the program's code may run; `trusted` allows it for this and later commands."""
    content = path.read_bytes()
    if trusted:
        consent.allow(content, NetworkName(PROGRAM), path)
    try:
        consent.require(content, NetworkName(PROGRAM))
    except ArtifactError as error:
        raise ArtifactError(
            f"{path} is a program: loading it runs its code. If you trust its source, use --trust-code"
        ) from error


def load_user_model(config: ModelConfig, files: Mapping[str, InputFile], findings: Findings) -> Classifier:
    """Return the model, in evaluation mode on the CPU, and add to `findings` what was detected.

    Args:
        files: the files that it is made from, by role (`model_files`).

    Raises:
        ArtifactError: a file is malformed, or was changed since it was hashed.
        ConfigError: the files do not fit together, or an option is needed because something could not be detected.
    """
    from ...models.classifier import load_classifier
    from ...models.importer import ModelOptions, read_model, require_features

    ours = files.get("model")
    if ours is not None:
        findings.add("a classifier of kdx", ours.path)
        classifier = ours.read(load_classifier)
        if config.feature_layer is not None:
            classifier.spec = replace(classifier.spec, feature_layer=config.feature_layer)
            require_features(classifier)
        return classifier
    options = ModelOptions(**{name: getattr(config, name) for name in ModelOptions.__dataclass_fields__})
    classifier = read_model(options, findings)
    for file in files.values():
        file.require_unchanged()
    return classifier


def model_summary(classifier: Classifier) -> dict[str, Any]:
    """Return name, number of parameters, input size, number of classes and of batch normalization layers."""
    from ...models.hooks import batch_norm_layers

    return {
        "model": classifier.spec.architecture,
        "num_parameters": classifier.num_parameters,
        "input_size": "x".join(map(str, classifier.input_shape)),
        "num_classes": classifier.num_classes,
        "batch_norm_layers": len(batch_norm_layers(classifier.network)),
    }
