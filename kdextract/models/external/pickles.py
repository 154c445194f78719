"""Check the instructions of a pickle of `torch.save` before PyTorch's restricted unpickler reads it.

`torch.load(weights_only=True)` runs nothing of a file, but it checks neither memory nor time: a few bytes can ask for
gigabytes of copies, for a dictionary key that takes years to hash, or, in the format before PyTorch 1.6, for a storage
that grows or is never filled. It also allows more functions than a state dict needs, and those that other libraries of
the process have added. Therefore instructions are counted, and names, calls and sizes are compared with a short table
and with the contents of the file; nothing is called. No library does this: `pickletools.dis` checks the stack only,
scanners of pickles and `torch.serialization.get_unsafe_globals_in_checkpoint` check names only, the latter in zip
archives only.
"""

from __future__ import annotations

import math
import pickletools
import re
import sys
from _compat_pickle import IMPORT_MAPPING
from collections.abc import Callable
from dataclasses import dataclass
from io import BytesIO
from typing import Any

from ...storage.safetensors_header import MAX_DIMENSIONS, MAX_ELEMENTS

MAX_STEPS = 200_000  # one tensor takes about 24

_ITEM_BYTES = {
    "DoubleStorage": 8, "FloatStorage": 4, "HalfStorage": 2, "BFloat16Storage": 2, "LongStorage": 8, "IntStorage": 4,
    "ShortStorage": 2, "CharStorage": 1, "ByteStorage": 1, "BoolStorage": 1,
}  # fmt: skip
_TYPES = ["float64", "float32", "float16", "bfloat16", "int64", "int32", "int16", "int8", "uint8", "bool"]
_NAMED_ONLY = frozenset(f"torch.{name}" for name in (*_ITEM_BYTES, *_TYPES))

IGNORED_GLOBALS = frozenset(
    ["argparse.Namespace", "types.SimpleNamespace", "datetime.datetime", "numpy.dtype"]
    + [f"numpy.{core}.multiarray.scalar" for core in ("core", "_core")]
    + [f"{module}.{kind}" for module in ("pathlib", "pathlib._local") for kind in ("PosixPath", "WindowsPath")]
)
"""Types of values that training scripts save beside the weights. They are read as objects that do nothing."""

_SCALARS = {"BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT", "BINUNICODE", "SHORT_BINSTRING"}
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": ()}
_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
_DOTTED_NAME = re.compile(r"[\w?]+(\.[\w?]+)+")


class PickleRefused(ValueError):
    """The pickle is damaged, or holds more than tensors. The message is to follow the file name."""


@dataclass(frozen=True, slots=True)
class Storage:
    """A block of `numel` elements of `item_bytes` bytes each, stored in the file under `key`."""

    key: str
    item_bytes: int
    numel: int


@dataclass(frozen=True, slots=True)
class _Global:
    name: str


class _Dict(list[Any]):
    """A dictionary; the list holds its keys."""


class _Ordered(_Dict):
    """An `OrderedDict` or a `Counter`."""


class _Tensor:
    pass


class _Ignored:
    """A value of a type in `IGNORED_GLOBALS`, or another object that is no weight."""


_PARAMETER = "torch.nn.parameter.Parameter"
_REBUILD = "torch._utils._rebuild_tensor"
_VIEW = (Storage, int, tuple, tuple)
_CALLS: dict[str, tuple[type, tuple[tuple[type, ...], ...]]] = {
    "collections.OrderedDict": (_Ordered, ((), (list,))),
    "collections.Counter": (_Ordered, ((), (_Dict,))),
    _REBUILD: (_Tensor, (_VIEW,)),
    f"{_REBUILD}_v2": (_Tensor, tuple((*_VIEW, bool, _Ordered, *more) for more in ((), (type(None),), (_Dict,)))),
    "torch._utils._rebuild_parameter": (_Tensor, ((_Tensor, bool, _Ordered),)),
    _PARAMETER: (_Tensor, ((), (_Tensor,), (_Tensor, bool))),
    "torch.Size": (_Ignored, ((tuple,),)),
    "torch.device": (_Ignored, ((str,), (str, int))),
    "_codecs.encode": (_Ignored, ((str, str),)),
}
"""Functions that the pickle of a state dict calls: the kind of their result, and the allowed types of arguments."""
_ALLOWED = _NAMED_ONLY | _CALLS.keys() | IGNORED_GLOBALS


