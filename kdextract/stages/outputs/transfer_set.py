"""Files about synthetic images, the same for every command: transfer sets, pictures, the verifier's agreement."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...errors import ConfigError
from ...models.queries import PICTURES, TARGETS
from ...options.declare import VerifierConfig
from ...storage.artifacts import Input
from ...storage.run_dir import MODEL_FILE, InputFile, RunDir
from ..inputs.real_data import fitted

if TYPE_CHECKING:
    import torch

    from ...models.classifier import Classifier
    from ...training.sources import Source
    from ..running.runner import StageContext

PICTURED_IMAGES, PICTURED_BATCHES = 400, 4
"""Number of images of a source in the picture of a finished student, and of the batches that they are drawn in."""


def find_verifier(config: VerifierConfig, run: RunDir) -> InputFile | None:
    """Return the file of `--verifier`, None without this option.

    Raises:
        ArtifactError: the file does not exist.
        ConfigError: it is the teacher.
    """
    if config.verifier is None:
        return None
    verifier = run.file(Path(config.verifier))
    if verifier.sha256 == run.artifact(run.teacher()).file(MODEL_FILE).sha256:
        raise ConfigError("--verifier is the teacher, for which the images were optimized; name another classifier")
    return verifier


def verifier_inputs(verifier: InputFile | None) -> list[Input]:
    """Return the verifier, if there is one, as an input of a stage."""
    return [] if verifier is None else [verifier.input("verifier")]


def write_transfer_set(
    verifier: InputFile | None,
    context: StageContext,
    teacher: Classifier,
    images: torch.Tensor,
    labels: torch.Tensor,
    rows: list[dict[str, float]],
) -> dict[str, Any]:
    """Get the teacher's logits for all images; write arrays, picture and metric rows; return the summary.

    Args:
        images: uint8 [N, channels, height, width].
        labels: the requested class of each image, int64 [N].
        rows: metric rows, one per batch.
    """
    from ...storage.tensor_files import encode_npy
    from ...training.supervised import predict
    from .pictures import class_grid

    with context.phase("targets"), teacher.queries.purpose(TARGETS):
        targets = predict(teacher, images)
    context.count(images=len(images))
    context.write("images.npy", encode_npy(images.numpy()))
    context.write("labels.npy", encode_npy(labels.numpy()))
    context.write("targets.npy", encode_npy(targets.numpy()))
    probabilities = targets.softmax(dim=1)
    context.write("grid.png", class_grid(images, labels, probabilities, teacher.spec.class_names))
    context.write_metrics(rows)
    verified = {}
    if verifier is not None:
        agreement = _agreement(verifier, context, images, labels, teacher)
        verified["verifier_agrees_with_label"] = agreement
    return {
        "num_images": len(images),
        "image_bytes": images.numel(),
        "teacher_agrees_with_label": round(float((targets.argmax(1) == labels).float().mean()), 4),
        "mean_confidence": round(float(probabilities.amax(1).mean()), 4),
        **verified,
    }


def write_source_pictures(
    verifier: InputFile | None, context: StageContext, teacher: Classifier, source: Source
) -> dict[str, float]:
    """Write a grid of the present images of a source, by the teacher's class, and the curve of its loss, if any.

    Returns:
        The share of these images for which the verifier predicts the teacher's class; {} without a verifier.
    """
    import torch

    from ...models.pixels import to_uint8
    from ...training.sources import Optimized
    from ...training.supervised import predict
    from .curves import term_curves
    from .pictures import class_grid

    with teacher.queries.purpose(PICTURES):  # some sources give them to the teacher
        images = to_uint8(
            torch.cat([source.sample(PICTURED_IMAGES // PICTURED_BATCHES).images for _ in range(PICTURED_BATCHES)])
        ).cpu()
        probabilities = predict(teacher, images).softmax(dim=1)
    answers = probabilities.argmax(1)
    context.write("grid.png", class_grid(images, answers, probabilities, teacher.spec.class_names))
    if isinstance(source, Optimized) and source.curve:
        context.write("terms.png", term_curves(source.curve, next(iter(source.curve[0]))))
    if verifier is None:
        return {}
    return {"verifier_agrees_with_teacher": _agreement(verifier, context, images, answers, teacher)}


def _agreement(
    file: InputFile, context: StageContext, images: torch.Tensor, labels: torch.Tensor, teacher: Classifier
) -> float:
    """Return the share of images for which another classifier predicts their class; they are resized to its input size.

    Raises:
        ConfigError: it has another number of classes than the teacher.
    """
    from ...training.supervised import predict

    verifier = context.classifier(file)
    if verifier.num_classes != teacher.num_classes:
        raise ConfigError(f"the verifier has {verifier.num_classes} classes, the teacher {teacher.num_classes}")
    answers = predict(verifier, fitted(images, verifier.input_shape)).argmax(1)
    return round(float((answers == labels).float().mean()), 4)
