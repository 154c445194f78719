"""`kdx import-model`: make a model of the user's the teacher of a run. Opens no data."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..artifacts import Input, Manifest
from ..config import OptionSet, StageConfig, TeacherConfig, option, spelling
from ..errors import ArtifactError, ConfigError, UsageError
from ..networks import consent
from ..networks.names import LIBRARIES, parse_input_size, parse_name
from ..progress import Reporter
from ..run_dir import RUN_FILE, RunDir, in_its_place
from ..stage_runner import Plan, Stage, StageContext, file_input, run_stage

if TYPE_CHECKING:
    from ..classifier import Classifier
    from ..importing import Findings

MODEL_FILE = "model.safetensors"


@dataclass(frozen=True, kw_only=True)
class ModelConfig(OptionSet):
    """What a user says of a model of their own; what is left out is found."""

    model: str | None = option(None, "The model; see above.", positional=True)
    weights: str | None = option(
        None,
        "Its weights: .safetensors, or a .pth, .pt or .pth.tar of which nothing but tensors is read; wrappers and "
        "prefixes of names are found.",
        metavar="FILE",
    )
    input_size: str | None = option(None, "Images as the model takes them; by default it is found.", metavar="CxHxW")
    num_classes: int | None = option(None, "Number of classes; by default that of the weights.", minimum=2)
    class_names: str | None = option(
        None, "Names of the classes, with commas; by default their numbers.", metavar="A,B,C"
    )
    mean: str | None = option(
        None,
        "What it was trained to have subtracted from pixels in [0, 1]: a number, or one per channel, or imagenet, half "
        "(0.5), bytes (it takes 0 to 255). The default is that of a library's network, or 0.",
        metavar="NUMBERS",
    )
    std: str | None = option(None, "What pixels are divided by after that, in the same way.", metavar="NUMBERS")
    feature_layer: str | None = option(
        None, "Layer whose inputs are its features; by default the last one that gives the answer.", metavar="NAME"
    )
    download: bool = option(False, "Fetch a library's own weights, if no --weights are given.")
    trust_code: bool = option(False, "Run the code that a .pt2 program holds.", recorded=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.input_size is not None:
            parse_input_size(self.input_size)


@dataclass(frozen=True, kw_only=True)
class ImportModelConfig(ModelConfig, StageConfig):
    """Make a trained model of your own the teacher of the run, and say what was found of it.

    MODEL is model.py:build or package.module:build (a function, class or network), torchvision/NAME, timm/NAME, a
    program.pt2 of torch.export, a name of `kdx models`, or a file, artifact or run of kdx. What a function takes
    besides goes into brackets: 'model.py:build(depth=3)'. Its parameters num_classes, in_channels, img_size and the
    like are filled in from the options. The code runs because you name it; a file of weights never runs anything.

    Examples:

      kdx import-model model.py:build --weights model.pth --mean 0.5 --std 0.5

      kdx import-model torchvision/resnet18 --weights resnet18.pth --num-classes 10

      kdx import-model exported.pt2 --trust-code

      kdx import-model ../other/runs/photos
    """

    data: str | None = option(
        None, "Real data that it was trained on, for later commands; it is not opened now.", metavar="SPEC"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.model is None:
            raise UsageError("name a model, such as model.py:build; kdx import-model --help shows more")


def kdx_file(spec: str) -> Path | None:
    """Return the classifier's file that `spec` names, itself or that of an artifact or of a run's teacher; or None.

    Raises:
        ArtifactError: it is a directory that holds none.
    """
    path = Path(spec)
    if not path.is_dir():
        return path if spec.endswith(".safetensors") else None
    if (path / RUN_FILE).is_file():
        path = RunDir(path).teacher().directory
    if not (path / MODEL_FILE).is_file():
        raise ArtifactError(f"{spec} is a directory that holds no {MODEL_FILE}")
    return path / MODEL_FILE


def model_inputs(config: ImportModelConfig) -> list[Input]:
    """Return the files that a model is made from, after checks that run none of its code.

    Raises:
        UsageError: there is no such network, or an option has no effect on it.
        ArtifactError: a file is missing or malformed, or would run code.
    """
    from ..headers import check_weights_file

    assert config.model is not None
    ours = kdx_file(config.model)
    if ours is not None:
        _refuse_options(config, ours)
        check_weights_file(ours) if ours.is_file() else None
        return [file_input("model", ours)]
    name = parse_name(config.model)
    inputs = []
    if config.weights is not None:
        check_weights_file(Path(config.weights))
        inputs.append(file_input("weights", Path(config.weights)))
    if name.kind == "program":
        if config.weights is not None:
            raise UsageError("--weights has no effect on a .pt2 program, which has weights of its own")
        inputs.append(_program_input(Path(name.target), config.trust_code))
    elif name.kind == "file":
        inputs.append(file_input("code", Path(name.place)))
    elif name.kind != "module" and config.weights is None and not (config.download and name.kind in LIBRARIES):
        fetch = ", or --download to fetch the library's own" if name.kind in LIBRARIES else ""
        _require_known(config.model)
        raise UsageError(f"{config.model} has no weights of itself; give them with --weights FILE{fetch}")
    return inputs


def _require_known(spec: str) -> None:
    from ..importing import blueprint_of

    blueprint_of(spec)


def _refuse_options(config: ImportModelConfig, ours: Path) -> None:
    own = {declared.name for declared in fields(StageConfig)} | {"model", "data", "feature_layer"}
    for declared in fields(config):
        if declared.name not in own and getattr(config, declared.name) != declared.default:
            raise UsageError(f"{spelling(declared.name)} has no effect on {ours}, which says all of itself")


def _program_input(path: Path, trusted: bool) -> Input:
    found = file_input("program", path)
    content = path.read_bytes()
    if trusted:
        consent.allow(content, path)
    try:
        consent.require(content, path.name)
    except ArtifactError as error:
        raise ArtifactError(
            f"{path} is a program, which can run anything when it is loaded; if you trust where it comes from, say so "
            "with --trust-code"
        ) from error
    return found


def opened(config: ImportModelConfig, findings: Findings) -> Classifier:
    """Return the model, in evaluation mode on the CPU, and say what was found."""
    from ..classifier import load_classifier
    from ..importing import ModelOptions, read_model, require_features

    assert config.model is not None
    ours = kdx_file(config.model)
    if ours is not None:
        findings.lines.append(f"a classifier of kdx: {ours}")
        classifier = load_classifier(ours)
        if config.feature_layer is not None:
            classifier.spec = replace(classifier.spec, feature_layer=config.feature_layer)
            require_features(classifier)
        return classifier
    return read_model(
        ModelOptions(**{name: getattr(config, name) for name in ModelOptions.__dataclass_fields__}), findings
    )


def plan(config: ImportModelConfig, run: RunDir) -> Plan:
    """The teacher's place; reads the files that the model is made from."""
    return Plan(run.place("teacher"), tuple(model_inputs(config)))


