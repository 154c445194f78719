"""The plan of a stage, and its result."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from ...errors import ArtifactError, ConfigError, did_you_mean
from ...storage.artifacts import Input, Manifest, verify_file
from ...storage.run_dir import MODEL_FILE, ONNX_FILE, ArtifactRef

if TYPE_CHECKING:
    import numpy as np
    from PIL.Image import Image

    from ...models.classifier import Classifier

IMAGES, GRID = "images.npy", "grid.png"

ResolvedT = TypeVar("ResolvedT")
Json = dict[str, Any]


@dataclass(frozen=True)
class Plan(Generic[ResolvedT]):
    """What a stage will read and write: determined by the config and the run alone, before any work.

    `needs` is the access to the teacher and its data that the result takes: one of `storage.artifacts.NEEDS`.
    `resolved` is what the options name, found and hashed, for the stage's `execute`; nothing is searched twice.
    """

    target: ArtifactRef
    inputs: tuple[Input, ...]
    needs: str
    resolved: ResolvedT


def load_classifier(path: str | Path) -> Classifier:
    """Return the classifier of a `model.safetensors` file, or of a quantized one's `model.onnx`, on the CPU.

    It is in evaluation mode. The `path` of an artifact's directory stands for its file.

    Random states and settings of the process do not change.

    Raises:
        ArtifactError: the file is missing or malformed, or its weights do not fit its architecture.
        ConfigError: it is quantized, and the packages of the extra `quantize` are missing.
    """
    from ...models import classifier
    from .process_state import process_as_it_was

    with process_as_it_was():
        return classifier.load_classifier(path)


@dataclass(frozen=True, repr=False)
class Outcome:
    """Result of a stage: its directory, its manifest, and a status: `made`, `cached` or `planned`.

    A notebook displays its metrics, and its grid if it has one. Files are compared with the manifest each time they
    are read; `ArtifactError` is raised if one was changed.
    """

    status: str
    directory: Path
    manifest: Manifest | None
    plan: Plan[Any]

    def __repr__(self) -> str:
        return f"<{self.plan.target.kind} {self.status}: {self.directory}>"

    @property
    def metrics(self) -> Json:
        """The stage's summary; empty for a planned result."""
        return {} if self.manifest is None else self.manifest.metrics

    @property
    def files(self) -> dict[str, Path]:
        """The path of every payload file, by name."""
        return {} if self.manifest is None else {o.file: self.directory / o.file for o in self.manifest.outputs}

    def picture(self, name: str | None = None) -> Image:
        """Return one of the artifact's pictures; without a name, its grid or else the first one.

        Raises:
            ConfigError: it has no picture, or none of this name.
        """
        from PIL import Image

        with Image.open(self._file(self._picture_name(name))) as image:
            image.load()
            return image

    def classifier(self) -> Classifier:
        """Return the classifier, in evaluation mode on the CPU. Raises `ConfigError` if the artifact has none."""
        return load_classifier(self._file(ONNX_FILE if self.plan.target.kind == "quantized" else MODEL_FILE))

    def images(self) -> np.ndarray:
        """Return a transfer set's images, uint8 [N, channels, height, width]. Raises `ConfigError` for others."""
        path = self._file(IMAGES)
        from ...storage.tensor_files import read_npy

        return read_npy(path)

    def record(self) -> Json:
        """Return what `--json` prints."""
        result: Json = {
            "status": self.status,
            "directory": str(self.directory),
            "artifact": self.plan.target.label,
            "kind": self.plan.target.kind,
            "inputs": [{"role": i.role, "path": i.path, "sha256": i.sha256} for i in self.plan.inputs],
        }
        if self.manifest is not None:
            result |= {
                "needs": self.manifest.needs,
                "identity": self.manifest.identity,
                "budget": self.manifest.budget,
                **self.manifest.metrics,
            }
        return result

    def _repr_html_(self) -> str:
        from .figures import shown_metrics
        from .html import image_html, table_html

        where = [["artifact", self.plan.target.label], ["directory", str(self.directory)]]
        figures = [[name.replace("_", " "), text] for name, text in shown_metrics(self.metrics)]
        table = table_html([], where + figures, f"{self.plan.target.kind}, {self.status}")
        if not self._pictures():
            return table
        name = self._picture_name(None)
        try:
            return table + image_html(self._file(name).read_bytes(), f"{self.plan.target.label}/{name}")
        except ArtifactError:  # it was replaced or removed
            return table

    def _pictures(self) -> list[str]:
        return sorted((name for name in self.files if name.endswith(".png")), key=lambda name: (name != GRID, name))

    def _picture_name(self, name: str | None) -> str:
        pictures = self._pictures()
        if not pictures:
            raise ConfigError(f"{self._described()} has no pictures")
        if name is not None and name not in pictures:
            raise ConfigError(f"{self._described()} has no picture {name!r}.{did_you_mean(name, pictures)}")
        return name or pictures[0]

    def _file(self, name: str) -> Path:
        """Return one payload file, checked. Raises `ConfigError` if the artifact has no such file."""
        if self.manifest is None or name not in self.files:
            raise ConfigError(f"{self._described()} has no {name}")
        return verify_file(self.directory, self.manifest.output(name))

    def _described(self) -> str:
        return f"the {self.plan.target.kind} {self.directory}" + (", only planned," if self.manifest is None else "")
