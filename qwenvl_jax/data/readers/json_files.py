"""Samples listed in a JSON or JSONL file, with image files beside it.

One entry is either a conversation of the released fine-tuning, `{"id": .., "conversations": [..]}`, or the fields of
a record: `{"image": path, "caption": ..}` and so on. docs/data.md shows all of them. The text of the file is held in
memory; images are read when they are needed.
"""

from __future__ import annotations

import base64
import collections
import hashlib
import json
import os
import re
import unicodedata
import urllib.parse
from collections.abc import Sequence
from typing import Any, cast

from etils import epath

from qwenvl_jax.data.annotations import ANNOTATIONS
from qwenvl_jax.data.corruption import allowed
from qwenvl_jax.data.dialogues import DialogueContent
from qwenvl_jax.data.formats import training_pieces
from qwenvl_jax.data.images.exact import MAX_BYTES
from qwenvl_jax.data.languages import language_of
from qwenvl_jax.data.readers.conversations import (
    messages_of_query,
    parse_conversation,
    parse_llava,
    sizes_of,
    turns_of_messages,
    with_regions,
)
from qwenvl_jax.data.readers.json_entries import parse_entry, split_entries
from qwenvl_jax.data.schema import TASKS, Record, check_record, samples_of
from qwenvl_jax.data.tasks import RECORD_TASKS, Content
from qwenvl_jax.runtime import log, storage
from qwenvl_jax.runtime.errors import StorageError, UserError, nearest

SUFFIXES = (".json", ".jsonl")
NAMED = 3  # how many unusable entries a message explains

_COMMON = ("id", "task", "source", "language", "license", "image", "images")
_CONVERSATION = ("id", "task", "source", "language", "license", "system", "conversations")
_LLAVA_CONVERSATION = (*_CONVERSATION, "image", "images")
_COMMON_TEXTS = ("id", "source", "language", "license")
_MAY_BE_NULL = {*_COMMON, *(key for task in RECORD_TASKS.values() for key in task.optional)}
# Keys that other corpora have and nothing here needs, although they look like keys that are known.
_HARMLESS = ("dataset", "weight", "imgid", "sources", "tasks", "completion")
_LONGEST_PATH = 4096
_AS_DATA_URL = 'write the bytes of a picture as "data:image/png;base64,.."'
_TALKS = {"messages", "conversations", "turns"}
_AS_MESSAGES = (
    '; write a dialogue as "messages": [{"role": "user", "content": ..}, {"role": "assistant", "content": ..}]'
)
_FILE_URL = "file://"
_DATA_URL = re.compile(r"data:image/[\w.+-]+;base64,")


