"""`kdx distill`: train a student to answer like the teacher. Opens no real data unless `--data` names some."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..artifacts import MANIFEST, Input, read_manifest, verify_artifact
from ..config import DataAccess, NamedStageConfig, option
from ..errors import ConfigError, UsageError, did_you_mean
from ..run_dir import RunDir
from ..stage_runner import Plan, Stage, StageContext, artifact_input, file_input
from .inputs import open_real_data, real_data_input

if TYPE_CHECKING:
    import torch

    from ..classifier import Classifier
    from ..sources import Source

NOISE = ["noise:normal", "noise:uniform"]


@dataclass(frozen=True, kw_only=True)
class DistillConfig(NamedStageConfig, DataAccess):
    """Train a student to answer like the teacher, on synthetic images, noise, or (if you say so) real data.

    The last weights are kept: nothing is selected on real data. The number of steps is the budget, and is the same
    for every kind of --data, so a student from noise (floor) or from real data (ceiling) compares at equal cost.

    Examples:

      kdx distill --student lenet_half

      kdx distill --student lenet_half --data noise:normal --name floor

      kdx distill --student lenet_half --data mnist --name ceiling
    """

    student: str = option("lenet_half", "Architecture, or a model.safetensors file to start from.", metavar="SPEC")
    data: str | None = option(
        None,
        "Transfer set of the run, or a path to one, or noise:normal, noise:uniform, or real data (mnist ...). "
        "May be left out if the run has just one transfer set.",
        metavar="SPEC",
    )
    steps: int = option(4000, "Optimizer steps.", minimum=1)
    batch_size: int = option(128, "Images per step.", minimum=2)
    lr: float = option(4e-3, "First learning rate of Adam.", above=0)
    schedule: str = option("cosine", "How the rate falls.", choices=["cosine", "constant"])
    loss: str = option("kl", "What to minimize between the two networks' answers.", choices=["kl", "ce", "l1", "mse"])
    temperature: float = option(4.0, "Divides the logits of both networks in kl and ce.", above=0)
    temperature_scaling: bool = option(True, "Multiply kl and ce by the squared temperature.")
    shift: int = option(2, "Shift images at random by up to so many pixels.", minimum=0)
    warp: float = option(0.2, "Turn, scale and shear images at random; 0.1 turns by about 6 degrees.", minimum=0)
    flip: bool = option(False, "Mirror half of the images.")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.loss in ("l1", "mse") and (self.temperature != 4.0 or not self.temperature_scaling):
            raise UsageError(f"--temperature and --temperature-scaling have no effect on --loss {self.loss}")


def plan(config: DistillConfig, run: RunDir) -> Plan:
    """Reads the teacher and one source of images."""
    from ..data import is_real_data

    teacher = artifact_input("teacher", run.existing("teacher", "kdx train"))
    inputs: list[Input] = [teacher]
    needs = "teacher"
    if config.data in NOISE:
        pass
    elif config.data is not None and is_real_data(config.data):
        inputs.append(real_data_input(config, config.data, "train"))
        needs = "teacher+data"
    else:
        directory = transfer_set(config.data, run)
        manifest = verify_artifact(directory)
        inside = directory.parent.parent.resolve() == run.root.resolve()
        inputs.append(Input("transfer-set", manifest.label if inside else str(directory), manifest.identity))
        needs = manifest.needs
    name = config.student
    if _is_file(config.student):
        inputs.append(file_input("student", Path(config.student)))
        name = Path(config.student).parent.name or "student"
    else:
        from ..models import architecture

        architecture(config.student)
    return Plan(run.place("student", config.name or name), tuple(inputs), needs)


def transfer_set(spec: str | None, run: RunDir) -> Path:
    """Return the directory of the transfer set that `--data` names; without a name, the run's only one."""
    present = run.artifacts("transfer-set")
    if spec is None:
        if len(present) == 1:
            return present[0].directory
        if not present:
            raise ConfigError(
                f"{run.root} has no transfer set; make one with: kdx optimize-dataset, or use --data noise:normal"
            )
        raise ConfigError(f"{run.root} has several transfer sets, say which with --data: {_names(present)}")
    matches = [ref.directory for ref in present if spec in (ref.name, ref.label)]
    if matches:
        return matches[0]
    if Path(spec).is_dir() and (Path(spec) / MANIFEST).exists():
        if read_manifest(Path(spec)).kind != "transfer-set":
            raise ConfigError(f"{spec} is not a transfer set")
        return Path(spec)
    from ..data import data_names

    known = [ref.name for ref in present] + NOISE + data_names()
    raise UsageError(
        f"--data {spec!r} is no transfer set of {run.root}, no noise and no data set.{did_you_mean(spec, known)}"
    )


