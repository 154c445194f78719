"""`Classifier`: a network for pixels in [0, 1], with all that is needed to rebuild it from a file."""

from __future__ import annotations

import math
from copy import deepcopy
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from ..errors import ConfigError
from ..storage.artifacts import BATCH_NORM_KEY, read_safetensors_header
from ..storage.run_dir import MODEL_FILE, ONNX_FILE
from ..storage.tensor_files import encode_safetensors, read_safetensors, rebuilding
from .architectures import InputShape
from .external.blueprint import Blueprint
from .external.exported_program import Program
from .external.head import KINDS, Head
from .external.names import parse_name
from .external.probe import number_type
from .external.user_code import Code
from .factorized import LayerRanks, factorize
from .hooks import batch_norm_layers, count_multiply_adds, evaluation_mode, last_layer, layer_outputs
from .onnx_network import OnnxNetwork, read_onnx_network
from .pruning.sizes import LayerSizes, resize
from .queries import BLANK, Queries

PROGRAM_TENSOR = "program"
MOST_IMAGES, MOST_BYTES = 500, 10**9
"""Limits of one forward pass without gradients: number of images, and bytes of all layer outputs."""


@dataclass(frozen=True)
class ClassifierSpec:
    """The content of a `model.safetensors` file about its classifier, except the weights.

    `input_shape` is (channels, height, width) in pixels; `mean` and `std` hold one value per channel, in pixel units
    of [0, 1]; `class_names` has one entry per class. `factors` has the layers that are factorized, with their ranks
    (see `models.factorized`), `kept` the layers whose channels were cut afterwards, with the sizes that are left (see
    `models.pruning.sizes`). `code` is the file of the user's function that builds the network, otherwise None; `head`
    describes the network's output; `feature_layer` is the layer whose inputs are the features, None for the last one.
    """

    architecture: str
    input_shape: InputShape
    class_names: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    factors: tuple[LayerRanks, ...] = ()
    code: Code | None = None
    head: Head = Head()
    feature_layer: str | None = None
    kept: tuple[LayerSizes, ...] = ()

    @property
    def num_classes(self) -> int:
        """Number of classes, K."""
        return len(self.class_names)

    @property
    def is_table(self) -> bool:
        """Whether the inputs are rows of a table: one channel, height 1."""
        return self.input_shape[:2] == (1, 1)

    @property
    def is_foreign(self) -> bool:
        """Whether the network is not one of the architectures of kdx."""
        return parse_name(self.architecture).is_foreign

    def blueprint(self, program: bytes | None = None) -> Blueprint:
        """Return the blueprint of the network before layers are factorized or cut."""
        return Blueprint(parse_name(self.architecture), self.code, program)

    def build(self, program: bytes | None = None) -> nn.Module:
        """Return the network, freshly initialized.

        Args:
            program: the bytes of the `.pt2` file if the network is a program.

        Raises:
            KdxError: the network cannot be built (see `Blueprint.build`), or has no layers of the sizes in `kept`.
        """
        whole = factorize(self.blueprint(program).build(self.input_shape, self.num_classes), self.factors)
        return resize(whole, self.kept)

    def student(self, architecture: str, code: Code | None = None, head: Head | None = None) -> ClassifierSpec:
        """Return the spec of another network for the same images and classes."""
        head = head or Head()
        return replace(self, architecture=architecture, factors=(), code=code, head=head, feature_layer=None, kept=())


