"""Static 8-bit quantization of a classifier, as an ONNX file.

PyTorch's maintained way is used: torchao's `pt2e` workflow on a program of `torch.export`. `prepare_pt2e` adds
observers, images are run through the program to find the ranges of activations, and `convert_pt2e` replaces the
observers by scales and zero points. `torch.onnx.export` writes this as `QuantizeLinear` and `DequantizeLinear`, which
onnxruntime executes as operators on integers.

Weights are int8, symmetric, with a scale per output channel; activations uint8, with a scale and a zero point per
tensor; biases and the logits float32 (Jacob et al. 2018, "Quantization and Training of Neural Networks for Efficient
Integer-Arithmetic-Only Inference"). Weights are between -64 and 63: x86 processors without VNNI add two products of an
activation and a weight in 16 bits, where a sum of larger ones would be cut off.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..errors import ConfigError
from .exporter import (
    ExportedFunction,
    example_batch,
    exported_program,
    metadata,
    onnx_of_program,
    require_packages,
    trying,
)
from .onnx_network import quantized_metadata

if TYPE_CHECKING:
    import torch

    from .classifier import Classifier

BITS = 8
PACKAGES = ("torchao", "onnx", "onnxscript", "onnxruntime")
SECONDS_OF_A_MEASUREMENT, MOST_RUNS = 0.5, 300
"""Limits of a measurement of latency."""


def require_quantizer() -> None:
    """Raise `ConfigError` unless the packages of the extra `quantize` are installed."""
    require_packages("quantization", PACKAGES, "quantize")


@dataclass(frozen=True)
class Quantized:
    """A quantized classifier.

    `content` are the bytes of its ONNX file; `program` is the same network in PyTorch, where it computes with float32
    numbers that are rounded like the integers; `num_layers` is the number of convolutions and linear layers,
    `num_quantized` that of those with int8 weights.
    """

    content: bytes
    program: ExportedFunction
    num_layers: int
    num_quantized: int


def quantize(classifier: Classifier, batches: Sequence[torch.Tensor]) -> Quantized:
    """Quantize a copy of a classifier. Equal classifiers and images give equal bytes.

    Args:
        batches: images for the ranges of activations, pixels in [0, 1], [batch, channels, height, width].

    Raises:
        ConfigError: packages are missing, the network has no convolution or linear layer, or it has an operation that
            `torch.export`, torchao or ONNX does not support.
    """
    import torch

    require_quantizer()
    with trying("the network cannot be quantized"):
        from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e

        from .onnx_quantizer import OnnxQuantizer

        quantizer = OnnxQuantizer()
        observed = prepare_pt2e(exported_program(classifier).module(), quantizer)
        if not quantizer.num_layers:
            raise ConfigError("the network has no convolution or linear layer with weights that can be quantized")
        with torch.no_grad():
            for pixels in batches:
                observed(pixels.cpu().contiguous())
        program = convert_pt2e(observed)
        example, any_batch = example_batch(classifier)
        exported = torch.export.export(program, example, dynamic_shapes=any_batch, strict=False)
        content = onnx_of_program(exported, classifier, metadata(classifier) | quantized_metadata(classifier, BITS))
    counts = quantizer.num_layers, quantizer.num_quantized
    return Quantized(content, lambda pixels: program(pixels.contiguous()), *counts)


def weight_bytes(content: bytes) -> int:
    """Return the bytes of all constants of an ONNX file: weights, biases, scales and zero points."""
    import onnx

    model = onnx.load_from_string(content)
    return sum(len(onnx.numpy_helper.to_array(tensor).tobytes()) for tensor in model.graph.initializer)


def latency(program: ExportedFunction, pixels: torch.Tensor) -> float:
    """Return the seconds that a program takes for these images: the median of runs that take half a second."""
    program(pixels)
    seconds: list[float] = []
    while len(seconds) < MOST_RUNS and (not seconds or sum(seconds) < SECONDS_OF_A_MEASUREMENT):
        began = time.perf_counter()
        program(pixels)
        seconds.append(time.perf_counter() - began)
    return statistics.median(seconds)
