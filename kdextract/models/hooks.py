"""Context managers that record or change activations of a network. Their hooks are removed at the end of the block."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn.modules.instancenorm import _InstanceNorm

from ..errors import ConfigError, did_you_mean
from .channel_moments import channel_moments

_WEIGHTED = (nn.Conv2d, nn.ConvTranspose2d, nn.Linear)
_EXPORTED = "InterpreterModule"  # the class of every module in a program of torch.export


class CallCounter:
    """Names the calls of modules within one forward pass: `conv` the first time, `conv#2` the second."""

    def __init__(self, network: nn.Module, stack: ExitStack, recorded: dict[str, Any] | None = None) -> None:
        self._counts: dict[str, int] = {}
        self._recorded: dict[str, Any] = {} if recorded is None else recorded
        stack.callback(network.register_forward_pre_hook(self._begin, prepend=True).remove)

    def _begin(self, network: nn.Module, inputs: Any) -> None:
        self._counts.clear()
        self._recorded.clear()

    def next(self, name: str) -> str:
        """Return the name of this call of a module."""
        count = self._counts[name] = self._counts.get(name, 0) + 1
        return name if count == 1 else f"{name}#{count}"


def module_of(call: str) -> str:
    """Return the module's name in the name of a call: `conv` for `conv#2`."""
    return call.partition("#")[0]


def _modules_of(calls: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(map(module_of, calls)))


@contextmanager
def record_activations(network: nn.Module, layers: list[str]) -> Iterator[dict[str, torch.Tensor]]:
    """Record the outputs of the named layers, before the activation function.

    A layer that is used twice in a forward pass has two names, such as `conv` and `conv#2`.

    Yields a dict: layer name -> output [batch, ...] of the last forward pass, with its gradient history.
    """
    activations: dict[str, torch.Tensor] = {}
    with hand_over_activations(network, layers, activations.__setitem__, activations):
        yield activations


@contextmanager
def hand_over_activations(
    network: nn.Module,
    layers: list[str],
    take: Callable[[str, torch.Tensor], None],
    recorded: dict[str, torch.Tensor] | None = None,
) -> Iterator[None]:
    """Call `take(name, output)` for each output [batch, ...] of the named layers, as soon as it is computed.

    Outputs are not stored, so that a forward pass without gradients needs no more memory than without hooks.

    Args:
        recorded: a dict that `take` fills; it is cleared at the beginning of every forward pass.
    """

    def pass_on(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, inputs: Any, output: torch.Tensor) -> None:
            call = calls.next(name)
            if call in layers:
                take(call, _at_least_float32(output))

        return hook

    with ExitStack() as stack:
        calls = CallCounter(network, stack, recorded)
        for name in _modules_of(layers):
            stack.callback(network.get_submodule(name).register_forward_hook(pass_on(name)).remove)
        yield


@contextmanager
def transform_inputs(
    network: nn.Module, layers: list[str], transform: Callable[[str, torch.Tensor], torch.Tensor]
) -> Iterator[None]:
    """Replace the input x of each named layer by `transform(name, x)` in every forward pass."""

    def replace(name: str) -> Callable[..., torch.Tensor | None]:
        def hook(module: nn.Module, inputs: tuple[torch.Tensor, ...]) -> torch.Tensor | None:
            call = calls.next(name)
            return transform(call, inputs[0]) if call in layers else None

        return hook

    with ExitStack() as stack:
        calls = CallCounter(network, stack)
        for name in _modules_of(layers):
            stack.callback(network.get_submodule(name).register_forward_pre_hook(replace(name)).remove)
        yield


