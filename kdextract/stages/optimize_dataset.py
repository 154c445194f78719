"""`kdx optimize-dataset`: make a transfer set by optimizing pixels against the teacher. Opens no real data."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..artifacts import read_manifest
from ..config import MethodStageConfig, OptionSet, option
from ..errors import ConfigError
from ..methods import Objective, objective, objective_names
from ..run_dir import RunDir
from ..stage_runner import Plan, Stage, StageContext, artifact_input
from .transfer_sets import write_transfer_set

if TYPE_CHECKING:
    import torch

    from ..classifier import Classifier
    from ..statistics import Statistics


@dataclass(frozen=True, kw_only=True)
class OptimizeDatasetConfig(MethodStageConfig):
    """Make a transfer set from the teacher, for most objectives with its statistics, without data.

    Targets for the teacher's activations are drawn from the recorded statistics, and the pixels of noise images are
    optimized until the teacher responds to them in that way; structured_noise needs no statistics and optimizes
    nothing. Classes are mixed in every batch. Writes images.npy,
    labels.npy, targets.npy (the teacher's logits) and grid.png.

    Examples:

      kdx optimize-dataset --objective spectral_all_layers

      kdx optimize-dataset --objective all_layers --images-per-class 200 --steps 100 --name quick
    """

    objective: str = option("spectral_all_layers", "What to match; `kdx methods` explains.", choices=objective_names)
    images_per_class: int = option(1000, "Images to make for each class.", minimum=1)
    batch_size: int = option(500, "Images optimized at a time.", minimum=1)

    def chosen_method(self) -> tuple[str, type[OptionSet]]:
        """The objective."""
        return f"--objective {self.objective}", objective(self.objective).config

    @classmethod
    def methods(cls) -> dict[str, type[OptionSet]]:
        """Every objective."""
        return {name: objective(name).config for name in objective_names()}


def plan(config: OptimizeDatasetConfig, run: RunDir) -> Plan:
    """Reads the teacher and, where the objective needs them, the statistics, which must hold its record."""
    chosen = objective(config.objective)
    config.method_config()
    inputs = [artifact_input("teacher", run.existing("teacher", "kdx train"))]
    if chosen.record is not None:
        statistics = run.existing("statistics", "kdx compute-stats")
        recorded = read_manifest(statistics.directory).metrics.get("records", [])
        if chosen.record not in recorded:
            raise ConfigError(
                f"{chosen.name} needs the {chosen.record} record, and the statistics hold only {', '.join(recorded)}; "
                "make them again with: kdx compute-stats --spectral --force"
            )
        inputs.append(artifact_input("statistics", statistics))
    return Plan(run.place("transfer-set", config.name or config.objective), tuple(inputs), chosen.needs)


def execute(config: OptimizeDatasetConfig, context: StageContext) -> dict[str, Any]:
    """Make the images batch by batch, ask the teacher about them, write arrays and picture."""
    import torch

    from ..statistics import Statistics
    from ..tensor_files import read_safetensors

    teacher = context.teacher()
    chosen = objective(config.objective)
    statistics = None
    if chosen.record is not None:
        contents = read_safetensors(context.run.place("statistics").directory / "statistics.safetensors")
        statistics = Statistics.from_tensors(*contents).to(context.device)
    labels = torch.arange(config.images_per_class * teacher.num_classes) % teacher.num_classes
    with context.phase("synthesis"), context.checkpoints.loop():
        images, rows = _make_images(config, chosen, teacher, statistics, labels, context)
    return {**write_transfer_set(context, teacher, images, labels, rows), "loss": rows[-1]["loss"]}


def _make_images(
    config: OptimizeDatasetConfig,
    chosen: Objective,
    teacher: Classifier,
    statistics: Statistics | None,
    labels: torch.Tensor,
    context: StageContext,
) -> tuple[torch.Tensor, list[dict[str, float]]]:
    """Return uint8 images [N, channels, height, width], and one metric row per batch.

    Each batch draws from a generator of its own, so a batch made after a resume equals the one made without.
    """
    import torch

    from ..images import to_uint8

    options = config.method_config()
    done: list[torch.Tensor] = []
    rows: list[dict[str, float]] = []
    saved = context.checkpoints.load()
    if saved is not None:
        tensors, values = saved
        done, rows = [tensors["images"]], values["rows"]
    batches = labels.split(config.batch_size)
    with context.reporter.task(f"optimize-dataset ({chosen.name})", len(labels)) as task:
        task.advance(sum(map(len, done)))
        for index in range(len(rows), len(batches)):
            generator = torch.Generator().manual_seed(config.seed * 1_000_003 + index)
            made = chosen.synthesize(teacher, statistics, batches[index], options, generator)
            done.append(to_uint8(made.images).cpu().contiguous())
            row = {"batch": index + 1, "images": len(made.images), "teacher_queries": made.teacher_queries}
            rows.append({**row, "loss": round(made.loss, 6)})
            task.advance(len(made.images), f"loss {made.loss:.3f}")
            context.checkpoints.offer(lambda: ({"images": torch.cat(done)}, {"rows": rows}))
    return torch.cat(done), rows


STAGE = Stage("optimize-dataset", OptimizeDatasetConfig, plan, execute)
