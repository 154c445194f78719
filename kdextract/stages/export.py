"""`kdx export`: a classifier as a file for other programs, checked against the classifier, with a model card."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from ..errors import GateError
from ..models.exporter import CHECKED_BATCHES
from ..options.declare import NamedStageConfig, option
from ..storage.artifacts import Manifest, write_file
from ..storage.run_dir import MODEL_FILE, InputFile, RunDir
from ..storage.version import __version__
from .inputs.classifiers import ChosenClassifier, find_classifier
from .outputs.lineage import ancestors, data_name, evaluations_of, origin
from .running.runner import Plan, Stage, StageContext

if TYPE_CHECKING:
    import torch

    from ..models.classifier import Classifier

if TYPE_CHECKING:
    from ..models.classifier import Classifier
    from ..models.exporter import Comparison

FORMATS = ["onnx", "pt2", "safetensors"]
CARD_FILE = "README.md"


@dataclass(frozen=True, kw_only=True)
class ExportConfig(NamedStageConfig):
    """Export a classifier as ONNX, pt2 or safetensors.

    pt2 is a program of torch.export. The exported model takes pixels in [0, 1], in batches of any size, normalizes them
    and returns logits. Its logits on 64 synthetic images are compared with PyTorch's; if one differs by more than
    --atol, nothing is written (exit code 5). README.md beside it is a model card: its use, teacher, method, data and
    evaluations. ONNX needs the extra `export`.

    Examples:

      kdx export
      kdx export students/lenet_half --format pt2
      kdx export teacher --format safetensors --name release
    """

    artifact: str | None = option(
        None,
        "Classifier of the run (student, teacher, compressed, pruned, extended), or a model.safetensors file; default: "
        "the only student.",
        positional=True,
    )
    format: str = option("onnx", "File format.", choices=FORMATS, panel="Output")
    atol: float = option(
        1e-4, "Largest accepted absolute difference of a logit; above it, exit code 5.", minimum=0, panel="Output"
    )


@dataclass(frozen=True)
class ExportInputs:
    """The classifier to export and, for its card, the manifests of its sources, by label, and of its evaluations."""

    classifier: ChosenClassifier
    ancestors: dict[str, Manifest]
    evaluations: list[Manifest]


def find_exported(label: str | None, run: RunDir) -> ChosenClassifier:
    """Return the classifier that `label` names. Raises the errors of `find_classifier`."""
    if label is not None and Path(label).name == MODEL_FILE and Path(label).is_file():
        label = str(Path(label).parent)
    chosen = find_classifier(label, run)
    if chosen.artifact is not None or chosen.file.path.name == MODEL_FILE:
        return chosen
    return replace(chosen, name=f"{chosen.name}-{chosen.file.path.stem}")


def plan(config: ExportConfig, run: RunDir) -> Plan[ExportInputs]:
    """Plan: reads one classifier and, for the card, its teacher and its evaluations, if the run has them."""
    if config.format == "onnx":
        from ..models.exporter import require_onnx

        require_onnx()
    chosen = find_exported(config.artifact, run)
    manifest = None if chosen.artifact is None else chosen.artifact.manifest
    sources = {} if manifest is None else ancestors(run, manifest)
    inputs = [chosen.input]
    if any(source.kind == "teacher" for source in sources.values()):
        inputs.append(run.artifact(run.place("teacher")).input("teacher"))
    evaluations = evaluations_of(chosen.input, run)
    for index, ref in enumerate(evaluations, start=1):
        inputs.append(run.artifact(ref).input("evaluation" if index == 1 else f"evaluation-{index}"))
    place = run.place("export", config.name or f"{chosen.name}-{config.format}")
    resolved = ExportInputs(chosen, sources, list(evaluations.values()))
    return Plan(place, tuple(inputs), manifest.needs if manifest else "", resolved)


def execute(config: ExportConfig, resolved: ExportInputs, context: StageContext) -> dict[str, Any]:
    """Export the classifier, compare the file's logits with the classifier's, and write file and card.

    Raises:
        GateError: a logit differs by more than `--atol`.
    """
    from ..models.classifier import load_classifier
    from ..models.exporter import OPSET, compare

    file = resolved.classifier.file
    classifier = file.read(load_classifier).frozen()
    with context.phase("export"):
        content = _content(config.format, classifier, file)
    with context.phase("check"):
        found = compare(classifier, _open_exported(config.format, content), images_to_compare(classifier, config.seed))
    written = f"model.{config.format}"
    _require_close(found, written, config.atol)
    opset = OPSET if config.format == "onnx" else None
    context.write(written, content)
    card = _card(config, resolved, classifier, content, found, opset)
    context.write(CARD_FILE, card.encode())
    return {
        "format": config.format,
        "file": written,
        "bytes": len(content),
        "num_images": found.num_images,
        "largest_difference": float(f"{found.largest_difference:.3g}"),
        "same_class": found.same_class,
        **({} if opset is None else {"opset": opset}),
        "num_parameters": classifier.num_parameters,
    }


def _content(format: str, classifier: Classifier, file: InputFile) -> bytes:
    from ..models.exporter import to_onnx, to_pt2

    if format == "safetensors":
        return file.read(Path.read_bytes)
    return to_onnx(classifier) if format == "onnx" else to_pt2(classifier)


def _open_exported(format: str, content: bytes) -> Any:
    from ..models.exporter import open_onnx, open_pt2

    return {"onnx": open_onnx, "pt2": open_pt2, "safetensors": _open_safetensors}[format](content)


def _open_safetensors(content: bytes) -> Classifier:
    """Return a `model.safetensors` file as a classifier. Raises as `load_classifier` does."""
    from ..models.classifier import load_classifier

    with TemporaryDirectory() as folder:
        path = Path(folder) / MODEL_FILE
        write_file(path, content)
        return load_classifier(path).frozen()


def _require_close(found: Comparison, file: str, atol: float) -> None:
    """Raise `GateError` if logits of the exported file differ from the classifier's by more than `atol`."""
    if found.largest_difference > atol:
        raise GateError(
            f"the logits of {file} differ from the classifier's by up to {found.largest_difference:.3g}, more than "
            f"--atol {atol:g} (the largest logit is {found.largest_logit:.3g}); nothing was written"
        )


