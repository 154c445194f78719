"""Weights in files of other programs: how they are found in a file, and fitted to a network.

Wrappers and prefixes of names are found by the fixed rules of this module, and each one that was found is reported.
"""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import nn

from ...errors import ArtifactError, ConfigError
from ...storage.safetensors_header import MAX_TENSORS
from .pickles import IGNORED_GLOBALS
from .weight_files import check_weights_file

WRAPPERS = (
    "state_dict", "model_state_dict", "model_state", "model", "net", "network", "module", "weights", "params",
    "teacher", "student", "ema", "model_ema", "ema_model", "ema_state_dict", "state_dict_ema", "params_ema",
)  # fmt: skip
"""Keys under which checkpoints store the weights of a network. The first of these that holds tensors is read; if none
does, the place with the most tensors, and the outermost place if several have as many."""

MAX_DEPTH = 3
_OF_TRAINING = ("optim", "sched", "scaler", "criterion", "loss")
_BATCHES = "num_batches_tracked"
_FLOATING = {torch.float64, torch.float32, torch.float16, torch.bfloat16}

Place = tuple[str, ...]


@dataclass(frozen=True)
class StateDict:
    """The tensors of a file, on the CPU and with the data types of the file; `found` has one line per finding."""

    tensors: dict[str, torch.Tensor]
    found: tuple[str, ...]


def read_weights(path: Path) -> StateDict:
    """Return the weights of a `.safetensors` file, or of a checkpoint of `torch.save`, whose code is never run.

    A checkpoint may store them under a key such as `state_dict`; `WRAPPERS` says which one is read if there are
    several. Tensors of an optimizer are never read.

    Raises:
        ArtifactError: the file is missing, malformed, would run code, or holds no named tensors.
    """
    kind = check_weights_file(path)
    content = _loaded(path, kind)
    places = _mappings(content)
    if not places:
        raise ArtifactError(f"{path} holds no mapping of names to tensors")
    chosen = min(places, key=lambda place: _preference(place, len(places[place])))
    tensors = places[chosen]
    if len(tensors) > MAX_TENSORS:
        raise ArtifactError(f"{path} holds {len(tensors)} tensors, the limit is {MAX_TENSORS}")
    for name, tensor in tensors.items():
        if tensor.layout != torch.strided or type(tensor) is not torch.Tensor or tensor.device.type != "cpu":
            raise ArtifactError(f"{path} holds a tensor {_printable(name)} that is not a dense CPU tensor")
    return StateDict(tensors, tuple(_report(content, places, chosen)))


def fit_weights(network: nn.Module, weights: StateDict, source: str) -> tuple[str, ...]:
    """Load all of the weights into the network, and return one line for each change that was needed.

    The names have to be equal after a dotted prefix that all names of the file share is removed, or one that all names
    of the network share is added. Only `num_batches_tracked` may be missing. The network becomes float64 if the
    weights are; half precision is converted to the data type of the network.

    Args:
        network: has the architecture of the weights; changed in place.
        source: the name of the file, for errors.

    Raises:
        ConfigError: a tensor is missing or unknown, or has another shape or kind of numbers.
    """
    own = {name: value for name, value in network.state_dict().items() if isinstance(value, torch.Tensor)}
    off, on = _prefixes(weights.tensors, own)
    theirs = {on + name.removeprefix(off): tensor for name, tensor in weights.tensors.items()}
    absent = [name for name in own if name not in theirs]
    missing = [name for name in absent if name.rpartition(".")[2] != _BATCHES]
    unexpected = [name for name in weights.tensors if on + name.removeprefix(off) not in own]
    if missing or unexpected or not theirs:
        raise ConfigError(_about_names(source, own, weights.tensors, missing, unexpected))
    _check_weight_shapes(source, own, theirs)
    said = [f"prefix {off!r} removed from {len(theirs)} names"] if off else []
    said += [f"prefix {on!r} added to {len(theirs)} names"] if on else []
    said += _with_types(network, source, own, theirs)
    if absent:
        said.append(f"{_BATCHES} is not in the file and keeps its value ({_counted(len(absent))})")
    try:
        network.load_state_dict({**network.state_dict(), **theirs})
    except (RuntimeError, KeyError, TypeError, ValueError, AttributeError) as error:
        raise ConfigError(f"{source} does not fit the network: {_error_text(error)}") from error
    return tuple(said)


