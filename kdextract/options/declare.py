"""Declaration of options: default, checks, help text, and the record in manifests."""

from __future__ import annotations

import dataclasses
import numbers
import os
import types
import typing
from collections.abc import Callable
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, ClassVar

from ..errors import UsageError, did_you_mean
from .former import REMOVED

PANELS = (
    "Arguments",
    "Source",
    "Model",
    "Student",
    "Images",
    "Generators",
    "Statistics",
    "Ranks",
    "Size",
    "Schedule",
    "Loss",
    "Augmentation",
    "Method",
    "Comparison",
    "Suite",
    "Output",
    "Compute",
)
"""Groups of options in the order in which help shows them; `Method` is for options of some methods only."""


@dataclass(frozen=True)
class OptionInfo:
    """The properties of an option: help text, allowed values, and how it is given on the command line."""

    help: str
    choices: Callable[[], list[str]] | None = None
    minimum: float | None = None
    maximum: float | None = None
    above: float | None = None
    recorded: bool = True
    positional: bool = False
    env: str | None = None
    metavar: str | None = None
    panel: str = "Method"
    otherwise: str | None = None


def option(
    default: Any,
    help: str,
    *,
    choices: list[str] | Callable[[], list[str]] | None = None,
    minimum: float | None = None,
    maximum: float | None = None,
    above: float | None = None,
    recorded: bool = True,
    positional: bool = False,
    env: str | None = None,
    metavar: str | None = None,
    panel: str = "Method",
    otherwise: str | None = None,
) -> Any:
    """Declare one option of a config dataclass.

    Args:
        default: its value when it is not given; `dataclasses.MISSING` makes it required.
        choices: the allowed values, or a function that returns them (called when the value is checked).
        minimum, maximum: inclusive bounds of a number; `above` is an exclusive lower bound.
        recorded: whether an artifact counts as finished only if it was made with the same value.
        panel: the group of options, one of `PANELS`, in which help shows it.
        otherwise: the value in effect where the default is None, for the help text.
    """
    known = (lambda: choices) if isinstance(choices, list) else choices
    panel = "Arguments" if positional else panel
    assert panel in PANELS, panel
    info = OptionInfo(help, known, minimum, maximum, above, recorded, positional, env, metavar, panel, otherwise)
    return field(default=default, metadata={"option": info})


def option_info(declared: dataclasses.Field[Any]) -> OptionInfo:
    """Return what `option` stored in a dataclass field."""
    info = declared.metadata["option"]
    assert isinstance(info, OptionInfo)
    return info


def option_fields(options: OptionSet | type[OptionSet]) -> list[dataclasses.Field[Any]]:
    """Return the fields that `option` declared, in order."""
    return [declared for declared in fields(options) if "option" in declared.metadata]


def spelling(name: str) -> str:
    """Return the command line's spelling of a field: `batch_size` -> `--batch-size`."""
    return "--" + name.replace("_", "-")


@dataclass(frozen=True, kw_only=True)
class OptionSet:
    """Base of every group of options; checks each value against its declaration.

    Raises:
        UsageError: a value is not allowed; the message names the option and the most similar value.
    """

    def __post_init__(self) -> None:
        for declared in option_fields(self):
            value = getattr(self, declared.name)
            if value is not None:
                _check_value(declared.name, value, option_info(declared))


def _check_value(name: str, value: Any, info: OptionInfo) -> None:
    if info.choices is not None and value not in info.choices():
        raise UsageError(f"unknown value {value!r} of {spelling(name)}.{did_you_mean(str(value), info.choices())}")
    if isinstance(value, int | float) and not isinstance(value, bool):
        if value != value:
            raise UsageError(f"{spelling(name)} is not a number")
        if abs(value) == float("inf"):
            raise UsageError(f"{spelling(name)} must be finite")
        if info.minimum is not None and value < info.minimum:
            raise UsageError(f"{spelling(name)} must be at least {info.minimum:g}, got {value:g}")
        if info.maximum is not None and value > info.maximum:
            raise UsageError(f"{spelling(name)} must be at most {info.maximum:g}, got {value:g}")
        if info.above is not None and value <= info.above:
            raise UsageError(f"{spelling(name)} must be above {info.above:g}, got {value:g}")


_NOUNS = {
    bool: "true or false", int: "a whole number", float: "a number", str: "a string", Path: "a path",
    list: "a list", dict: "a table",
}  # fmt: skip


def coerced(name: str, value: Any, kind: Any) -> Any:
    """Return a value of a Python call or of a TOML file in the type that an option, or a key of the file, declares.

    A string is accepted for a path, a path for a string, an integer for a float, and a string for a list of one string.

    Args:
        name: the option, as an error message names it.
        kind: its type, or a union of types.

    Raises:
        UsageError: the value has another type.
    """
    kinds = typing.get_args(kind) if isinstance(kind, types.UnionType) else (kind,)
    if type(value) in kinds:
        return value
    if isinstance(value, str | os.PathLike) and (Path in kinds or str in kinds):
        return Path(value) if Path in kinds else str(os.fspath(value))
    if isinstance(value, numbers.Integral) and not isinstance(value, bool) and int in kinds:
        return int(value)
    if isinstance(value, numbers.Real) and not isinstance(value, bool) and float in kinds:
        return float(value)
    if list[str] in kinds and isinstance(value, str | list | tuple):
        texts = [value] if isinstance(value, str) else list(value)
        if all(isinstance(text, str) for text in texts):
            return texts
    nouns = [_NOUNS.get(kind, "a list of strings") for kind in kinds if kind is not types.NoneType]
    raise UsageError(f"{name} must be {' or '.join(nouns)}, got {value!r}")


