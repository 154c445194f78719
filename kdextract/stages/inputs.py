"""Inputs that several stages resolve in the same way."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from ..artifacts import Input, read_manifest
from ..errors import ConfigError
from ..run_dir import RunDir
from ..tables import is_table

if TYPE_CHECKING:
    from pathlib import Path

    import torch

    from ..data import RealData, Split
    from ..models import InputShape
    from ..stage_runner import StageContext


class OpensRealData(Protocol):
    """A config with `DataAccess` and `--dry-run`."""

    @property
    def data_dir(self) -> Path:
        """Where torchvision's data sets are."""
        ...

    @property
    def download(self) -> bool:
        """Whether to fetch what is missing."""
        ...

    @property
    def dry_run(self) -> bool:
        """Whether nothing may be written."""
        ...


def teacher_data(spec: str | None, run: RunDir) -> str:
    """Return `spec`, or the data that the run's teacher was trained on. Raises `ConfigError` when that is unknown."""
    if spec is None:
        spec = read_manifest(run.existing("teacher", "kdx train").directory).config.get("data")
    if not isinstance(spec, str):
        raise ConfigError("the teacher does not say which data it was trained on; name it with --data")
    return spec


def real_data_input(config: OpensRealData, spec: str, split: Split) -> Input:
    """Return one split of a real data set as an input, identified by the hash of its files, fetched if asked for."""
    from ..data import fingerprint, load_data

    if config.download and not config.dry_run:
        load_data(spec, split, config.data_dir, download=True)
    return Input("data", f"{spec} ({split})", fingerprint(spec, split, config.data_dir))


def open_real_data(config: OpensRealData, spec: str, split: Split, purpose: str, context: StageContext) -> RealData:
    """Load one split of a real data set, and say so in the stage's manifest."""
    from ..data import load_data

    context.real_data.append({"spec": spec, "split": split, "purpose": purpose})
    return load_data(spec, split, config.data_dir)


def few_images(data: RealData, count: int, seed: int) -> torch.Tensor:
    """Return the indices of `count` images, in ascending order, as evenly over the classes as can be.

    Where classes cannot have equally many, those that get one more are drawn by the seed, as the images are.

    Raises:
        ConfigError: a class has too few.
    """
    import torch

    random = torch.Generator().manual_seed(seed)
    shuffled = torch.randperm(len(data.labels), generator=random)
    each, over = divmod(count, len(data.class_names))
    favoured = set(torch.randperm(len(data.class_names), generator=random)[:over].tolist())
    kept = []
    for label, name in enumerate(data.class_names):
        wanted = each + (label in favoured)
        own = shuffled[data.labels[shuffled] == label]
        if len(own) < wanted:
            raise ConfigError(f"class {name!r} has {len(own)} images, fewer than the {wanted} that are asked for")
        kept.append(own[:wanted])
    return torch.cat(kept).sort().values


def fitted(images: torch.Tensor, shape: InputShape) -> torch.Tensor:
    """Return uint8 images [N, c, h, w] as a classifier of this shape takes them, resized if need be.

    Raises:
        ConfigError: they are rows of a table, or the classifier takes such rows, and the columns are not as many.
    """
    from ..images import fit_images

    stored = tuple(images.shape[1:])
    if stored != shape and (is_table(stored) or is_table(shape)):
        raise ConfigError(f"{_spoken(stored)} cannot be given to a classifier of {_spoken(shape)}")
    return fit_images(images, shape)


def _spoken(shape: tuple[int, ...]) -> str:
    return f"rows of {shape[2]} features" if is_table(shape) else f"images of {'x'.join(map(str, shape))}"
