"""Some classes of a real data set: which ones an option names, and their images."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ...errors import ConfigError, UsageError, did_you_mean

if TYPE_CHECKING:
    import torch

    from ...data.real_data import RealData

_RANGE = re.compile(r"(\d{1,6})-(\d{1,6})")


@dataclass(frozen=True)
class ClassImages:
    """The images of some classes of a data set.

    Attributes:
        names: of the classes.
        rows: indices of the images in the data set, int64 [N], in ascending order.
        labels: class of each of these images, int64 [N], an index of `names`.
    """

    names: tuple[str, ...]
    rows: torch.Tensor
    labels: torch.Tensor


def parse_classes(text: str | None) -> list[str] | None:
    """Return the entries of `--classes`, which are separated by commas; None if it is not given.

    Raises:
        UsageError: an entry is empty or appears twice.
    """
    if text is None:
        return None
    entries = [entry.strip() for entry in text.split(",")]
    if not all(entries) or len(set(entries)) < len(entries):
        raise UsageError(f"--classes names classes once each, such as 5-9 or cat,dog, got {text!r}")
    return entries


def images_of_classes(data: RealData, text: str | None, spec: str) -> ClassImages:
    """Return the images of the classes that `--classes` names, in the data set's order of classes.

    An entry is a class name; or else the number of a class, counted from 0; or a range of such entries, as in 5-9.
    Without `text`, these are all classes that have images.

    Args:
        spec: the name of the data set, for errors.

    Raises:
        UsageError: there is no such class.
        ConfigError: a class that is named has no images.
    """
    import torch

    counts = torch.bincount(data.labels, minlength=len(data.class_names)).tolist()
    entries = parse_classes(text)
    if entries is None:
        chosen = [index for index, count in enumerate(counts) if count]
    else:
        chosen = sorted({index for entry in entries for index in _indices(entry, data.class_names, spec)})
    empty = [data.class_names[index] for index in chosen if not counts[index]]
    if empty:
        raise ConfigError(f"{spec} has no images of class {empty[0]!r}")
    return _of(data.labels, {index: place for place, index in enumerate(chosen)}, data.class_names)


def images_of_names(data: RealData, names: tuple[str, ...], spec: str) -> ClassImages:
    """Return the images of the classes with these names, in this order; those of other classes are left out.

    Raises:
        ConfigError: the data set has no images of one of them.
    """
    import torch

    counts = torch.bincount(data.labels, minlength=len(data.class_names)).tolist()
    present = {name: index for index, name in enumerate(data.class_names) if counts[index]}
    for name in names:
        if name not in present:
            raise ConfigError(f"{spec} has no images of class {name!r}")
    return _of(data.labels, {present[name]: place for place, name in enumerate(names)}, data.class_names)


def data_of_names(data: RealData, names: tuple[str, ...], spec: str) -> RealData:
    """Return the data with the classes of these names, in this order. Raises `ConfigError` as `images_of_names`."""
    from ...data.real_data import RealData

    found = images_of_names(data, names, spec)
    return RealData(data.images[found.rows], found.labels, found.names)


def _of(labels: torch.Tensor, places: dict[int, int], known: tuple[str, ...]) -> ClassImages:
    """Return the images with the labels in `places`, which maps them to new labels 0, 1, 2 ..."""
    import torch

    lookup = torch.full((len(known),), -1)
    lookup[list(places)] = torch.tensor(list(places.values()))
    changed = lookup[labels]
    rows = (changed >= 0).nonzero().squeeze(1)
    names = tuple(known[index] for index, _ in sorted(places.items(), key=lambda entry: entry[1]))
    return ClassImages(names, rows, changed[rows])


def _indices(entry: str, names: tuple[str, ...], spec: str) -> list[int]:
    """Return the class numbers of one entry of `--classes`. Raises `UsageError` if there is no such class."""
    span = None if entry in names else _RANGE.fullmatch(entry)
    if span is None:
        return [_index(entry, names, spec)]
    first, last = int(span[1]), int(span[2])
    if not first < last:
        raise UsageError(f"--classes {entry} is no range of classes: {first} is not below {last}")
    return [_index(str(number), names, spec) for number in range(first, min(last, first + len(names)) + 1)]


def _index(entry: str, names: tuple[str, ...], spec: str) -> int:
    if entry in names:
        return names.index(entry)
    if entry.isdecimal() and int(entry) < len(names):
        return int(entry)
    raise UsageError(f"--classes: {spec} has no class {entry!r}.{did_you_mean(entry, list(names))}")