@dataclass(frozen=True, kw_only=True)
class RunConfig(OptionSet):
    """Options of every command that uses a run directory."""

    run: Path = option(
        Path("runs/default"),
        "Run directory.",
        env="KDX_RUN",
        recorded=False,
        metavar="DIR",
        panel="Output",
    )


@dataclass(frozen=True, kw_only=True)
class StageConfig(RunConfig):
    """Options of every stage."""

    seed: int = option(0, "Seed of all random numbers.", minimum=0, maximum=2**31 - 1, panel="Compute")
    device: str = option("auto", "auto, cpu, cuda or cuda:N.", panel="Compute")
    threads: int | None = option(None, "CPU threads.", minimum=1, panel="Compute", otherwise="one per core")
    force: bool = option(False, "Overwrite an existing artifact.", recorded=False, panel="Output")
    dry_run: bool = option(False, "Print what would be read and written, and stop.", recorded=False, panel="Output")


@dataclass(frozen=True, kw_only=True)
class NamedStageConfig(StageConfig):
    """Options of a stage that may have several artifacts in one run."""

    name: str | None = option(
        None, "Name of the artifact, to keep several in one run.", recorded=False, metavar="NAME", panel="Output"
    )


@dataclass(frozen=True, kw_only=True)
class MethodStageConfig(NamedStageConfig):
    """Options of a stage that runs one of several registered methods, each with options of its own.

    `method_options` holds what was given for the method; other options have the method's defaults. `chooser` is the
    option that selects the method.
    """

    chooser: ClassVar[str] = "method"

    method_options: dict[str, Any] = field(default_factory=dict)

    def chosen_method(self) -> tuple[str, type[OptionSet]]:
        """Return the name of the method and the class of its options."""
        raise AssertionError("a stage with methods defines this")

    @classmethod
    def methods(cls) -> dict[str, type[OptionSet]]:
        """Return the class of options of every method, by name."""
        raise AssertionError("a stage with methods defines this")

    @classmethod
    def method_defaults(cls, name: str) -> dict[str, Any]:
        """Return the options of the stage whose default depends on the method, with their values for this one."""
        return {}

    def method_config(self) -> Any:
        """Return the method's options, checked. Raises `UsageError` for an option that has no effect on it."""
        name, options = self.chosen_method()
        known = [declared.name for declared in option_fields(options)]
        for given in self.method_options:
            if given not in known:
                takes = f"it takes {', '.join(map(spelling, known))}" if known else "it takes no options of its own"
                raise UsageError(f"{spelling(given)} has no effect on {name}; {takes}")
        return options(**self.method_options)


@dataclass(frozen=True, kw_only=True)
class TeacherConfig(StageConfig):
    """Options of a stage that uses a teacher, which it can import first."""

    teacher: str | None = option(
        None,
        "Model to import first, as in `kdx import-model`.",
        recorded=False,
        metavar="SPEC",
        panel="Source",
    )
    weights: str | None = option(
        None, "File with the weights of --teacher.", recorded=False, metavar="FILE", panel="Source"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.weights is not None and self.teacher is None:
            raise UsageError("--weights has no effect without --teacher")


@dataclass(frozen=True, kw_only=True)
class NetworkConfig(OptionSet):
    """Number format and compilation, for stages with long computations."""

    precision: str | None = option(
        None,
        "Number format of activations.",
        choices=["fp32", "bf16"],
        panel="Compute",
        otherwise="fp32",
    )
    compile: bool | None = option(None, "Use torch.compile, faster on a GPU.", panel="Compute", otherwise="off")


@dataclass(frozen=True, kw_only=True)
class DataAccess(OptionSet):
    """Directory of data sets, for every command that may read real data."""

    data_dir: Path = option(
        Path("data"),
        "Data set directory.",
        env="KDX_DATA_DIR",
        recorded=False,
        metavar="DIR",
        panel="Source",
    )
    download: bool = option(False, "Download data that is missing.", recorded=False, panel="Source")


@dataclass(frozen=True, kw_only=True)
class VerifierConfig(OptionSet):
    """A second classifier, which checks the images of a stage."""

    verifier: str | None = option(
        None,
        "Second classifier, to check the classes of the images.",
        metavar="FILE",
        panel="Output",
    )


def to_record(config: OptionSet) -> dict[str, Any]:
    """Return the recorded options as JSON values, in the order in which they are declared."""
    record = {
        declared.name: _json_value(getattr(config, declared.name))
        for declared in option_fields(config)
        if option_info(declared).recorded
    }
    return record | to_record(config.method_config()) if isinstance(config, MethodStageConfig) else record


def _json_value(value: Any) -> Any:
    return str(value) if isinstance(value, Path) else value


def difference(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    """Return one `--option: old -> new` per option that two records disagree on.

    An absent option counts as None, so that artifacts of older versions stay valid when an option is added.
    """
    names = [name for name in dict.fromkeys([*old, *new]) if old.get(name) != new.get(name)]
    return [
        f"{spelling(name)}: {old.get(name)} -> "
        + (f"removed ({REMOVED[name].decided})" if name in REMOVED else str(new.get(name)))
        for name in names
    ]
