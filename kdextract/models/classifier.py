"""`Classifier`: a network that takes pixels in [0, 1] and carries everything needed to rebuild it."""

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
from ..storage.artifacts import BATCH_NORM_KEY, read_header
from ..storage.run_dir import MODEL_FILE
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
from .queries import BLANK, Queries

PROGRAM_TENSOR = "program"
MOST_IMAGES, MOST_BYTES = 500, 10**9
"""Of one forward pass without gradients, where nothing else is asked for: images, and outputs of their layers."""


@dataclass(frozen=True)
class ClassifierSpec:
    """What a `model.safetensors` file says about its classifier, besides the weights.

    `input_shape` is (channels, height, width) in pixels; `mean` and `std` hold one value per channel, in pixel units
    of [0, 1]; `class_names` has one entry per class. `factors` names the layers that are taken apart, with their ranks
    (see `models.factorized`). `code` is the file of the user's function that builds the network, if one does; `head`
    says what the network answers; `feature_layer` names the layer whose inputs are its features, if it is not the last.
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

    @property
    def num_classes(self) -> int:
        """Number of classes, K."""
        return len(self.class_names)

    @property
    def is_table(self) -> bool:
        """Whether its inputs are rows of a table: one channel, one line of features."""
        return self.input_shape[:2] == (1, 1)

    @property
    def is_foreign(self) -> bool:
        """Whether the network is none of the package's own."""
        return parse_name(self.architecture).is_foreign

    def blueprint(self, program: bytes | None = None) -> Blueprint:
        """Return what the network is built from, layers taken apart aside."""
        return Blueprint(parse_name(self.architecture), self.code, program)

    def build(self, program: bytes | None = None) -> nn.Module:
        """Return the network, freshly initialized. Raises `KdxError` when there is no such network.

        Args:
            program: the bytes of the `.pt2` file, where the network is one.
        """
        return factorize(self.blueprint(program).build(self.input_shape, self.num_classes), self.factors)

    def student(self, architecture: str, code: Code | None = None, head: Head | None = None) -> ClassifierSpec:
        """Return the spec of another network for the same images and classes."""
        return replace(self, architecture=architecture, factors=(), code=code, head=head or Head(), feature_layer=None)