class PickleCheck:
    """Checks the pickles of one file. `storages` maps the keys to the storages that the pickles refer to.

    Args:
        check_storage: called with every storage; raises `PickleRefused` if it is not in the file.
        storage_fields: number of fields of a reference to a storage: 5 in zip archives, 6 in the older format.
    """

    def __init__(self, check_storage: Callable[[Storage], None], storage_fields: int) -> None:
        self.storages: dict[str, Storage] = {}
        self._check_storage = check_storage
        self._storage_fields = storage_fields
        self._steps = 0

    def check(self, stream: BytesIO) -> Any:
        """Check the next pickle of `stream`, leave the stream at its end, and return its value.

        Numbers, texts, tuples and lists are returned as they are, all else as an object without values. Raises
        `PickleRefused`.
        """
        start = stream.tell()
        self._stack: list[Any] = []
        self._marks: list[int] = []
        self._memo: dict[int, Any] = {}
        try:
            for instruction, argument, _ in pickletools.genops(stream):
                self._charge(1)
                if instruction.name == "STOP":
                    return self._stack.pop()
                self._step(instruction.name, argument)
        except PickleRefused:
            stream.seek(start)
            _refuse_globals(stream)
            raise
        except (ValueError, IndexError, KeyError, TypeError, OverflowError, MemoryError) as error:
            reason = f": {' '.join(str(error).split())[:100]}" if type(error) is ValueError else ""
            raise PickleRefused(f"is truncated or damaged{reason}") from error
        raise PickleRefused("is truncated: its pickle has no end")

    def _charge(self, steps: int) -> None:
        self._steps += steps
        if self._steps > MAX_STEPS:
            raise PickleRefused(f"takes more than {MAX_STEPS} steps to unpickle")

    def _step(self, name: str, argument: Any) -> None:
        stack = self._stack
        if name in _SCALARS:
            stack.append(argument)
        elif name in _CONSTANTS:
            stack.append(_CONSTANTS[name])
        elif name in ("BINPUT", "LONG_BINPUT"):
            self._memo[argument] = stack[-1]
        elif name in ("BINGET", "LONG_BINGET"):
            stack.append(self._memo[argument])
        elif name in ("EMPTY_DICT", "EMPTY_LIST"):
            stack.append(_Dict() if name == "EMPTY_DICT" else [])
        elif name == "MARK":
            self._marks.append(len(stack))
        elif name in _TUPLES or name == "TUPLE":
            stack.append(tuple(self._popped(_TUPLES.get(name))))
        elif name in ("SETITEM", "SETITEMS"):
            items = self._popped(2 if name == "SETITEM" else None)
            if not isinstance(stack[-1], _Dict) or len(items) % 2 or not all(map(_is_plain_key, items[::2])):
                raise PickleRefused("is damaged: its pickle adds entries to no dictionary, or keys that are not plain")
            stack[-1].extend(items[::2])
        elif name in ("APPEND", "APPENDS"):
            items = self._popped(1 if name == "APPEND" else None)
            if type(stack[-1]) is not list:
                raise PickleRefused("is damaged: its pickle appends to a value that is no list")
            stack[-1].extend(items)
        elif name == "GLOBAL":
            stack.append(_Global(_dotted(argument)))
            if stack[-1].name not in _ALLOWED:
                raise PickleRefused("is damaged: it has an invalid name of a function")
        elif name == "BINPERSID":
            stack.append(self._storage(stack.pop()))
        elif name in ("REDUCE", "NEWOBJ"):
            stack.append(self._called(name, *self._popped(2)))
        elif name == "BUILD":
            (state,) = self._popped(1)
            _check_state(stack[-1], state)
        elif name != "PROTO":
            raise PickleRefused(f"uses the pickle instruction {name}, which torch.save does not write")

    def _popped(self, count: int | None) -> list[Any]:
        """Remove the last `count` items of the stack and return them; all after the last mark if `count` is None."""
        start = self._marks.pop() if count is None else len(self._stack) - count
        if not 0 <= start <= len(self._stack):
            raise PickleRefused("is damaged: its pickle takes more values from the stack than there are")
        items = self._stack[start:]
        del self._stack[start:]
        return items

    def _storage(self, reference: Any) -> Storage:
        if not isinstance(reference, tuple) or len(reference) != self._storage_fields or reference[0] != "storage":
            raise PickleRefused("refers to a value outside of its pickle that is no storage")
        kind, key, location, numel = reference[1:5]
        item_bytes = _ITEM_BYTES.get(kind.name.removeprefix("torch.")) if isinstance(kind, _Global) else None
        sound = isinstance(key, str) and isinstance(location, str) and _is_size(numel)
        if not item_bytes or not sound or any(field is not None for field in reference[5:]):
            raise PickleRefused("refers to a storage in a form that torch.save does not write")
        storage = Storage(key, item_bytes, numel)
        known = self.storages.setdefault(key, storage)
        if known != storage and (known.numel or storage.numel):
            raise PickleRefused(f"describes its storage {_ascii_printable(key)} twice, with different sizes or types")
        self._check_storage(storage)
        return storage

    def _called(self, instruction: str, function: Any, arguments: Any) -> Any:
        """Return an object for the result of a call. Only calls of `_CALLS` with their types of arguments pass."""
        name = function.name if isinstance(function, _Global) else "something"
        if not isinstance(arguments, tuple):
            raise PickleRefused(f"calls {name} in a form that no state dict has")
        if name in IGNORED_GLOBALS:
            return _Ignored()
        result, forms = _CALLS.get(name, (_Ignored, ()))
        is_known = tuple(map(type, arguments)) in forms and (instruction == "REDUCE" or name == _PARAMETER)
        if name == "_codecs.encode":
            is_known = is_known and arguments[1] == "latin1"
        elif result is _Tensor:  # hooks and metadata have to be empty
            is_known = is_known and not any(isinstance(value, _Dict) and value for value in arguments)
        if not is_known:
            raise PickleRefused(f"calls {name} in a form that no state dict has")
        if name.startswith(_REBUILD):
            _check_view(*arguments[:4])
        if result is not _Tensor:
            self._charge(sum(map(len, arguments[:1])))  # the number of items that it copies
        return _Ordered(_keys(arguments[0]) if arguments else ()) if result is _Ordered else result()


