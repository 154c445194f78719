"""Exported classifiers, which run without kdx: ONNX files, and `.pt2` files of `torch.export`.

The input is `pixels`, float32 [batch, channels, height, width] in [0, 1] with any number of images; the output is
`logits`, float32 [batch, K]. Normalization is inside. A file has metadata under `METADATA_KEYS`.
"""

from __future__ import annotations

import io
import json
import logging
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from copy import deepcopy
from dataclasses import dataclass
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from ..errors import ConfigError, KdxError
from ..storage.version import __version__

if TYPE_CHECKING:
    import torch

    from .classifier import Classifier

PIXELS, LOGITS = "pixels", "logits"
OPSET = 18
"""Version of the ONNX operator set."""
METADATA_KEYS = ("kdx_version", "class_names", "input_shape", "input_range", "normalization")
METADATA_FILE = "kdx.json"
"""The extra file of a `.pt2` file that has the metadata."""
CHECKED_BATCHES = (1, 2, 7, 18, 18, 18)
ONNX_PACKAGES = ("onnx", "onnxscript", "onnxruntime")
KEPT_IN_GRAPH = ("val", "tensor_meta", "nn_module_stack")
"""Metadata of a node that a program needs. Others, such as stack traces, have paths of this machine and are removed."""

ExportedFunction = Callable[["torch.Tensor"], "torch.Tensor"]
"""Pixels -> logits."""


def require_onnx() -> None:
    """Raise `ConfigError` unless the packages of the extra `export` are installed."""
    require_packages("--format onnx", ONNX_PACKAGES, "export")


def require_packages(purpose: str, names: Sequence[str], extra: str) -> None:
    """Raise `ConfigError` unless packages are installed.

    Args:
        purpose: what needs them, for the error.
        extra: the extra of kdx that has them.
    """
    absent = [name for name in names if find_spec(name) is None]
    if absent:
        raise ConfigError(f"{purpose} needs {' and '.join(absent)}: pip install 'kdextract[{extra}]'")


def metadata(classifier: Classifier) -> dict[str, str]:
    """Return the metadata of an exported file: text under `METADATA_KEYS`, lists as JSON."""
    spec = classifier.spec
    names = json.dumps(spec.class_names, ensure_ascii=False)
    return dict(zip(METADATA_KEYS, (__version__, names, json.dumps(spec.input_shape), "[0, 1]", "inside"), strict=True))


def to_onnx(classifier: Classifier) -> bytes:
    """Return the ONNX file of a classifier. Equal classifiers give equal bytes.

    Raises:
        ConfigError: packages are missing, or ONNX or `torch.export` does not support an operation of the network.
    """
    require_onnx()
    with trying("the network cannot be written as ONNX for batches of any size"):
        return onnx_of_program(exported_program(classifier), classifier, metadata(classifier))


def onnx_of_program(exported: torch.export.ExportedProgram, classifier: Classifier, facts: dict[str, str]) -> bytes:
    """Return the ONNX file of an exported program, which takes the classifier's images and returns logits.

    Args:
        facts: the metadata of the file.
    """
    import torch

    example, any_batch = example_batch(classifier)
    program = torch.onnx.export(
        exported,
        example,
        dynamo=True,
        verbose=False,
        input_names=[PIXELS],
        output_names=[LOGITS],
        dynamic_shapes=any_batch,
        opset_version=OPSET,
    )
    assert program is not None
    model = program.model_proto
    _strip(model)
    for key, value in facts.items():
        entry = model.metadata_props.add()
        entry.key, entry.value = key, value
    return model.SerializeToString(deterministic=True)


def to_pt2(classifier: Classifier) -> bytes:
    """Return the `.pt2` file of a classifier. Equal classifiers give equal bytes.

    Raises:
        ConfigError: `torch.export` does not support an operation of the network.
    """
    import torch

    with trying("torch.export cannot write the network for batches of any size"):
        exported = exported_program(classifier)
        for module in exported.graph_module.modules():
            for node in getattr(getattr(module, "graph", None), "nodes", ()):
                node.meta = {key: node.meta[key] for key in KEPT_IN_GRAPH if key in node.meta}
        content = io.BytesIO()
        record = json.dumps(metadata(classifier), ensure_ascii=False)
        torch.export.save(exported, content, extra_files={METADATA_FILE: record})
        return content.getvalue()


