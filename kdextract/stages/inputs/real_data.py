"""Real data as stages read it: found by name, hashed, recorded in the manifest, fitted to a classifier."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Protocol

from ...data.tables import is_table
from ...errors import ConfigError
from ...options.declare import option
from ...storage.artifacts import Input, read_manifest
from ...storage.run_dir import RunDir

if TYPE_CHECKING:
    from pathlib import Path

    import torch

    from ...data.real_data import RealData, Split
    from ...models.architectures import InputShape
    from ..running.runner import StageContext

SHOWN_NAMES = 3


def images_per_pass() -> Any:
    """Declare `--batch-size` of a stage that trains nothing."""
    return option(
        None,
        "Images per forward pass.",
        minimum=1,
        panel="Compute",
        otherwise="as many, up to 500, as give at most 1 GB of layer outputs",
    )


class OpensRealData(Protocol):
    """A config with `DataAccess` and `--dry-run`."""

    @property
    def data_dir(self) -> Path:
        """Where torchvision's data sets are."""
        ...

    @property
    def download(self) -> bool:
        """Whether to download missing files."""
        ...

    @property
    def dry_run(self) -> bool:
        """Whether nothing may be written."""
        ...


def teacher_data(spec: str | None, run: RunDir) -> str:
    """Return `spec`, or the data that the run's teacher was trained on. Raises `ConfigError` when that is unknown."""
    if spec is None:
        spec = read_manifest(run.teacher().directory).config.get("data")
    if not isinstance(spec, str):
        raise ConfigError("the teacher does not say which data it was trained on; name it with --data")
    return spec


def real_data_input(config: OpensRealData, spec: str, split: Split, role: str = "data") -> Input:
    """Return one split of a real data set as an input, with the hash of its files. `--download` fetches them first."""
    from ...data.load import fingerprint, load_data

    if config.download and not config.dry_run:
        load_data(spec, split, config.data_dir, download=True)
    return Input(role, f"{spec} ({split})", fingerprint(spec, split, config.data_dir))


def as_name(spec: str) -> str:
    """Return a data spec as a part of an artifact's name: other characters become -, and the last 40 are kept."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", spec).strip("-.")[-40:]


def open_real_data(config: OpensRealData, spec: str, split: Split, purpose: str, context: StageContext) -> RealData:
    """Load one split of a real data set, and record the purpose in the stage's manifest."""
    from ...data.load import load_data

    context.real_data.append({"spec": spec, "split": split, "purpose": purpose})
    data = load_data(spec, split, config.data_dir)
    for line in kept_line(spec, split, data):
        context.reporter.line(line)
    return data


def kept_line(spec: str, split: Split, data: RealData) -> list[str]:
    """Return a line that says where decoded images were written, if they were."""
    if data.kept_in is None:
        return []
    return [f"{spec}: the decoded {split} images are kept in {data.kept_in} ({data.images.numel() / 1e6:.0f} MB)"]


def few_images(data: RealData, count: int, seed: int) -> torch.Tensor:
    """Return the indices of `count` images drawn by the seed, in ascending order, equally many per class.

    If `count` is not a multiple of the number of classes, some classes, drawn by the seed, get one image more.

    Raises:
        ConfigError: a class has too few images.
    """
    import torch

    rng = torch.Generator().manual_seed(seed)
    shuffled = torch.randperm(len(data.labels), generator=rng)
    each, over = divmod(count, len(data.class_names))
    favoured = set(torch.randperm(len(data.class_names), generator=rng)[:over].tolist())
    kept = []
    for label, name in enumerate(data.class_names):
        wanted = each + (label in favoured)
        own = shuffled[data.labels[shuffled] == label]
        if len(own) < wanted:
            raise ConfigError(f"class {name!r} has {len(own)} images, fewer than the {wanted} that are needed")
        kept.append(own[:wanted])
    return torch.cat(kept).sort().values