def why_not_read(content: bytes) -> str:
    """Return why a file that does not begin like those of torch.save is refused. The text is to follow its name."""
    try:
        _refuse_globals(BytesIO(content))
    except PickleRefused as refused:
        return str(refused)
    if content[:1] == b"\x80":
        return "is a pickle, but not one that torch.load(weights_only=True) takes"
    return "is no file of weights in a known format (safetensors or torch.save)"


def _check_view(storage: Storage, offset: int, size: tuple[Any, ...], stride: tuple[Any, ...]) -> None:
    """Raise `PickleRefused` unless a tensor is inside of its storage, which PyTorch enlarges in old files."""
    if not (_is_size(offset) and _are_sizes(size) and _are_sizes(stride) and len(size) == len(stride)):
        raise PickleRefused("describes a tensor with an impossible offset, shape or stride")
    if math.prod(max(length, 1) for length in size) >= MAX_ELEMENTS:
        raise PickleRefused("describes a tensor of an impossible size")
    numel = math.prod(size)
    last = offset + sum((length - 1) * step for length, step in zip(size, stride, strict=True))
    if numel and (last >= storage.numel or numel > storage.numel):
        raise PickleRefused(
            f"describes a tensor of shape {list(size)} that does not fit the {storage.numel} elements of its storage"
        )