class JsonReader:
    """Random access to the entries of one file: `len(reader)`, `reader[i]`. Opening checks every entry.

    An entry that cannot be used keeps its number and raises UserError when it is read. How many there are, and the
    first of them, is printed, and so are keys that are ignored.

    Args:
      path: a file of one JSON object per line, or of one list of them.
      task: of all entries; one that names another cannot be used.
      max_corrupt_share: of the entries, that may be unusable; `corruption.allowed` says how many that are.
      findings: by the reader of another process (`JsonReader.findings`), instead of looking for the image files.

    Attributes:
      corrupt: how many entries cannot be used.
      ignored: how often each key that means nothing here was met.
      samples: of all entries; one that cannot be used counts as one.
      samples_of_entry: of every entry.

    Raises:
      UserError: if the file is not of this form, no entry can be used, or more than the share cannot be; it names the
        file and the line of the first. An entry cannot be used if it is not JSON, if its key or task looks like another
        one, if a tag lacks its partner, if a region is outside its image, or if an image file is missing. Image files
        on gs:// are looked for only when they are read.
    """

    def __init__(
        self, path: epath.PathLike, task: str, max_corrupt_share: float = 0.0, findings: Sequence[str] | None = None
    ):
        self.path = storage.path(path)
        self.task = task
        try:
            payload = storage.read_bytes(self.path)
        except FileNotFoundError:
            raise UserError(f"{self.path} does not exist; correct the path of the source") from None
        except IsADirectoryError:
            raise UserError(f"{self.path} is a folder; a JSON source is one file") from None
        self._digest = hashlib.sha256(payload).hexdigest()
        self._entries = split_entries(self.path, payload)
        self.corrupt = 0
        self.samples_of_entry: list[int] = []
        self.ignored: collections.Counter[str] = collections.Counter()
        wrong: list[str] = []
        self._absent = None if findings is None else frozenset(findings)  # image files
        exists: dict[str, bool] = {}  # by path of an image file
        for index in range(len(self)):
            try:
                self.samples_of_entry.append(self._check_entry(index, exists))
            except UserError as error:
                self.corrupt += 1
                self.samples_of_entry.append(1)
                if len(wrong) < NAMED:
                    same = wrong and wrong[0].endswith(f": {error}")
                    wrong.append(f"line {self._entries[index][0]}: {'the same' if same else error}")
        self.samples = sum(self.samples_of_entry)
        if self._absent is None:
            self._absent = frozenset(image for image, there in exists.items() if not there)
        self._judge(wrong, max_corrupt_share)

    def _check_entry(self, index: int, exists: dict[str, bool]) -> int:
        """How many samples an entry has. `exists` remembers which image files exist.

        Raises:
          UserError: if the entry cannot be used.
        """
        record, paths, ignored = self._parse(index)
        samples = samples_of(check_record(record))
        for sample in samples:
            training_pieces(sample)
        for path in paths:
            # Asking an object store about every file would take hours.
            if url := _DATA_URL.match(path):
                _decoded(path[url.end() :])
            elif not storage.is_remote(path) and path not in exists:
                known = self._absent
                exists[path] = any(map(os.path.isfile, _spellings(path))) if known is None else path not in known
            if not exists.get(path, True):
                raise UserError(f"the image {path} does not exist")
        self.ignored.update(ignored)
        return len(samples)

    def _judge(self, wrong: Sequence[str], share: float) -> None:
        """Refuses the file if too much of it cannot be used, and says what is left out or ignored."""
        total = len(self)
        more = f"; {'; '.join(wrong[1:])}" if wrong[1:] else ""
        if self.corrupt == total == 1:
            raise UserError(f"{self.path}, {wrong[0]}")
        if self.corrupt == total or self.corrupt > allowed(share, total):
            step = "mend or remove them" if self.corrupt > 1 else "mend or remove it"
            limit = f", or raise config.data.max_corrupt_share above {share:g}" if self.corrupt < total else ""
            many = f"{self.corrupt:,} of {total:,} samples cannot be used{more}"
            raise UserError(f"{self.path}, {wrong[0]} ({many}); {step}{limit}")
        if wrong:
            log.line(f"{self.path}: {self.corrupt:,} of {total:,} samples cannot be used: {'; '.join(wrong)}")
        if self.ignored:
            keys = ", ".join(f"{key!r} ({count:,} times)" for key, count in self.ignored.most_common())
            log.line(f"{self.path}: these keys mean nothing here and are ignored: {keys}")

    def __len__(self) -> int:
        return len(self._entries)

    def _read_image(self, path: str) -> bytes:
        if url := _DATA_URL.match(path):
            return _decoded(path[url.end() :])
        missing: OSError | None = None
        for name in _spellings(path):
            try:
                return storage.read_bytes(name, 0, MAX_BYTES)  # a longer one is cut off, and counted as such
            except (FileNotFoundError, IsADirectoryError, NotADirectoryError) as error:
                missing = missing or error
        if storage.is_remote(path) or path in (self._absent or ()):
            raise UserError(f"the image {path} cannot be read ({missing})")
        raise StorageError(f"{path} was there when {self.path} was opened and is gone; put it back")

    def findings(self) -> list[str]:
        """What another process needs to open the same: which image files are missing."""
        return sorted(self._absent or ())

    def digest(self) -> str:
        """Of the bytes of the file; the images beside it do not count."""
        return self._digest

    def identity(self, index: int) -> bytes | None:
        """What an entry teaches: its content and where its images lie, not its id. None if it cannot be parsed."""
        try:
            record, paths, _ = self._parse(index)
        except UserError:
            return None
        beside = os.path.join(os.fspath(self.path.parent), "")
        images = [path.removeprefix(beside) for path in paths]  # the file may move together with them
        return json.dumps([record.content, images], sort_keys=True).encode()

    def __getitem__(self, index: int) -> Record:
        if not 0 <= index < len(self):
            raise IndexError(f"record {index} of {len(self)}")
        try:
            record, paths, _ = self._parse(index)
            check_record(record)
            images = tuple(map(self._read_image, paths))
        except UserError as error:
            raise UserError(f"{self.path}, line {self._entries[index][0]}: {error}") from None
        return Record(record.id, record.task, record.source, record.language, record.license, images, record.content)

    def _parse(self, index: int) -> tuple[Record, list[str], list[str]]:
        """The record of an entry, with empty images; where its images lie; keys that are ignored."""
        line, payload = self._entries[index]
        value = {k: v for k, v in parse_entry(payload).items() if v is not None or k not in _MAY_BE_NULL}
        if {"query", "response"} <= value.keys() and not _TALKS & value.keys():
            value["messages"] = messages_of_query(value)
            value = {key: entry for key, entry in value.items() if key not in ("query", "response", "history")}
        ignored_of_messages: list[str] = []
        if "messages" in value and not {"conversations", "turns"} & value.keys():
            value["conversations"], shown, ignored_of_messages = turns_of_messages(value.pop("messages"))
            if shown and (value.get("images") or "image" in value):
                raise UserError('there are pictures beside "messages" and in its parts; keep one of the two')
            if shown:
                value["images"] = shown
        talks = "conversations" in value
        content, paths, ignored = self._conversation(value) if talks else self._fields(value)
        record = Record(
            id=str(value.get("id", f"{self.path.stem}:{line}")),
            task=self.task,
            source=value.get("source", self.path.stem),
            language=value.get("language") or language_of(content),
            license=value.get("license", "unknown"),
            images=(b"",) * len(paths),
            content=content,
        )
        return record, [self._resolve(path) for path in paths], [*ignored, *ignored_of_messages]

    def _conversation(self, value: dict[str, Any]) -> tuple[Content, list[str], list[str]]:
        if not {"image", "images"} & value.keys():
            ignored = self._check_keys(value, "dialogue", _CONVERSATION)
            return *parse_conversation(value["conversations"], value.get("system", "")), ignored
        ignored = self._check_keys(value, "dialogue", _LLAVA_CONVERSATION)
        paths = _image_paths(value)
        system, turns = parse_llava(value["conversations"], len(paths), value.get("system", ""))
        content: DialogueContent = {"system": system, "turns": with_regions(turns), "sizes": sizes_of(len(paths))}
        return content, paths, ignored

    def _fields(self, value: dict[str, Any]) -> tuple[Content, list[str], list[str]]:
        task = value.get("task", self.task)
        if not isinstance(task, str) or task not in TASKS:
            raise UserError(f"the task {task!r} is unknown{nearest(str(task), TASKS)}")
        required = RECORD_TASKS[task].required
        known = ("width", "height", *required, *RECORD_TASKS[task].optional)
        if ANNOTATIONS in value:
            known = (*known, ANNOTATIONS)
            required = ()  # an annotation may have them; `check_record` looks
        ignored = self._check_keys(value, task, (*_COMMON, *known))
        missing = [key for key in required if key not in value]
        if missing:
            has = ", ".join(map(repr, value)) or "none"
            step = _AS_MESSAGES if missing == ["turns"] else ""
            raise UserError(f"the sample of task {task!r} lacks {', '.join(missing)}; it has the keys {has}{step}")
        paths = _image_paths(value)
        content = {key: entry for key, entry in value.items() if key in known}
        return cast(Content, content), paths, ignored

    def _check_keys(self, value: dict[str, Any], task: str, known: Sequence[str]) -> list[str]:
        """The keys that are ignored.

        Raises:
          UserError: if the task is not the source's, a key looks like a known one, or a text field is not a string.
        """
        if value.get("task", task) != self.task or task != self.task:
            other = value.get("task", task)
            raise UserError(
                f"the sample is of task {other!r}, but the source is for {self.task!r}; correct the sample or "
                "the source"
            )
        unknown = [key for key in value if key not in known]
        names = (*known, "conversations") if task == "dialogue" else known
        for key in unknown:
            meant = "; did you mean 'system'?" if key == "system_prompt" else nearest(key, names)
            if meant and not _is_harmless(key, known):
                raise UserError(f"the key {key!r} is unknown for task {task!r}{meant}")
        for key in (*_COMMON_TEXTS, *RECORD_TASKS[task].texts):
            if key not in known or key not in value or isinstance(value[key], str):
                continue
            if key != "id" or not isinstance(value[key], int):
                raise UserError(f"{key!r} must be a text, not {value[key]!r}")
        return unknown

    def _resolve(self, path: str) -> str:
        """Where an image lies: as given if absolute, on gs:// or a data URL, else from the folder of the file.

        A path may also be given as a `file://` address, in which characters may be percent-encoded.
        """
        if _DATA_URL.match(path):
            return path
        if path.startswith(_FILE_URL):
            path = urllib.parse.unquote(path.removeprefix(_FILE_URL))
        if storage.scheme_of(path) not in ("", "gs"):
            raise UserError(f"the image {path} is not a file; download it and give its path")
        if len(path) > _LONGEST_PATH:
            raise UserError(f"the image {path[:20]!r}.. of {len(path):,} characters is not a path; {_AS_DATA_URL}")
        if "\0" in path:
            raise UserError(f"the image {path!r} is not a path")
        if storage.is_remote(path):
            storage.path(path)  # raises if there can be no such bucket
            return path
        return path if path.startswith("/") else os.fspath(self.path.parent / path)


