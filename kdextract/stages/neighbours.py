"""`kdx neighbours`: the nearest real images of a transfer set. Reads real data, which its manifest records."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..errors import ConfigError
from ..models.queries import NEIGHBOURS
from ..options.declare import DataAccess, NamedStageConfig, TeacherConfig, option
from ..storage.run_dir import RunDir
from .inputs.image_artifacts import ImageArtifact, find_image_artifact, read_labels, read_transfer_set
from .inputs.real_data import images_for, open_real_data, real_data_input, teacher_data
from .running.runner import Plan, Stage, StageContext

if TYPE_CHECKING:
    import torch

    from ..models.classifier import Classifier

NUM_NEIGHBOURS = 11


@dataclass(frozen=True, kw_only=True)
class NeighboursConfig(NamedStageConfig, TeacherConfig, DataAccess):
    """Find the nearest real images of a transfer set.

    They show whether it contains copies of training images. Writes neighbours.png, each image with its nearest real
    images, and neighbours.npy, their numbers. Prints the median distance to the nearest real image beside that between
    real images: images that are much nearer are copies.

    Examples:

      kdx neighbours deep_inversion
      kdx neighbours deep_inversion --space pixels --data mnist --images 1000
    """

    artifact: str | None = option(
        None, "Transfer set of the run, or a path; default: the run's only one.", positional=True
    )
    data: str | None = option(
        None, "Real data.", metavar="SPEC", panel="Source", otherwise="the teacher's training data"
    )
    space: str = option(
        "features",
        "Space of the distances: features, the inputs of the teacher's last layer, or pixels.",
        choices=["features", "pixels"],
        panel="Comparison",
    )
    images: int = option(500, "Number of images, the first of the transfer set.", minimum=1, panel="Comparison")


@dataclass(frozen=True)
class NeighboursInputs:
    """The transfer set, and the name of the real data."""

    transfer_set: ImageArtifact
    data: str


def plan(config: NeighboursConfig, run: RunDir) -> Plan[NeighboursInputs]:
    """Plan: reads the teacher, the transfer set and real training data."""
    transfer_set = find_image_artifact(config.artifact, run, "ARTIFACT", ["transfer-set"])
    spec = teacher_data(config.data, run)
    inputs = (
        run.artifact(run.teacher()).input("teacher"),
        transfer_set.input("transfer-set"),
        real_data_input(config, spec, "train"),
    )
    place = run.place("neighbours", config.name or transfer_set.name)
    return Plan(place, inputs, "", NeighboursInputs(transfer_set, spec))


def execute(config: NeighboursConfig, resolved: NeighboursInputs, context: StageContext) -> dict[str, Any]:
    """Find the neighbours, and write `neighbours.npy` and `neighbours.png`."""
    import torch

    from ..storage.tensor_files import encode_npy
    from ..synthesis.nearest_real import in_features, in_pixels, nearest

    teacher = context.teacher(NEIGHBOURS)
    transfer_set, spec = resolved.transfer_set, resolved.data
    made = read_transfer_set(transfer_set, teacher.input_shape, teacher.num_classes)[0][: config.images]
    labels = read_labels(transfer_set)[: len(made)]
    data = open_real_data(config, spec, "train", "neighbours", context)
    real = images_for(teacher.input_shape, teacher.spec.class_names, data, spec, context)
    if len(real) <= NUM_NEIGHBOURS:
        raise ConfigError(f"{spec} has {len(real)} images, fewer than the {NUM_NEIGHBOURS + 1} that are needed")

    def points(images: torch.Tensor) -> torch.Tensor:
        return in_features(teacher, images) if config.space == "features" else in_pixels(images)

    with context.phase("neighbours"):
        others = points(real)
        found = nearest(points(made), others, NUM_NEIGHBOURS)
        drawn = torch.randperm(len(real), generator=torch.Generator().manual_seed(config.seed))[: len(made)]
        among_real = nearest(others[drawn], others, 2).distances[:, 1]  # the nearest is the image itself
    context.write("neighbours.npy", encode_npy(found.indices.numpy()))
    context.write("neighbours.png", _picture(made, labels, real, data.labels, found.indices, teacher))
    return {
        "data": spec,
        "space": config.space,
        "num_images": len(made),
        "distance": round(float(found.distances[:, 0].median()), 6),
        "distance_among_real": round(float(among_real.median()), 6),
        "nearer_than_real_ones": round(float((found.distances[:, 0] < among_real.quantile(0.01)).float().mean()), 4),
        "neighbour_has_its_class": round(float((data.labels[found.indices[:, 0]] == labels).float().mean()), 4),
    }


def _picture(
    made: torch.Tensor,
    labels: torch.Tensor,
    real: torch.Tensor,
    real_labels: torch.Tensor,
    neighbours: torch.Tensor,
    teacher: Classifier,
) -> bytes:
    """Return a picture as PNG bytes: for each class, the first image and its nearest real images.

    A real image of another class has a red frame.
    """
    import torch

    from .outputs.pictures import image_rows

    firsts = [int((labels == label).nonzero()[0]) for label in labels.unique()]
    names = teacher.spec.class_names
    tiles, rows, fits, captions = [], [], [], {}
    for row, first in enumerate(firsts):
        near = neighbours[first]
        tiles += [made[first : first + 1], real[near]]
        rows += [row] * (1 + len(near))
        fits += [True, *(real_labels[near] == labels[first]).tolist()]
        captions[row] = f"{names[int(labels[first])][:12]}\nmade, then\nreal ones"
    return image_rows(torch.cat(tiles), torch.tensor(rows), captions, torch.tensor(fits))


STAGE = Stage("neighbours", NeighboursConfig, plan, execute)