def _check_state(target: Any, state: Any) -> None:
    """Raise `PickleRefused` unless the state is `_metadata` of a dictionary, or the flags of an old parameter."""
    match target, state:
        case _Ignored(), _:
            return
        case _Ordered(), _Dict() if list(state) == ["_metadata"]:
            return
        case _Tensor(), (bool(), _, hooks) | (_Tensor(), _, hooks, bool(), _) if not hooks:
            return
    raise PickleRefused("sets attributes in a form that no state dict has")


def _is_size(value: Any) -> bool:
    return type(value) is int and 0 <= value < MAX_ELEMENTS


def _are_sizes(values: tuple[Any, ...]) -> bool:
    return len(values) <= MAX_DIMENSIONS and all(map(_is_size, values))


def _keys(entries: list[Any]) -> list[Any]:
    """Return the keys of another dictionary, or of a list of pairs."""
    if type(entries) is not list:
        return entries
    if not all(isinstance(pair, list | tuple) and len(pair) == 2 and _is_plain_key(pair[0]) for pair in entries):
        raise PickleRefused("is damaged: an OrderedDict is made of other values than pairs with plain keys")
    return [pair[0] for pair in entries]


def _is_plain_key(key: Any) -> bool:
    """Whether the hash of a key is fast and distinct. Tuples are slow, and large integers can have equal hashes."""
    return isinstance(key, str | float | None) or (isinstance(key, int) and abs(key) < 2**60)


def _dotted(argument: Any) -> str:
    """Return `module.name` for `module name`, the argument of GLOBAL or INST, with the module's name in Python 3."""
    module, _, name = str(argument).partition(" ")
    return f"{IMPORT_MAPPING.get(module, module)}.{name}"


def _refuse_globals(stream: BytesIO) -> None:
    """Raise `PickleRefused` if the readable part of a pickle names a function or class that no state dict needs."""
    names: list[str] = []
    texts = ["?", "?"]
    try:
        for number, (instruction, argument, _) in enumerate(pickletools.genops(stream)):
            if number > MAX_STEPS:
                break
            if instruction.name in ("GLOBAL", "INST"):
                names.append(_dotted(argument))
            elif instruction.name == "STACK_GLOBAL":
                names.append(".".join(texts))
            elif instruction.name.startswith("EXT"):
                names.append(f"copyreg.extension_{argument}")
            elif isinstance(argument, str):
                texts = [texts[-1], argument]
    except (ValueError, IndexError, OverflowError, MemoryError):
        pass  # the names found before the damage are enough
    unknown = [name for name in dict.fromkeys(names) if name not in _ALLOWED and _DOTTED_NAME.fullmatch(name)]
    if unknown:
        raise PickleRefused(_about_globals(unknown))


def _about_globals(names: list[str]) -> str:
    """Return the reason for refusing a pickle that names these functions or classes."""
    if any(name.startswith("torch.nn.modules.") for name in names):
        return (
            f"holds a whole pickled network ({_ascii_printable(names[0])}), which is code; kdx reads tensors only. If "
            "you trust the file, load it yourself and write torch.save(model.state_dict(), 'weights.pth')"
        )
    own = [name for name in names if name.partition(".")[0] in sys.stdlib_module_names]
    named = [*own, *(name for name in names if name not in own)]  # os.system says more than numpy.dtype
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    hint = "" if own else "; if you trust the file, load it yourself and save the state dict alone"
    return f"would run {', '.join(map(_ascii_printable, named[:3]))}{more} when unpickled; kdx reads tensors only{hint}"


def _ascii_printable(text: str) -> str:
    """Return text of an untrusted file, safe to print in one line: at most 80 characters, `?` if not in ASCII."""
    return "".join(c if c.isprintable() and c.isascii() else "?" for c in text[:80])
