"""Which tensors of a network are quantized, chosen for the integer operators of onnxruntime.

torchao asks a `Quantizer` for this. Its own quantizers are for PyTorch's compiler: they leave the sum of a residual
block and what enters it in float32, where onnxruntime then runs the convolution before it in float32 as well. This
module imports torchao, so it is imported only where a network is quantized.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torchao.quantization.pt2e.quantizer import QuantizationAnnotation, Quantizer, SharedQuantizationSpec
from torchao.quantization.pt2e.quantizer.x86_inductor_quantizer import get_default_x86_inductor_quantization_config

SMALLEST_WEIGHT, LARGEST_WEIGHT = -64, 63
"""So small that two products with activations of at most 255 have a sum that fits into 16 bits.

torchao's `reduce_range` halves the range of activations instead, with larger errors of logits: in untrained networks
0.18 instead of 0.15 (ResNet-18) and 0.57 instead of 0.28 (ViT-Tiny) of their spread.
"""
ANNOTATION = "quantization_annotation"
"""Where torchao looks for the annotation of a node."""
_ATEN = torch.ops.aten
WEIGHTED = {
    _ATEN.conv1d.default,
    _ATEN.conv2d.default,
    _ATEN.conv2d.padding,
    _ATEN.linear.default,
}
"""Operators whose weights become int8."""
CLIPPING = {_ATEN.relu.default, _ATEN.relu_.default, _ATEN.hardtanh.default, _ATEN.hardtanh_.default}
"""Operators that the runtime computes together with the layer before them."""
SUMS = {_ATEN.add.Tensor, _ATEN.add_.Tensor}
SAME_VALUES = {
    _ATEN.max_pool2d.default,
    _ATEN.flatten.using_ints,
    _ATEN.view.default,
    _ATEN.reshape.default,
}
"""Operators whose results are some of their inputs, so that they keep the scale."""


class OnnxQuantizer(Quantizer):  # type: ignore[misc]
    """Quantizes inputs, weights and outputs of convolutions and linear layers, and sums of two of their results.

    The outputs of the last layer stay float32: they are the logits, or the logits are computed from them. A convolution
    of grey images stays float32, too, unless it is the only layer: with one input channel, onnxruntime takes several
    times as long for it with integers, and it has few weights.

    After `annotate`, `num_layers` is the number of layers with weights, and `num_quantized` that of those in int8.
    """

    def __init__(self) -> None:
        super().__init__()
        usual = get_default_x86_inductor_quantization_config()
        self._activation = usual.input_activation
        self._weight = replace(usual.weight, quant_min=SMALLEST_WEIGHT, quant_max=LARGEST_WEIGHT)
        self.num_layers, self.num_quantized = 0, 0

    def annotate(self, model: torch.fx.GraphModule) -> torch.fx.GraphModule:
        """Annotate the nodes of a program and return it."""
        nodes = list(model.graph.nodes)
        present = [node for node in nodes if node.target in WEIGHTED and node.args[1].op == "get_attr"]
        layers = [node for node in present if not _is_grey_convolution(node)] or present
        self.num_layers, self.num_quantized = len(present), len(layers)
        for node in layers:
            inputs = {node.args[0]: self._activation, node.args[1]: self._weight}
            self._annotate(node, inputs, None if node is layers[-1] else self._activation)
        for node in nodes:
            if node.target in SUMS and all(_is_computed(value) for value in node.args[:2]):
                self._annotate(node, dict.fromkeys(node.args[:2], self._activation), self._activation)
            elif node.target in SAME_VALUES and _output_of(node.args[0]) is not None:
                shared = SharedQuantizationSpec(node.args[0])
                self._annotate(node, {node.args[0]: shared}, shared)
        return model

    def _annotate(self, node: torch.fx.Node, inputs: dict[Any, Any], output: Any) -> None:
        """Set how inputs and the output are quantized; the output after a following operator that clips it."""
        users = list(node.users)
        clipped = len(users) == 1 and users[0].target in CLIPPING
        node.meta[ANNOTATION] = QuantizationAnnotation(inputs, None if clipped else output, _annotated=True)
        if clipped:
            users[0].meta[ANNOTATION] = QuantizationAnnotation(output_qspec=output, _annotated=True)

    def validate(self, model: torch.fx.GraphModule) -> None:
        """Accept every annotated program."""


def _is_grey_convolution(node: torch.fx.Node) -> bool:
    """Return whether a node is a convolution with one input channel."""
    images = node.args[0].meta.get("val") if isinstance(node.args[0], torch.fx.Node) else None
    return node.target != _ATEN.linear.default and isinstance(images, torch.Tensor) and images.shape[1] == 1


def _is_computed(value: Any) -> bool:
    """Return whether a value is a floating-point tensor that depends on the images."""
    known = value.meta.get("val") if isinstance(value, torch.fx.Node) and value.op == "call_function" else None
    return isinstance(known, torch.Tensor) and known.is_floating_point()


def _output_of(node: Any) -> Any:
    """Return how the output of a node is quantized; None if it is not."""
    annotation = node.meta.get(ANNOTATION) if isinstance(node, torch.fx.Node) else None
    return None if annotation is None else annotation.output_qspec