@contextmanager
def record_features(network: nn.Module, layer: str) -> Iterator[list[torch.Tensor]]:
    """Record the inputs of the named layer, such as the features before the last layer of a classifier.

    Yields a list to which every call of the layer adds one tensor [batch, units], with its gradient history. Inputs
    [batch, channels, height, width] are averaged over the pixels, inputs [batch, tokens, units] over the tokens.

    Raises:
        ConfigError: the network has no such layer.
    """
    modules = dict(network.named_modules())
    if layer not in modules:
        raise ConfigError(f"the network has no layer {layer!r}.{did_you_mean(layer, list(modules)[1:])}")
    features: list[torch.Tensor] = []

    def hook(module: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any]) -> None:
        values = _at_least_float32(_first_tensor((*inputs, *named.values())))
        if values.dim() == 3:
            values = values.mean(1)
        features.append(values.mean((2, 3)) if values.dim() == 4 else values.flatten(1))

    handle = modules[layer].register_forward_pre_hook(hook, with_kwargs=True)
    try:
        yield features
    finally:
        handle.remove()


def last_layer(network: nn.Module, outputs: int, *inputs: torch.Tensor) -> str:
    """Return the name of the last layer with weights that has `outputs` outputs or channels.

    If there is none, the last layer with weights that runs. `inputs` are valid input batches; the network runs on them
    once.

    Raises:
        ConfigError: no layer with weights runs.
    """
    shapes = weighted_layers(network, *inputs)
    if not shapes:
        raise ConfigError("the teacher has no convolution and no linear layer, so it has no features")
    fitting = [name for name, shape in shapes.items() if outputs in (*shape[:1], *shape[-1:])]
    return module_of((fitting or list(shapes))[-1])


def _first_tensor(values: tuple[Any, ...]) -> torch.Tensor:
    return next(value for value in values if isinstance(value, torch.Tensor))


def _at_least_float32(values: torch.Tensor) -> torch.Tensor:
    return values.to(torch.promote_types(values.dtype, torch.float32))


@dataclass(frozen=True)
class BatchStatistics:
    """Mean and variance per channel, [channels]: of a batch, with gradient history, and the layer's running ones."""

    mean: torch.Tensor
    variance: torch.Tensor
    kept_mean: torch.Tensor
    kept_variance: torch.Tensor


def batch_norm_layers(network: nn.Module) -> list[str]:
    """Return the names of the batch normalization layers that have running statistics of their training data."""
    return [name for name, module in network.named_modules() if _keeps_statistics(module)]


def _keeps_statistics(module: nn.Module) -> bool:
    """Whether the module has the running mean and variance of batch normalization, whatever its class.

    Instance normalization is excluded: its running variance is that within single images, not that of the data.
    """
    mean, variance = getattr(module, "running_mean", None), getattr(module, "running_var", None)
    if not isinstance(mean, torch.Tensor) or not isinstance(variance, torch.Tensor):
        return False
    return mean.dim() == 1 and mean.shape == variance.shape and not _normalizes_instances(module)


def _normalizes_instances(module: nn.Module) -> bool:
    """Whether the module is instance normalization, also in a program of torch.export."""
    if type(module).__name__ == _EXPORTED:
        return any("instance_norm" in str(node.target) for node in module.graph.nodes)  # type: ignore[union-attr]
    return isinstance(module, _InstanceNorm)


