"""Reads pickles that are plain data, without the module `pickle`, which runs whatever a file asks it to run.

RefCOCO is published as pickles of Python 2: lists of dicts of texts and numbers. This reader is an interpreter of the
operations that such files need. It builds lists, tuples, dicts with keys of texts or numbers, texts, numbers, truth
values and None, and refuses every other operation: above all those that name a class or a function, call one, or give
an object its state. `pickletools` cannot cut such files into operations: it fails at texts of Python 2 with accents.
"""

from __future__ import annotations

import codecs
import pickletools
import struct
from collections.abc import Callable
from typing import Any

from qwenvl_jax.runtime.errors import UserError, one_line

_MARK = object()
_KEYS = (str, int, float, bool, type(None))
_OPERATIONS = {operation.code: operation.name for operation in pickletools.opcodes}  # names for messages


def plain_pickle(payload: bytes, name: str) -> Any:
    """The value of a pickle of any protocol that holds plain data.

    Args:
      payload: the whole file.
      name: of the file, for messages.

    Raises:
      UserError: if the bytes are not a pickle, or the pickle asks for anything but plain data. Nothing was executed.
    """
    try:
        return _Machine(payload, name).run()
    except (ValueError, IndexError, KeyError, TypeError, OverflowError, MemoryError, struct.error) as error:
        raise UserError(f"{name} is not a readable pickle ({one_line(error)}); download it again") from None


class _Machine:
    """The bytes of one pickle with the stack and the memo of its values."""

    def __init__(self, payload: bytes, name: str):
        self._payload = payload
        self._position = 0
        self._name = name
        self._stack: list[Any] = []
        self._memo: dict[int, Any] = {}

    def run(self) -> Any:
        """Carries out all operations; the value is the one that is left at the end."""
        while (code := chr(self._take(1)[0])) != ".":
            if code in _LITERALS:
                self._stack.append(_LITERALS[code](self))
            elif code in _OTHERS:
                _OTHERS[code](self)
            else:
                raise UserError(
                    f"{self._name} is a pickle with {_OPERATIONS.get(code, repr(code))}, an operation that plain data "
                    "does not need; it was not executed. Use the file that the corpus publishes, or a JSON edition"
                )
        (value,) = self._stack
        if value is _MARK:
            raise ValueError("it ends within a list")
        return value

    # The bytes.

    def _take(self, count: int) -> bytes:
        if count < 0 or self._position + count > len(self._payload):
            raise ValueError("it is cut off")
        self._position += count
        return self._payload[self._position - count : self._position]

    def line(self) -> bytes:
        """The argument that goes up to the next line break."""
        end = self._payload.find(b"\n", self._position)
        if end < 0:
            raise ValueError("it is cut off")
        return self._take(end + 1 - self._position)[:-1]

    def number(self, form: str) -> Any:
        """The argument of a form of `struct`."""
        return struct.unpack(form, self._take(struct.calcsize(form)))[0]

    def counted(self, form: str) -> bytes:
        """The argument whose length comes first, in a form of `struct`."""
        return self._take(self.number(form))

    # The values.

    def top(self) -> Any:
        """The last value, which stays."""
        if self._stack[-1] is _MARK:
            raise ValueError("a value is missing")
        return self._stack[-1]

    def mark(self) -> None:
        """Begins the values of a container."""
        self._stack.append(_MARK)

    def popped(self, count: int) -> list[Any]:
        """The last values, which are taken off."""
        values = self._stack[-count:]
        if len(values) < count or any(value is _MARK for value in values):
            raise ValueError("a value is missing")
        del self._stack[-count:]
        return values

    def marked(self) -> list[Any]:
        """The values after the last mark, which are taken off together with it."""
        values: list[Any] = []
        while (value := self._stack.pop()) is not _MARK:
            values.append(value)
        return values[::-1]

    def extend(self, values: list[Any]) -> None:
        """Puts values into the list on top."""
        if not isinstance(self.top(), list):
            raise TypeError("a list is missing")
        self.top().extend(values)

    def fill(self, values: list[Any]) -> None:
        """Puts keys and values, in turns, into the dict on top."""
        if not isinstance(self.top(), dict):
            raise TypeError("a dict is missing")
        if len(values) % 2:
            raise ValueError("a key has no value")
        for key, value in zip(values[::2], values[1::2], strict=True):
            if not isinstance(key, _KEYS):
                raise TypeError("a key is neither a text nor a number")
            self.top()[key] = value

    def new_dict(self) -> dict[Any, Any]:
        """A dict of the values after the last mark."""
        values = self.marked()
        self._stack.append({})
        self.fill(values)
        return self._stack.pop()

    def remember(self, index: int) -> None:
        """Gives the value on top a number."""
        self._memo[index] = self.top()

    def remember_next(self) -> None:
        """Gives the value on top the next number."""
        self._memo[len(self._memo)] = self.top()

    def remembered(self, index: int) -> Any:
        """The value that got a number."""
        return self._memo[index]

    def pop(self) -> None:
        """Forgets the last value or mark."""
        self._stack.pop()


