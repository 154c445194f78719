"""`kdx import-model`: make a user's own model the teacher of a run. Reads no data."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import ConfigError, UsageError
from ..models.external.names import parse_name
from ..options.declare import StageConfig, TeacherConfig, option
from ..storage.artifacts import Manifest
from ..storage.run_dir import MODEL_FILE, InputFile, RunDir, manifest_of
from ..training.progress import Reporter
from .inputs.user_model import ModelConfig, kdx_file, load_user_model, model_files, model_summary
from .running.runner import Plan, Stage, StageContext, run_stage


@dataclass(frozen=True, kw_only=True)
class ImportModelConfig(ModelConfig, StageConfig):
    """Import a trained model as the run's teacher.

    MODEL is model.py:build or package.module:build (a function, class or network), torchvision/NAME, timm/NAME, a
    program.pt2 of torch.export, a name of `kdx models`, or a file, artifact or run of kdx. Further arguments of a
    function are written in parentheses: 'model.py:build(depth=3)'; num_classes, in_channels, img_size and the like are
    filled in from the options. Code that you name is run; a file of weights is only read.

    Examples:

      kdx import-model model.py:build --weights model.pth --mean 0.5 --std 0.5
      kdx import-model torchvision/resnet18 --weights resnet18.pth --num-classes 10
      kdx import-model exported.pt2 --trust-code
      kdx import-model ../other/runs/photos
    """

    data: str | None = option(
        None,
        "Training data of the model, for later commands; not read now.",
        metavar="SPEC",
        panel="Source",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.model is None:
            raise UsageError("MODEL is missing, such as model.py:build; kdx import-model --help lists other forms")


Files = dict[str, InputFile]
"""The files that a model is made from, by role."""


def plan(config: ImportModelConfig, run: RunDir) -> Plan[Files]:
    """Plan: writes the run's teacher; reads the files that the model is made from."""
    files = model_files(config, run)
    inputs = tuple(file.input(role) for role, file in files.items())
    return Plan(run.place("teacher"), inputs, "", files)


def execute(config: ImportModelConfig, files: Files, context: StageContext) -> dict[str, Any]:
    """Build the model, detect its input size and its kind of output, and write `model.safetensors`."""
    import torch

    from ..models.classifier import encode_classifier
    from ..models.importer import Findings

    torch.manual_seed(config.seed)
    findings = Findings()
    teacher = load_user_model(config, files, findings)
    context.write(MODEL_FILE, encode_classifier(teacher))
    return {
        **model_summary(teacher),
        "feature_layer": teacher.feature_layer,
        "found": findings.lines,
    }


def bring_teacher(config: TeacherConfig, reporter: Reporter) -> None:
    """Import the model of `--teacher` as the run's teacher, unless it is the run's teacher already.

    Raises:
        ConfigError: the run has another teacher, or it has none and the stage is only to be planned (`dry_run`).
    """
    if config.teacher is None:
        return
    options = ImportModelConfig(model=config.teacher, weights=config.weights, run=config.run, threads=config.threads)
    place = RunDir(config.run).place("teacher")
    if place.directory.is_dir():
        if not _is_already(options, manifest_of(place)):
            raise ConfigError(
                f"{config.run} has another teacher than {config.teacher}; use another --run, or replace it with: "
                f"kdx import-model {config.teacher} --force"
            )
    elif config.dry_run:
        raise ConfigError(f"--dry-run needs the teacher; import it first: kdx import-model {config.teacher}")
    else:
        run_stage(STAGE, options, reporter)


def _is_already(options: ImportModelConfig, teacher: Manifest) -> bool:
    """Return whether the run's teacher was made from the model and the files of the options."""
    files = {file.sha256 for file in model_files(options, RunDir(options.run)).values()}
    if teacher.stage != "import-model":
        return files == {teacher.output(MODEL_FILE).sha256}
    names = [parse_name(str(model)) for model in (options.model, teacher.config["model"])]
    alike = [(Path(name.target).name, name.arguments) for name in names]
    return files == {entry.sha256 for entry in teacher.inputs} and (
        alike[0] == alike[1] or kdx_file(str(options.model)) is not None
    )


STAGE = Stage("import-model", ImportModelConfig, plan, execute)
