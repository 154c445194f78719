"""Quantized networks, which onnxruntime runs: ONNX files of kdx as networks of a `Classifier`.

An ONNX file is data: a list of operators and constants. Files come from untrusted sources all the same, so that one
that needs other files, or operators outside of the ONNX standard, is refused before onnxruntime reads it.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from ..errors import ArtifactError, ConfigError
from .exporter import LOGITS, PIXELS, open_onnx, require_packages

if TYPE_CHECKING:
    from .classifier import Classifier

MAX_BYTES = 2**31
"""Size limit of a protobuf message, and so of an ONNX file without other files."""
_RECORD = "classifier"
"""Key of the metadata, beside those of `exporter.METADATA_KEYS`, that only quantized classifiers have."""


def quantized_metadata(classifier: Classifier, bits: int) -> dict[str, str]:
    """Return the metadata of a quantized classifier's file, beside that of every exported file."""
    record = {
        "architecture": classifier.spec.architecture,
        "bits": bits,
        "num_parameters": classifier.num_parameters,
        "multiply_adds": classifier.multiply_adds(),
    }
    return {_RECORD: json.dumps(record, sort_keys=True)}


@dataclass(frozen=True)
class OnnxFacts:
    """What a quantized classifier's file says about it.

    `num_parameters` and `multiply_adds` are those of the network before quantization, which has as many.
    """

    architecture: str
    input_shape: tuple[int, int, int]
    class_names: tuple[str, ...]
    num_parameters: int
    multiply_adds: int


class OnnxNetwork(nn.Module):
    """A network from the bytes of an ONNX file; it has no parameters and no gradient, and computes on the CPU.

    The input is pixels in [0, 1], float32 [batch, channels, height, width], the output logits, float32 [batch, K].
    """

    def __init__(self, content: bytes, facts: OnnxFacts) -> None:
        super().__init__()
        self.content, self.facts = content, facts
        self._run = open_onnx(content)

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """Return logits on the device of the pixels."""
        return self._run(pixels.detach().cpu()).to(pixels.device)

    def __deepcopy__(self, memo: Any) -> OnnxNetwork:
        return OnnxNetwork(self.content, self.facts)


def read_onnx_network(path: Path) -> OnnxNetwork:
    """Return the network of a quantized classifier's file.

    Raises:
        ConfigError: packages are missing.
        ArtifactError: the file is missing or malformed, is not a quantized classifier of kdx, or needs other files or
            operators that are not of the ONNX standard.
    """
    require_packages("a quantized classifier", ("onnx", "onnxscript", "onnxruntime"), "quantize")
    try:
        if path.stat().st_size > MAX_BYTES:
            raise ArtifactError(f"{path} is larger than {MAX_BYTES} bytes, the limit of an ONNX file")
        content = path.read_bytes()
    except FileNotFoundError as error:
        raise ArtifactError(f"{path} does not exist") from error
    facts = _checked(path, content)
    try:
        network = OnnxNetwork(content, facts)
        logits = network(torch.zeros(2, *facts.input_shape))
    except ConfigError as error:
        raise ArtifactError(f"{path}: {error}") from error
    except Exception as error:  # onnxruntime's errors have no common base
        raise ArtifactError(f"{path}: onnxruntime cannot run it: {_first_line(error)}") from error
    if logits.dtype != torch.float32 or tuple(logits.shape) != (2, len(facts.class_names)):
        raise ArtifactError(f"{path} returns {tuple(logits.shape)} for 2 images of {len(facts.class_names)} classes")
    return network


def _checked(path: Path, content: bytes) -> OnnxFacts:
    """Return what a file says about its classifier. Raises `ArtifactError` for a file that may not be used."""
    import onnx

    try:
        model = onnx.load_from_string(content)
        onnx.checker.check_model(model)
    except Exception as error:  # protobuf's and the checker's errors have no common base
        raise ArtifactError(f"{path} is not a sound ONNX file: {_first_line(error)}") from error
    _require_self_contained(path, model)
    texts = {entry.key: entry.value for entry in model.metadata_props}
    if _RECORD not in texts:
        raise ArtifactError(f"{path} is an ONNX file, but not a quantized classifier of kdx")
    try:
        record = json.loads(texts[_RECORD])
        channels, height, width = (int(size) for size in json.loads(texts["input_shape"]))
        names = json.loads(texts["class_names"])
        assert isinstance(names, list)
        facts = OnnxFacts(
            str(record["architecture"]),
            (channels, height, width),
            tuple(str(name) for name in names),
            int(record["num_parameters"]),
            int(record["multiply_adds"]),
        )
    except (ValueError, KeyError, TypeError, RecursionError, OverflowError, AssertionError) as error:
        raise ArtifactError(f"{path} has malformed metadata: {_first_line(error)}") from error
    declared = [dimension.dim_value for dimension in model.graph.input[0].type.tensor_type.shape.dim[1:]]
    inputs, outputs = ([value.name for value in part] for part in (model.graph.input, model.graph.output))
    if (inputs, outputs, declared) != ([PIXELS], [LOGITS], list(facts.input_shape)):
        raise ArtifactError(f"{path} does not take pixels of the size that its metadata says, or returns no logits")
    return facts


def _require_self_contained(path: Path, model: Any) -> None:
    """Raise `ArtifactError` if a model reads other files, or has operators that are not of the ONNX standard."""
    import onnx

    if model.functions or any(opset.domain not in ("", "ai.onnx") for opset in model.opset_import):
        raise ArtifactError(f"{path} has operators that are not of the ONNX standard")
    if any(tensor.data_location == onnx.TensorProto.EXTERNAL for tensor in _messages(model, onnx.TensorProto)):
        raise ArtifactError(f"{path} needs another file for its weights, which no file of kdx does")


def _messages(message: Any, kind: type) -> list[Any]:
    """Return all messages of one kind within a protobuf message, at any depth."""
    found = []
    for field, value in message.ListFields():
        if field.type == field.TYPE_MESSAGE:
            for part in value if hasattr(value, "__len__") else [value]:
                found += ([part] if isinstance(part, kind) else []) + _messages(part, kind)
    return found


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
