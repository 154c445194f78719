"""`kdx compute-stats`: record a teacher's activation statistics, the last thing that needs its training data."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ..config import DataAccess, TeacherConfig, option
from ..errors import ConfigError
from ..queries import STATISTICS
from ..run_dir import RunDir
from ..stage_runner import Plan, Stage, StageContext, artifact_input
from .inputs import images_for, open_real_data, real_data_input, teacher_data


@dataclass(frozen=True, kw_only=True)
class ComputeStatsConfig(TeacherConfig, DataAccess):
    """Record the teacher's activation statistics per class: what is handed over instead of the data.

    One pass over the training images. Afterwards no data-free stage opens real data again.

    Examples:

      kdx compute-stats

      kdx compute-stats --covariance-rank 50 --no-spectral
    """

    data: str | None = option(None, "Real data; the default is what the teacher was trained on.", metavar="SPEC")
    min_count: int = option(32, "Refuse a class of fewer images: its record would give single images away.", minimum=2)
    max_units: int = option(
        8192, "Layers of more units get a mean and a standard deviation only, no covariance and no spectrum.", minimum=2
    )
    covariance_rank: int = option(100, "Columns of the covariance factor, per class.", minimum=1)
    spectral: bool = option(True, "Make the records of the two spectral objectives.")
    spectral_fraction: float = option(
        0.1, "Share of the graph's eigenvectors to keep, before --spectral-max.", above=0, maximum=1
    )
    spectral_max: int = option(64, "Keep at most so many eigenvectors per graph.", minimum=2)
    spectral_order: str = option(
        "energy",
        "Which eigenvectors: energy (eigenvalue farthest from 1) or smooth (smallest eigenvalue).",
        choices=["energy", "smooth"],
    )


def plan(config: ComputeStatsConfig, run: RunDir) -> Plan:
    """Reads the run's teacher and its training data."""
    teacher = run.teacher()
    data = real_data_input(config, teacher_data(config.data, run), "train")
    return Plan(run.place("statistics"), (artifact_input("teacher", teacher), data))


def execute(config: ComputeStatsConfig, context: StageContext) -> dict[str, Any]:
    """Run every training image through the teacher once and write `statistics.safetensors`."""
    from ..spectra import SpectralOptions
    from ..statistics import LAYERS, StatisticsOptions, compute_statistics
    from ..tensor_files import encode_safetensors

    spec = teacher_data(config.data, context.run)
    teacher = context.teacher(STATISTICS)
    with context.phase("data"):
        data = open_real_data(config, spec, "train", "statistics", context)
        images = images_for(teacher.input_shape, teacher.spec.class_names, data, spec, context)
    _check_counts(data.labels, teacher.spec.class_names, config.min_count, spec)
    options = StatisticsOptions(
        max_units=config.max_units,
        rank=config.covariance_rank,
        spectra=SpectralOptions(config.spectral_fraction, config.spectral_max, config.spectral_order)
        if config.spectral
        else None,
    )
    with context.phase("statistics"), context.reporter.task("compute-stats", len(images)) as task:
        statistics = compute_statistics(teacher, images, data.labels, options, task.advance)
    content = encode_safetensors(*statistics.to_tensors())
    context.write("statistics.safetensors", content)
    skipped = [layer.name for layer in statistics.layers if layer.units > config.max_units]
    return {
        "bytes_handed_over": len(content),
        "num_layers": len(statistics.layers),
        "layers_without_covariance": skipped,
        "smallest_class": int(statistics.counts.min()),
        "explained_variance": round(statistics.records[LAYERS].explained, 4),
        "records": sorted(statistics.records),
    }


def _check_counts(labels: Any, class_names: tuple[str, ...], min_count: int, spec: str) -> None:
    """Raise `ConfigError` unless every class of the teacher has `min_count` images or more."""
    counts = labels.bincount(minlength=len(class_names)).tolist()
    for name, count in zip(class_names, counts, strict=True):
        if count < min_count:
            raise ConfigError(
                f"class {name!r} has {count} images in {spec}, fewer than --min-count {min_count}: "
                "so small a record could give single images away"
            )


STAGE = Stage("compute-stats", ComputeStatsConfig, plan, execute)
