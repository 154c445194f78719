"""Networks of torchvision and timm, by their names in these libraries. Nothing is downloaded unless it is asked for."""

from __future__ import annotations

import inspect
import warnings
from dataclasses import dataclass
from typing import Any

from torch import nn

from ...errors import ConfigError, UsageError, did_you_mean
from .names import NetworkName

Shape = tuple[int, int, int]
OPENS_FILES = ("weights", "pretrained", "checkpoint", "cache")
"""Prefixes of arguments that make a library read or download files; not allowed in the name of a network."""


@dataclass(frozen=True)
class Facts:
    """Metadata of a network in a library: input shape, normalization of pixels in [0, 1], names of the classes.

    `mean` and `std` have one value per channel, or are empty if the library has none; `source` names the metadata.
    """

    input_shape: Shape
    mean: tuple[float, ...]
    std: tuple[float, ...]
    class_names: tuple[str, ...] | None = None
    source: str = ""


def check_library_name(name: NetworkName) -> None:
    """Raise `UsageError`, with a suggestion, unless the library has a classifier of this name."""
    if name.kind == "timm":
        known = _timm().list_models()
        if not _timm().is_model(name.place.partition(".")[0]) or ":" in name.place:
            raise UsageError(f"timm has no {name.place!r}.{_near(name.place, known)}")
        return
    import torchvision

    known = torchvision.models.list_models(module=torchvision.models)
    if name.place not in known:
        raise UsageError(f"torchvision has no classifier {name.place!r}.{_near(name.place, known)}")


def with_inferred_arguments(name: NetworkName, shape: Shape | None, classes: int | None) -> NetworkName:
    """Return the name with arguments for classes, channels and size, where they are given and the network has them.

    Raises:
        ConfigError: the network does not take this number of channels.
    """
    added: dict[str, Any] = {} if classes is None else {"num_classes": classes}
    if shape is not None and name.kind == "torchvision":
        if shape[0] != 3:
            raise ConfigError(f"{name.target} takes images of 3 channels, not {shape[0]}; networks of timm take both")
        if name.place.startswith("vit_") and shape[1] == shape[2]:
            added["image_size"] = shape[1]
    if shape is not None and name.kind == "timm":
        if shape[0] != 3:
            added["in_chans"] = shape[0]
        if _has_fixed_size(name) and shape[1:] != _config(name)["input_size"][1:]:
            added["img_size"] = shape[1] if shape[1] == shape[2] else shape[1:]
    given = dict(name.arguments)
    return name.with_arguments(**{key: value for key, value in added.items() if key not in given})


def build(name: NetworkName, pretrained: bool = False) -> nn.Module:
    """Return the network on the CPU.

    Args:
        pretrained: whether it has the library's own weights, which are downloaded if necessary; otherwise it is freshly
            initialized.

    Raises:
        UsageError: there is no such network, or an argument would open files.
        ConfigError: the library rejects the arguments, or the weights cannot be downloaded.
    """
    check_library_name(name)
    arguments = dict(name.arguments)
    for argument in arguments:
        if argument.startswith(OPENS_FILES):
            raise UsageError(f"{name.target} does not take {argument!r} here; weights are given with --weights")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            if name.kind == "timm":
                return _timm().create_model(name.place, pretrained=pretrained, **arguments)
            import torchvision

            weights = "DEFAULT" if pretrained else None
            if not pretrained and name.place in ("googlenet", "inception_v3"):
                arguments = {"init_weights": False, **arguments}
            return torchvision.models.get_model(name.place, weights=weights, **arguments)
    except (TypeError, ValueError, RuntimeError, OSError, KeyError) as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise ConfigError(f"{name} cannot be built: {reason}") from error


def facts(name: NetworkName) -> Facts | None:
    """Return the library's metadata of the network; None if it has none."""
    if name.kind == "timm":
        config = _config(name)
        shape = _as_named(name, config["input_size"])
        return Facts(shape, tuple(config["mean"]), tuple(config["std"]), None, "timm")
    import torchvision

    try:
        weights = torchvision.models.get_model_weights(name.place).DEFAULT
        preset = weights.transforms()
        side = preset.crop_size[0]
    except (ValueError, AttributeError, TypeError, IndexError):
        return None
    names = tuple(weights.meta["categories"])
    if len(set(names)) < len(names):
        names = tuple(f"{name} ({index})" if names.count(name) > 1 else name for index, name in enumerate(names))
    shape = _as_named(name, (3, side, side))
    return Facts(shape, tuple(preset.mean), tuple(preset.std), names, "torchvision's weights")


def _as_named(name: NetworkName, usual: Any) -> Shape:
    """Return the input shape: from the arguments of the name, otherwise `usual`."""
    given = dict(name.arguments)
    size = given.get("img_size", given.get("image_size", tuple(usual[1:])))
    height, width = size if isinstance(size, tuple | list) else (size, size)
    return given.get("in_chans", usual[0]), height, width


def facts_within(network: nn.Module) -> Facts | None:
    """Return the metadata in the configuration of a network, as timm and transformers have it; None if missing."""
    timm_config = getattr(network, "pretrained_cfg", None)
    if isinstance(timm_config, dict) and {"input_size", "mean", "std"} <= timm_config.keys():
        channels, height, width = timm_config["input_size"]
        mean, std = tuple(timm_config["mean"]), tuple(timm_config["std"])
        return Facts((channels, height, width), mean, std, None, "the model's own configuration")
    config = getattr(network, "config", None)
    size, channels = getattr(config, "image_size", None), getattr(config, "num_channels", None)
    if not isinstance(size, int) or not isinstance(channels, int):
        return None
    labels = getattr(config, "id2label", None) or {}
    names = tuple(str(labels[index]) for index in sorted(labels)) if len(set(labels.values())) == len(labels) else None
    return Facts((channels, size, size), (), (), names or None, "the model's own configuration")


def narrowed(name: NetworkName, width: float) -> NetworkName:
    """Return the name with its width multiplied. Raises `ConfigError` if the network has none."""
    if name.kind == "torchvision" and name.place.startswith("mobilenet_v"):
        return name.with_arguments(width_mult=dict(name.arguments).get("width_mult", 1.0) * width)
    raise ConfigError(f"{name.target} has no width; name a smaller network instead")


def _timm() -> Any:
    try:
        import timm
    except ImportError as error:
        raise ConfigError("networks of timm need the extra timm: pip install 'kdextract[timm]'") from error
    return timm


def _config(name: NetworkName) -> dict[str, Any]:
    config = _timm().get_pretrained_cfg(name.place)
    return config.to_dict() if config is not None else _timm().create_model(name.place).default_cfg


def _has_fixed_size(name: NetworkName) -> bool:
    """Whether the network is built for one image size, as vision transformers are."""
    if _config(name).get("fixed_input_size"):
        return True
    entry = _timm().model_entrypoint(name.place.partition(".")[0])
    return "img_size" in inspect.signature(entry).parameters


def _near(name: str, known: list[str]) -> str:
    """Return the suggestion of a similar name without the list of all names, which is too long to print."""
    return did_you_mean(name, known).partition(" Known:")[0]
