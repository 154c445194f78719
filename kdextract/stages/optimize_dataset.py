"""`kdx optimize-dataset`: make a transfer set by optimizing pixels with the frozen teacher. Reads no real data."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from ..errors import UsageError
from ..methods import Objective, objective, objective_names
from ..options.declare import MethodStageConfig, NetworkConfig, OptionSet, TeacherConfig, VerifierConfig, option
from ..storage.run_dir import InputFile, RunDir
from .inputs.method_inputs import MethodInputs, find_method_inputs
from .outputs.transfer_set import find_verifier, verifier_inputs, write_transfer_set
from .running.runner import Plan, Stage, StageContext

if TYPE_CHECKING:
    import torch

    from ..methods import Given

Rows = list[dict[str, float]]


@dataclass(frozen=True, kw_only=True)
class OptimizeDatasetConfig(MethodStageConfig, TeacherConfig, NetworkConfig, VerifierConfig):
    """Make a transfer set without data.

    For most objectives, target activations are drawn from the teacher's recorded statistics, and the pixels of noise
    images are optimized until the teacher's activations match them. Every batch contains all classes. Writes
    images.npy, labels.npy, targets.npy (the teacher's logits) and grid.png.

    Examples:

      kdx optimize-dataset --objective spectral_all_layers
      kdx optimize-dataset --objective all_layers --images-per-class 200 --steps 100 --name quick
    """

    chooser: ClassVar[str] = "objective"

    objective: str = option(
        "spectral_all_layers",
        "What the images match; `kdx methods` lists them.",
        choices=objective_names,
        metavar="NAME",
        panel="Images",
    )
    images_per_class: int = option(1000, "Images per class.", minimum=1, panel="Images")
    batch_size: int = option(500, "Most images optimized together.", minimum=1, panel="Compute")
    student: str | None = option(
        None, "Student for the competition term of adaptive_deep_inversion.", metavar="NAME", panel="Source"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        needs_student = objective(self.objective).needs_student
        if self.student is not None and not needs_student:
            raise UsageError(f"--student has no effect on {self.objective}")
        if self.student is None and needs_student:
            raise UsageError(f"{self.objective} needs --student: a student of the run, with which its images compete")

    def chosen_method(self) -> tuple[str, type[OptionSet]]:
        """The objective, and the class of its options."""
        return f"--objective {self.objective}", objective(self.objective).config

    @classmethod
    def methods(cls) -> dict[str, type[OptionSet]]:
        """The options of every objective, by name."""
        return {name: objective(name).config for name in objective_names()}


@dataclass(frozen=True)
class OptimizeDatasetInputs:
    """The inputs of the objective besides the teacher, and the verifier."""

    method: MethodInputs
    verifier: InputFile | None


def plan(config: OptimizeDatasetConfig, run: RunDir) -> Plan[OptimizeDatasetInputs]:
    """Plan: reads the teacher, the statistics or student that the objective needs, and the verifier if there is one."""
    chosen = objective(config.objective)
    config.method_config()
    teacher = run.artifact(run.teacher()).input("teacher")
    found = find_method_inputs(chosen, run, config.student)
    place = run.place("transfer-set", config.name or config.objective)
    verifier = find_verifier(config, run)
    inputs = (teacher, *found.inputs, *verifier_inputs(verifier))
    return Plan(place, inputs, found.needs, OptimizeDatasetInputs(found, verifier))


def execute(config: OptimizeDatasetConfig, resolved: OptimizeDatasetInputs, context: StageContext) -> dict[str, Any]:
    """Make the images batch by batch, get the teacher's logits for them, and write arrays and pictures."""
    from ..training.class_index import labels_in_turn
    from .outputs.curves import term_curves

    teacher = context.teacher()
    chosen = objective(config.objective)
    given = resolved.method.given(teacher, context)
    labels = labels_in_turn(0, config.images_per_class * teacher.num_classes, teacher.num_classes)
    with context.phase("synthesis"), context.checkpoints.loop():
        images, rows, curve = _optimize_images(config, chosen, given, labels, context)
    if curve:
        context.write("terms.png", term_curves(curve))
    summary = write_transfer_set(resolved.verifier, context, teacher, images, labels, rows)
    return {**summary, "loss": rows[-1]["loss"]}


def _optimize_images(
    config: OptimizeDatasetConfig,
    chosen: Objective,
    given: Given,
    labels: torch.Tensor,
    context: StageContext,
) -> tuple[torch.Tensor, Rows, Rows]:
    """Return uint8 images [N, channels, height, width], one metric row per batch, and the curves of its loss.

    Each batch has a random generator of its own, so a batch made after a resume equals the one of an uninterrupted run.
    """
    import torch

    from ..models.pixels import to_uint8

    options = config.method_config()
    done: list[torch.Tensor] = []
    rows: Rows = []
    curve: Rows = []
    saved = context.checkpoints.load()
    if saved is not None:
        tensors, values = saved
        done, rows, curve = [tensors["images"]], values["rows"], values["curve"]
    # of nearly equal sizes, because some losses use statistics of a batch
    batches = labels.tensor_split(-(-len(labels) // config.batch_size))
    with context.reporter.task(f"optimize-dataset ({chosen.name})", len(labels)) as task:
        task.advance(sum(map(len, done)))
        for index in range(len(rows), len(batches)):
            rng = torch.Generator().manual_seed(config.seed * 1_000_003 + index)
            made = chosen.synthesize(given, batches[index], options, rng)
            done.append(to_uint8(made.images).cpu().contiguous())
            row = {"batch": index + 1, "images": len(made.images), "teacher_queries": made.teacher_queries}
            rows.append({**row, "loss": round(made.loss, 6)})
            curve.extend({"batch": index + 1, **point} for point in made.curve)
            task.advance(len(made.images), f"loss {made.loss:.3f}")
            context.checkpoints.offer(lambda: ({"images": torch.cat(done)}, {"rows": rows, "curve": curve}))
    return torch.cat(done), rows, curve


STAGE = Stage("optimize-dataset", OptimizeDatasetConfig, plan, execute)