def _image_paths(value: dict[str, Any]) -> list[str]:
    """The paths, or data URLs, of the images of an entry."""
    if "image" in value and "images" in value:
        raise UserError('there are both "image" and "images"; keep one')
    paths = [value["image"]] if "image" in value else value.get("images", [])
    if not isinstance(paths, list) or not all(isinstance(path, str) and path for path in paths):
        raise UserError(f'"image" must be a path and "images" a list of paths; {_AS_DATA_URL}')
    return paths


def _is_harmless(key: str, known: Sequence[str]) -> bool:
    """Whether a key that looks like a known one is one of its own, as "source_id" is beside "source"."""
    if key == "system_prompt":
        return False
    return key in _HARMLESS or any(key.startswith(f"{name}_") or key.endswith(f"_{name}") for name in known)


def _decoded(text: str) -> bytes:
    """The bytes of a data URL. Raises UserError if they are not base64."""
    try:
        return base64.b64decode(text, validate=True)
    except ValueError as error:
        raise UserError(f"the image in a data URL is not base64 ({error}); write it again") from None


def _spellings(path: str) -> tuple[str, ...]:
    """The names under which a file may lie: as written, and with its accents in the other Unicode forms.

    Some file systems and archives decompose them; the release, whose paths are composed, looks for both as well.
    """
    if path.isascii():
        return (path,)
    return tuple(dict.fromkeys((path, unicodedata.normalize("NFC", path), unicodedata.normalize("NFD", path))))