def execute(config: DistillConfig, context: StageContext) -> dict[str, Any]:
    """Build the student and its source, distil, write `model.safetensors`."""
    import torch

    from ..classifier import encode_classifier
    from ..distillation import DistillationLossOptions, distill
    from ..training import Augmenter, Schedule

    torch.manual_seed(config.seed)
    teacher = context.teacher()
    student = build_student(config.student, teacher).placed(context.device)
    with context.phase("source"):
        source, num_images = _source(config, teacher, context)
    with context.phase("distillation"), context.checkpoints.loop():
        result = distill(
            teacher,
            student,
            source,
            config.batch_size,
            Schedule(config.steps, config.lr, config.schedule),
            DistillationLossOptions(config.loss, config.temperature, config.temperature_scaling),
            Augmenter(config.shift, config.flip, config.warp, config.seed + 1),
            context.checkpoints,
            context.reporter,
        )
    context.count(images=num_images, teacher_queries=result.teacher_queries, student_steps=config.steps)
    context.write("model.safetensors", encode_classifier(student))
    context.write_metrics(result.rows)
    return {
        "student": student.spec.architecture,
        "num_parameters": student.num_parameters,
        "teacher_parameters": teacher.num_parameters,
        "num_images": num_images,
        "loss": result.rows[-1]["loss"],
    }


def build_student(spec: str, teacher: Classifier) -> Classifier:
    """Return a fresh student of the teacher's shape and classes, or the classifier of a file, which must have them.

    Raises:
        ConfigError: the student cannot take the teacher's images, or has other classes.
    """
    from dataclasses import replace

    from ..classifier import Classifier, load_classifier

    if not _is_file(spec):
        return Classifier(replace(teacher.spec, architecture=spec))
    student = load_classifier(spec)
    for what, ours, theirs in (
        ("images of shape", student.input_shape, teacher.input_shape),
        ("classes:", student.num_classes, teacher.num_classes),
    ):
        if ours != theirs:
            raise ConfigError(f"the student {spec} has {what} {ours}, the teacher {theirs}; they must be equal")
    return student


def _source(config: DistillConfig, teacher: Classifier, context: StageContext) -> tuple[Source, int]:
    """Return the source that `--data` names, and how many different images it holds or will draw."""
    from ..data import is_real_data
    from ..images import fit_images
    from ..sources import ImagePool, NoiseSource

    if config.data in NOISE:
        kind = config.data.removeprefix("noise:")
        return NoiseSource(kind, teacher, config.seed), config.steps * config.batch_size
    if config.data is not None and is_real_data(config.data):
        data = open_real_data(config, config.data, "train", "distillation", context)
        images = fit_images(data.images, teacher.input_shape)
        return ImagePool(images, None, config.seed, context.device), len(images)
    images, targets = _read_transfer_set(transfer_set(config.data, context.run), teacher)
    return ImagePool(images, targets, config.seed, context.device), len(images)


def _read_transfer_set(directory: Path, teacher: Classifier) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the stored images (uint8) and targets (the teacher's logits). Raises `ConfigError` if they do not fit."""
    import torch

    from ..tensor_files import read_npy

    images = torch.from_numpy(read_npy(directory / "images.npy"))
    targets = torch.from_numpy(read_npy(directory / "targets.npy"))
    if images.dtype != torch.uint8 or tuple(images.shape[1:]) != teacher.input_shape:
        raise ConfigError(
            f"{directory} holds images of shape {tuple(images.shape[1:])} ({images.dtype}), "
            f"the teacher takes {teacher.input_shape}"
        )
    if tuple(targets.shape) != (len(images), teacher.num_classes):
        raise ConfigError(f"{directory} has targets of shape {tuple(targets.shape)} for {len(images)} images")
    return images, targets


def _is_file(spec: str) -> bool:
    return spec.endswith(".safetensors") or "/" in spec


def _names(refs: list[Any]) -> str:
    return ", ".join(ref.name for ref in refs)


STAGE = Stage("distill", DistillConfig, plan, execute)