class Classifier(nn.Module):
    """A classifier of pixels in [0, 1]. Teacher and student are roles of this class, not subclasses.

    The input is [batch, channels, height, width] float; the output is logits [batch, K]. Normalization with the
    training data's mean and standard deviation is the first operation inside. The network may compute in another
    `precision` than float32 (autocast), and be compiled; logits are float32, and weights are, all the same.
    `queries` counts the images that it is shown, but for those of a program that is made of it.
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
        """Whether its inputs are rows of a table: one channel, one line of features."""
        return self.spec.is_table

    @property
    def num_parameters(self) -> int:
        """Number of trainable values."""
        return sum(p.numel() for p in self.network.parameters())

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.mean.device

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """Return logits [batch, K] for pixels [batch, channels, height, width] in [0, 1]."""
        return self.of_normalized((pixels - self.mean) / self.std)

    def of_normalized(self, values: torch.Tensor) -> torch.Tensor:
        """Return logits [batch, K] for pixels that are normalized already."""
        if not torch.compiler.is_compiling():  # an exported program takes batches of any size
            self.queries.add(len(values))
        values = values.to(self._number)
        if self._own_code:  # which may view a tensor in ways that only the usual layout allows
            values = values.contiguous()
        if self._precision is None or self._number != torch.float32:
            return self.spec.head.logits(self.network(values))
        with torch.autocast(values.device.type, self._precision):
            return self.spec.head.logits(self.network(values))

    def placed(self, device: torch.device, precision: torch.dtype | None = None, compiled: bool = False) -> Classifier:
        """Move the classifier to `device`, in the memory layout that convolutions are fastest in, and return it.

        Args:
            precision: what convolutions and linear layers compute in, such as `torch.bfloat16`; None for float32.
            compiled: whether `torch.compile` makes the network faster from its first batch on.
        """
        self.to(device)
        if not self._own_code:
            self.network.to(memory_format=torch.channels_last)
        self._precision, self._compiled = precision, compiled
        if compiled:
            compile_network(self.network)
        return self

    def copy(self) -> Classifier:
        """Return a copy that shares nothing with this classifier."""
        twin = deepcopy(self)
        if self._compiled:  # which is not copied
            compile_network(twin.network)
        return twin

    @cached_property
    def feature_layer(self) -> str:
        """Name of the layer whose inputs are the features: the named one, or the last that gives the answer.

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
        """Images that a forward pass without gradients takes well: up to 500, of at most 1 GB of layer outputs."""
        network = deepcopy(self.network) if self._compiled else self.network  # a copy is not compiled again for hooks
        self.queries.add_blank(1)
        with evaluation_mode(network):
            outputs = layer_outputs(network, self.blank(1)).values()
        values = sum(math.prod(output.shape) for output in outputs)
        return max(1, min(MOST_IMAGES, MOST_BYTES // max(1, values * self._number.itemsize)))

    def blank(self, count: int) -> torch.Tensor:
        """Return what the network itself takes, [count, channels, height, width], all zeros."""
        return torch.zeros(count, *self.input_shape, device=self.device, dtype=self._number)

    def multiply_adds(self) -> int:
        """Return the multiply-adds of convolutions and linear layers for one image; a blank one is shown for it."""
        with evaluation_mode(self), self.queries.purpose(BLANK):
            return count_multiply_adds(self, torch.zeros(1, *self.input_shape, device=self.device))

    def frozen(self) -> Classifier:
        """Put the classifier into evaluation mode, stop gradients to its weights, and return it."""
        return self.eval().requires_grad_(False)


def compile_network(network: nn.Module) -> None:
    """Compile a network in place. It is compiled anew when hooks are added, which are to be called."""
    torch._dynamo.config.skip_nnmodule_hook_guards = False
    network.compile()


def encode_classifier(classifier: Classifier) -> bytes:
    """Return the bytes of the `model.safetensors` file that rebuilds this classifier.

    Its header says whether the network has batch normalization that keeps statistics: names of tensors do not tell it
    from instance normalization, and who asks need not load the network.
    """
    network = classifier.network
    tensors = {name: tensor.clone() for name, tensor in network.state_dict().items()}  # tied ones share memory
    if isinstance(network, Program):
        tensors[PROGRAM_TENSOR] = torch.from_numpy(np.frombuffer(network.content, np.uint8).copy())
    batch_norm = bool(batch_norm_layers(network))
    return encode_safetensors(tensors, {"classifier": _record(classifier.spec), BATCH_NORM_KEY: batch_norm})


def load_classifier(path: str | Path) -> Classifier:
    """Return the classifier of a `model.safetensors` file, in evaluation mode on the CPU.

    Args:
        path: the file, or the directory of an artifact that holds it.

    Raises:
        ArtifactError: the file is missing or malformed, or its weights do not fit the architecture it names, or it
            names code that nobody has allowed on this machine.
    """
    file = Path(path) / MODEL_FILE if Path(path).is_dir() else Path(path)
    tensors, metadata = read_safetensors(file)
    with rebuilding(file, "classifier"):
        spec = _classifier_spec_from_record(metadata["classifier"])
        program = tensors.pop(PROGRAM_TENSOR).numpy().tobytes() if PROGRAM_TENSOR in tensors else None
        _check_tensor_shapes(spec, tensors)
        classifier = Classifier(spec, spec.build(program))
        classifier.network.load_state_dict(tensors)
    return classifier.eval()


def read_spec(path: Path) -> ClassifierSpec:
    """Return what a `model.safetensors` file says of its classifier; quick, without its weights.

    Raises:
        ArtifactError: the file is missing or malformed.
    """
    with rebuilding(path, "classifier"):
        return _classifier_spec_from_record(read_header(path)[1]["classifier"])


def _check_tensor_shapes(spec: ClassifierSpec, tensors: dict[str, torch.Tensor]) -> None:
    """Raise `ValueError` unless the tensors are the architecture's, found out before memory is taken for it.

    Code of a user's need not be able to build without memory, and has been allowed; it is not asked.
    """
    if spec.code is not None or parse_name(spec.architecture).kind in ("module", "program"):
        return
    try:
        with torch.device("meta"):
            expected = spec.build().state_dict()
    except ConfigError:
        if spec.is_foreign:  # a few of torchvision's look at weights while they are built
            return
        raise
    if {name: tensor.shape for name, tensor in tensors.items()} != {name: t.shape for name, t in expected.items()}:
        raise ValueError(f"its tensors are not those of {spec.architecture} at this input shape and class count")


def _record(spec: ClassifierSpec) -> dict[str, Any]:
    """Return a spec as JSON values, without what few networks have."""
    record = asdict(spec)
    for name, usual in (("code", None), ("head", asdict(Head())), ("feature_layer", None)):
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
    )


def _code_from_record(record: dict[str, Any]) -> Code:
    beside = tuple((str(path), str(known)) for path, known in record.get("beside", ()))
    return Code(str(record["name"]), str(record["source"]), beside)


def _head_from_record(record: dict[str, Any]) -> Head:
    steps = tuple(step if type(step) is int else str(step) for step in record["part"])
    if record["kind"] not in KINDS or any(str(step).startswith("_") for step in steps):
        raise ValueError(f"its head {record!r} is unknown")
    return Head(steps, record["kind"])
