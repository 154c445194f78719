"""What a run, or another run, has stored for a student to learn from: transfer sets and generators."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ..artifacts import MANIFEST, read_manifest, verify_artifact
from ..errors import ConfigError, UsageError, did_you_mean
from ..run_dir import RunDir

if TYPE_CHECKING:
    import torch

    from ..classifier import Classifier
    from ..generators.mix import GeneratorMix
    from ..models import InputShape

NOUNS = {"transfer-set": "transfer set", "generator": "generator"}
"""What a user calls an artifact of each kind."""


@dataclass(frozen=True)
class Stored:
    """An artifact that images come from, every file of it checked; `needs` is what it took."""

    kind: str
    name: str
    directory: Path
    label: str
    identity: str
    needs: str


def stored(spec: str | None, run: RunDir, option: str, kinds: Sequence[str], known: Sequence[str] = ()) -> Stored:
    """Return what an option names: an artifact of the run, or the directory of one; without a name, the run's only one.

    Args:
        option: how the user spells the option, for errors.
        kinds: those of `NOUNS` that will do.
        known: other values of the option, for a near-miss suggestion.

    Raises:
        UsageError: there is no such artifact.
        ConfigError: the run has none, or the name fits several.
        ArtifactError: a file of it is missing or was changed.
    """
    present = run.artifacts(*kinds)
    nouns = " or ".join(NOUNS[kind] for kind in kinds)
    matches = [ref for ref in present if spec in (None, ref.label)] or [ref for ref in present if spec == ref.name]
    if len(matches) > 1:
        several = " and ".join(dict.fromkeys(f"{NOUNS[ref.kind]}s" for ref in matches))
        labels = ", ".join(ref.label for ref in matches)
        raise ConfigError(f"{run.root} has several {several}, say which with {option}: {labels}")
    if matches:
        return _checked(matches[0].kind, matches[0].directory, run)
    if spec is None:
        raise ConfigError(f"{run.root} has no {nouns}")
    path = Path(spec)
    if path.is_dir() and (path / MANIFEST).exists():
        kind = read_manifest(path).kind
        if kind not in kinds:
            raise ConfigError(f"{spec} is no {nouns}")
        return _checked(kind, path, run)
    others = ", no noise and no data set" if known else ""
    names = [ref.name for ref in present] + list(known)
    raise UsageError(f"{option} {spec!r} is no {nouns} of {run.root}{others}.{did_you_mean(spec, names)}")


def stored_generators(specs: str | None, run: RunDir) -> list[Stored]:
    """Return the generator artifacts that a list with commas names. Raises as `stored` does."""
    names = [None] if specs is None else [spec.strip() for spec in specs.split(",")]
    if len(set(names)) < len(names):
        raise UsageError(f"{specs!r} names generators twice")
    if specs is None and not run.artifacts("generator"):
        raise ConfigError(f"{run.root} has no generator; make one with: kdx train-generator kegnet")
    return [stored(name, run, "GENERATOR", ["generator"]) for name in names]


def _checked(kind: str, directory: Path, run: RunDir) -> Stored:
    manifest = verify_artifact(directory)
    inside = directory.parent.parent.resolve() == run.root.resolve()
    label = manifest.label if inside else str(directory)
    return Stored(kind, directory.name, directory, label, manifest.identity, manifest.needs)


def open_generators(artifacts: Sequence[Stored], teacher: Classifier) -> GeneratorMix:
    """Return the generators of these artifacts on the teacher's device. Raises `ConfigError` if they do not fit it."""
    from ..generators.generator import load_generator
    from ..generators.mix import GeneratorMix

    generators = []
    for artifact in artifacts:
        for output in read_manifest(artifact.directory).outputs:
            if output.file.startswith("generator-"):
                generators.append(load_generator(artifact.directory / output.file).to(teacher.device))
    for generator in generators:
        made = generator.spec.input_shape, generator.spec.num_classes
        if made != (teacher.input_shape, teacher.num_classes):
            raise ConfigError(
                f"the generator makes images of shape {made[0]} for {made[1]} classes, the teacher takes "
                f"{teacher.input_shape} and has {teacher.num_classes}"
            )
    return GeneratorMix(generators)


def read_transfer_set(directory: Path, shape: InputShape, num_classes: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the stored images (uint8) and targets (the teacher's logits). Raises `ConfigError` if they do not fit."""
    import torch

    from ..tensor_files import read_npy

    images = torch.from_numpy(read_npy(directory / "images.npy"))
    targets = torch.from_numpy(read_npy(directory / "targets.npy"))
    if images.dtype != torch.uint8 or tuple(images.shape[1:]) != shape:
        raise ConfigError(
            f"{directory} holds images of shape {tuple(images.shape[1:])} ({images.dtype}), needed are {shape}"
        )
    if tuple(targets.shape) != (len(images), num_classes):
        raise ConfigError(
            f"{directory} has targets of shape {tuple(targets.shape)} for {len(images)} images of {num_classes} classes"
        )
    return images, targets
