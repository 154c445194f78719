"""How a transfer set is written, whichever command made its images."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

    from ..classifier import Classifier
    from ..stage_runner import StageContext


def write_transfer_set(
    context: StageContext, teacher: Classifier, images: torch.Tensor, labels: torch.Tensor, rows: list[dict[str, float]]
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
    }