def open_onnx(content: bytes) -> ExportedFunction:
    """Return an ONNX file as a function that runs on the CPU.

    Raises:
        ConfigError: packages are missing, or onnxruntime does not support an operator of the file.
    """
    import torch

    require_onnx()
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = torch.get_num_threads()
    with trying("onnxruntime cannot run the exported network"):
        session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    return lambda pixels: torch.from_numpy(session.run([LOGITS], {PIXELS: pixels.contiguous().numpy()})[0])


def open_pt2(content: bytes) -> ExportedFunction:
    """Return a `.pt2` file as a function. Use it only on a file of this process: reading others can run code."""
    import torch

    with _quietly():
        module = torch.export.load(io.BytesIO(content)).module()
    return lambda pixels: module(pixels)


@dataclass(frozen=True)
class Comparison:
    """The outputs of an exported program compared with those of its classifier.

    `largest_difference` is the largest absolute difference of a logit, infinite if one is not finite; `largest_logit`
    the largest absolute logit of the classifier; `same_class` the share of the images, in [0, 1], that get the same
    class.
    """

    num_images: int
    largest_difference: float
    largest_logit: float
    same_class: float


def compare(classifier: Classifier, program: ExportedFunction, batches: Sequence[torch.Tensor]) -> Comparison:
    """Compare both on the same batches of pixels, [batch, channels, height, width].

    Raises:
        ConfigError: the shapes of their outputs differ.
    """
    import torch

    plain = _reference_copy(classifier)
    with torch.no_grad():
        expected = torch.cat([plain(pixels) for pixels in batches])
        outputs = torch.cat([program(pixels) for pixels in batches])
    if outputs.shape != expected.shape:
        shapes = f"{tuple(outputs.shape)}, the classifier {tuple(expected.shape)}"
        raise ConfigError(f"the exported program returns {shapes}")
    difference = (outputs - expected).abs().max()
    return Comparison(
        len(expected),
        float(difference) if difference.isfinite() else float("inf"),
        float(expected.abs().max()),
        float((outputs.argmax(1) == expected.argmax(1)).float().mean()),
    )


def _reference_copy(classifier: Classifier) -> Classifier:
    """Return a copy on the CPU in evaluation mode, without autocast, in the contiguous memory layout."""
    import torch

    twin = deepcopy(classifier).placed(torch.device("cpu")).frozen()
    twin.network.to(memory_format=torch.contiguous_format)
    return twin


def example_batch(classifier: Classifier) -> tuple[tuple[torch.Tensor], tuple[dict[int, Any]]]:
    """Return example arguments for the export, and the declaration that their batch size is dynamic."""
    import torch

    return (torch.zeros(2, *classifier.input_shape),), ({0: torch.export.Dim("batch")},)


def exported_program(classifier: Classifier) -> torch.export.ExportedProgram:
    """Return the program of a copy of the classifier on the CPU. The classifier is not changed."""
    import torch

    example, any_batch = example_batch(classifier)
    return torch.export.export(_reference_copy(classifier), example, dynamic_shapes=any_batch, strict=False)


def _strip(message: Any) -> None:
    """Remove stack traces, documentation and metadata from an ONNX message and all messages in it."""
    for field, value in message.ListFields():
        if field.name in ("doc_string", "metadata_props"):
            message.ClearField(field.name)
        elif field.type == field.TYPE_MESSAGE:
            for part in value if hasattr(value, "__len__") else [value]:
                _strip(part)


@contextmanager
def trying(failure: str) -> Iterator[None]:
    """Suppress output of libraries; turn exceptions into a `ConfigError` of one line that begins with `failure`."""
    try:
        with _quietly():
            yield
    except (KdxError, MemoryError, OSError):
        raise
    except Exception as error:
        if "out of memory" in str(error) or "can't allocate memory" in str(error):
            raise
        reason = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise ConfigError(f"{failure}: {reason}") from error


@contextmanager
def _quietly() -> Iterator[None]:
    """Suppress prints, logs and warnings of libraries in the block."""
    disabled = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        with warnings.catch_warnings(), redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(disabled)
