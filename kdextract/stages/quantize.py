"""`kdx quantize`: a classifier with 8-bit weights and activations, calibrated without real data, as an ONNX file.

Quantization is after training and static (Jacob et al. 2018): the ranges of activations are found on a few hundred
images, here those of a `Source`, by default from formulas, for which nothing but the classifier is needed.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from ..errors import UsageError
from ..models.queries import CALIBRATION, EVALUATION, HELD_OUT, PROBE
from ..options.declare import DataAccess, NamedStageConfig, option
from ..storage.artifacts import strongest
from ..storage.run_dir import ONNX_FILE, InputFile, RunDir
from .inputs.classifiers import ChosenClassifier, find_classifier
from .inputs.image_source import ImageSource, images_from_formulas, images_named
from .inputs.real_data import images_for, open_real_data, real_data_input
from .running.runner import Plan, Stage, StageContext

if TYPE_CHECKING:
    import torch

    from ..models.classifier import Classifier
    from ..models.exporter import ExportedFunction
    from ..models.quantizer import Quantized
    from ..training.sources import Source

CALIBRATION_IMAGES, BATCH = 512, 64
"""Number of images for the ranges of activations, and per batch of them."""
DRAWN_NOISE = 2000
"""Size of the pool of images from formulas that these are drawn from, each of the predicted classes equally often."""


@dataclass(frozen=True, kw_only=True)
class QuantizeConfig(NamedStageConfig, DataAccess):
    """Quantize a classifier to 8-bit integers.

    Weights become int8, activations uint8; the result is an ONNX file, which onnxruntime executes. The ranges of
    activations are found on 512 images, by default from formulas, so that no data is needed. The summary compares both
    networks: agreement on held-out images, size, and latency in onnxruntime; with --test-data also their accuracy on
    real images. `kdx evaluate quantized/NAME` scores it. Needs the extra `quantize`.

    Examples:

      kdx quantize
      kdx quantize teacher --data transfer-sets/all_layers
      kdx quantize students/lenet_half --test-data mnist
    """

    artifact: str | None = option(
        None,
        "Classifier of the run (student, teacher, compressed), or a model.safetensors file; default: the only student.",
        positional=True,
    )
    bits: int = option(8, "Bits of a weight and of an activation; only 8.", panel="Model")
    data: str | None = option(
        None,
        "Images for the ranges: transfer set or generators (name or path), noise:normal, noise:uniform or real data.",
        metavar="SPEC",
        panel="Source",
        otherwise="structured or natural noise; for tables noise:normal",
    )
    test_data: str | None = option(
        None, "Real data for the accuracy of both networks.", metavar="SPEC", panel="Output", otherwise="no accuracy"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.bits != 8:
            raise UsageError(f"--bits {self.bits} is not supported: onnxruntime has operators for 8 bits only")


@dataclass(frozen=True)
class QuantizeInputs:
    """The classifier to quantize, and the source of the images for its ranges."""

    classifier: ChosenClassifier
    images: ImageSource


def plan(config: QuantizeConfig, run: RunDir) -> Plan[QuantizeInputs]:
    """Plan: reads one classifier, one source of images and, with `--test-data`, real test data."""
    from ..models.quantizer import require_quantizer

    require_quantizer()
    chosen = find_classifier(config.artifact, run)
    images = _choose_images(config, chosen.file, run)
    inputs = [chosen.input, *images.inputs]
    if config.test_data is not None:
        inputs.append(replace(real_data_input(config, config.test_data, "test"), role="test-data"))
    needs = strongest("" if chosen.artifact is None else chosen.artifact.manifest.needs, images.needs)
    place = run.place("quantized", config.name or f"{chosen.name}-int{config.bits}")
    return Plan(place, tuple(inputs), needs, QuantizeInputs(chosen, images))


def _choose_images(config: QuantizeConfig, file: InputFile, run: RunDir) -> ImageSource:
    """Return the source of `--data`; without it, one that needs nothing but the classifier."""
    if config.data is not None:
        return images_named(config.data, "--data", config, run, "calibration")
    return images_from_formulas(file, pool=DRAWN_NOISE, fresh=0)


def execute(config: QuantizeConfig, resolved: QuantizeInputs, context: StageContext) -> dict[str, Any]:
    """Quantize the classifier, compare it with the one in full precision, and write `model.onnx`."""
    from ..models.exporter import open_onnx, to_onnx
    from ..models.quantizer import quantize

    classifier = _load(resolved.classifier, context)
    with context.phase("source"):
        source = resolved.images.open(config, classifier, context)
        with classifier.queries.purpose(HELD_OUT):
            held_out = _held_out(source)
    with context.phase("quantization"):
        batches = [source.sample(BATCH).images for _ in range(CALIBRATION_IMAGES // BATCH)]
        classifier.queries.add(CALIBRATION_IMAGES, CALIBRATION)
        quantized = quantize(classifier, batches)
    context.count(images=source.num_images)
    context.write(ONNX_FILE, quantized.content)
    with context.phase("comparison"):
        exported = to_onnx(classifier)
        integers, floats = open_onnx(quantized.content), open_onnx(exported)
        agreement = _agreements(classifier, quantized, integers, held_out)
        accuracy = _accuracies(config, classifier, integers, context)
        costs = _costs(quantized.content, exported, integers, floats, batches[0].cpu())
    return {
        "model": classifier.spec.architecture,
        "bits": config.bits,
        "num_layers": quantized.num_layers,
        "quantized_layers": quantized.num_quantized,
        "source": resolved.images.name,
        "num_images": CALIBRATION_IMAGES,
        **agreement,
        **accuracy,
        **costs,
    }


def _load(chosen: ChosenClassifier, context: StageContext) -> Classifier:
    """Return the classifier; the queries of a teacher are counted."""
    if chosen.artifact is not None and chosen.artifact.kind == "teacher":
        return context.teacher(CALIBRATION)
    return context.classifier(chosen.file)


def _held_out(source: Source) -> torch.Tensor:
    from ..training.observer import HELD_OUT_IMAGES

    return source.held_out(HELD_OUT_IMAGES)


def _agreements(
    classifier: Classifier, quantized: Quantized, integers: ExportedFunction, images: torch.Tensor
) -> dict[str, Any]:
    """Return the shares of the images, uint8 [N, channels, height, width], that get the same class.

    `agreement` is that of the quantized network with the classifier, `runtime_agreement` that of the quantized network
    in onnxruntime with itself in PyTorch.
    """
    from ..training.supervised import predict

    with classifier.queries.purpose(PROBE):
        expected = predict(classifier, images).argmax(1)
    answers = _answers(integers, images)
    return {
        "held_out_images": len(images),
        "agreement": round(float((answers == expected).float().mean()), 6),
        "runtime_agreement": round(float((answers == _answers(quantized.program, images)).float().mean()), 6),
    }


def _answers(program: ExportedFunction, images: torch.Tensor) -> torch.Tensor:
    """Return the classes that a program predicts, int64 [N], for images, uint8 [N, channels, height, width]."""
    import torch

    from ..models.pixels import to_pixels

    with torch.no_grad():
        return torch.cat([program(to_pixels(chunk.cpu())).argmax(1) for chunk in images.split(BATCH)])


def _accuracies(
    config: QuantizeConfig, classifier: Classifier, integers: ExportedFunction, context: StageContext
) -> dict[str, Any]:
    """Return the accuracies on the real images of `--test-data`; {} without it."""
    from ..training.supervised import predict

    if config.test_data is None:
        return {}
    data = open_real_data(config, config.test_data, "test", "evaluation", context)
    images = images_for(classifier.input_shape, classifier.spec.class_names, data, config.test_data, context)
    with classifier.queries.purpose(EVALUATION):
        before = predict(classifier, images).argmax(1)
    after = _answers(integers, images)
    return {
        "test_data": config.test_data,
        "test_images": len(images),
        "accuracy": round(float((after == data.labels).float().mean()), 6),
        "float32_accuracy": round(float((before == data.labels).float().mean()), 6),
    }


def _costs(
    content: bytes, exported: bytes, integers: ExportedFunction, floats: ExportedFunction, pixels: torch.Tensor
) -> dict[str, Any]:
    """Return sizes and latencies of the quantized ONNX file `content` and of the float32 file `exported`.

    Bytes of weights include biases, scales and zero points. Latencies are for one image and for a batch, in ms.
    """
    from ..models.quantizer import latency, weight_bytes

    figures: dict[str, Any] = {}
    for prefix, file, program in (("", content, integers), ("float32_", exported, floats)):
        figures |= {
            f"{prefix}bytes": len(file),
            f"{prefix}weight_bytes": weight_bytes(file),
            f"{prefix}latency_ms": round(1000 * latency(program, pixels[:1]), 4),
            f"{prefix}latency_ms_of_{BATCH}": round(1000 * latency(program, pixels), 4),
        }
    return figures


STAGE = Stage("quantize", QuantizeConfig, plan, execute)