def _integer(line: bytes) -> int | bool:
    if line in (b"00", b"01"):
        return line == b"01"
    return int(line.removesuffix(b"L"))


def _quoted(line: bytes) -> str:
    """The text of a `str` of Python 2 in quotation marks."""
    if len(line) < 2 or line[:1] not in b"'\"" or line[:1] != line[-1:]:
        raise ValueError("a text has no quotation marks")
    return _text(codecs.escape_decode(line[1:-1])[0])


def _text(payload: bytes) -> str:
    """The text of a `str` of Python 2: UTF-8 if it is, else Latin-1."""
    try:
        return payload.decode()
    except UnicodeDecodeError:
        return payload.decode("latin-1")


def _unicode(payload: bytes) -> str:
    return payload.decode("utf-8", "surrogatepass")


# Operations that put a value onto the stack, by their codes.
_LITERALS: dict[str, Callable[[_Machine], Any]] = {
    "I": lambda machine: _integer(machine.line()),
    "L": lambda machine: _integer(machine.line()),
    "J": lambda machine: machine.number("<i"),
    "K": lambda machine: machine.number("<B"),
    "M": lambda machine: machine.number("<H"),
    "\x8a": lambda machine: int.from_bytes(machine.counted("<B"), "little", signed=True),
    "\x8b": lambda machine: int.from_bytes(machine.counted("<i"), "little", signed=True),
    "F": lambda machine: float(machine.line()),
    "G": lambda machine: machine.number(">d"),
    "S": lambda machine: _quoted(machine.line()),
    "T": lambda machine: _text(machine.counted("<i")),
    "U": lambda machine: _text(machine.counted("<B")),
    "V": lambda machine: machine.line().decode("raw-unicode-escape"),
    "X": lambda machine: _unicode(machine.counted("<I")),
    "\x8c": lambda machine: _unicode(machine.counted("<B")),
    "\x8d": lambda machine: _unicode(machine.counted("<Q")),
    "N": lambda machine: None,
    "\x88": lambda machine: True,
    "\x89": lambda machine: False,
    "]": lambda machine: [],
    "}": lambda machine: {},
    ")": lambda machine: (),
    "l": lambda machine: machine.marked(),
    "d": lambda machine: machine.new_dict(),
    "t": lambda machine: tuple(machine.marked()),
    "\x85": lambda machine: tuple(machine.popped(1)),
    "\x86": lambda machine: tuple(machine.popped(2)),
    "\x87": lambda machine: tuple(machine.popped(3)),
    "g": lambda machine: machine.remembered(int(machine.line())),
    "h": lambda machine: machine.remembered(machine.number("<B")),
    "j": lambda machine: machine.remembered(machine.number("<I")),
    "2": lambda machine: machine.top(),
}
# The others.
_OTHERS: dict[str, Callable[[_Machine], Any]] = {
    "\x80": lambda machine: machine.number("<B"),  # the protocol
    "\x95": lambda machine: machine.number("<Q"),  # the length of a frame
    "(": lambda machine: machine.mark(),
    "0": lambda machine: machine.pop(),
    "a": lambda machine: machine.extend(machine.popped(1)),
    "e": lambda machine: machine.extend(machine.marked()),
    "s": lambda machine: machine.fill(machine.popped(2)),
    "u": lambda machine: machine.fill(machine.marked()),
    "p": lambda machine: machine.remember(int(machine.line())),
    "q": lambda machine: machine.remember(machine.number("<B")),
    "r": lambda machine: machine.remember(machine.number("<I")),
    "\x94": lambda machine: machine.remember_next(),
}
