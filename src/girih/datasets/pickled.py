"""Arrays of bytes out of pickles, by an interpreter of its own that calls nothing and cannot crash."""

from __future__ import annotations

import codecs
import io
import pickletools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from girih.datasets.arrayfile import check_regular
from girih.errors import DataSourceError

_OPCODES = {opcode.code.encode("latin1"): opcode for opcode in pickletools.opcodes}
_KNOWN = {("numpy", "ndarray"), ("numpy", "dtype"), ("_codecs", "encode")}
_KNOWN |= {(f"numpy.{core}.multiarray", "_reconstruct") for core in ("core", "_core")}
_TEXT = ("STRING", "BINSTRING", "SHORT_BINSTRING")  # of Python 2: bytes
_PLAIN = {"INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT"}
_PLAIN |= {"UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8", "BINBYTES", "SHORT_BINBYTES", "BINBYTES8"}
_KEEP = {"PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE"}
_VALUES = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
_NEW: dict[str, Callable[[], Any]] = {"EMPTY_LIST": list, "EMPTY_DICT": dict, "EMPTY_TUPLE": tuple}
_SIZED = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
T = TypeVar("T", list[Any], dict[Any, Any])


@dataclass
class _Name:
    """A name that stands in for a class or a function."""

    module: str
    name: str


@dataclass
class _Type:
    """A name that stands in for `numpy.dtype`; bytes have no byte order and no fields."""

    name: Any


@dataclass
class _Array:
    """A tuple that stands in for `numpy.ndarray`: version, shape, type, order and bytes."""

    state: Any = None


class _Machine:
    """The stack machine of pickles, for numbers, texts, lists, tuples, dicts and arrays.

    Keys of dicts are texts and numbers: a tuple of tuples of tuples, 300 kB deep, overflows the stack of the
    interpreter when it is hashed, which `pickle` itself does.
    """

    def __init__(self, content: bytes) -> None:
        self.stream = io.BytesIO(content)
        self.stack: list[Any] = []
        self.marks: list[int] = []
        self.memo: dict[int, Any] = {}
        self.left = 2 * len(content)  # bytes that may be made from texts

    def run(self) -> object:
        """Reads what the pickle holds."""
        while True:
            code = self.stream.read(1)
            if code not in _OPCODES:
                raise ValueError(f"it is cut off, or has the unknown opcode {code!r}")
            opcode = _OPCODES[code]
            if opcode.name == "STOP":
                return self.stack.pop()
            if opcode.name == "STRING":  # pickletools reads it as ASCII
                self.stack.append(codecs.escape_decode(self.stream.readline().strip()[1:-1])[0])
                continue
            self._do(opcode.name, None if opcode.arg is None else opcode.arg.reader(self.stream))

    def _do(self, name: str, argument: Any) -> None:
        stack = self.stack
        if name in _PLAIN:
            stack.append(argument)
        elif name in _TEXT:
            stack.append(argument.encode("latin1"))
        elif name in _KEEP:
            self.memo[len(self.memo) if name == "MEMOIZE" else argument] = stack[-1]
        elif name in ("PROTO", "FRAME"):
            return
        elif name in _VALUES or name in _NEW:
            stack.append(_NEW[name]() if name in _NEW else _VALUES[name])
        elif name == "MARK":
            self.marks.append(len(stack))
        elif name in ("GET", "BINGET", "LONG_BINGET"):
            stack.append(self.memo[argument])
        elif name in _SIZED:
            stack[-_SIZED[name] :] = [tuple(self._last(_SIZED[name]))]
        elif name in ("LIST", "TUPLE"):
            stack.append((list if name == "LIST" else tuple)(self._marked()))
        elif name in ("APPEND", "APPENDS"):
            items = [stack.pop()] if name == "APPEND" else self._marked()
            self._top(list).extend(items)
        elif name in ("DICT", "SETITEM", "SETITEMS"):
            self._set(name)
        elif name == "POP":
            stack.pop()
        elif name == "DUP":
            stack.append(stack[-1])
        elif name in ("GLOBAL", "STACK_GLOBAL"):
            module, attribute = argument.split(" ", 1) if name == "GLOBAL" else (stack.pop(-2), stack.pop())
            if (module, attribute) not in _KNOWN:
                raise ValueError(f"it asks for {str(module)[:40]}.{str(attribute)[:40]}, which is not called")
            stack.append(_Name(module, attribute))
        elif name == "REDUCE":
            arguments = stack.pop()
            stack.append(self._made(stack.pop(), arguments))
        elif name == "BUILD":
            state, made = stack.pop(), stack[-1]
            if isinstance(made, _Array):
                made.state = state
            elif not isinstance(made, _Type):
                raise ValueError("it changes something that is no array")
        else:
            raise ValueError(f"it asks for {name}, which plain arrays do not need")

    def _last(self, count: int) -> list[Any]:
        if len(self.stack) < count:
            raise ValueError("it is cut off")
        return self.stack[-count:]

    def _marked(self) -> list[Any]:
        start = self.marks.pop()
        items = self.stack[start:]
        del self.stack[start:]
        return items

    def _top(self, kind: type[T]) -> T:
        top = self.stack[-1]
        if type(top) is not kind:
            raise ValueError(f"it adds to a {type(top).__name__}")
        return top

    def _set(self, name: str) -> None:
        items = [self.stack.pop(-2), self.stack.pop()] if name == "SETITEM" else self._marked()
        if name == "DICT":
            self.stack.append({})
        held = self._top(dict)
        if len(items) % 2 or not all(isinstance(key, (bytes, str, int, float)) for key in items[::2]):
            raise ValueError("a dict has keys that are no texts or numbers")
        held.update(zip(items[::2], items[1::2], strict=True))

    def _made(self, what: object, arguments: object) -> object:
        if not isinstance(what, _Name) or type(arguments) is not tuple or what.name == "ndarray":
            raise ValueError("it calls something that is no function")
        if what.name == "_reconstruct":
            return _Array()
        if what.name == "dtype":
            name = arguments[0]
            return _Type(name.decode("ascii") if isinstance(name, bytes) else name)
        text, encoding = arguments  # Python 3 writes bytes into old protocols as text in latin 1
        if not isinstance(text, str) or encoding not in ("latin1", b"latin1"):
            raise ValueError("it encodes something that is no text")
        self.left -= len(text)
        if self.left < 0:
            raise ValueError("it makes more bytes than it has")
        return text.encode("latin1")


