"""Compares points that flows have made with real points: a picture of both, and a distance for each class.

    python two_dimensions.py RUN

RUN has a teacher of `2d:NAME` data, and transfer sets of points. Writes RUN/points.png and prints one JSON document.
For each transfer set it has the sliced Wasserstein distance of each class to the real test points (Bonneel et al. 2015;
the mean over 200 directions of the distance between projections; the side of the square is 1), and the share of points
for which the teacher predicts their class. It has the same figures for other real points, and for uniform points with
the teacher's labels. Uniform points need no generator; a flow without data is trained to make such points.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import torch
from scipy.stats import wasserstein_distance

from kdextract import load_classifier
from kdextract.data.load import load_data
from kdextract.models.classifier import Classifier
from kdextract.storage.artifacts import read_manifest
from kdextract.training.supervised import predict

DIRECTIONS = 200
BASELINE = "uniform points, sorted by the teacher"
Points = dict[int, np.ndarray]


def by_class(points: np.ndarray, labels: np.ndarray) -> Points:
    """Return label -> points [N, 2] with coordinates in [0, 1]."""
    flat = points.reshape(len(points), 2) / 255
    return {label: flat[labels == label] for label in (0, 1)}


def sliced_wasserstein(ours: np.ndarray, theirs: np.ndarray) -> float:
    """Return the mean, over directions in the plane, of the Wasserstein distance of the projections."""
    angles = np.linspace(0, np.pi, DIRECTIONS, endpoint=False)
    directions = np.stack([np.cos(angles), np.sin(angles)])
    pairs = zip((ours @ directions).T, (theirs @ directions).T, strict=True)
    return float(np.mean([wasserstein_distance(a, b) for a, b in pairs]))


def agreement(teacher: Classifier, points: Points) -> float:
    """Return the share of points for which the teacher predicts their class."""
    agreed = [
        teacher(torch.from_numpy(own).float().view(-1, 1, 1, 2)).argmax(1) == label for label, own in points.items()
    ]
    return round(float(torch.cat(agreed).float().mean()), 4)


def main() -> None:
    """Compare the transfer sets of a run with the data of its teacher."""
    run = Path(sys.argv[1])
    teacher = load_classifier(run / "teacher" / "model.safetensors")
    spec = read_manifest(run / "teacher").config["data"]
    real, other = (load_data(spec, split, Path(".")) for split in ("test", "train"))
    truth = by_class(real.images.numpy(), real.labels.numpy())
    uniform = np.random.default_rng(0).integers(0, 256, (5000, 1, 1, 2), dtype=np.uint8)
    answers = predict(teacher, torch.from_numpy(uniform)).argmax(1).numpy()
    baseline = by_class(uniform, answers)
    shown = {"real": truth, BASELINE: baseline}
    compared = {"other real points": by_class(other.images.numpy(), other.labels.numpy()), BASELINE: baseline}
    for directory in sorted((run / "transfer-sets").iterdir(), reverse=True):
        images, labels = (np.load(directory / name) for name in ("images.npy", "labels.npy"))
        shown[directory.name] = compared[directory.name] = by_class(images, labels)
    document: dict[str, object] = {"data": spec}
    for name, points in compared.items():
        distances = {str(label): round(sliced_wasserstein(points[label], truth[label]), 4) for label in truth}
        document[name] = {"sliced_wasserstein": distances, "agreement": agreement(teacher, points)}
    figure, axes = plt.subplots(1, len(shown), figsize=(4 * len(shown), 4.2), squeeze=False)
    for axis, (name, points) in zip(axes[0], shown.items(), strict=True):
        for label, colour in ((0, "tab:blue"), (1, "tab:orange")):
            axis.scatter(*points[label][:1000].T, s=3, color=colour)
        axis.set_title(f"{spec}: {name}", fontsize=10)
        axis.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02), aspect="equal")
    figure.tight_layout()
    figure.savefig(run / "points.png", dpi=100)
    print(json.dumps(document, indent=2))


if __name__ == "__main__":
    main()
