"""Samples listed in a JSON or JSONL file, with image files beside it.

One entry is either a conversation of the released fine-tuning, `{"id": .., "conversations": [..]}`, or the fields of
a record: `{"image": path, "caption": ..}` and so on. docs/data.md shows all of them. The text of the file is held in
memory; images are read when they are needed.
"""

from __future__ import annotations

import codecs
import json
import os
from collections.abc import Iterator, Sequence
from typing import Any

from etils import epath

from qwenvl_jax.data.conversations import parse_conversation
from qwenvl_jax.data.formats import training_pieces
from qwenvl_jax.data.image import read_encoded
from qwenvl_jax.data.record_content import CONTENT_KEYS, check_record
from qwenvl_jax.data.schema import TASKS, Record
from qwenvl_jax.runtime.errors import UserError, nearest

SUFFIXES = (".json", ".jsonl")
_COMMON = ("id", "task", "source", "language", "license", "image", "images")
_CONVERSATION = ("id", "task", "source", "language", "license", "conversations")
_OPTIONAL = {"vqa": ("answers",), "grounded_caption": ("ref",), "dialogue": ("system", "sizes")}
_TEXTS = ("id", "source", "language", "license", "caption", "question", "answer", "phrase", "description", "ref")


class JsonReader:
    """Random access to the entries of one file: `len(reader)`, `reader[i]`. Opening checks every entry.

    Args:
      path: a `.jsonl` file of one JSON object per line, or a `.json` file of one list of them.
      task: of all entries; one that names another is refused.

    Raises:
      UserError: naming file and line, for what is not JSON, an unknown key or task, tags without their partner, a
        place outside its image, or an image file that is missing. Image files on gs:// are looked for only when
        they are read.
    """

    def __init__(self, path: epath.PathLike, task: str):
        self.path, self.task = epath.Path(path), task
        if not self.path.exists():
            raise UserError(f"{self.path} does not exist; correct the path of the source")
        split = _lines if self.path.suffix == ".jsonl" else _items
        self._entries = list(split(self.path, self.path.read_bytes()))
        if not self._entries:
            raise UserError(f"{self.path} holds no samples")
        seen: set[str] = set()
        for index in range(len(self._entries)):
            record, paths = self._parse(index)
            try:
                training_pieces(check_record(record))
            except UserError as error:
                raise self._wrong(index, error) from None
            for image in paths:
                # Asking an object store about every file would take hours.
                if image not in seen and "://" not in image and not os.path.isfile(image):
                    raise self._wrong(index, f"the image {image} does not exist")
                seen.add(image)

    def __len__(self) -> int:
        return len(self._entries)

    def __getitem__(self, index: int) -> Record:
        if not 0 <= index < len(self):
            raise IndexError(f"record {index} of {len(self)}")
        record, paths = self._parse(index)
        images = []
        for path in paths:
            try:
                with epath.Path(path).open("rb") as file:
                    images.append(read_encoded(file))
            except OSError as error:
                raise self._wrong(index, f"the image {path} cannot be read ({error})") from None
        return Record(
            record.id, record.task, record.source, record.language, record.license, tuple(images), record.content
        )

    def _wrong(self, index: int, what: object) -> UserError:
        return UserError(f"{self.path}, line {self._entries[index][0]}: {what}")

    def _parse(self, index: int) -> tuple[Record, list[str]]:
        """The record of an entry, with empty images, and where its images lie."""
        line, payload = self._entries[index]
        try:
            value = _object(payload)
            content, paths = self._conversation(value) if "conversations" in value else self._fields(value)
            record = Record(
                id=str(value.get("id", f"{self.path.stem}:{line}")),
                task=self.task,
                source=value.get("source", self.path.stem),
                language=value.get("language", "en"),
                license=value.get("license", "unknown"),
                images=(b"",) * len(paths),
                content=content,
            )
            return record, [self._resolve(path) for path in paths]
        except UserError as error:
            raise self._wrong(index, error) from None

    def _conversation(self, value: dict[str, Any]) -> tuple[dict[str, Any], list[str]]:
        self._check(value, "dialogue", _CONVERSATION)
        return parse_conversation(value["conversations"])

    def _fields(self, value: dict[str, Any]) -> tuple[dict[str, Any], list[str]]:
        task = value.get("task", self.task)
        if task not in TASKS:
            raise UserError(f"the task {task!r} is unknown{nearest(str(task), TASKS)}")
        required = CONTENT_KEYS[task] or ("text",)
        self._check(value, task, (*_COMMON, "width", "height", *required, *_OPTIONAL.get(task, ())))
        missing = [key for key in required if key not in value]
        if missing:
            raise UserError(f"the sample of task {task!r} lacks {', '.join(missing)}")
        if "image" in value and "images" in value:
            raise UserError('there are both "image" and "images"; keep one')
        paths = [value["image"]] if "image" in value else value.get("images", [])
        if not isinstance(paths, list) or not all(isinstance(path, str) and path for path in paths):
            raise UserError('"image" must be a path and "images" a list of paths')
        return {key: found for key, found in value.items() if key not in _COMMON}, paths

    def _check(self, value: dict[str, Any], task: str, known: Sequence[str]) -> None:
        """Raises UserError for another task than the source's, an unknown key, or a text that is none."""
        if value.get("task", task) != self.task or task != self.task:
            found = value.get("task", task)
            raise UserError(f"the sample is of task {found!r}, but the source is for {self.task!r}; correct one")
        unknown = [key for key in value if key not in known]
        if unknown:
            names = (*known, "conversations") if task == "dialogue" else known
            raise UserError(f"the key {unknown[0]!r} is unknown for task {task!r}{nearest(unknown[0], names)}")
        for key in (*_TEXTS, "text", "system"):
            if key in value and not isinstance(value[key], str) and not (key == "id" and isinstance(value[key], int)):
                raise UserError(f"{key!r} must be a text, not {value[key]!r}")

    def _resolve(self, path: str) -> str:
        """Where an image lies: as given if absolute or on gs://, else from the folder of the file."""
        if "://" in path and not path.startswith("gs://"):
            raise UserError(f"the image {path} is not a file; download it and give its path")
        return path if path.startswith(("/", "gs://")) else os.fspath(self.path.parent / path)