def read_pickled_bytes(path: Path) -> dict[str, Any]:
    """A pickled dict of arrays of uint8, lists, numbers and texts, by text; other values are left out.

    Raises:
        DataSourceError: the file is no such pickle; nothing that it asks for is called.
    """
    check_regular(path)
    try:
        loaded = _Machine(path.read_bytes()).run()
    except Exception as error:  # a damaged pickle can raise anything
        reason = " ".join(str(error).split())[:120] or type(error).__name__
        raise DataSourceError(f"{path.name} is not a pickle of plain arrays ({reason}); fetch the file again") from None
    if not isinstance(loaded, dict):
        raise DataSourceError(f"{path.name} holds a {type(loaded).__name__}, not a dict of arrays; fetch it again")
    named = {
        key.decode("ascii", "replace") if isinstance(key, bytes) else str(key): value for key, value in loaded.items()
    }
    return {key: _plain(value, path) if isinstance(value, _Array) else value for key, value in named.items()}


def _plain(array: _Array, path: Path) -> NDArray[np.uint8]:
    state = array.state if isinstance(array.state, tuple) and len(array.state) == 5 else (None,) * 5
    _, shape, kind, by_column, data = state
    if not isinstance(kind, _Type) or kind.name not in ("u1", "uint8", "|u1") or not isinstance(data, bytes):
        raise DataSourceError(f"{path.name} holds an array that is not of bytes (uint8); fetch the file again")
    try:
        return np.frombuffer(data, np.uint8).reshape(shape, order="F" if by_column is True else "C")
    except (TypeError, ValueError, OverflowError):
        raise DataSourceError(f"{path.name} is damaged: an array has fewer bytes than its shape says") from None