def _card(
    config: ExportConfig,
    resolved: ExportInputs,
    classifier: Classifier,
    content: bytes,
    found: Comparison,
    opset: int | None,
) -> str:
    from .outputs.model_card import Exported, model_card

    spec, chosen = classifier.spec, resolved.classifier
    made = None if chosen.artifact is None else chosen.artifact.manifest
    exported = Exported(
        name=chosen.name,
        source=made.label if made else chosen.file.path.name,
        format=config.format,
        file=f"model.{config.format}",
        num_bytes=len(content),
        architecture=data_name(spec.architecture),
        num_parameters=classifier.num_parameters,
        input_shape=spec.input_shape,
        class_names=spec.class_names,
        mean=spec.mean,
        std=spec.std,
        difference=found.largest_difference,
        num_compared=found.num_images,
        opset=opset,
        kdx_version=__version__,
    )
    facts = origin(made, resolved.ancestors) if made else []
    scores = [manifest.metrics for manifest in resolved.evaluations]
    scores = [{**metrics, "data": data_name(metrics["data"])} for metrics in scores]
    return model_card(exported, facts, scores, made.metrics if made else {})


STAGE = Stage("export", ExportConfig, plan, execute, replaces_stale=True)


def images_to_compare(classifier: Classifier, seed: int) -> list[torch.Tensor]:
    """Return 64 images in batches of several sizes, pixels in [0, 1]: half uniform noise, half structured noise.

    For rows of a table, all are uniform noise.
    """
    import torch

    from ..synthesis.structured_noise.patterns import structured_images

    rng, count = torch.Generator().manual_seed(seed), sum(CHECKED_BATCHES)
    images = torch.rand((count, *classifier.input_shape), generator=rng)
    if not classifier.is_table:
        images[::2] = structured_images(count // 2, classifier.input_shape, float(classifier.mean.mean()), rng)
    return list(images.split(CHECKED_BATCHES))
