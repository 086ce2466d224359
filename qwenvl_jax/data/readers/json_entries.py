"""The entries of a JSON or JSONL file and the lines in which they begin. Each is parsed apart, so one may be wrong.

The first character of the file tells its form, not its name: `[` begins one list, `{` one object per line.
"""

from __future__ import annotations

import codecs
import json
from collections.abc import Iterator
from typing import Any

from etils import epath

from qwenvl_jax.runtime import artifacts
from qwenvl_jax.runtime.errors import UserError

_SPACE = b" \t\r\n"
_EXAMPLES = "docs/data.md shows the forms"


def split_entries(path: epath.Path, payload: bytes) -> list[tuple[int, bytes]]:
    """Line and bytes of every entry of the file, unparsed.

    Raises:
      UserError: naming the file, if it is neither one list nor lines of objects, or if the list cannot be parsed.
    """
    payload = payload.removeprefix(codecs.BOM_UTF8)
    if b"\0" in payload[:64]:
        raise UserError(f"{path} is not UTF-8, perhaps UTF-16; save it as UTF-8")
    if payload.startswith(b"\x1f\x8b"):
        raise UserError(f"{path} is compressed; unpack it with gunzip")
    artifacts.refuse_pointer(path, payload)
    first = payload.lstrip(_SPACE)[:1]
    lines_expected = path.suffix.lower() == ".jsonl"
    if first == b"[" and not (lines_expected and _has_lines(payload)):
        entries = list(_items(path, payload))
    elif lines_expected or (first == b"{" and _has_lines(payload)):
        entries = list(_lines(payload))
    else:
        raise UserError(_other_form(path, payload))
    if not entries:
        raise UserError(f"{path} holds no samples; correct the path, or leave the source out")
    return entries


def parse_entry(payload: bytes) -> dict[str, Any]:
    """Parses one entry. Raises UserError if it is not a JSON object of texts that UTF-8 can hold."""
    try:
        value = json_value(payload)
    except ValueError as error:
        raise UserError(f"this is not readable JSON ({error}); correct or remove it") from None
    if not isinstance(value, dict):
        raise UserError("this is not a JSON object in braces; correct or remove it")
    return value


def json_value(payload: bytes) -> Any:
    """The value of JSON in UTF-8: of a whole entry, or of the `.json` member of a sample.

    Raises:
      ValueError: if it is not JSON, is nested too deeply, or has a text that UTF-8 cannot hold.
    """
    try:
        text = payload.removeprefix(codecs.BOM_UTF8).decode()  # json would guess UTF-16 and let surrogates pass
        value = json.loads(text)
        if b"\\u" in payload:
            json.dumps(value, ensure_ascii=False).encode()  # raises for half a surrogate pair
    except RecursionError:
        raise ValueError("nested too deeply") from None
    return value


def _lines(payload: bytes) -> Iterator[tuple[int, bytes]]:
    """The lines that are not blank, with their numbers."""
    for number, line in enumerate(payload.split(b"\n"), start=1):
        if line.strip():
            yield number, line


def _has_lines(payload: bytes) -> bool:
    """Whether several lines have something in them, and the first of those is whole by itself."""
    lines = _lines(payload)
    try:
        json.loads(next(lines)[1])
    except (ValueError, RecursionError):
        return False
    return next(lines, None) is not None


def _other_form(path: epath.Path, payload: bytes) -> str:
    """What is wrong with a `.json` file that is neither one list nor lines of objects."""
    try:
        value = json.loads(payload)
    except (ValueError, RecursionError) as error:
        line = getattr(error, "lineno", 1)
        why = "it must begin with [" if payload.strip() else "it is empty"
        return f"{path}, line {line}: this is not readable JSON ({why}); the file must be one list of samples"
    if not isinstance(value, dict):
        return f"{path} holds {json.dumps(value)[:40]}; it must be one list of samples; {_EXAMPLES}"
    keys = ", ".join(map(repr, list(value)[:8])) or "none"
    lists = [key for key, entry in value.items() if isinstance(entry, list) and entry and isinstance(entry[0], dict)]
    if {"images", "annotations"} <= value.keys():
        step = "as COCO has it; write one sample per annotation, with its picture's path and size"
    elif {"splits", "version"} <= value.keys():
        step = "the manifest of a record folder; name the folder"
    elif len(lists) == 1:
        step = f"and its samples seem to lie under {lists[0]!r}; save that list as a file of its own"
    else:
        step = "and must be one list of samples; put it in brackets if it is one sample"
    return f"{path} is one object with the keys {keys}, {step}; {_EXAMPLES}"


def _items(path: epath.Path, payload: bytes) -> Iterator[tuple[int, bytes]]:
    """The items of the one list in a file, with the line each begins in."""
    # Bytes that are not UTF-8 are kept, so that they make only their own item unreadable.
    text = payload.decode("utf-8", "surrogateescape")
    decoder = json.JSONDecoder()
    offset = _skip(text, _skip(text, 0) + 1)
    line = 1
    counted = 0  # offset up to which line breaks are counted

    def wrong(at: int, why: object) -> UserError:
        number = text.count("\n", 0, at) + 1
        return UserError(f"{path}, line {number}: this is not readable JSON ({why}); the file must be one list")

    if text[offset : offset + 1] == "]":
        offset = _skip(text, offset + 1)
    else:
        while True:
            try:
                _, stop = decoder.raw_decode(text, offset)
            except json.JSONDecodeError as error:
                raise wrong(error.pos, error.msg) from None
            except (ValueError, RecursionError) as error:  # an integer of thousands of digits; lists without end
                raise wrong(offset, error) from None
            line += text.count("\n", counted, offset)
            counted = offset
            yield line, text[offset:stop].encode("utf-8", "surrogateescape")
            offset = _skip(text, stop)
            separator = text[offset : offset + 1]
            offset = _skip(text, offset + 1)
            if separator == "]":
                break
            if separator != ",":
                raise wrong(offset, "no , or ] after an item")
    if offset < len(text):
        raise wrong(offset, "text after the list")


def _skip(text: str, offset: int) -> int:
    """The next offset without white space."""
    while offset < len(text) and text[offset] in " \t\r\n":
        offset += 1
    return offset
