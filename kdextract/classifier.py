"""`Classifier`: a network that takes pixels in [0, 1] and carries everything needed to rebuild it."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from .models import InputShape, architecture
from .models.factorized import LayerRanks, factorize
from .tensor_files import encode_safetensors, read_safetensors, rebuilding


@dataclass(frozen=True)
class ClassifierSpec:
    """What a `model.safetensors` file says about its classifier, besides the weights.

    `input_shape` is (channels, height, width) in pixels; `mean` and `std` hold one value per channel, in pixel units
    of [0, 1]; `class_names` has one entry per class. `factors` names the layers that are taken apart, with their ranks
    (see `models.factorized`).
    """

    architecture: str
    input_shape: InputShape
    class_names: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    factors: tuple[LayerRanks, ...] = ()

    @property
    def num_classes(self) -> int:
        """Number of classes, K."""
        return len(self.class_names)

    @property
    def is_table(self) -> bool:
        """Whether its inputs are rows of a table: one channel, one line of features."""
        return self.input_shape[:2] == (1, 1)

    def build(self) -> nn.Module:
        """Return the network, freshly initialized. Raises `KdxError` when there is no such network."""
        return factorize(architecture(self.architecture).build(self.input_shape, self.num_classes), self.factors)


class Classifier(nn.Module):
    """A classifier of pixels in [0, 1]. Teacher and student are roles of this class, not subclasses.

    The input is [batch, channels, height, width] float; the output is logits [batch, K]. Normalization with the
    training data's mean and standard deviation is the first operation inside. The network may compute in another
    `precision` than float32 (autocast), and be compiled; logits are float32, and weights are, all the same.
    """

    mean: torch.Tensor
    std: torch.Tensor

    def __init__(self, spec: ClassifierSpec) -> None:
        super().__init__()
        self.spec = spec
        self.network = spec.build()
        self.register_buffer("mean", torch.tensor(spec.mean).view(1, -1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(spec.std).view(1, -1, 1, 1), persistent=False)
        self._precision: torch.dtype | None = None
        self._compiled = False

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
        if self._precision is None:
            return self.network(values)
        with torch.autocast(values.device.type, self._precision):
            return self.network(values).float()

    def placed(self, device: torch.device, precision: torch.dtype | None = None, compiled: bool = False) -> Classifier:
        """Move the classifier to `device`, in the memory layout that convolutions are fastest in, and return it.

        Args:
            precision: what convolutions and linear layers compute in, such as `torch.bfloat16`; None for float32.
            compiled: whether `torch.compile` makes the network faster from its first batch on.
        """
        self.to(device)
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

    def frozen(self) -> Classifier:
        """Put the classifier into evaluation mode, stop gradients to its weights, and return it."""
        return self.eval().requires_grad_(False)


def compile_network(network: nn.Module) -> None:
    """Compile a network in place. It is compiled anew when hooks are added, which are to be called."""
    torch._dynamo.config.skip_nnmodule_hook_guards = False
    network.compile()


def encode_classifier(classifier: Classifier) -> bytes:
    """Return the bytes of the `model.safetensors` file that rebuilds this classifier."""
    return encode_safetensors(classifier.network.state_dict(), {"classifier": asdict(classifier.spec)})


def load_classifier(path: str | Path) -> Classifier:
    """Return the classifier of a `model.safetensors` file, in evaluation mode on the CPU.

    Raises:
        ArtifactError: the file is missing or malformed, or its weights do not fit the architecture it names.
    """
    tensors, metadata = read_safetensors(Path(path))
    with rebuilding(path, "classifier"):
        spec = _spec_from_record(metadata["classifier"])
        _check_shapes(spec, tensors)
        classifier = Classifier(spec)
        classifier.network.load_state_dict(tensors)
    return classifier.eval()


def _check_shapes(spec: ClassifierSpec, tensors: dict[str, torch.Tensor]) -> None:
    """Raise `ValueError` unless the tensors are the architecture's, found out before memory is taken for it."""
    with torch.device("meta"):
        expected = spec.build().state_dict()
    if {name: tensor.shape for name, tensor in tensors.items()} != {name: t.shape for name, t in expected.items()}:
        raise ValueError(f"its tensors are not those of {spec.architecture} at this input shape and class count")


def _spec_from_record(record: dict[str, Any]) -> ClassifierSpec:
    channels, height, width = (int(n) for n in record["input_shape"])
    return ClassifierSpec(
        architecture=str(record["architecture"]),
        input_shape=(channels, height, width),
        class_names=tuple(str(name) for name in record["class_names"]),
        mean=tuple(float(value) for value in record["mean"]),
        std=tuple(float(value) for value in record["std"]),
        factors=tuple(
            (str(name), int(inwards), int(outwards)) for name, inwards, outwards in record.get("factors", ())
        ),
    )