class Classifier(nn.Module):
    """A classifier of pixels in [0, 1]. Teacher and student are both of this class.

    The input is [batch, channels, height, width] float; the output is logits [batch, K]. Normalization with the
    training data's mean and standard deviation is the first operation inside. The network may be compiled, and may
    compute in another precision than float32 (autocast, see `placed`); its logits are float32 in any case. `queries`
    counts the images that it is given, except in an exported program.
    """

    mean: torch.Tensor
    std: torch.Tensor

    def __init__(self, spec: ClassifierSpec, network: nn.Module | None = None) -> None:
        super().__init__()
        self.spec = spec
        self.network = spec.build() if network is None else network
        self.register_buffer("mean", torch.tensor(spec.mean).view(1, -1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(spec.std).view(1, -1, 1, 1), persistent=False)
        self._precision: torch.dtype | None = None
        self._compiled = False
        self._own_code = spec.code is not None or isinstance(self.network, Program)
        self._number = number_type(self.network)
        self.queries = Queries()

    @property
    def input_shape(self) -> InputShape:
        """(channels, height, width)."""
        return self.spec.input_shape

    @property
    def num_classes(self) -> int:
        """Number of classes, K."""
        return self.spec.num_classes

    @property
    def is_table(self) -> bool:
        """Whether the inputs are rows of a table: one channel, height 1."""
        return self.spec.is_table

    @property
    def num_parameters(self) -> int:
        """Number of values of all parameters; of a quantized network, before it was quantized."""
        if isinstance(self.network, OnnxNetwork):
            return self.network.facts.num_parameters
        return sum(p.numel() for p in self.network.parameters())

    @property
    def device(self) -> torch.device:
        """The device of the weights."""
        return self.mean.device

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """Return logits [batch, K] for pixels [batch, channels, height, width] in [0, 1]."""
        return self.of_normalized((pixels - self.mean) / self.std)

    def of_normalized(self, values: torch.Tensor) -> torch.Tensor:
        """Return logits [batch, K] for pixels [batch, channels, height, width] that are already normalized."""
        if not torch.compiler.is_compiling():  # an exported program takes batches of any size
            self.queries.add(len(values))
        values = values.to(self._number)
        if self._own_code:  # may contain views that need the contiguous layout
            values = values.contiguous()
        if self._precision is None or self._number != torch.float32:
            return self.spec.head.logits(self.network(values))
        with torch.autocast(values.device.type, self._precision):
            return self.spec.head.logits(self.network(values))

    def placed(self, device: torch.device, precision: torch.dtype | None = None, compiled: bool = False) -> Classifier:
        """Move the classifier to `device`, in the channels-last layout (faster convolutions), and return it.

        Args:
            precision: data type in which convolutions and linear layers compute, such as `torch.bfloat16`; None for
                float32.
            compiled: whether the network is compiled with `torch.compile` at its first batch.
        """
        self.to(device)
        if not self._own_code:
            self.network.to(memory_format=torch.channels_last)
        self._precision, self._compiled = precision, compiled
        if compiled:
            compile_network(self.network)
        return self

    def copy(self) -> Classifier:
        """Return a copy that shares no memory with this classifier."""
        twin = deepcopy(self)
        if self._compiled:  # compilation is not copied
            compile_network(twin.network)
        return twin

    @cached_property
    def feature_layer(self) -> str:
        """Name of the layer whose inputs are the features: that of the spec, otherwise the last layer with K outputs.

        Raises:
            ConfigError: the network has no layer with weights.
        """
        if self.spec.feature_layer is not None:
            return self.spec.feature_layer
        linear = [name for name, module in self.network.named_modules() if isinstance(module, nn.Linear)]
        if linear and not self.spec.is_foreign:
            return linear[-1]
        outputs = 1 if self.spec.head.kind in ("logit", "probability") else self.num_classes
        self.queries.add_blank(2)
        with evaluation_mode(self.network):
            return last_layer(self.network, outputs, self.blank(2))

    @cached_property
    def images_per_pass(self) -> int:
        """Number of images of a forward pass without gradients: at most 500, with at most 1 GB of layer outputs."""
        network = deepcopy(self.network) if self._compiled else self.network  # a copy is not compiled
        self.queries.add_blank(1)
        with evaluation_mode(network):
            outputs = layer_outputs(network, self.blank(1)).values()
        values = sum(math.prod(output.shape) for output in outputs)
        return max(1, min(MOST_IMAGES, MOST_BYTES // max(1, values * self._number.itemsize)))

    def blank(self, count: int) -> torch.Tensor:
        """Return zeros as input of the network, [count, channels, height, width], in its data type."""
        return torch.zeros(count, *self.input_shape, device=self.device, dtype=self._number)

    def multiply_adds(self) -> int:
        """Return the number of multiply-adds of convolutions and linear layers for one image, counted on zeros."""
        with evaluation_mode(self), self.queries.purpose(BLANK):
            return count_multiply_adds(self, torch.zeros(1, *self.input_shape, device=self.device))

    def frozen(self) -> Classifier:
        """Put the classifier into evaluation mode, disable gradients of its weights, and return it."""
        return self.eval().requires_grad_(False)


def compile_network(network: nn.Module) -> None:
    """Compile a network in place. It is recompiled when hooks are added, so that they are called."""
    torch._dynamo.config.skip_nnmodule_hook_guards = False
    network.compile()


def encode_classifier(classifier: Classifier) -> bytes:
    """Return the bytes of a `model.safetensors` file from which this classifier can be rebuilt.

    Its header says whether the network has batch normalization with running statistics. Names of tensors do not
    distinguish it from instance normalization, and readers of the header need not load the network.
    """
    network = classifier.network
    tensors = {name: tensor.clone() for name, tensor in network.state_dict().items()}  # tied ones share memory
    if isinstance(network, Program):
        tensors[PROGRAM_TENSOR] = torch.from_numpy(np.frombuffer(network.content, np.uint8).copy())
    batch_norm = bool(batch_norm_layers(network))
    return encode_safetensors(tensors, {"classifier": _record(classifier.spec), BATCH_NORM_KEY: batch_norm})


def load_classifier(path: str | Path) -> Classifier:
    """Return the classifier of a `model.safetensors` or a quantized one's `model.onnx`, in evaluation mode on the CPU.

    Args:
        path: the file, or the directory of an artifact that holds it.

    Raises:
        ArtifactError: the file is missing or malformed, or its weights do not fit the architecture it names, or it
            names code that was not allowed on this machine.
        ConfigError: it is quantized, and the packages that run it are missing.
    """
    file = _model_file(Path(path))
    if file.suffix == ".onnx":
        return _quantized_classifier(read_onnx_network(file))
    tensors, metadata = read_safetensors(file)
    with rebuilding(file, "classifier"):
        spec = _classifier_spec_from_record(metadata["classifier"])
        program = tensors.pop(PROGRAM_TENSOR).numpy().tobytes() if PROGRAM_TENSOR in tensors else None
        _check_tensor_shapes(spec, tensors)
        classifier = Classifier(spec, spec.build(program))
        classifier.network.load_state_dict(tensors)
    return classifier.eval()


def _model_file(path: Path) -> Path:
    """Return the file of a classifier in a directory; a path that is no directory is returned as it is."""
    if not path.is_dir():
        return path
    return path / (ONNX_FILE if (path / ONNX_FILE).is_file() and not (path / MODEL_FILE).exists() else MODEL_FILE)


def _quantized_classifier(network: OnnxNetwork) -> Classifier:
    """Return a classifier whose network normalizes pixels itself, so that its own mean is 0 and its deviation 1."""
    facts = network.facts
    channels = facts.input_shape[0]
    spec = ClassifierSpec(
        facts.architecture, facts.input_shape, facts.class_names, (0.0,) * channels, (1.0,) * channels
    )
    return Classifier(spec, network).eval()


def read_spec(path: Path) -> ClassifierSpec:
    """Return the spec in a `model.safetensors` file. The weights are not read.

    Raises:
        ArtifactError: the file is missing or malformed.
    """
    with rebuilding(path, "classifier"):
        return _classifier_spec_from_record(read_safetensors_header(path)[1]["classifier"])


def _check_tensor_shapes(spec: ClassifierSpec, tensors: dict[str, torch.Tensor]) -> None:
    """Raise `ValueError` unless names and shapes of the tensors fit the architecture; it is built on the meta device.

    A user's code is not checked: it may not support the meta device, and it was allowed.
    """
    if spec.code is not None or parse_name(spec.architecture).kind in ("module", "program"):
        return
    try:
        with torch.device("meta"):
            expected = spec.build().state_dict()
    except ConfigError:
        if spec.is_foreign:  # a few networks of torchvision read weights while they are built
            return
        raise
    if {name: tensor.shape for name, tensor in tensors.items()} != {name: t.shape for name, t in expected.items()}:
        raise ValueError(f"its tensors are not those of {spec.architecture} at this input shape and class count")


def _record(spec: ClassifierSpec) -> dict[str, Any]:
    """Return a spec as JSON values, without entries that have their default."""
    record = asdict(spec)
    for name, usual in (("code", None), ("head", asdict(Head())), ("feature_layer", None), ("kept", ())):
        if record[name] == usual:
            del record[name]
    return record


def _classifier_spec_from_record(record: dict[str, Any]) -> ClassifierSpec:
    channels, height, width = (int(n) for n in record["input_shape"])
    head, code, layer = record.get("head"), record.get("code"), record.get("feature_layer")
    return ClassifierSpec(
        architecture=str(record["architecture"]),
        input_shape=(channels, height, width),
        class_names=tuple(str(name) for name in record["class_names"]),
        mean=tuple(float(value) for value in record["mean"]),
        std=tuple(float(value) for value in record["std"]),
        factors=tuple(
            (str(name), int(inwards), int(outwards)) for name, inwards, outwards in record.get("factors", ())
        ),
        code=None if code is None else _code_from_record(code),
        head=Head() if head is None else _head_from_record(head),
        feature_layer=None if layer is None else str(layer),
        kept=tuple(_sizes_from_record(entry) for entry in record.get("kept", ())),
    )


def _sizes_from_record(entry: Any) -> LayerSizes:
    name, sizes = entry
    if not isinstance(name, str) or not all(type(size) is int for size in sizes):
        raise ValueError(f"its record of the channels of a layer, {str(entry)[:80]}, is not a name and integers")
    return name, tuple(sizes)


def _code_from_record(record: dict[str, Any]) -> Code:
    beside = tuple((str(path), str(known)) for path, known in record.get("beside", ()))
    return Code(str(record["name"]), str(record["source"]), beside)


def _head_from_record(record: dict[str, Any]) -> Head:
    steps = tuple(step if type(step) is int else str(step) for step in record["part"])
    if record["kind"] not in KINDS or any(str(step).startswith("_") for step in steps):
        raise ValueError(f"its head {record!r} is unknown")
    return Head(steps, record["kind"])
