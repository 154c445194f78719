"""What a student learns from: which of a run's transfer sets, noise, real data or live method the options name."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from ..artifacts import MANIFEST, Input, read_manifest, verify_artifact
from ..errors import ConfigError, UsageError, did_you_mean
from ..methods import live_method
from ..run_dir import ArtifactRef, RunDir
from .inputs import OpensRealData, open_real_data, real_data_input

if TYPE_CHECKING:
    import torch

    from ..classifier import Classifier
    from ..models import InputShape
    from ..sources import Source
    from ..stage_runner import StageContext

AUTO = "auto"
NOISE = ["noise:normal", "noise:uniform"]

USUAL_SETTINGS: dict[str, Any] = {
    "steps": 4000,
    "batch_size": 128,
    "loss": "kl",
    "temperature": 4.0,
    "shift": 2,
    "warp": 0.2,
}
"""Defaults of `distill` where neither the user nor a live method says otherwise."""


class NamesSource(OpensRealData, Protocol):
    """The options of `distill` that this module reads."""

    @property
    def data(self) -> str | None:
        """`--data`."""
        ...

    @property
    def method(self) -> str | None:
        """`--method`."""
        ...

    @property
    def seed(self) -> int:
        """`--seed`."""
        ...


@dataclass(frozen=True)
class Choice:
    """Where images come from: `kind` is `noise`, `data`, `transfer-set` or `live`, `name` says which.

    `reason` says why `auto` picked it.
    """

    kind: str
    name: str
    reason: str = ""

    @property
    def settings(self) -> dict[str, Any]:
        """Defaults of `distill` for images from here."""
        return USUAL_SETTINGS | (live_method(self.name).settings if self.kind == "live" else {})

    @property
    def structured(self) -> bool:
        """Whether its images are structured noise, or begin as such."""
        if self.kind == "transfer-set":
            return read_manifest(Path(self.name)).config.get("objective") == "structured_noise"
        return self.kind == "live" and live_method(self.name).structured


def choose(config: NamesSource, run: RunDir) -> Choice:
    """Return what `--data` and `--method` name; without either, the run's only transfer set, or what `auto` picks.

    Raises:
        UsageError: the name is unknown, or both options are given.
        ConfigError: the run has several transfer sets.
    """
    from ..data import is_real_data

    if config.method is not None:
        if config.data is not None:
            raise UsageError("--data and --method both name a source of images; give one of them")
        return _auto(run) if config.method == AUTO else Choice("live", config.method)
    if config.data in NOISE:
        return Choice("noise", config.data)
    if config.data is not None and is_real_data(config.data):
        return Choice("data", config.data)
    if config.data is None and not run.artifacts("transfer-set"):
        return _auto(run)
    return Choice("transfer-set", str(transfer_set(config.data, run)))


def _auto(run: RunDir) -> Choice:
    """Return the live method that suits the run's teacher."""
    from ..auto import pick
    from ..classifier import load_classifier

    teacher = load_classifier(run.existing("teacher", "kdx train").directory / "model.safetensors")
    name, reason = pick(teacher)
    return Choice("live", name, reason)


def inputs_of(choice: Choice, config: NamesSource, run: RunDir) -> tuple[Sequence[Input], str]:
    """Return the inputs besides the teacher, and what the student then needs."""
    if choice.kind == "data":
        return [real_data_input(config, choice.name, "train")], "teacher+data"
    if choice.kind != "transfer-set":
        return [], "teacher"
    return transfer_set_input(Path(choice.name), run)


def transfer_set_input(directory: Path, run: RunDir) -> tuple[list[Input], str]:
    """Return a transfer set as an input, after checking every file of it, and what it needed."""
    manifest = verify_artifact(directory)
    inside = directory.parent.parent.resolve() == run.root.resolve()
    label = manifest.label if inside else str(directory)
    return [Input("transfer-set", label, manifest.identity)], manifest.needs


def open_source(
    choice: Choice, config: NamesSource, method_config: Any, teacher: Classifier, context: StageContext
) -> Source:
    """Open what was chosen."""
    from ..images import fit_images
    from ..sources import ImagePool, NoiseSource

    if choice.kind == "live":
        return live_method(choice.name).open_source(teacher, method_config, config.seed)
    if choice.kind == "noise":
        return NoiseSource(choice.name.removeprefix("noise:"), teacher, config.seed)
    if choice.kind == "data":
        data = open_real_data(config, choice.name, "train", "distillation", context)
        return ImagePool(
            fit_images(data.images, teacher.input_shape), None, config.seed, context.device, holds_out=True
        )
    images, targets = read_transfer_set(Path(choice.name), teacher.input_shape, teacher.num_classes)
    return ImagePool(images, targets, config.seed, context.device, holds_out=True)


def transfer_set(spec: str | None, run: RunDir, option: str = "--data") -> Path:
    """Return the directory of the transfer set that an option names; without a name, the run's only one."""
    present = run.artifacts("transfer-set")
    if spec is None:
        if len(present) == 1:
            return present[0].directory
        raise ConfigError(f"{run.root} has several transfer sets, say which with {option}: {_names(present)}")
    matches = [ref.directory for ref in present if spec in (ref.name, ref.label)]
    if matches:
        return matches[0]
    if Path(spec).is_dir() and (Path(spec) / MANIFEST).exists():
        if read_manifest(Path(spec)).kind != "transfer-set":
            raise ConfigError(f"{spec} is not a transfer set")
        return Path(spec)
    known = [ref.name for ref in present]
    others = ""
    if option == "--data":
        from ..data import data_names

        known += NOISE + data_names()
        others = ", no noise and no data set"
    raise UsageError(f"{option} {spec!r} is no transfer set of {run.root}{others}.{did_you_mean(spec, known)}")


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


def _names(refs: Sequence[ArtifactRef]) -> str:
    return ", ".join(ref.name for ref in refs)