class _Inert:
    """Replaces options, paths and scalars beside the weights in a checkpoint: accepts any arguments, does nothing."""

    def __new__(cls, *values: Any) -> _Inert:
        return super().__new__(cls)

    def __init__(self, *values: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        pass


def _loaded(path: Path, kind: str) -> Any:
    """Return the content of a file that was checked. With `weights_only`, PyTorch runs none of its code."""
    try:
        if kind == "safetensors":
            return load_file(path, device="cpu")
        with path.open("rb") as stream, warnings.catch_warnings(), _only_inert_globals():
            warnings.simplefilter("ignore")
            return torch.load(stream, map_location="cpu", weights_only=True, mmap=False)
    except (NameError, ImportError):  # a bug, not a property of the file
        raise
    except Exception as error:  # damaged files make the two libraries raise exceptions of many types
        raise ArtifactError(f"{path} cannot be read: {_error_text(error)}") from error


@contextmanager
def _only_inert_globals() -> Iterator[None]:
    """Replace `IGNORED_GLOBALS` by `_Inert`, and disable what other libraries of the process have allowed."""
    allowed = torch.serialization.get_safe_globals()
    torch.serialization.clear_safe_globals()
    inert: Any = [(_Inert, name) for name in IGNORED_GLOBALS]
    try:
        torch.serialization.add_safe_globals(inert)
        yield
    finally:
        torch.serialization.clear_safe_globals()
        torch.serialization.add_safe_globals(allowed)


def _mappings(content: Any) -> dict[Place, dict[str, torch.Tensor]]:
    """Return every dictionary of named tensors, except those of an optimizer, by the keys that lead to it."""
    found: dict[Place, dict[str, torch.Tensor]] = {}
    waiting: list[tuple[Place, Any]] = [((), content)]
    seen: set[int] = set()  # a dictionary may contain itself
    for place, value in waiting:
        if not isinstance(value, dict) or "param_groups" in value or id(value) in seen:
            continue
        seen.add(id(value))
        tensors = {name: _without_gradient(inner) for name, inner in value.items() if _is_weight(name, inner)}
        if tensors:
            found[place] = tensors
        if len(place) < MAX_DEPTH:
            waiting += [((*place, name), inner) for name, inner in value.items() if _may_hold_weights(name, inner)]
    return found


def _may_hold_weights(name: Any, value: Any) -> bool:
    named_otherwise = isinstance(name, str) and not any(word in name.casefold() for word in _OF_TRAINING)
    return named_otherwise and isinstance(value, dict)


def _is_weight(name: Any, value: Any) -> bool:
    return isinstance(name, str) and isinstance(value, torch.Tensor)


def _without_gradient(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.detach().requires_grad_(False) if isinstance(tensor, nn.Parameter) else tensor.detach()


def _preference(place: Place, tensors: int) -> tuple[bool, int, int]:
    """Return a sort key: places under known keys first, by the least common key of the path; others by most tensors."""
    known = [WRAPPERS.index(name.casefold()) for name in place if name.casefold() in WRAPPERS]
    return (False, max(known), len(place)) if known else (True, -tensors, len(place))


def _report(content: Any, places: Mapping[Place, dict[str, torch.Tensor]], chosen: Place) -> Iterator[str]:
    """Yield lines: the keys above the tensors, other places with tensors, and entries that were ignored."""
    if chosen:
        yield f"under {_quoted(chosen)}"
    others = [f"{_quoted(place)} ({_counted(len(places[place]))})" for place in places if place not in (chosen, ())]
    if others:
        yield f"not read: {_listed(others, 4)}"
    left: list[str] = []
    level = content
    for depth in range(len(chosen) + 1):
        inner = chosen[depth] if depth < len(chosen) else None
        for name, value in level.items():
            is_read = name == inner or (inner is None and _is_weight(name, value))
            if not is_read and (*chosen[:depth], name) not in places:
                left.append(_entry_text(name, value))
        level = level[inner] if inner is not None else level
    if left:
        yield f"ignored: {_listed(left, 6)}"


def _entry_text(name: Any, value: Any) -> str:
    """Return an entry beside the weights as text: `epoch 90`, `arch 'resnet18'`, `optimizer`."""
    short = isinstance(value, bool | int | float) or (isinstance(value, str) and len(value) <= 24)
    return f"{_printable(name)} {value!a}" if short else _printable(name)


def _prefixes(theirs: Iterable[str], own: Iterable[str]) -> tuple[str, str]:
    """Return the shortest prefixes (to remove, to add) that make the most names equal."""
    file_names, own_names = set(theirs), set(own)
    best, most = ("", ""), -1
    pairs = [(off, on) for off in _shared_prefixes(file_names) for on in _shared_prefixes(own_names)]
    for off, on in sorted(pairs, key=lambda pair: (pair[0].count(".") + pair[1].count("."), pair[1].count("."))):
        equal = sum(on + name.removeprefix(off) in own_names for name in file_names)
        if equal > most:
            best, most = (off, on), equal
    return best


def _shared_prefixes(names: set[str]) -> list[str]:
    """Return '' and every dotted prefix that all names share, the shortest first. None is a whole name."""
    if not names:
        return [""]
    first, last = min(names).split("."), max(names).split(".")
    shared = 0
    while shared < min(len(first), len(last)) - 1 and first[shared] == last[shared]:
        shared += 1
    prefixes = [".".join(first[:length]) + "." for length in range(1, min(shared, 8) + 1)]
    return ["", *(prefix for prefix in prefixes if all(name.startswith(prefix) for name in names))]


def _about_names(
    source: str,
    own: Mapping[str, torch.Tensor],
    theirs: Mapping[str, torch.Tensor],
    missing: list[str],
    unexpected: list[str],
) -> str:
    parts = []
    if missing:
        named = [f"{name} {list(own[name].shape)}" for name in missing]
        parts.append(f"the file has no {_listed(named, 3, 'or')}")
    if unexpected:
        named = [f"{_printable(name)} {list(theirs[name].shape)}" for name in unexpected]
        parts.append(f"the network has no {_listed(named, 3, 'or')}")
    return f"{source} does not fit the network: {'; '.join(parts) or 'the file has no tensors'}"


def _check_weight_shapes(source: str, own: Mapping[str, torch.Tensor], theirs: Mapping[str, torch.Tensor]) -> None:
    wrong = [name for name in own if name in theirs and own[name].shape != theirs[name].shape]
    if not wrong:
        return
    named = [f"{n} is {list(theirs[n].shape)} in the file and {list(own[n].shape)} in the network" for n in wrong]
    rows = {(theirs[name].shape[:1], own[name].shape[:1]) for name in wrong}
    only_rows = len(rows) == 1 and all(theirs[name].shape[1:] == own[name].shape[1:] for name in wrong)
    weights = [name for name in own if own[name].dim() >= 2]
    hint = ""
    if only_rows and weights and weights[-1] in wrong and theirs[wrong[0]].dim():
        hint = f": --num-classes {theirs[wrong[0]].shape[0]}?"
    raise ConfigError(f"{source} does not fit the network: {_listed(named, 3)}{hint}")


def _with_types(
    network: nn.Module, source: str, own: Mapping[str, torch.Tensor], theirs: Mapping[str, torch.Tensor]
) -> list[str]:
    """Convert the network to the data type of the file if that is float32 or float64; return what is converted."""
    odd = [name for name in theirs if (theirs[name].dtype in _FLOATING) != own[name].dtype.is_floating_point]
    if odd or any(tensor.is_complex() for tensor in theirs.values()):
        named = [
            f"{n} is {_dtype_name(theirs[n].dtype)} in the file, {_dtype_name(own[n].dtype)} in the network"
            for n in odd
        ]
        raise ConfigError(f"{source} does not fit the network: {_listed(named, 3) or 'it holds complex numbers'}")
    said = []
    parameters = dict(network.named_parameters())
    types = {theirs[name].dtype for name in parameters if name in theirs and theirs[name].dtype in _FLOATING}
    if len(types) == 1 and types <= {torch.float32, torch.float64}:
        (common,) = types
        if any(p.is_floating_point() and p.dtype != common for p in parameters.values()):
            network.to(common)
            said.append(f"the network computes in {_dtype_name(common)}, the data type of the file")
    kept = {name: value.dtype for name, value in network.state_dict().items() if name in own}
    floating = [name for name in theirs if theirs[name].dtype in _FLOATING]
    changed = Counter((theirs[name].dtype, kept[name]) for name in floating if kept[name] != theirs[name].dtype)
    return said + [
        f"{_dtype_name(old)} converted to {_dtype_name(new)} ({_counted(count)})"
        for (old, new), count in changed.items()
    ]


def _dtype_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _quoted(place: Place) -> str:
    return " > ".join(f"'{_printable(name)}'" for name in place)


def _listed(texts: list[str], limit: int, last: str = "and") -> str:
    """Return `a, b and c`, or `a, b and 7 more`."""
    if len(texts) > limit:
        texts, last = [*texts[:limit], f"{len(texts) - limit} more"], "and"
    return f" {last} ".join([", ".join(texts[:-1]), texts[-1]] if len(texts) > 1 else texts)


def _counted(tensors: int) -> str:
    return f"{tensors} tensor{'s' if tensors != 1 else ''}"


def _printable(name: Any) -> str:
    """Return a name from an untrusted file, safe to print in one line: at most 80 characters."""
    return "".join(c if c.isprintable() else "?" for c in str(name)[:80])


def _error_text(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join((str(error).splitlines() or [''])[0].split())[:200]}"
