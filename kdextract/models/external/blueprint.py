"""Build a network from its name, with the code or the program that it needs."""

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
    """All that is needed to build a network, except its weights.

    `code` is the file of a user's function, `program` the bytes of a `.pt2` file; for other networks both are None.
    """

    name: NetworkName
    code: Code | None = None
    program: bytes | None = None

    def build(self, input_shape: InputShape | None, num_classes: int | None) -> nn.Module:
        """Return the network, freshly initialized, on the CPU.

        Args:
            input_shape, num_classes: of an architecture of kdx. Other networks have them in the name's arguments; they
                need `input_shape` only if they have lazy layers.

        Raises:
            UsageError: there is no such network.
            ArtifactError: its code was not allowed on this machine.
            ConfigError: it cannot be built with these arguments.
        """
        if self.name.kind == "program":
            if self.program is None:
                raise ConfigError("a .pt2 program is built from the bytes of its file, which are missing here")
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

    def with_imported_files(self) -> Blueprint:
        """Return the blueprint, after `build`, with the files that the user's code imports from its folder."""
        return self if self.code is None else replace(self, code=user_code.with_imported_files(self.code))

    def with_inferred_arguments(self, input_shape: InputShape | None, num_classes: int | None) -> Blueprint:
        """Return the blueprint with these values as arguments, if the network has parameters for them."""
        if self.name.kind in ("torchvision", "timm"):
            return Blueprint(libraries.with_inferred_arguments(self.name, input_shape, num_classes))
        if not self.name.function:
            return self
        function = user_code.function_of(self.name, self.code)
        return self._derived(user_code.with_inferred_arguments(self.name, function, input_shape, num_classes))

    def with_classes(self, num_classes: int) -> Blueprint:
        """Return the blueprint of the same network with another number of classes.

        Raises:
            ConfigError: the network has no argument for the number of its classes.
        """
        if not self.name.is_foreign:
            return self  # an architecture of kdx gets the number when it is built
        given = [name for name, _ in self.name.arguments if name in user_code.CLASSES]
        if given:
            return self._derived(self.name.with_arguments(**{given[0]: num_classes}))
        derived = self if self.name.kind == "program" else self.with_inferred_arguments(None, num_classes)
        if derived.name == self.name:
            raise ConfigError(f"{self.name} has no argument for the number of its classes, so that none can be added")
        return derived

    def narrowed(self, width: float) -> Blueprint:
        """Return the blueprint with the network's width multiplied. Raises `ConfigError` if it has none."""
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
        """Return the blueprint of `name`, this one with arguments filled in. Its call is allowed if this one's is."""
        if name.function:
            user_code.allow_inferred_call(self.name, name, self.code)
        return Blueprint(name, self.code)


def unwrapped(network: Any, name: NetworkName) -> nn.Module:
    """Return a network without the wrappers of parallel training and of compilation, on the CPU.

    Raises:
        ConfigError: it is not a `torch.nn.Module`, or it is a TorchScript module.
    """
    while isinstance(network, nn.DataParallel | nn.parallel.DistributedDataParallel) or hasattr(network, "_orig_mod"):
        network = network._orig_mod if hasattr(network, "_orig_mod") else network.module
    if isinstance(network, torch.jit.ScriptModule):
        raise ConfigError(f"{name} is a TorchScript module, whose layers cannot be read; name its Python class instead")
    if not isinstance(network, nn.Module):
        raise ConfigError(f"{name} returns {type(network).__name__}, not a torch.nn.Module")
    return network.cpu()


def materialized(network: nn.Module, name: NetworkName, input_shape: InputShape | None) -> nn.Module:
    """Return the network after its lazy layers got their shapes from a batch of zeros.

    Raises:
        ConfigError: it has lazy layers, and the input shape is unknown or does not fit.
    """
    if not any(map(is_lazy, (*network.parameters(), *network.buffers()))):
        return network
    if input_shape is None:
        raise ConfigError(f"{name} has lazy layers, whose shapes depend on the image size; give it with --input-size")
    with user_code.failing_as(name), evaluation_mode(network), torch.no_grad():
        network(torch.zeros(2, *input_shape))
    return network


def program_blueprint(content: bytes) -> Blueprint:
    """Return the blueprint of the program with the bytes of a `.pt2` file."""
    return Blueprint(NetworkName(PROGRAM), None, content)
