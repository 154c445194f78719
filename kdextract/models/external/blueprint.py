"""From a network's name to the network."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from ...errors import ConfigError
from ..architectures import InputShape, architecture
from ..hooks import evaluation_mode
from . import libraries
from . import user_code as user_code
from .exported_program import Program
from .names import PROGRAM, NetworkName
from .user_code import Code


@dataclass(frozen=True)
class Blueprint:
    """All that is needed to build a network, but for its weights.

    `code` is the file of a user's function, `program` the bytes of a `.pt2` file; others have neither.
    """

    name: NetworkName
    code: Code | None = None
    program: bytes | None = None

    def build(self, input_shape: InputShape | None, num_classes: int | None) -> nn.Module:
        """Return the network, freshly initialized. Foreign ones look at the arguments only for lazy layers.

        Raises:
            KdxError: there is no such network, or it cannot be built like this.
        """
        if self.name.kind == "program":
            if self.program is None:
                raise ConfigError("a program is built from its file alone")
            return Program(self.program)
        if not self.name.is_foreign:
            assert input_shape is not None
            assert num_classes is not None
            return architecture(self.name.target).build(input_shape, num_classes, **dict(self.name.arguments))
        if self.name.kind in ("torchvision", "timm"):
            return libraries.build(self.name)
        function = user_code.function_of(self.name, self.code)
        if isinstance(function, nn.Module):
            from copy import deepcopy

            return materialized(unwrapped(deepcopy(function), self.name), self.name, input_shape)
        with user_code.failing_as(self.name):
            made = function(**dict(self.name.arguments))
        return materialized(unwrapped(made, self.name), self.name, input_shape)

    def with_what_it_imports(self) -> Blueprint:
        """Return it, once built, with the files beside the user's code that this imports."""
        return self if self.code is None else replace(self, code=user_code.with_what_it_imports(self.code))

    def with_inferred_arguments(self, input_shape: InputShape | None, num_classes: int | None) -> Blueprint:
        """Return it with these numbers as arguments, where the network takes them as such."""
        if self.name.kind in ("torchvision", "timm"):
            return Blueprint(libraries.with_inferred_arguments(self.name, input_shape, num_classes))
        if not self.name.function:
            return self
        function = user_code.function_of(self.name, self.code)
        return self._derived(user_code.with_inferred_arguments(self.name, function, input_shape, num_classes))

    def narrowed(self, width: float) -> Blueprint:
        """Return it with its width multiplied. Raises `ConfigError` when the network has none."""
        if self.name.kind == "program":
            raise ConfigError("a .pt2 program has no width; name another student")
        if self.name.kind in ("torchvision", "timm"):
            return Blueprint(libraries.narrowed(self.name, width))
        if self.name.function:
            function = user_code.function_of(self.name, self.code)
            return self._derived(user_code.narrowed(self.name, function, width))
        entry = architecture(self.name.target)
        if not entry.has_width:
            raise ConfigError(f"{self.name.target} has no width; name another student")
        return Blueprint(self.name.with_arguments(width=width * dict(self.name.arguments).get("width", 1.0)))

    def _derived(self, name: NetworkName) -> Blueprint:
        """Return it with arguments that were filled in; whoever has allowed it has allowed them."""
        user_code.allow_inferred_call(self.name, name, self.code)
        return Blueprint(name, self.code)


def unwrapped(network: Any, name: NetworkName) -> nn.Module:
    """Return a network without what parallel training and compilation wrap around it.

    Raises:
        ConfigError: it is no network, or one of TorchScript.
    """
    while isinstance(network, nn.DataParallel | nn.parallel.DistributedDataParallel) or hasattr(network, "_orig_mod"):
        network = network._orig_mod if hasattr(network, "_orig_mod") else network.module
    if isinstance(network, torch.jit.ScriptModule):
        raise ConfigError(f"{name} is a TorchScript module, which cannot be looked into; give its Python class instead")
    if not isinstance(network, nn.Module):
        raise ConfigError(f"{name} gives a {type(network).__name__}, not a torch.nn.Module")
    return network.cpu()


def materialized(network: nn.Module, name: NetworkName, input_shape: InputShape | None) -> nn.Module:
    """Return a network whose lazy layers have got their shapes from a blank image.

    Raises:
        ConfigError: it has such layers, and the input shape is not known or does not fit.
    """
    if not any(map(is_lazy, (*network.parameters(), *network.buffers()))):
        return network
    if input_shape is None:
        raise ConfigError(f"{name} has lazy layers, whose shapes depend on the images; say theirs with --input-size")
    with user_code.failing_as(name), evaluation_mode(network), torch.no_grad():
        network(torch.zeros(2, *input_shape))
    return network


def program_blueprint(content: bytes) -> Blueprint:
    """Return the blueprint of a `.pt2` program."""
    return Blueprint(NetworkName(PROGRAM), None, content)
