"""The text form of a network: a name of `kdx models`, a network of a library, a user's function, an exported program.

lenet5   lenet5(width=0.5)   torchvision/resnet18   timm/vit_tiny_patch16_224
model.py:build   model.py:build(depth=3)   package.module:function   program.pt2
"""

from __future__ import annotations

import ast
import re
from dataclasses import dataclass, replace
from typing import Any

from ...errors import UsageError

PROGRAM = "program"
"""Name of an exported program in the `model.safetensors` file that holds it."""
LIBRARIES = ("torchvision", "timm")

_FILE = re.compile(r"(?P<place>.+\.py):(?P<function>[A-Za-z_]\w*)")
_MODULE = re.compile(r"(?P<place>[A-Za-z_]\w*(\.[A-Za-z_]\w*)*):(?P<function>[A-Za-z_]\w*)")
_SHARE = re.compile(r"(?:(?P<of>width|macs):)?(?P<value>(?(of)[^:]*|[-+]?[0-9.]+))(?(of)(?::teacher)?)", re.IGNORECASE)
_NARROWER = re.compile(r"half(?::(?P<half>.+))?|width:(?P<width>[^:]+)(?::(?P<of>.+))?")


@dataclass(frozen=True)
class NetworkName:
    """The name of a network: `target`, and the keyword arguments that it is built with, sorted by name."""

    target: str
    arguments: tuple[tuple[str, Any], ...] = ()

    def __str__(self) -> str:
        spelled = ", ".join(f"{name}={_spelled(value)}" for name, value in self.arguments)
        return f"{self.target}({spelled})" if spelled else self.target

    @property
    def kind(self) -> str:
        """`file` or `module` for a user's function, `torchvision`, `timm`, `program`, or `registered`."""
        if self.target == PROGRAM or self.target.endswith(".pt2"):
            return "program"
        if _FILE.fullmatch(self.target):
            return "file"
        if _MODULE.fullmatch(self.target):
            return "module"
        library, slash, _ = self.target.partition("/")
        return library if slash and library in LIBRARIES else "registered"

    @property
    def is_foreign(self) -> bool:
        """Whether it is not one of the architectures of kdx."""
        return self.kind != "registered"

    @property
    def place(self) -> str:
        """The file or module that holds the function, or the name of the network in its library."""
        if self.kind in LIBRARIES:
            return self.target.partition("/")[2]
        return self.target.rpartition(":")[0] or self.target

    @property
    def function(self) -> str:
        """The user's function; '' for other kinds."""
        return self.target.rpartition(":")[2] if self.kind in ("file", "module") else ""

    @property
    def short(self) -> str:
        """The default name of a student with this network: at most 64 letters, digits, `.`, `_` and `-`."""
        base = self.function or (self.place if self.kind in LIBRARIES else self.target).rpartition("/")[2]
        values = "-".join(f"{name}{value}" for name, value in self.arguments)
        return re.sub(r"[^A-Za-z0-9._-]+", "-", "-".join(filter(None, [base.removesuffix(".pt2"), values])))[:64]

    def with_arguments(self, **arguments: Any) -> NetworkName:
        """Return the name with these arguments added. They replace those of the same name."""
        return replace(self, arguments=tuple(sorted({**dict(self.arguments), **arguments}.items())))


def _spelled(value: Any) -> str:
    """Return the Python literal of a plain value. Sets are sorted, because their order differs between processes."""
    if isinstance(value, set) and value:
        return "{" + ", ".join(sorted(map(_spelled, value))) + "}"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{_spelled(key)}: {_spelled(entry)}" for key, entry in value.items()) + "}"
    if isinstance(value, list | tuple):
        inside = ", ".join(map(_spelled, value)) + ("," if isinstance(value, tuple) and len(value) == 1 else "")
        return f"({inside})" if isinstance(value, tuple) else f"[{inside}]"
    return repr(value)


def parse_name(text: str) -> NetworkName:
    """Return the name of the network that `text` describes.

    Raises:
        UsageError: the text in parentheses is not `name=value, ...` with Python literals.
    """
    if not text.endswith(")"):
        return NetworkName(text)
    target, _, inside = text.partition("(")
    try:
        call = ast.parse(f"f({inside}", mode="eval").body
        assert isinstance(call, ast.Call)
        if call.args or any(keyword.arg is None for keyword in call.keywords):
            raise ValueError("arguments have names")
        values = {str(keyword.arg): ast.literal_eval(keyword.value) for keyword in call.keywords}
    except (SyntaxError, ValueError, AssertionError, RecursionError, MemoryError) as error:
        raise UsageError(
            f"{text!r} is no name of a network: arguments are name=value with plain values, as in build(depth=3)"
        ) from error
    return NetworkName(target).with_arguments(**values)


def parse_narrower(text: str) -> tuple[str | None, float] | None:
    """Return (network or None for the teacher's, width) of `half`, `half:SPEC`, `width:0.5`, `width:0.5:SPEC`.

    None if `text` has another form.

    Raises:
        UsageError: the width is not a number above 0 and at most 4.
    """
    match = _NARROWER.fullmatch(text)
    if match is None:
        return None
    of = match["of"] if match["width"] else match["half"]
    try:
        width = float(match["width"] or 0.5)
    except ValueError:
        width = 0.0
    if not 0 < width <= 4:
        raise UsageError(f"a width is a number above 0 and at most 4, such as width:0.5, got {match['width']!r}")
    return (None if of is None or of.lower() == "teacher" else of), width


@dataclass(frozen=True)
class Share:
    """What a cut network has, as a share in (0, 1]: `of` is `width` or `half` (channels), `macs` (multiply-adds),
    `params` (parameters) or `latency` (the time of a batch)."""

    of: str
    value: float

    @property
    def short(self) -> str:
        """The form for names: `half`, `width-0.25`, `macs-0.3`."""
        return "half" if self == HALF else f"{self.of}-{self.value:g}"


HALF = Share("half", 0.5)
"""`--student half`, which is a narrower copy of a teacher that has a width."""


def parse_share(text: str) -> Share | None:
    """Return the share of the teacher in `half`, `0.25`, `width:0.25` and `macs:0.3`; None if `text` has another form.

    Raises:
        UsageError: the share is not a number above 0 and below 1.
    """
    if text == "half" or text.lower() == "half:teacher":
        return HALF
    match = _SHARE.fullmatch(text)
    if match is None:
        return None
    try:
        value = float(match["value"])
    except ValueError:
        value = 0.0
    if not 0 < value < 1:
        form = match["of"] or "width"
        raise UsageError(f"a share of the teacher is a number above 0 and below 1, such as {form}:0.5, got {text!r}")
    return Share(match["of"] or "width", value)


def parse_input_size(text: str) -> tuple[int, int, int]:
    """Return (channels, height, width) of `CxHxW`. Raises `UsageError` unless all three are integers above 0."""
    parts = text.lower().split("x")
    if len(parts) != 3 or not all(part.isdigit() and int(part) > 0 for part in parts):
        raise UsageError(f"--input-size is channels x height x width, such as 3x32x32, got {text!r}")
    channels, height, width = (int(part) for part in parts)
    return channels, height, width


def format_input_size(shape: tuple[int, ...]) -> str:
    """Return (channels, height, width) as `CxHxW`, the form that `parse_input_size` reads."""
    return "x".join(map(str, shape))
