"""The entries of one large JSON file, read one at a time: the file is never held in memory as a whole.

A corpus lists its rows in one JSON text of up to several gigabytes, as a list or as an object with one member per row,
either at the top or under a key:

    entries(file)                    [{..}, {..}]                     and {"id1": {..}, "id2": {..}}
    entries(file, "annotations")     {"info": {..}, "annotations": [{..}, {..}]}

The memory is that of the longest entry. An entry that is not JSON costs only itself if its brackets are in balance.
"""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Iterator
from typing import Any, BinaryIO, NamedTuple

from etils import epath

from data_pipelines.pair import FailedRow
from qwenvl_jax.runtime import artifacts, storage
from qwenvl_jax.runtime.errors import UserError

BLOCK = 4 << 20  # bytes read at a time
MOST_BYTES = 64 << 20  # of one entry; a longer one has a quotation mark that was never closed

_DECODER = json.JSONDecoder()
_SPACE = re.compile(r"[ \t\r\n]*")
_FOLLOWING = re.compile(r"[ \t\r\n]*[,\]}]")  # what may come after a value; a number may go on in the next block
_CLOSING = {"[": "]", "{": "}"}
# A string, or the beginning of one that the text cuts off, or a bracket.
_TOKEN = re.compile(r'"(?:[^"\\]|\\.)*(?P<open>"|\\?\Z)|(?P<bracket>[\[\]{}])', re.DOTALL)
_SCALAR = re.compile(r'"(?:[^"\\]|\\.)*"|[^,\]}"]+', re.DOTALL)


class Entry(NamedTuple):
    """One entry of a list or one member of an object.

    Attributes:
      name: the key of the member; "" for an entry of a list.
      start, end: the bytes of its value in the file.
      value: parsed; its strings are as the file has them.
      failure: why there is no value, else None.
    """

    name: str
    start: int
    end: int
    value: Any = None
    failure: FailedRow | None = None


def entries(file: epath.PathLike, key: str = "", block: int = BLOCK) -> Iterator[Entry]:
    """The entries of the list or object at the top of a JSON file, or under a key of the object at its top.

    Args:
      file: on a disk or gs://.
      key: of the list or object; "" for the one at the top.
      block: the least bytes to read at a time.

    Raises:
      UserError: if the file is not a JSON list or object, or has no list or object under the key.
    """
    with storage.open_read(file, block) as stream:
        yield from entries_in(stream, file, key, block)


def entries_in(stream: BinaryIO, file: epath.PathLike, key: str = "", block: int = BLOCK) -> Iterator[Entry]:
    """As `entries`, of an open file; `file` is its name for messages."""
    text = _Text(file, stream, block)
    if not key:
        yield from _entries(text, text.opening())
        return
    if text.opening() != "{":
        raise UserError(f"{file} is a list, not an object with {key!r}; use the file that the corpus publishes")
    for name in _names(text):
        if name is None:
            yield _rest_lost(text)
            return
        if name == key and text.peek() in _CLOSING:
            yield from _entries(text, text.take())
            return
        _pass_over(text)
    raise UserError(f"{file} has no list under {key!r}; use the file that the corpus publishes")


def parse(payload: bytes) -> Any:
    """The value of one entry from its bytes.

    Raises:
      ValueError: if the bytes are not JSON in UTF-8, or are nested too deeply.
    """
    try:
        return json.loads(payload.decode())
    except RecursionError:
        raise ValueError("nested too deeply") from None


