"""How a transfer set is written, whichever command made its images."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..artifacts import Input
from ..config import TransferSetConfig
from ..errors import ConfigError
from ..run_dir import RunDir
from ..stage_runner import file_input
from .inputs import fitted

if TYPE_CHECKING:
    import torch

    from ..classifier import Classifier
    from ..stage_runner import StageContext


def verifier_input(config: TransferSetConfig, run: RunDir) -> list[Input]:
    """Return the verifier as an input, if there is one.

    Raises:
        ArtifactError: there is no such file.
        ConfigError: it is the teacher.
    """
    if config.verifier is None:
        return []
    verifier = file_input("verifier", Path(config.verifier))
    teacher = run.existing("teacher", "kdx train").directory / "model.safetensors"
    if verifier.sha256 == file_input("teacher", teacher).sha256:
        raise ConfigError("--verifier is the teacher itself, to whom the images were fitted; name another classifier")
    return [verifier]


def write_transfer_set(
    config: TransferSetConfig,
    context: StageContext,
    teacher: Classifier,
    images: torch.Tensor,
    labels: torch.Tensor,
    rows: list[dict[str, float]],
) -> dict[str, Any]:
    """Ask the teacher about all images; write arrays, picture and metric rows; return the summary.

    Args:
        images: uint8 [N, channels, height, width].
        labels: the class that each was made for, int64 [N].
        rows: one per batch, with what making it asked of the teacher as `teacher_queries`.
    """
    from ..report.pictures import class_grid
    from ..tensor_files import encode_npy
    from ..training import predict

    with context.phase("targets"):
        targets = predict(teacher, images)
    queries = sum(int(row["teacher_queries"]) for row in rows)
    context.count(images=len(images), teacher_queries=len(images) + queries)
    context.write("images.npy", encode_npy(images.numpy()))
    context.write("labels.npy", encode_npy(labels.numpy()))
    context.write("targets.npy", encode_npy(targets.numpy()))
    probabilities = targets.softmax(dim=1)
    context.write("grid.png", class_grid(images, labels, probabilities, teacher.spec.class_names))
    context.write_metrics(rows)
    return {
        "num_images": len(images),
        "image_bytes": images.numel(),
        "teacher_agrees_with_label": round(float((targets.argmax(1) == labels).float().mean()), 4),
        "mean_confidence": round(float(probabilities.amax(1).mean()), 4),
        **({} if config.verifier is None else _verified(Path(config.verifier), context, images, labels, teacher)),
    }


def _verified(
    path: Path, context: StageContext, images: torch.Tensor, labels: torch.Tensor, teacher: Classifier
) -> dict[str, float]:
    """Return which share of the images another classifier gives to their class; images are resized for it if need be.

    Raises:
        ConfigError: it has other classes than the teacher.
    """
    from ..classifier import load_classifier
    from ..training import predict

    verifier = load_classifier(path).frozen().placed(context.device)
    if verifier.num_classes != teacher.num_classes:
        raise ConfigError(f"the verifier has {verifier.num_classes} classes, the teacher {teacher.num_classes}")
    answers = predict(verifier, fitted(images, verifier.input_shape)).argmax(1)
    return {"verifier_agrees_with_label": round(float((answers == labels).float().mean()), 4)}
