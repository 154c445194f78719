"""Programs of `torch.export`, the `.pt2` files: networks that run without the code that made them."""

from __future__ import annotations

import io
import warnings
from typing import Any

import torch
from torch import nn

from ...errors import ArtifactError, ConfigError
from . import consent
from .names import PROGRAM, NetworkName


class Program(nn.Module):
    """A network from the bytes of a `.pt2` file. Its modules have the names that they had when it was exported.

    A program knows evaluation mode alone: dropout does nothing, and batch normalization uses what it keeps.

    Raises:
        ArtifactError: the bytes are no program of one input and any number of images, or nobody has allowed it here.
    """

    def __init__(self, content: bytes) -> None:
        super().__init__()
        consent.require(content, NetworkName(PROGRAM))
        self.content = content
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                exported = torch.export.load(io.BytesIO(content))
                self.input_shape = _program_input_shape(exported)
                self.body = torch.export.unflatten(exported)
        except (ArtifactError, ConfigError):
            raise
        except Exception as error:
            reason = (str(error) or type(error).__name__).splitlines()[0]
            raise ArtifactError(f"it is no program that torch.export can load: {reason}") from error

    def forward(self, values: torch.Tensor) -> Any:
        """Return what the program returns for [batch, channels, height, width]."""
        return self.body(values)

    def train(self, mode: bool = True) -> Program:
        """Stay in evaluation mode, in which the program was exported."""
        self.training = mode
        return self

    def __deepcopy__(self, memo: Any) -> Program:
        twin = Program(self.content)
        twin.load_state_dict(self.state_dict())
        own = dict(self.named_parameters())
        for name, parameter in twin.named_parameters():
            parameter.requires_grad_(own[name].requires_grad)
        return twin.to(next(self.body.parameters()).device)


def _program_input_shape(exported: torch.export.ExportedProgram) -> tuple[int, int, int]:
    """Return (channels, height, width) of the program's only input."""
    inputs = exported.graph_signature.user_inputs
    placeholders = {node.name: node.meta.get("val") for node in exported.graph.nodes if node.op == "placeholder"}
    values = [placeholders[str(name)] for name in inputs if isinstance(placeholders.get(str(name)), torch.Tensor)]
    if len(values) != 1 or values[0].dim() != 4:
        shapes = ", ".join(str(tuple(value.shape)) for value in values) or "none"
        raise ConfigError(f"a program takes one batch of images [batch, channels, height, width]; its inputs: {shapes}")
    batch, *shape = values[0].shape
    if isinstance(batch, int):
        raise ConfigError(
            f"the program was exported for batches of {batch} alone; export it with a dynamic batch: "
            'torch.export.export(model, (images,), dynamic_shapes=({0: torch.export.Dim("batch")},))'
        )
    if not all(isinstance(size, int) for size in shape):
        raise ConfigError("the program takes images of any size; export it for one size")
    channels, height, width = shape
    return int(channels), int(height), int(width)