def images_for(
    shape: InputShape,
    class_names: tuple[str, ...] | None,
    data: RealData,
    spec: str,
    context: StageContext,
    rows: torch.Tensor | None = None,
) -> torch.Tensor:
    """Return real images with the input shape of a classifier; one line says how they are changed.

    Class names that are numbers count as unnamed classes, and match all other names.

    Args:
        shape, class_names: of the classifier; None for the names if it gets the images without their labels, or gets
            its classes from the data.
        spec: the value of `--data`.
        rows: indices of the images to return; by default all.

    Returns:
        uint8 [N, channels, height, width].

    Raises:
        ConfigError: the data has another number of classes than the classifier, or the same ones in another order; or
            one of both is for rows of a table and the other for images, or for rows of another width.
    """
    stored = tuple(data.images.shape[1:])
    _require_same_kind(stored, shape)
    if class_names is not None:
        _check_classes(spec, data.class_names, class_names, context)
    if stored != shape:
        resized = ["resized"] if stored[1:] != shape[1:] else []
        recoloured = [] if stored[0] == shape[0] else ["made grey" if shape[0] == 1 else "made coloured"]
        context.reporter.line(
            f"{spec}: {_shape_text(stored)} are given to a classifier of {'x'.join(map(str, shape))}: "
            f"{', '.join(resized + recoloured)}"
        )
    return fitted(data.images if rows is None else data.images[rows], shape)


def fitted(images: torch.Tensor, shape: InputShape) -> torch.Tensor:
    """Return uint8 images [N, c, h, w] with the input shape of a classifier, resized if they have another one.

    Raises:
        ConfigError: one of both is for rows of a table and the other for images, or for rows of another width.
    """
    from ...models.pixels import fit_images

    _require_same_kind(tuple(images.shape[1:]), shape)
    return fit_images(images, shape)


def _require_same_kind(stored: tuple[int, ...], shape: InputShape) -> None:
    if stored != shape and (is_table(stored) or is_table(shape)):
        raise ConfigError(f"{_shape_text(stored)} cannot be given to a classifier of {_shape_text(shape)}")


def _check_classes(spec: str, given: tuple[str, ...], wanted: tuple[str, ...], context: StageContext) -> None:
    """Raise `ConfigError` if number or order of the classes differ; print a line if only their names differ."""
    named = not (_are_numbers(given) or _are_numbers(wanted))
    if len(given) != len(wanted):
        differing = _names_of_one_side(given, wanted) if named else ""
        raise ConfigError(f"{spec} has {len(given)} classes, the classifier {len(wanted)}{differing}")
    if not named:
        return
    places = {name: number for number, name in enumerate(wanted)}
    moved = [name for number, name in enumerate(given) if places.get(name, number) != number]
    if moved:
        name = moved[0]
        raise ConfigError(
            f"{spec} has its classes in another order than the classifier: {name!r} is number {given.index(name)} in "
            f"the data, and number {places[name]} in the classifier"
        )
    others = [(ours, theirs) for ours, theirs in zip(given, wanted, strict=True) if ours != theirs]
    if others:
        pairs = ", ".join(f"{ours!r} counts as {theirs!r}" for ours, theirs in others[:SHOWN_NAMES])
        more = f" and {len(others) - SHOWN_NAMES} more" if len(others) > SHOWN_NAMES else ""
        context.reporter.line(f"{spec}: class names differ from those of the classifier: {pairs}{more}")


def _are_numbers(names: tuple[str, ...]) -> bool:
    return all(name.isdecimal() for name in names)


def _names_of_one_side(given: tuple[str, ...], wanted: tuple[str, ...]) -> str:
    """Return a clause with up to three names of the data alone or, if there are none, of the classifier alone."""
    for who, own, other in (("data", given, wanted), ("classifier", wanted, given)):
        alone = [name for name in own if name not in other][:SHOWN_NAMES]
        if alone:
            return f"; only the {who} has {', '.join(map(repr, alone))}"
    return ""


def _shape_text(shape: tuple[int, ...]) -> str:
    return f"rows of {shape[2]} features" if is_table(shape) else f"images of {'x'.join(map(str, shape))}"
