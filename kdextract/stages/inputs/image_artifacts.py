"""Transfer sets and generators, of the run or of another one: how they are found and read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from ...errors import ConfigError, UsageError, did_you_mean
from ...storage.artifacts import MANIFEST, read_manifest
from ...storage.run_dir import Artifact, RunDir

if TYPE_CHECKING:
    import torch

    from ...models.architectures import InputShape
    from ...models.classifier import Classifier
    from ...synthesis.generators.mix import GeneratorMix

ImageArtifact = Artifact
"""A transfer set, or generators."""

NOUNS = {"transfer-set": "transfer set", "generator": "generator"}
"""Kind of artifact -> its name in messages."""


@dataclass(frozen=True)
class _Search:
    """The artifacts that an option may name: see `find_image_artifact`."""

    run: RunDir
    option: str
    kinds: Sequence[str]
    known: Sequence[str]

    def by_label(self, spec: str | None) -> Path | None:
        """Return the directory of the artifact of the run with this label, such as `transfer-sets/all_layers`."""
        return next((ref.directory for ref in self.run.artifacts(*self.kinds) if ref.label == spec), None)

    def by_name(self, spec: str | None) -> Path | None:
        """Return the run's artifact of this name; None: its only one. Raises `ConfigError` if there are several."""
        matches = [ref for ref in self.run.artifacts(*self.kinds) if spec in (None, ref.name)]
        if len(matches) > 1:
            several = " and ".join(dict.fromkeys(f"{NOUNS[ref.kind]}s" for ref in matches))
            labels = ", ".join(ref.label for ref in matches)
            raise ConfigError(f"{self.run.root} has several {several}, say which with {self.option}: {labels}")
        return matches[0].directory if matches else None

    def by_path(self, spec: str | None) -> Path | None:
        """Return the path of an artifact of any run. Raises `ConfigError` if it is of another kind."""
        if spec is None or not (Path(spec) / MANIFEST).exists():
            return None
        if read_manifest(Path(spec)).kind not in self.kinds:
            raise ConfigError(f"{spec} is not a {self.nouns}")
        return Path(spec)

    def fail(self, spec: str | None) -> NoReturn:
        """Raise the error for a spec that was not found, with a suggestion."""
        if spec is None:
            raise ConfigError(f"{self.run.root} has no {self.nouns}")
        others = ", no noise and no data set" if self.known else ""
        names = [ref.name for ref in self.run.artifacts(*self.kinds)] + list(self.known)
        raise UsageError(
            f"{self.option} {spec!r} is no {self.nouns} of {self.run.root}{others}.{did_you_mean(spec, names)}"
        )

    @property
    def nouns(self) -> str:
        """The names of the kinds in messages."""
        return " or ".join(NOUNS[kind] for kind in self.kinds)


def find_image_artifact(
    spec: str | None, run: RunDir, option: str, kinds: Sequence[str], known: Sequence[str] = ()
) -> ImageArtifact:
    """Return the artifact that an option names, every file of it checked.

    Args:
        spec: label or name of an artifact of the run, or the directory of any artifact; None for the run's only one.
        option: the option as the user types it, for errors.
        kinds: kinds of artifact that are accepted, keys of `NOUNS`.
        known: other values of the option, for a suggestion in the error.

    Raises:
        UsageError: there is no such artifact.
        ConfigError: the run has none, or the name fits several.
        ArtifactError: a file of it is missing or was changed.
    """
    search = _Search(run, option, kinds, known)
    directory = search.by_label(spec) or search.by_name(spec) or search.by_path(spec)
    return search.fail(spec) if directory is None else run.artifact_at(directory)


def find_generators(specs: str | None, run: RunDir) -> list[ImageArtifact]:
    """Return the generator artifacts of a list with commas. Raises the errors of `find_image_artifact`."""
    names = [None] if specs is None else [spec.strip() for spec in specs.split(",")]
    if len(set(names)) < len(names):
        raise UsageError(f"{specs!r} names generators twice")
    if specs is None and not run.artifacts("generator"):
        raise ConfigError(f"{run.root} has no generator; make one with: kdx train-generator kegnet")
    return [find_image_artifact(name, run, "GENERATOR", ["generator"]) for name in names]


def open_generators(artifacts: Sequence[ImageArtifact], teacher: Classifier) -> GeneratorMix:
    """Return the generators of these artifacts on the teacher's device. Raises `ConfigError` if they do not fit."""
    from ...synthesis.generators.generator import load_generator
    from ...synthesis.generators.mix import GeneratorMix

    generators = []
    for artifact in artifacts:
        files = [file for name, file in artifact.files.items() if name.startswith("generator-")]
        generators += [file.read(load_generator).to(teacher.device) for file in files]
    for generator in generators:
        made = generator.spec.input_shape, generator.spec.num_classes
        if made != (teacher.input_shape, teacher.num_classes):
            raise ConfigError(
                f"the generator makes images of shape {made[0]} for {made[1]} classes, the teacher takes "
                f"{teacher.input_shape} and has {teacher.num_classes}"
            )
    return GeneratorMix(generators)


def read_transfer_set(
    transfer_set: ImageArtifact, shape: InputShape, num_classes: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return images, uint8 [N, *shape], and the teacher's logits for them [N, num_classes].

    Raises:
        ConfigError: the arrays have other shapes.
        ArtifactError: a file is malformed, or was changed since it was hashed.
    """
    import torch

    directory = transfer_set.directory
    images, targets = (_read_array(transfer_set, name) for name in ("images.npy", "targets.npy"))
    if images.dtype != torch.uint8 or tuple(images.shape[1:]) != shape:
        raise ConfigError(
            f"{directory} has images of shape {tuple(images.shape[1:])} ({images.dtype}); uint8 {shape} is needed"
        )
    if tuple(targets.shape) != (len(images), num_classes):
        raise ConfigError(
            f"{directory} has targets of shape {tuple(targets.shape)} for {len(images)} images of {num_classes} classes"
        )
    return images, targets


def read_labels(transfer_set: ImageArtifact) -> torch.Tensor:
    """Return the requested class of each image of a transfer set, int64 [N]."""
    return _read_array(transfer_set, "labels.npy")


def _read_array(transfer_set: ImageArtifact, name: str) -> torch.Tensor:
    import torch

    from ...storage.tensor_files import read_npy

    return torch.from_numpy(transfer_set.file(name).read(read_npy))
