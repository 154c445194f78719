"""Context managers that look inside a network while it runs, and always detach."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from .errors import ConfigError
from .moments import channel_moments

_WEIGHTED = (nn.Conv2d, nn.ConvTranspose2d, nn.Linear)


@contextmanager
def record_activations(network: nn.Module, layers: list[str]) -> Iterator[dict[str, torch.Tensor]]:
    """Record what the named layers put out, before any nonlinearity.

    Yields a dict that every forward pass refills: layer name -> output [batch, ...], with its gradient history.
    """
    activations: dict[str, torch.Tensor] = {}

    def keep(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, inputs: Any, output: torch.Tensor) -> None:
            activations[name] = _at_least_float32(output)

        return hook

    with ExitStack() as stack:
        for name in layers:
            stack.callback(network.get_submodule(name).register_forward_hook(keep(name)).remove)
        yield activations


@contextmanager
def transform_inputs(
    network: nn.Module, layers: list[str], transform: Callable[[str, torch.Tensor], torch.Tensor]
) -> Iterator[None]:
    """Replace the input x of each named layer by `transform(name, x)` in every forward pass."""

    def replace(name: str) -> Callable[..., torch.Tensor]:
        def hook(module: nn.Module, inputs: tuple[torch.Tensor, ...]) -> torch.Tensor:
            return transform(name, inputs[0])

        return hook

    with ExitStack() as stack:
        for name in layers:
            stack.callback(network.get_submodule(name).register_forward_pre_hook(replace(name)).remove)
        yield


@contextmanager
def record_features(network: nn.Module) -> Iterator[list[torch.Tensor]]:
    """Record what enters the last linear layer, the features that a classifier ends with.

    Yields a list to which every forward pass adds one tensor [batch, units], with its gradient history.

    Raises:
        ConfigError: the network has no linear layer.
    """
    linear = [module for module in network.modules() if isinstance(module, nn.Linear)]
    if not linear:
        raise ConfigError("the teacher has no linear layer at its end, whose inputs would be its features")
    features: list[torch.Tensor] = []
    handle = linear[-1].register_forward_pre_hook(
        lambda module, inputs: features.append(_at_least_float32(inputs[0]).flatten(1))
    )
    try:
        yield features
    finally:
        handle.remove()


def _at_least_float32(values: torch.Tensor) -> torch.Tensor:
    return values.to(torch.promote_types(values.dtype, torch.float32))


@dataclass(frozen=True)
class BatchStatistics:
    """Mean and variance per channel, [channels]: of a batch, with gradient history, and those that a layer keeps."""

    mean: torch.Tensor
    variance: torch.Tensor
    kept_mean: torch.Tensor
    kept_variance: torch.Tensor


def batch_norm_layers(network: nn.Module) -> list[str]:
    """Return the names of the batch normalization layers that keep statistics of their training data."""
    return [
        name
        for name, module in network.named_modules()
        if isinstance(module, _BatchNorm) and module.running_mean is not None
    ]


@contextmanager
def record_batch_statistics(network: nn.Module) -> Iterator[dict[str, BatchStatistics]]:
    """Record the statistics of what enters each batch normalization layer.

    Yields a dict that every forward pass refills: layer name -> statistics; empty for a network without such layers.
    The variance of a batch is the biased one, as in DeepInversion (Yin et al. 2020).
    """
    recorded: dict[str, BatchStatistics] = {}

    def keep(name: str) -> Callable[..., None]:
        def hook(module: _BatchNorm, inputs: tuple[torch.Tensor, ...]) -> None:
            assert module.running_mean is not None
            assert module.running_var is not None
            mean, variance = channel_moments(inputs[0], module.running_mean)
            recorded[name] = BatchStatistics(mean, variance, module.running_mean, module.running_var)

        return hook

    with ExitStack() as stack:
        for name in batch_norm_layers(network):
            stack.callback(network.get_submodule(name).register_forward_pre_hook(keep(name)).remove)
        yield recorded


@contextmanager
def evaluation_mode(network: nn.Module) -> Iterator[None]:
    """Put a network into evaluation mode, and every module of it back into its own mode afterwards."""
    modes = [(module, module.training) for module in network.modules()]
    network.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


def weighted_layers(network: nn.Module, *inputs: torch.Tensor) -> dict[str, tuple[int, ...]]:
    """Return the convolutions and linear layers in the order in which they run: name -> output shape per image.

    `inputs` are valid input batches; the network runs on them once.
    """
    names = [name for name, module in network.named_modules() if isinstance(module, _WEIGHTED)]
    with torch.no_grad(), record_activations(network, names) as activations:
        network(*inputs)
        return {name: tuple(output.shape[1:]) for name, output in activations.items()}


def count_multiply_adds(network: nn.Module, *inputs: torch.Tensor) -> int:
    """Return the multiply-adds of convolutions and linear layers for ONE image (or noise) of the inputs' shapes."""
    total = 0
    modules = dict(network.named_modules())
    for name, shape in weighted_layers(network, *(values[:1] for values in inputs)).items():
        layer = modules[name]
        assert isinstance(layer, _WEIGHTED)
        products = layer.weight[0].numel()
        if isinstance(layer, nn.ConvTranspose2d):  # of its products, an output pixel gets one in stride^2
            products = layer.weight[:, 0].numel() // math.prod(layer.stride)
        total += math.prod(shape) * products
    return total