@contextmanager
def record_batch_statistics(network: nn.Module) -> Iterator[dict[str, BatchStatistics]]:
    """Record the statistics of the inputs of each batch normalization layer.

    Yields a dict: layer name -> statistics of the last forward pass; empty for a network without such layers. A layer
    that is used twice has two entries. Variances of batches are biased ones, as in DeepInversion (Yin et al. 2020).
    """
    recorded: dict[str, BatchStatistics] = {}

    def keep(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
            kept_mean, kept_variance = module.running_mean, module.running_var
            assert isinstance(kept_mean, torch.Tensor)
            assert isinstance(kept_variance, torch.Tensor)
            mean, variance = channel_moments(inputs[0], kept_mean)
            recorded[calls.next(name)] = BatchStatistics(mean, variance, kept_mean, kept_variance)

        return hook

    with ExitStack() as stack:
        calls = CallCounter(network, stack, recorded)
        for name in batch_norm_layers(network):
            stack.callback(network.get_submodule(name).register_forward_pre_hook(keep(name)).remove)
        yield recorded


@contextmanager
def evaluation_mode(network: nn.Module) -> Iterator[None]:
    """Put a network into evaluation mode, and restore the mode of each of its modules afterwards."""
    modes = [(module, module.training) for module in network.modules()]
    network.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


@contextmanager
def frozen_evaluation(network: nn.Module) -> Iterator[None]:
    """Put a network into evaluation mode without gradients of its weights, and restore both afterwards.

    Use it for gradients with respect to the inputs: a compiled network computes the gradients of all weights with
    `requires_grad`, even if they are not used.
    """
    wanted = [(parameter, parameter.requires_grad) for parameter in network.parameters()]
    with evaluation_mode(network):
        for parameter, _ in wanted:
            parameter.requires_grad_(False)
        try:
            yield
        finally:
            for parameter, requires_grad in wanted:
                parameter.requires_grad_(requires_grad)


@dataclass(frozen=True)
class LayerOutput:
    """The output of a layer for given inputs.

    Attributes:
        shape: of the whole output. The first dimension is not the batch in every layer: in window attention, for
            example, it counts the windows of all images.
        channel_axis: the dimension of the channels: 1 in a convolution, the last one in a linear layer.
    """

    shape: tuple[int, ...]
    channel_axis: int


def layer_outputs(network: nn.Module, *inputs: torch.Tensor) -> dict[str, LayerOutput]:
    """Return the outputs of convolutions and linear layers, by name, in the order in which they run.

    `inputs` are valid input batches; the network runs on them once.
    """
    outputs: dict[str, LayerOutput] = {}

    def note(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, inputs: Any, output: torch.Tensor) -> None:
            weight = module.weight
            assert isinstance(weight, torch.Tensor)
            axis = output.dim() - 1 if weight.dim() == 2 else 1
            outputs[calls.next(name)] = LayerOutput(tuple(output.shape), axis)

        return hook

    with torch.no_grad(), ExitStack() as stack:
        calls = CallCounter(network, stack, outputs)
        for name, module in network.named_modules():
            if is_weighted(module):
                stack.callback(module.register_forward_hook(note(name)).remove)
        network(*inputs)
    return outputs


def weighted_layers(network: nn.Module, *inputs: torch.Tensor) -> dict[str, tuple[int, ...]]:
    """Return the convolutions and linear layers in the order in which they run: name -> output shape per image.

    `inputs` are valid input batches; the network runs on them once.
    """
    return {name: output.shape[1:] for name, output in layer_outputs(network, *inputs).items()}


def is_weighted(module: nn.Module) -> bool:
    """Whether the module is a convolution or a linear layer, also in a program of torch.export."""
    if isinstance(module, _WEIGHTED):
        return True
    weight = getattr(module, "weight", None)
    return type(module).__name__ == _EXPORTED and isinstance(weight, torch.Tensor) and weight.dim() in (2, 4)


def count_multiply_adds(network: nn.Module, *inputs: torch.Tensor) -> int:
    """Return the number of multiply-adds of convolutions and linear layers for ONE image (or noise vector).

    `inputs` are valid input batches; the network runs on the first element of each.
    """
    total = 0
    modules = dict(network.named_modules())
    for name, shape in weighted_layers(network, *(values[:1] for values in inputs)).items():
        layer = modules[module_of(name)]
        assert isinstance(layer.weight, torch.Tensor)
        products = layer.weight[0].numel()
        if isinstance(layer, nn.ConvTranspose2d):  # only one in stride^2 of its products contributes to an output pixel
            products = layer.weight[:, 0].numel() // math.prod(layer.stride)
        total += math.prod(shape) * products
    return total
