"""Follow a pickle of `torch.save` without running it: what it would build is described, and nothing is called.

A pickle is a program for a small stack machine. This one knows the instructions and the functions that a state dict
needs, which are fewer than `torch.load(weights_only=True)` permits, and puts descriptions on its stack where the real
one puts tensors. So sizes are compared with what the file holds before any memory is taken.
"""

from __future__ import annotations

import math
import pickletools
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from io import BytesIO
from typing import Any

MAX_STEPS = 200_000  # a tensor takes some 24
MAX_DIMENSIONS = 64
MAX_ELEMENTS = 2**60

_ITEM_BYTES = {
    "DoubleStorage": 8, "FloatStorage": 4, "HalfStorage": 2, "BFloat16Storage": 2, "LongStorage": 8, "IntStorage": 4,
    "ShortStorage": 2, "CharStorage": 1, "ByteStorage": 1, "BoolStorage": 1,
}  # fmt: skip
_TYPES = ["float64", "float32", "float16", "bfloat16", "int64", "int32", "int16", "int8", "uint8", "bool"]
_ORDERED, _COUNTER = "collections.OrderedDict", "collections.Counter"
_TENSORS = ("torch._utils._rebuild_tensor", "torch._utils._rebuild_tensor_v2")
_PARAMETER, _OLD_PARAMETER = "torch._utils._rebuild_parameter", "torch.nn.parameter.Parameter"
ALLOWED = frozenset(
    [_ORDERED, _COUNTER, *_TENSORS, _PARAMETER, _OLD_PARAMETER, "torch.Size", "torch.device", "_codecs.encode"]
    + [f"torch.{name}" for name in (*_ITEM_BYTES, *_TYPES)]
)

LEFT_OUT = frozenset(
    ["argparse.Namespace", "types.SimpleNamespace", "datetime.datetime", "numpy.dtype"]
    + [f"numpy.{core}.multiarray.scalar" for core in ("core", "_core")]
    + [f"{module}.{kind}" for module in ("pathlib", "pathlib._local") for kind in ("PosixPath", "WindowsPath")]
)
"""What training scripts leave next to the weights, for which a reader puts something that does nothing."""

# what is named first in a refusal, since nobody pickles it by accident
_ALARMING_MODULES = {
    "os", "posix", "nt", "subprocess", "sys", "runpy", "pty", "socket", "shutil", "importlib", "commands",
    "webbrowser", "ctypes",
}  # fmt: skip
_SPOKEN = {"__builtin__": "builtins", "commands": "subprocess", "copy_reg": "copyreg", "posix": "os", "nt": "os"}
_BUILTINS = ("builtins", "__builtin__")
_ALARMING_BUILTINS = {
    "eval", "exec", "execfile", "compile", "open", "getattr", "setattr", "__import__", "input", "breakpoint",
}  # fmt: skip
# what training scripts leave next to the weights
_COMPANY = {"numpy", "argparse", "pathlib", "datetime", "types", "omegaconf", "easydict", "yacs", "addict", "__main__"}

_SCALARS = {"BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT", "BINUNICODE", "SHORT_BINSTRING"}
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": ()}
_NAME = re.compile(r"[\w?]+(\.[\w?]+)+")
_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}


class PickleRefused(ValueError):
    """The pickle is unsound, or is more than tensors; the message goes on from `FILE ...`."""


@dataclass(frozen=True, slots=True)
class Storage:
    """A block of `numel` elements of `item_bytes` bytes each, which the file keeps under `key`."""

    key: str
    item_bytes: int
    numel: int


@dataclass(frozen=True, slots=True)
class _Global:
    name: str


class _Left:
    """Something of `LEFT_OUT`."""


@dataclass(frozen=True, slots=True)
class _Tensor:
    shape: tuple[int, ...]


class _Ordered(dict[Any, Any]):
    pass


