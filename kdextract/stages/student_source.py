"""What a student learns from: which of a run's transfer sets, noise, real data or live method the options name."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from ..artifacts import Input, read_manifest
from ..errors import UsageError
from ..methods import live_method, objective, objective_names
from ..run_dir import RunDir
from .inputs import OpensRealData, images_for, open_real_data, real_data_input
from .materials import materials
from .stored import open_generators, read_transfer_set, stored

if TYPE_CHECKING:
    from ..classifier import Classifier
    from ..sources import Source
    from ..stage_runner import StageContext

AUTO = "auto"
STORED = ["transfer-set", "generator"]
REAL_IMAGES = "real images"
NOISE = ["noise:normal", "noise:uniform"]


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
    """Where images come from: `kind` is `noise`, `data`, `transfer-set`, `generator` or `live`, `name` says which.

    `reason` says why `auto` picked it.
    """

    kind: str
    name: str
    reason: str = ""

    @property
    def settings(self) -> dict[str, Any]:
        """What a live method asks `distill` for, unless the user says otherwise."""
        return live_method(self.name).settings if self.kind == "live" else {}

    @property
    def generated(self) -> bool:
        """Whether trained generators make its images, or made them."""
        if self.kind == "transfer-set":
            return read_manifest(Path(self.name)).stage == "generate"
        return self.kind == "generator"

    @property
    def alike(self) -> bool:
        """Whether its images repeat themselves, as those of generators and of inversion without statistics do."""
        if self.kind == "transfer-set":
            name = read_manifest(Path(self.name)).config.get("objective")
            inverted = name in objective_names() and objective(name).images_only and not self.structured
            return self.generated or inverted
        return self.kind == "generator" or (self.kind == "live" and not self.structured)

    def learned_from(self, method_config: Any) -> str:
        """Return what the student learns from, as `estimate.LEARNED_FROM` spells it, or in other words.

        Args:
            method_config: options of the live method, None where there is none.
        """
        from ..methods.options import GameConfig

        if isinstance(method_config, GameConfig):
            usual = GameConfig()
            if method_config.start != usual.start:
                return f"{self.name} with --start {method_config.start}"
            if method_config.replay < usual.replay:
                return f"{self.name} with --replay {method_config.replay:g}"
        if self.kind == "data":
            return REAL_IMAGES
        if self.generated:
            return "trained generators"
        if self.kind == "transfer-set":
            return str(read_manifest(Path(self.name)).config.get("objective"))
        return self.name

    @property
    def makes_images(self) -> bool:
        """Whether images are made while the student learns."""
        return self.kind in ("live", "generator")

    @property
    def structured(self) -> bool:
        """Whether its images are structured noise, or begin as such."""
        if self.kind == "transfer-set":
            return read_manifest(Path(self.name)).config.get("objective") == "structured_noise"
        return self.kind == "live" and live_method(self.name).structured


def choose(config: NamesSource, run: RunDir) -> Choice:
    """Return what `--data` and `--method` name; without either, what the run has stored, or what `auto` picks.

    Raises:
        UsageError: the name is unknown, or both options are given.
        ConfigError: the run has several transfer sets or generators.
    """
    from ..data import data_names, is_real_data

    if config.method is not None:
        if config.data is not None:
            raise UsageError("--data and --method both name a source of images; give one of them")
        return _auto(run) if config.method == AUTO else Choice("live", config.method)
    if config.data in NOISE:
        return Choice("noise", config.data)
    if config.data is not None and is_real_data(config.data):
        return Choice("data", config.data)
    if config.data is None and not run.artifacts(*STORED):
        return _auto(run)
    known = NOISE + data_names()
    kept = stored(config.data, run, "--data", STORED, known)
    return Choice(kept.kind, str(kept.directory))


def _auto(run: RunDir) -> Choice:
    """Return the live method that suits the run's teacher."""
    from ..auto import pick
    from ..classifier import load_classifier

    teacher = load_classifier(run.teacher().directory / "model.safetensors")
    name, reason = pick(teacher)
    return Choice("live", name, reason)


def inputs_of(choice: Choice, config: NamesSource, run: RunDir) -> tuple[Sequence[Input], str]:
    """Return the inputs besides the teacher, and what the student then needs."""
    if choice.kind == "data":
        return [real_data_input(config, choice.name, "train")], "teacher+data"
    if choice.kind == "live":
        taken = materials(live_method(choice.name), run)
        return taken.inputs, taken.needs
    if choice.kind not in STORED:
        return [], "teacher"
    kept = stored(choice.name, run, "--data", STORED)
    return [Input(kept.kind, kept.label, kept.identity)], kept.needs


def open_source(
    choice: Choice, config: NamesSource, method_config: Any, teacher: Classifier, context: StageContext
) -> Source:
    """Open what was chosen."""
    from ..auto import require_images
    from ..sources import ImagePool, NoiseSource

    if choice.kind == "live":
        if choice.structured:
            require_images(teacher)
        method = live_method(choice.name)
        return method.open_source(materials(method, context.run).given(teacher, context), method_config, config.seed)
    if choice.kind == "noise":
        return NoiseSource(choice.name.removeprefix("noise:"), teacher, config.seed)
    if choice.kind == "data":
        data = open_real_data(config, choice.name, "train", "distillation", context)
        images = images_for(teacher.input_shape, None, data, choice.name, context)
        return ImagePool(images, None, config.seed, context.device, holds_out=True)
    if choice.kind == "generator":
        from ..generator_source import GeneratorSource

        kept = stored(choice.name, context.run, "--data", STORED)
        return GeneratorSource(open_generators([kept], teacher), teacher, config.seed)
    images, targets = read_transfer_set(Path(choice.name), teacher.input_shape, teacher.num_classes)
    return ImagePool(images, targets, config.seed, context.device, holds_out=True)
