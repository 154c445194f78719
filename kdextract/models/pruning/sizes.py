"""The sizes of layers: a network is built at its full size, and its layers are then reduced to recorded sizes."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn
from torch.nn.utils.parametrize import is_parametrized

from ...errors import ConfigError, did_you_mean

LayerSizes = tuple[str, tuple[int, ...]]
"""Name of a layer, or of a parameter that belongs to no layer of a known type, and its sizes (see `sizes_of`)."""

Convolution = nn.Conv1d | nn.Conv2d | nn.Conv3d
ChannelNorm = nn.modules.batchnorm._NormBase
TokenNorm = nn.LayerNorm | nn.RMSNorm


def sizes_of(layer: nn.Module | torch.Tensor) -> tuple[int, ...] | None:
    """Return the sizes of a layer or parameter that a cut changes; None if no cut can change it.

    Convolutions have (outputs, inputs, groups), linear layers (outputs, inputs), attention (embedding,), normalization
    and PReLU (channels,), embeddings (units,), a parameter its shape.
    """
    if isinstance(layer, torch.Tensor):
        return tuple(layer.shape)
    if isinstance(layer, Convolution):
        return layer.out_channels, layer.in_channels, layer.groups
    if isinstance(layer, nn.Linear):
        return layer.out_features, layer.in_features
    if isinstance(layer, ChannelNorm):
        return (layer.num_features,)
    if isinstance(layer, nn.GroupNorm):
        return (layer.num_channels,)
    if isinstance(layer, TokenNorm):
        return tuple(layer.normalized_shape) if len(layer.normalized_shape) == 1 else None
    if isinstance(layer, nn.PReLU):
        return (layer.num_parameters,)
    if isinstance(layer, nn.Embedding):
        return (layer.embedding_dim,)
    if isinstance(layer, nn.MultiheadAttention):
        return (layer.embed_dim,) if layer.in_proj_weight is not None and layer.bias_k is None else None
    return None


def is_depthwise(layer: nn.Module | torch.Tensor) -> bool:
    """Whether the layer is a convolution of each channel by itself: as many groups as inputs and as outputs."""
    return isinstance(layer, Convolution) and 1 < layer.groups == layer.in_channels == layer.out_channels


def find_layer(network: nn.Module, name: str) -> nn.Module | torch.Tensor:
    """Return the module or parameter of this name. Raises `ConfigError` if there is none."""
    owner, _, last = name.rpartition(".")
    modules = dict(network.named_modules())
    if name in modules and name:
        return modules[name]
    parameter = modules[owner]._parameters.get(last) if owner in modules and _uses_itself(modules[owner]) else None
    if parameter is None:
        raise ConfigError(f"there is no layer {name!r} whose channels can be cut.{did_you_mean(name, list(modules))}")
    return parameter


def loose_parameters(network: nn.Module) -> list[str]:
    """Return the names of the parameters that can be cut by themselves: those of modules that are not PyTorch's."""
    owners = [(name, module) for name, module in network.named_modules() if _uses_itself(module)]
    return [f"{name}.{own}".lstrip(".") for name, module in owners for own in module._parameters]


def _uses_itself(owner: nn.Module) -> bool:
    """Whether the parameters of a module are used by code that is not PyTorch's."""
    own = type(owner).__module__.startswith("torch.nn.")
    return not own or isinstance(owner, nn.ParameterList | nn.ParameterDict)


def resize(network: nn.Module, kept: Iterable[LayerSizes]) -> nn.Module:
    """Reduce each named layer, in place, to the first channels of its tensors, and return the network.

    Raises:
        ConfigError: there is no such layer, a name is there twice, or a size is not between 1 and the layer's.
    """
    seen: set[str] = set()
    for name, sizes in kept:
        if name in seen:
            raise ConfigError(f"layer {name} has two records of its channels")
        seen.add(name)
        layer = find_layer(network, name)
        _check_sizes(name, layer, sizes)
        for owner, tensor, shape in _shapes(network, name, layer, sizes):
            old = getattr(owner, tensor)
            if len(shape) != old.dim() or any(new > full for new, full in zip(shape, old.shape, strict=True)):
                raise ConfigError(f"layer {name} has no tensor {tensor} of shape {tuple(shape)} or larger")
            replace_tensor(owner, tensor, old.detach()[tuple(slice(0, size) for size in shape)].clone())
        if isinstance(layer, nn.Module):
            set_sizes(layer, sizes)
    return network


