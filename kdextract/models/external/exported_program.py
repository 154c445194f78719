"""Programs of `torch.export` (`.pt2` files): networks that run without the Python code of their class."""

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
    """A network from the bytes of a `.pt2` file. Its modules have the names of the exported network.

    It has evaluation mode only: dropout does nothing, and batch normalization uses its running statistics.

    Raises:
        ArtifactError: the bytes are not a program, or it was not allowed on this machine.
        ConfigError: the program has several inputs, a fixed batch size, or no fixed image size.
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
            raise ArtifactError(f"torch.export cannot load it as a program: {reason}") from error

    def forward(self, values: torch.Tensor) -> Any:
        """Return the program's output for [batch, channels, height, width]."""
        return self.body(values)

    def train(self, mode: bool = True) -> Program:
        """Set the flag `training` only: the program always runs in evaluation mode."""
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
            f"the program was exported for batches of {batch} images only; export it with a dynamic batch: "
            'torch.export.export(model, (images,), dynamic_shapes=({0: torch.export.Dim("batch")},))'
        )
    if not all(isinstance(size, int) for size in shape):
        raise ConfigError("the program takes images of any size; export it for one size")
    channels, height, width = shape
    return int(channels), int(height), int(width)
