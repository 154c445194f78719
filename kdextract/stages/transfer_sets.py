"""What is written of made images, whichever command made them: transfer sets, pictures, a verifier's opinion."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..artifacts import Input
from ..config import VerifierConfig
from ..errors import ConfigError
from ..queries import PICTURES, TARGETS
from ..run_dir import RunDir
from ..stage_runner import file_input
from .inputs import fitted

if TYPE_CHECKING:
    import torch

    from ..classifier import Classifier
    from ..sources import Source
    from ..stage_runner import StageContext

SHOWN, SHOWN_BATCHES = 400, 4
"""Images of a source that are looked at when a student is done."""


def verifier_input(config: VerifierConfig, run: RunDir) -> list[Input]:
    """Return the verifier as an input, if there is one.

    Raises:
        ArtifactError: there is no such file.
        ConfigError: it is the teacher.
    """
    if config.verifier is None:
        return []
    verifier = file_input("verifier", Path(config.verifier))
    teacher = run.teacher().directory / "model.safetensors"
    if verifier.sha256 == file_input("teacher", teacher).sha256:
        raise ConfigError("--verifier is the teacher itself, to whom the images were fitted; name another classifier")
    return [verifier]


def write_transfer_set(
    config: VerifierConfig,
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
        rows: one per batch.
    """
    from ..report.pictures import class_grid
    from ..tensor_files import encode_npy
    from ..training import predict

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
    if config.verifier is not None:
        agreement = _agreement(Path(config.verifier), context, images, labels, teacher)
        verified["verifier_agrees_with_label"] = agreement
    return {
        "num_images": len(images),
        "image_bytes": images.numel(),
        "teacher_agrees_with_label": round(float((targets.argmax(1) == labels).float().mean()), 4),
        "mean_confidence": round(float(probabilities.amax(1).mean()), 4),
        **verified,
    }


def show_source(config: VerifierConfig, context: StageContext, teacher: Classifier, source: Source) -> dict[str, float]:
    """Write a picture of what a source gives by now, by the teacher's answer, and its curve if it has one.

    Returns:
        What the verifier, if there is one, thinks of these images.
    """
    import torch

    from ..images import to_uint8
    from ..report.curves import term_curves
    from ..report.pictures import class_grid
    from ..sources import Optimized
    from ..training import predict

    with teacher.queries.purpose(PICTURES):  # some sources ask about what they give
        images = to_uint8(torch.cat([source.sample(SHOWN // SHOWN_BATCHES).images for _ in range(SHOWN_BATCHES)])).cpu()
        probabilities = predict(teacher, images).softmax(dim=1)
    answers = probabilities.argmax(1)
    context.write("grid.png", class_grid(images, answers, probabilities, teacher.spec.class_names))
    if isinstance(source, Optimized) and source.curve:
        context.write("terms.png", term_curves(source.curve, next(iter(source.curve[0]))))
    if config.verifier is None:
        return {}
    return {"verifier_agrees_with_teacher": _agreement(Path(config.verifier), context, images, answers, teacher)}


def _agreement(
    path: Path, context: StageContext, images: torch.Tensor, labels: torch.Tensor, teacher: Classifier
) -> float:
    """Return which share of the images another classifier gives to their class; images are resized for it if need be.

    Raises:
        ConfigError: it has other classes than the teacher.
    """
    from ..classifier import load_classifier
    from ..training import predict

    verifier = context.placed(load_classifier(path).frozen())
    if verifier.num_classes != teacher.num_classes:
        raise ConfigError(f"the verifier has {verifier.num_classes} classes, the teacher {teacher.num_classes}")
    answers = predict(verifier, fitted(images, verifier.input_shape)).argmax(1)
    return round(float((answers == labels).float().mean()), 4)
