"""Inputs that several stages resolve in the same way."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from ..artifacts import Input, read_manifest
from ..errors import ConfigError
from ..run_dir import RunDir

if TYPE_CHECKING:
    from pathlib import Path

    from ..data import RealData, Split
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