class Follower:
    """The stack machine. `storages` collects what the pickle refers to, by key.

    Args:
        check_storage: called with every storage that is met; raises `PickleRefused` where the file lacks it.
        storage_fields: how many fields a reference to a storage has: 5 in zip archives, 6 in the older format.
    """

    def __init__(self, check_storage: Callable[[Storage], None], storage_fields: int) -> None:
        self.storages: dict[str, Storage] = {}
        self._check_storage = check_storage
        self._storage_fields = storage_fields
        self._steps = 0

    def follow(self, stream: BytesIO) -> Any:
        """Return what the next pickle of `stream` describes, and leave the stream behind it.

        Numbers, text, lists and dictionaries are themselves. Raises `PickleRefused`.
        """
        self._stack: list[Any] = []
        self._marks: list[int] = []
        self._memo: dict[int, Any] = {}
        instructions = pickletools.genops(stream)
        try:
            for instruction, argument, _ in instructions:
                self._steps += 1
                if self._steps > MAX_STEPS:
                    self._charge(0)
                if instruction.name == "STOP":
                    return self._stack.pop()
                self._step(instruction.name, argument, instructions)
        except PickleRefused:
            raise
        except (ValueError, IndexError, KeyError, TypeError, OverflowError, MemoryError) as error:
            reason = f": {' '.join(str(error).split())[:100]}" if type(error) is ValueError else ""
            raise PickleRefused(f"is truncated or damaged{reason}") from error
        raise PickleRefused("is truncated: its pickle has no end")

    def _charge(self, steps: int) -> None:
        self._steps += steps
        if self._steps > MAX_STEPS:
            raise PickleRefused(f"takes more than {MAX_STEPS} steps to unpickle")

    def _step(self, name: str, argument: Any, rest: Iterator[Any]) -> None:
        stack = self._stack
        if name in _SCALARS:
            stack.append(argument)
        elif name in ("BINPUT", "LONG_BINPUT"):
            self._memo[argument] = stack[-1]
        elif name in ("BINGET", "LONG_BINGET"):
            stack.append(self._memo[argument])
        elif name in _CONSTANTS:
            stack.append(_CONSTANTS[name])
        elif name in _TUPLES:
            stack.append(tuple(_popped(stack, len(stack) - _TUPLES[name])))
        elif name == "MARK":
            self._marks.append(len(stack))
        elif name == "TUPLE":
            stack.append(tuple(_popped(stack, self._marks.pop())))
        elif name in ("EMPTY_DICT", "EMPTY_LIST"):
            stack.append({} if name == "EMPTY_DICT" else [])
        elif name in ("SETITEM", "SETITEMS"):
            items = _popped(stack, self._marks.pop() if name == "SETITEMS" else len(stack) - 2)
            _fill(stack[-1], items[::2], items[1::2])
        elif name in ("APPEND", "APPENDS"):
            items = _popped(stack, self._marks.pop() if name == "APPENDS" else len(stack) - 1)
            _extend(stack[-1], items)
        elif name == "GLOBAL":
            stack.append(self._global(argument, rest))
        elif name == "BINPERSID":
            stack.append(self._storage(stack.pop()))
        elif name in ("REDUCE", "NEWOBJ"):
            function, arguments = _popped(stack, len(stack) - 2)
            stack.append(self._called(function, arguments, name))
        elif name == "BUILD":
            stack.append(_with_state(*_popped(stack, len(stack) - 2)))
        elif name not in ("PROTO", "STOP"):
            raise PickleRefused(self._about_instruction(name, argument, rest))

    def _about_instruction(self, name: str, argument: Any, rest: Iterator[Any]) -> str:
        """Return why a pickle with this unknown instruction is refused."""
        if name.startswith("EXT"):
            return "would run something of the extension registry when unpickled; kdx reads tensors only"
        texts = [text for text in (*self._stack[-2:], argument) if isinstance(text, str)]
        named = {"INST": [str(argument).replace(" ", ".", 1)], "STACK_GLOBAL": [".".join(texts)]}
        found = [*named.get(name, []), *_globals_in(rest, texts)]
        if found:
            return _about_globals(found)
        return f"uses the pickle instruction {name}, which torch.load(weights_only=True) does not take"

    def _global(self, argument: str, rest: Iterator[Any]) -> _Global:
        name = argument.replace(" ", ".", 1)
        if name not in ALLOWED | LEFT_OUT or argument.count(" ") != 1:
            raise PickleRefused(_about_globals([name, *_globals_in(rest, [])]))
        return _Global(name)

    def _storage(self, reference: Any) -> Storage:
        if not isinstance(reference, tuple) or len(reference) != self._storage_fields or reference[0] != "storage":
            raise PickleRefused("refers to something outside of its pickle that is no storage")
        kind, key, location, numel = reference[1:5]
        item_bytes = _ITEM_BYTES.get(kind.name.removeprefix("torch.")) if isinstance(kind, _Global) else None
        sound = item_bytes and isinstance(key, str) and isinstance(location, str) and _is_size(numel)
        if not item_bytes or not sound or any(field is not None for field in reference[5:]):
            raise PickleRefused("refers to a storage in a way that torch.save does not")
        storage = Storage(key, item_bytes, numel)
        known = self.storages.setdefault(key, storage)
        if known != storage and (known.numel or storage.numel):
            raise PickleRefused(f"describes its storage {_shown(key)} twice and differently")
        self._check_storage(storage)
        return storage

    def _called(self, function: Any, arguments: Any, instruction: str) -> Any:
        """Describe the result of a call with `arguments`; only those that make up a state dict are known."""
        name = function.name if isinstance(function, _Global) else ""
        if isinstance(arguments, tuple) and name in LEFT_OUT:
            return _Left()
        if isinstance(arguments, tuple) and (instruction == "REDUCE" or name == _OLD_PARAMETER):
            match name, arguments:
                case "torch._utils._rebuild_tensor", (Storage(), _, _, _):
                    return _tensor(*arguments)
                case "torch._utils._rebuild_tensor_v2", (Storage(), _, _, _, bool(), hooks, *metadata):
                    if not hooks and metadata in ([], [None], [{}]):
                        return _tensor(*arguments[:4])
                case "torch._utils._rebuild_parameter", (_Tensor() as tensor, bool(), hooks):
                    if not hooks:
                        return tensor
                case "torch.nn.parameter.Parameter", (_Tensor() as tensor,) | (_Tensor() as tensor, bool()):
                    return tensor
                case "torch.nn.parameter.Parameter", ():
                    return _Tensor((0,))
                case "collections.OrderedDict" | "collections.Counter", ():
                    return _Ordered()
                case "collections.OrderedDict", (list() as pairs,):
                    self._charge(len(pairs))
                    return _of_pairs(pairs)
                case "collections.Counter", (dict() as counts,):
                    self._charge(len(counts))
                    return _Ordered(counts)
                case "torch.Size", (tuple() as sizes,) if _are_sizes(sizes):
                    return sizes
                case "torch.device", (str(),) | (str(), int()):
                    return None
                case "_codecs.encode", (str() as text, "latin1"):
                    self._charge(len(text))
                    return None
        raise PickleRefused(f"calls {name or 'something'} as no state dict does")


