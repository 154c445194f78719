"""`kdx compute-stats`: record a teacher's activation statistics; later stages use them instead of its training data."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..errors import ConfigError
from ..models.queries import STATISTICS
from ..options.declare import DataAccess, TeacherConfig, option
from ..storage.run_dir import RunDir
from .inputs.real_data import images_for, images_per_pass, open_real_data, real_data_input, teacher_data
from .running.runner import Plan, Stage, StageContext

if TYPE_CHECKING:
    import torch

    from ..models.classifier import Classifier
    from ..synthesis.statistics.recorded import StatisticsOptions


@dataclass(frozen=True, kw_only=True)
class ComputeStatsConfig(TeacherConfig, DataAccess):
    """Record the teacher's activation statistics.

    Later stages use them instead of the data. One pass over the training images. Recorded per layer: mean and variance
    per channel, over all images. Recorded per class, for layers of at most --max-units units: means, a covariance
    factor and spectra. No later data-free stage reads real data.

    Examples:

      kdx compute-stats
      kdx compute-stats --covariance-rank 50 --no-spectral
    """

    data: str | None = option(
        None, "Real data.", metavar="SPEC", panel="Source", otherwise="the teacher's training data"
    )
    min_count: int = option(
        32,
        "Stop if a class has fewer than N images, which its statistics would reveal.",
        minimum=2,
        panel="Statistics",
    )
    max_units: int = option(
        8192,
        "Layers of more than N units get mean and variance per channel, no covariance and no spectrum.",
        minimum=2,
        panel="Statistics",
    )
    covariance_rank: int = option(100, "Columns of the covariance factor, per class.", minimum=1, panel="Statistics")
    spectral: bool = option(True, "Record what the two spectral objectives need.", panel="Statistics")
    spectral_fraction: float = option(
        0.1,
        "Share of the graph's eigenvectors to keep, up to --spectral-max.",
        above=0,
        maximum=1,
        panel="Statistics",
    )
    spectral_max: int = option(64, "Eigenvectors to keep per graph, at most.", minimum=2, panel="Statistics")
    batch_size: int | None = images_per_pass()


def plan(config: ComputeStatsConfig, run: RunDir) -> Plan[str]:
    """Plan: reads the run's teacher and its training data; resolved is the name of the data."""
    spec = teacher_data(config.data, run)
    data = real_data_input(config, spec, "train")
    return Plan(run.place("statistics"), (run.artifact(run.teacher()).input("teacher"), data), "", spec)


def execute(config: ComputeStatsConfig, spec: str, context: StageContext) -> dict[str, Any]:
    """Run every training image through the teacher once, and write `statistics.safetensors`."""
    from ..storage.tensor_files import encode_safetensors
    from ..synthesis.statistics.recorded import LAYERS, StatisticsOptions, compute_statistics
    from ..synthesis.statistics.spectra import SpectralOptions

    teacher = context.teacher(STATISTICS)
    with context.phase("data"):
        data = open_real_data(config, spec, "train", "statistics", context)
        images = images_for(teacher.input_shape, teacher.spec.class_names, data, spec, context)
    _check_counts(data.labels, teacher.spec.class_names, config.min_count, spec)
    options = StatisticsOptions(
        max_units=config.max_units,
        rank=config.covariance_rank,
        spectra=SpectralOptions(config.spectral_fraction, config.spectral_max) if config.spectral else None,
    )
    batch_size = config.batch_size or teacher.images_per_pass
    _check_memory(teacher, data.labels, options, batch_size, context)
    with context.phase("statistics"), context.reporter.task("compute-stats", len(images)) as task:
        statistics = compute_statistics(teacher, images, data.labels, options, task.advance, batch_size)
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


def _check_memory(
    teacher: Classifier, labels: torch.Tensor, options: StatisticsOptions, batch_size: int, context: StageContext
) -> None:
    """Print one line if the work may take more memory than the machine has.

    Raises:
        ConfigError: the statistics and their file alone take more than that.
    """
    from ..synthesis.statistics.memory import Work, statistics_memory
    from ..synthesis.statistics.recorded import recorded_layers

    work = Work(
        input_shape=teacher.input_shape,
        num_classes=teacher.num_classes,
        weights=sum(tensor.numel() for tensor in teacher.network.state_dict().values()),
        images=len(labels),
        largest_class=int(labels.bincount().max()),
        batch_size=batch_size,
    )
    needed = statistics_memory(recorded_layers(teacher, options.max_units), options, work)
    present = _machine_memory()
    if 2 * needed.kept > present:
        raise ConfigError(
            f"the records would take {needed.kept / 1e9:.1f} GB and their file as much, and this machine has "
            f"{present / 1e9:.1f} GB of memory; try a smaller --max-units or --covariance-rank, or --no-spectral"
        )
    if needed.most > present:
        context.reporter.line(
            f"compute-stats: may take {needed.most / 1e9:.1f} GB of memory, and this machine has {present / 1e9:.1f} GB"
        )


def _machine_memory() -> int:
    """Return the memory of the machine in bytes."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _check_counts(labels: Any, class_names: tuple[str, ...], min_count: int, spec: str) -> None:
    """Raise `ConfigError` if a class of the teacher has fewer than `min_count` images."""
    counts = labels.bincount(minlength=len(class_names)).tolist()
    for name, count in zip(class_names, counts, strict=True):
        if count < min_count:
            raise ConfigError(
                f"class {name!r} has {count} images in {spec}, fewer than --min-count {min_count}: a record of so few "
                "could disclose single images"
            )


STAGE = Stage("compute-stats", ComputeStatsConfig, plan, execute)
