"""Context managers that look inside a network while it runs, and always detach."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import nn

_WEIGHTED = (nn.Conv2d, nn.Linear)


@contextmanager
def record_activations(network: nn.Module, layers: list[str]) -> Iterator[dict[str, torch.Tensor]]:
    """Record what the named layers put out, before any nonlinearity.

    Yields a dict that every forward pass refills: layer name -> output [batch, ...], with its gradient history.
    """
    activations: dict[str, torch.Tensor] = {}

    def keep(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, inputs: Any, output: torch.Tensor) -> None:
            activations[name] = output

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


def weighted_layers(network: nn.Module, images: torch.Tensor) -> dict[str, tuple[int, ...]]:
    """Return the convolutions and linear layers in the order in which they run: name -> output shape per image.

    `images` is one valid input batch; the network runs on it once.
    """
    names = [name for name, module in network.named_modules() if isinstance(module, _WEIGHTED)]
    with torch.no_grad(), record_activations(network, names) as activations:
        network(images)
        return {name: tuple(output.shape[1:]) for name, output in activations.items()}


def count_multiply_adds(network: nn.Module, images: torch.Tensor) -> int:
    """Return the multiply-adds of convolutions and linear layers for ONE image of `images`' shape."""
    total = 0
    modules = dict(network.named_modules())
    for name, shape in weighted_layers(network, images[:1]).items():
        outputs = math.prod(shape)
        weight = modules[name].weight
        assert isinstance(weight, torch.Tensor)
        total += outputs * weight[0].numel()
    return total