def why_not_read(content: bytes) -> str:
    """Return why a file that begins unlike those of torch.save is refused, to go on from `FILE ...`."""
    names = _globals_in(pickletools.genops(content), [])
    if names:
        return _about_globals(names)
    if content[:1] == b"\x80":
        return "is a pickle, but not one that torch.load(weights_only=True) takes"
    return "is no file of weights that kdx knows: neither safetensors nor one of torch.save"


def _popped(stack: list[Any], start: int) -> list[Any]:
    """Take everything from `start` on off the stack."""
    if not 0 <= start <= len(stack):
        raise PickleRefused("is damaged: its pickle takes more off the stack than is there")
    items = stack[start:]
    del stack[start:]
    return items


def _fill(target: Any, keys: list[Any], values: list[Any]) -> None:
    if not isinstance(target, dict) or len(keys) != len(values) or not all(map(_is_plain_key, keys)):
        raise PickleRefused("is damaged: its pickle fills something that is no dictionary of plain keys")
    target.update(zip(keys, values, strict=True))


def _is_plain_key(key: Any) -> bool:
    """Larger whole numbers could be chosen to have one hash, and make a dictionary slow."""
    return isinstance(key, str | float | None) or (isinstance(key, int) and abs(key) < 2**60)


def _extend(target: Any, items: list[Any]) -> None:
    if not isinstance(target, list):
        raise PickleRefused("is damaged: its pickle appends to something that is no list")
    target.extend(items)