def execute(config: ImportModelConfig, context: StageContext) -> dict[str, Any]:
    """Build the model, find out what it takes and answers, write `model.safetensors`."""
    import torch

    from ..classifier import encode_classifier
    from ..hooks import batch_norm_layers
    from ..importing import Findings

    torch.manual_seed(config.seed)
    findings = Findings()
    teacher = opened(config, findings)
    for line in findings.lines:
        context.reporter.line(f"found {line}")
    context.write(MODEL_FILE, encode_classifier(teacher))
    return {
        "model": teacher.spec.architecture,
        "num_parameters": teacher.num_parameters,
        "input_size": "x".join(map(str, teacher.input_shape)),
        "num_classes": teacher.num_classes,
        "batch_norm_layers": len(batch_norm_layers(teacher.network)),
        "feature_layer": teacher.feature_layer,
        "found": findings.lines,
    }


def bring_teacher(config: TeacherConfig, reporter: Reporter) -> None:
    """Make what `--teacher` names the run's teacher, if it is not already.

    Raises:
        ConfigError: the run has another teacher.
    """
    if config.teacher is None:
        return
    options = ImportModelConfig(model=config.teacher, weights=config.weights, run=config.run, threads=config.threads)
    place = RunDir(config.run).place("teacher")
    if place.directory.is_dir():
        if not _is_already(options, in_its_place(place)):
            raise ConfigError(
                f"{config.run} has another teacher than {config.teacher}; use another --run, or replace it with: "
                f"kdx import-model {config.teacher} --force"
            )
    elif config.dry_run:
        raise ConfigError(f"--dry-run needs the teacher; import it first: kdx import-model {config.teacher}")
    else:
        run_stage(STAGE, options, reporter)


def _is_already(options: ImportModelConfig, teacher: Manifest) -> bool:
    """Say whether the run's teacher was made from the files that the options name."""
    files = {entry.sha256 for entry in model_inputs(options)}
    if teacher.stage != "import-model":
        return files == {teacher.output(MODEL_FILE).sha256}
    names = [parse_name(str(model)) for model in (options.model, teacher.config["model"])]
    alike = [(Path(name.target).name, name.arguments) for name in names]
    return files == {entry.sha256 for entry in teacher.inputs} and (
        alike[0] == alike[1] or kdx_file(str(options.model)) is not None
    )


STAGE = Stage("import-model", ImportModelConfig, plan, execute)
