"""The model card of an exported classifier: `README.md` beside the file, in Markdown."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

TEMPLATE = "card.md"
SHOWN_CLASSES = 100
USE = {
    "onnx": (
        'import onnxruntime\n\nsession = onnxruntime.InferenceSession("model.onnx")\n'
        'logits = session.run(["logits"], {"pixels": pixels})[0]'
    ),
    "pt2": 'import torch\n\nclassifier = torch.export.load("model.pt2").module()\nlogits = classifier(pixels)',
    "safetensors": (
        'from kdextract import load_classifier\n\nclassifier = load_classifier("model.safetensors")\n'
        "logits = classifier(pixels)"
    ),
}
REMARKS = {
    "onnx": "`pixels` is a NumPy array. Class names are in the file's metadata, under `class_names`.",
    "pt2": "`pixels` is a tensor. Class names are in the file's `kdx.json` (`extra_files` of `torch.export.load`). "
    "PyTorch can run code that such a file contains when it opens it: open only files from a source that you trust.",
    "safetensors": "`pixels` is a tensor. Class names are in `classifier.spec.class_names`.",
}
_SPECIAL = re.compile(r"([\\`*_{}\[\]<>|&~#$!])")

Fact = tuple[str, str]
Json = dict[str, Any]


@dataclass(frozen=True)
class Exported:
    """An exported file; all texts are plain text, not Markdown.

    `input_shape` is (channels, height, width), `mean` and `std` have one value per channel; `opset` is None for formats
    other than ONNX. `difference` is the largest absolute difference of a logit, over `num_compared` images.
    """

    name: str
    source: str
    format: str
    file: str
    num_bytes: int
    architecture: str
    num_parameters: int
    input_shape: tuple[int, int, int]
    class_names: Sequence[str]
    mean: Sequence[float]
    std: Sequence[float]
    difference: float
    num_compared: int
    opset: int | None
    kdx_version: str


@dataclass(frozen=True)
class Card:
    """The values that the template inserts, as Markdown."""

    title: str
    introduction: str
    facts: Sequence[Fact]
    classes: str
    code: str
    remark: str
    origin: Sequence[Fact]
    evaluations: Sequence[Sequence[str]]
    evaluate: str
    estimate: str


def model_card(exported: Exported, origin: Sequence[Fact], evaluations: Sequence[Json], made: Json) -> str:
    """Return the text of the card.

    Args:
        origin: how the classifier was made, as plain text; empty if this is not known.
        evaluations: metrics of each evaluation of the classifier.
        made: metrics of the stage that made the classifier.
    """
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    card = Card(
        title=escaped(exported.name),
        introduction=_introduction(exported),
        facts=_facts(exported),
        classes=_classes(exported.class_names),
        code=USE[exported.format],
        remark=REMARKS[exported.format],
        origin=[(escaped(name), escaped(text)) for name, text in origin],
        evaluations=[_evaluation_row(metrics) for metrics in evaluations],
        evaluate=f"kdx evaluate {exported.source}" if origin else "kdx evaluate FILE",
        estimate="" if evaluations else _estimate_text(made),
    )
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent), undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    return environment.get_template(TEMPLATE).render(card=card).rstrip() + "\n"


def escaped(text: object) -> str:
    """Return the text on one line, escaped so that Markdown displays it unchanged, also in tables."""
    printable = "".join(character if character.isprintable() else " " for character in str(text))
    return _SPECIAL.sub(r"\\\1", " ".join(printable.split()))


def _introduction(exported: Exported) -> str:
    kind = {"onnx": "an ONNX file", "pt2": "a program of `torch.export`", "safetensors": "a file of weights for kdx"}
    return (
        f"A classifier of {len(exported.class_names)} classes, exported by kdx {escaped(exported.kdx_version)} from "
        f"{escaped(exported.source)} as {kind[exported.format]}."
    )


def _facts(exported: Exported) -> list[Fact]:
    channels, height, width = exported.input_shape
    shape = f"float32 [batch, {channels}, {height}, {width}], any batch size, values in [0, 1]"
    if (channels, height) == (1, 1):
        shape += f": rows of {width} features, each shifted and scaled to this range"
    scale = ", ".join(f"{mean:g} and {std:g}" for mean, std in zip(exported.mean, exported.std, strict=True))
    facts = [
        ("File", f"{exported.file}, {exported.num_bytes:,} bytes"),
        ("Input", f"pixels: {shape}"),
        ("Output", f"logits: float32 [batch, {len(exported.class_names)}]"),
        ("Normalization", f"done by the classifier; mean and standard deviation per channel: {scale}"),
        ("Network", f"{exported.architecture}, {exported.num_parameters:,} parameters"),
        (
            "Checked",
            f"with {exported.num_compared} synthetic images in batches of several sizes: logits differ from those of "
            f"the classifier in kdx by at most {exported.difference:.2g}",
        ),
    ]
    if exported.opset is not None:
        facts.append(("ONNX opset", str(exported.opset)))
    return [(name, escaped(text)) for name, text in facts]


def _classes(names: Sequence[str]) -> str:
    rows = [f"| {index} | {escaped(name)} |" for index, name in enumerate(names[:SHOWN_CLASSES])]
    more = len(names) - SHOWN_CLASSES
    note = [] if more <= 0 else ["", f"and {more} more classes, whose names are in the file."]
    return "\n".join(["| logit | class |", "|--:|---|", *rows, *note])


def _evaluation_row(metrics: Json) -> list[str]:
    by_class = zip(metrics["per_class_accuracy"].items(), metrics["confusion_matrix"], strict=True)
    worst = min((entry for entry, counts in by_class if sum(counts)), key=lambda entry: float(entry[1]))
    return [
        escaped(metrics["data"]),
        f"{metrics['num_images']:,}",
        *(f"{100 * metrics[name]:.2f} %" for name in ("accuracy", "agreement", "teacher_accuracy")),
        f"{escaped(worst[0])} ({100 * worst[1]:.2f} %)",
    ]


def _estimate_text(made: Json) -> str:
    if "estimated_accuracy" not in made:
        return ""
    share, error = (100 * made[name] for name in ("estimated_accuracy", "estimated_accuracy_error"))
    return (
        f"Estimated accuracy on real images: {share:.2f} % +- {error:.2f} (one standard error), from the agreement "
        "with the teacher on structured noise and the teacher's accuracy."
    )