def _object(payload: bytes) -> dict[str, Any]:
    """Parses one entry. Raises UserError if it is not a JSON object of texts that UTF-8 can hold."""
    try:
        text = payload.removeprefix(codecs.BOM_UTF8).decode()  # json would guess UTF-16 and let surrogates pass
        value = json.loads(text)
        if b"\\u" in payload:
            json.dumps(value, ensure_ascii=False).encode()  # raises for half a surrogate pair
    except (ValueError, RecursionError) as error:
        raise UserError(f"this is not readable JSON ({error}); correct or remove it") from None
    if not isinstance(value, dict):
        raise UserError("this is not a JSON object in braces; correct or remove it")
    return value


def _lines(path: epath.Path, payload: bytes) -> Iterator[tuple[int, bytes]]:
    """The lines of a JSONL file that are not blank, with their numbers."""
    for number, line in enumerate(payload.removeprefix(codecs.BOM_UTF8).split(b"\n"), start=1):
        if line.strip():
            yield number, line


def _items(path: epath.Path, payload: bytes) -> Iterator[tuple[int, bytes]]:
    """The items of the one list in a JSON file, with the line each begins in."""
    try:
        text = payload.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = payload.count(b"\n", 0, error.start) + 1
        raise UserError(f"{path}, line {line}: this is not UTF-8; save the file as UTF-8") from None
    decoder = json.JSONDecoder()
    place, line, counted = _skip(text, 0), 1, 0

    def wrong(at: int, why: object) -> UserError:
        number = text.count("\n", 0, at) + 1
        return UserError(f"{path}, line {number}: this is not readable JSON ({why}); the file must be one list")

    if text[place : place + 1] != "[":
        raise wrong(place, "no [")
    place = _skip(text, place + 1)
    if text[place : place + 1] == "]":
        place = _skip(text, place + 1)
    else:
        while True:
            try:
                _, stop = decoder.raw_decode(text, place)
            except json.JSONDecodeError as error:
                raise wrong(error.pos, error.msg) from None
            except RecursionError as error:
                raise wrong(place, error) from None
            line, counted = line + text.count("\n", counted, place), place
            yield line, text[place:stop].encode("utf-8", "surrogatepass")
            place = _skip(text, stop)
            separator = text[place : place + 1]
            place = _skip(text, place + 1)
            if separator == "]":
                break
            if separator != ",":
                raise wrong(place, "no , or ] after an item")
    if place < len(text):
        raise wrong(place, "text after the list")


def _skip(text: str, place: int) -> int:
    """The next place that is not white space."""
    while place < len(text) and text[place] in " \t\r\n":
        place += 1
    return place