def _check_sizes(name: str, layer: nn.Module | torch.Tensor, sizes: tuple[int, ...]) -> None:
    full = sizes_of(layer)
    fits = full is not None and len(sizes) == len(full)
    if not fits or not all(1 <= size <= most for size, most in zip(sizes, full or (), strict=True)):
        raise ConfigError(f"layer {name} has the sizes {full}; {tuple(sizes)} do not fit")
    if isinstance(layer, Convolution) and (sizes[0] % sizes[2] or sizes[1] % sizes[2]):
        raise ConfigError(f"layer {name} has {sizes[2]} groups, which do not divide {sizes[0]} and {sizes[1]} channels")


def _shapes(
    network: nn.Module, name: str, layer: nn.Module | torch.Tensor, sizes: tuple[int, ...]
) -> list[tuple[nn.Module, str, tuple[int, ...]]]:
    """Return the tensors of a layer that depend on its sizes: the module that holds each, its name, its new shape."""
    if isinstance(layer, torch.Tensor):
        owner, _, last = name.rpartition(".")
        return [(network.get_submodule(owner), last, sizes)]
    if isinstance(layer, nn.MultiheadAttention):
        (width,) = sizes
        return [
            (layer, "in_proj_weight", (3 * width, width)),
            *([] if layer.in_proj_bias is None else [(layer, "in_proj_bias", (3 * width,))]),
            *_shapes(network, name, layer.out_proj, (width, width)),
        ]
    if isinstance(layer, nn.Embedding):
        return [(layer, "weight", (layer.num_embeddings, sizes[0]))]
    shapes: list[tuple[nn.Module, str, tuple[int, ...]]] = []
    if isinstance(layer, Convolution | nn.Linear):
        groups = sizes[2] if isinstance(layer, Convolution) else 1
        weight = (sizes[0], sizes[1] // groups, *layer.weight.shape[2:])
        if is_parametrized(layer, "weight"):
            held: Any = layer.parametrizations["weight"]  # type: ignore[index]
            for part in ("original0", "original1"):
                if not isinstance(getattr(held, part, None), torch.Tensor):
                    raise ConfigError(f"layer {name} has a parametrization other than weight_norm")
                own = getattr(held, part).shape
                shapes.append((held, part, tuple(1 if n == 1 else w for n, w in zip(own, weight, strict=False))))
        else:
            shapes.append((layer, "weight", weight))
        return shapes + ([] if layer.bias is None else [(layer, "bias", sizes[:1])])
    for tensor in ("weight", "bias", "running_mean", "running_var"):
        if isinstance(getattr(layer, tensor, None), torch.Tensor):
            shapes.append((layer, tensor, sizes[:1]))
    return shapes


def replace_tensor(owner: nn.Module, name: str, values: torch.Tensor) -> None:
    """Replace a parameter, or a buffer, of a module by one with these values, of any shape."""
    if name in owner._parameters:
        old = owner._parameters[name]
        assert old is not None
        owner._parameters[name] = nn.Parameter(values, old.requires_grad)
    else:
        owner._buffers[name] = values


def set_sizes(layer: nn.Module, sizes: tuple[int, ...]) -> None:
    """Set the attributes of a layer that state its sizes."""
    if isinstance(layer, Convolution):
        layer.out_channels, layer.in_channels, layer.groups = sizes
    elif isinstance(layer, nn.Linear):
        layer.out_features, layer.in_features = sizes
    elif isinstance(layer, ChannelNorm):
        layer.num_features = sizes[0]
    elif isinstance(layer, nn.GroupNorm):
        layer.num_channels = sizes[0]
    elif isinstance(layer, TokenNorm):
        layer.normalized_shape = (sizes[0],)
    elif isinstance(layer, nn.PReLU):
        layer.num_parameters = sizes[0]
    elif isinstance(layer, nn.Embedding):
        layer.embedding_dim = sizes[0]
    elif isinstance(layer, nn.MultiheadAttention):
        layer.embed_dim = layer.kdim = layer.vdim = sizes[0]
        layer.head_dim = sizes[0] // layer.num_heads
        layer.out_proj.out_features = layer.out_proj.in_features = sizes[0]