class _Text:
    """The text of a file from the current position on. Characters are bytes, because structure is always ASCII."""

    def __init__(self, file: epath.PathLike, stream: BinaryIO, block: int):
        self.file = file
        self.stream = stream
        self.block = block
        first = stream.read(max(block, 64))
        artifacts.refuse_pointer(file, first)
        self.at = len(codecs.BOM_UTF8) if first.startswith(codecs.BOM_UTF8) else 0
        self.characters = first.decode("latin-1")
        self.ascii = first.isascii()
        self.before = 0  # bytes of the file before `characters`

    @property
    def offset(self) -> int:
        """The current position in bytes of the file."""
        return self.before + self.at

    def opening(self) -> str:
        """Takes the bracket with which the file begins."""
        bracket = self.peek()
        if bracket not in _CLOSING:
            raise UserError(f"{self.file} is not JSON: it begins with neither [ nor {{; unpack or download it again")
        return self.take()

    def peek(self) -> str:
        """The next character that is not white space; "" at the end of the file."""
        while True:
            match = _SPACE.match(self.characters, self.at)
            assert match is not None  # it matches the empty string
            self.at = match.end()
            if self.at < len(self.characters):
                return self.characters[self.at]
            if not self.more():
                return ""

    def take(self) -> str:
        """The next character that is not white space, passed over."""
        character = self.peek()
        self.at += len(character)
        return character

    def more(self) -> bool:
        """Reads on; what was passed over is dropped. The text at least doubles, so that no search is quadratic."""
        block = self.stream.read(max(self.block, len(self.characters) - self.at))
        self.before += self.at
        self.characters = self.characters[self.at :] + block.decode("latin-1")
        self.ascii = self.characters.isascii()
        self.at = 0
        return bool(block)

    def payload(self, end: int) -> bytes:
        """The bytes from the current position to a position in `characters`."""
        return self.characters[self.at : end].encode("latin-1")


def _entries(text: _Text, bracket: str) -> Iterator[Entry]:
    """The entries after an opening bracket, up to its closing one."""
    if bracket == "{":
        for name in _names(text):
            if name is None:
                yield _rest_lost(text)
                return
            entry = _value(text, name)
            yield entry
            if entry.failure is not None and entry.end == entry.start:
                return
        return
    while (character := text.peek()) != "]":
        if character == ",":
            text.take()
            continue
        entry = _value(text, "") if character else _rest_lost(text)
        yield entry
        if entry.failure is not None and entry.end == entry.start:
            return
    text.take()


def _names(text: _Text) -> Iterator[str | None]:
    """The names of the members after `{`, with the position at the member's value; None if the rest is lost."""
    while (character := text.peek()) != "}":
        if character == ",":
            text.take()
            continue
        end = _end_of_string(text) if character == '"' else 0
        if not end:
            yield None
            return
        try:
            name = parse(text.payload(end))
        except ValueError:
            name = None
        text.at = end
        if text.take() != ":":
            name = None
        yield name
        if name is None:
            return
    text.take()


def _end_of_string(text: _Text) -> int:
    """The position after the string that begins at the current one; 0 if it does not end."""
    while True:
        match = _TOKEN.match(text.characters, text.at)
        if match is not None and match["open"] == '"':
            return match.end()
        if len(text.characters) - text.at > MOST_BYTES or not text.more():
            return 0


def _value(text: _Text, name: str) -> Entry:
    """The value at the current position, which is passed over. An entry without bytes means that the rest is lost."""
    text.peek()
    start = text.offset
    while True:
        try:
            value, end = _DECODER.raw_decode(text.characters, text.at)
            whole = _FOLLOWING.match(text.characters, end) is not None
        except (ValueError, RecursionError):
            whole = False
        if not whole:
            end = _balanced_end(text.characters, text.at)
            if not end:
                if len(text.characters) - text.at <= MOST_BYTES and text.more():
                    continue
                return _rest_lost(text)
        if whole and (text.ascii or text.characters[text.at : end].isascii()):
            text.at = end
            return Entry(name, start, text.offset, value)
        payload = text.payload(end)
        text.at = end
        try:
            return Entry(name, start, text.offset, parse(payload))
        except ValueError as error:
            return Entry(name, start, text.offset, None, FailedRow("not JSON", str(error)))


def _balanced_end(characters: str, start: int) -> int:
    """The position after the value at `start`, by its brackets or, if it has none, by the next comma; 0 if unknown."""
    if characters[start : start + 1] not in _CLOSING:
        match = _SCALAR.match(characters, start)
        return match.end() if match and match.end() < len(characters) else 0
    depth = 0
    for token in _TOKEN.finditer(characters, start):
        bracket = token["bracket"]
        if bracket is None:
            if token["open"] != '"':
                return 0
            continue
        depth += 1 if bracket in _CLOSING else -1
        if depth == 0:
            return token.end()
    return 0


def _pass_over(text: _Text) -> None:
    """Passes over the value at the current position, however long it is."""
    if text.peek() not in _CLOSING:
        _value(text, "")
        return
    for _ in _entries(text, text.take()):
        pass


def _rest_lost(text: _Text) -> Entry:
    """The failure of everything from the current position on."""
    failure = FailedRow("rest of the file unreadable", f"not JSON from byte {text.offset}")
    return Entry("", text.offset, text.offset, None, failure)