def _of_pairs(pairs: list[Any]) -> _Ordered:
    if not all(isinstance(pair, list | tuple) and len(pair) == 2 for pair in pairs):
        raise PickleRefused("is damaged: an OrderedDict is made from something else than pairs")
    result = _Ordered()
    _fill(result, [pair[0] for pair in pairs], [pair[1] for pair in pairs])
    return result


def _with_state(target: Any, state: Any) -> Any:
    """Describe `target` after BUILD: a state dict gets its `_metadata`, an old parameter its flags."""
    match target, state:
        case _Left(), _:
            return target
        case _Ordered(), {"_metadata": _} if len(state) == 1:
            return target
        case _Tensor(), (bool(), _, hooks) if not hooks:
            return target
        case _Tensor(), (_Tensor() as data, _, hooks, bool(), _) if not hooks:
            return data
    raise PickleRefused("sets attributes as no state dict does")


def _tensor(storage: Storage, offset: Any, size: Any, stride: Any) -> _Tensor:
    """Describe a view of a storage. Raises `PickleRefused` unless it lies within it."""
    if not (_is_size(offset) and _are_sizes(size) and _are_sizes(stride) and len(size) == len(stride)):
        raise PickleRefused("describes a tensor whose offset, shape or strides cannot be")
    if math.prod(max(length, 1) for length in size) >= MAX_ELEMENTS:
        raise PickleRefused("describes a tensor too large for any machine")
    numel = math.prod(size)
    last = offset + sum((length - 1) * step for length, step in zip(size, stride, strict=True))
    if numel and (last >= storage.numel or numel > storage.numel):
        raise PickleRefused(
            f"describes a tensor of shape {list(size)} that does not fit the {storage.numel} elements of its storage"
        )
    return _Tensor(size)


def _is_size(value: Any) -> bool:
    return type(value) is int and 0 <= value < MAX_ELEMENTS


def _are_sizes(values: Any) -> bool:
    return isinstance(values, tuple) and len(values) <= MAX_DIMENSIONS and all(map(_is_size, values))


def _globals_in(instructions: Iterator[Any], texts: list[str]) -> list[str]:
    """Return the globals that the rest of a pickle names, as far as it can be read; `texts` came just before."""
    names: list[str] = []
    texts = ["?", "?", *texts]
    try:
        for number, (instruction, argument, _) in enumerate(instructions):
            if number > MAX_STEPS:
                break
            if instruction.name in ("GLOBAL", "INST"):
                names.append(argument.replace(" ", ".", 1))
            elif instruction.name == "STACK_GLOBAL":
                names.append(".".join(texts[-2:]))
            elif isinstance(argument, str):
                texts = [texts[-1], argument]
    except (ValueError, IndexError, OverflowError, MemoryError):
        pass  # what is found until then is enough to name it
    return [name for name in names if name not in ALLOWED | LEFT_OUT and _NAME.fullmatch(name)]


def _about_globals(names: list[str]) -> str:
    """Return why a pickle that names these globals is refused."""
    first = next((name for name in names if _is_alarming(name)), "")
    if not first and any(name.startswith("torch.nn.modules.") for name in names):
        return (
            f"holds a whole pickled network ({_shown(names[0])}), which is code; kdx reads tensors only: where you "
            "trust the file, load it yourself and write torch.save(model.state_dict(), 'weights.pth')"
        )
    first = first or names[0]
    module, _, attribute = first.partition(".")
    hint = ""
    if module in _COMPANY:
        hint = ": where you trust the file, load it yourself and save the state dict alone"
    first = f"{_SPOKEN.get(module, module)}.{attribute}"
    return f"would run {_shown(first)} when unpickled; kdx reads tensors only{hint}"


def _is_alarming(name: str) -> bool:
    module, _, attribute = name.partition(".")
    return module in _ALARMING_MODULES or (module in _BUILTINS and attribute in _ALARMING_BUILTINS)


def _shown(text: str) -> str:
    """Return text of a stranger's file as it can be printed in one line."""
    return "".join(c if c.isprintable() and c.isascii() else "?" for c in text[:80])
