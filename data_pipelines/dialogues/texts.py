"""Dialogues without pictures: from record folders, from JSON files, and made from plain texts."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import random
import re
from collections.abc import Iterator
from typing import Any, cast

from etils import epath

from data_pipelines.compose.dialogue import dialogue
from data_pipelines.corpora.table import CORPORA
from data_pipelines.dialogues.picture import plain_language
from data_pipelines.dialogues.wording import TEMPLATES
from data_pipelines.pair import RawPair, Row
from qwenvl_jax.data.record_format import MANIFEST
from qwenvl_jax.data.record_writer import write_records
from qwenvl_jax.data.schema import Record
from qwenvl_jax.data.tasks import Content, TextContent
from qwenvl_jax.runtime import artifacts, storage
from qwenvl_jax.runtime.errors import StorageError, UserError

_SENTENCES = re.compile(r"(?<=[.!?。！？])\s*(?=\S)|\n+")
_LONGEST_TEXT = 6000  # characters of a text that is continued


def text_dialogue(record: Record, number: int, seed: str) -> Record | None:
    """The dialogue of a record without pictures; None for a text that cannot be cut in two.

    The question of the dialogue has the first half of the text and asks how it goes on; the answer has the rest.
    """
    record = dataclasses.replace(record, id=f"dialogue-{number:08d}", task="dialogue")
    content: Any = record.content
    if "turns" in content:
        return record
    language = plain_language(record.language)
    text = cast(TextContent, content)["text"].strip()[:_LONGEST_TEXT]
    ends = [match.start() for match in _SENTENCES.finditer(text) if match.start() > 0]
    if language not in TEMPLATES or not ends:
        return None
    cut = min(ends, key=lambda end: abs(2 * end - len(text)))
    question = random.Random(seed).choice(TEMPLATES[language].CONTINUE).replace("{text}", text[:cut].strip())
    turns = [
        {"role": "user", "parts": [{"text": question}]},
        {"role": "assistant", "parts": [{"text": text[cut:].strip()}]},
    ]
    return dataclasses.replace(record, content=cast(Content, {"turns": turns}))


def staged(folder: str, layout: str, split: str, target: epath.Path) -> str:
    """A record folder of the dialogues in the JSON files of `folder`, which is made unless it is there.

    Args:
      folder: with `.json` and `.jsonl` files.
      layout: a corpus of `corpora.table` with dialogues, such as "qwen_vl_dialogues".
      split: the name of the split that is written.
      target: where the record folder is kept; it has the digest of the files in its name.

    Raises:
      UserError: if no row is a dialogue without a picture.
    """
    corpus = CORPORA[layout]
    where = storage.path(folder)
    files = corpus.layout.files(where, corpus.splits["train"])
    digests = json.dumps([artifacts.sha256_of(file) for file in files])
    output = target / hashlib.sha256(f"{layout}{digests}".encode()).hexdigest()[:32]
    if storage.exists(output / MANIFEST):
        return str(output)
    failed: dict[str, int] = {}

    def records() -> Iterator[Record]:
        for row in corpus.read(where):
            record = _record(row)
            if isinstance(record, Record):
                yield record
            else:
                failed[record] = failed.get(record, 0) + 1

    rows = records()
    first = next(rows, None)
    if first is None:
        reasons = ", ".join(f"{count} rows: {reason}" for reason, count in failed.items()) or "no rows"
        raise UserError(f"{folder} has no dialogue without a picture ({reasons}); name another --text")
    write_records(output, {split: _chained(first, rows)}, name="texts", extra={"failed": failed})
    return str(output)


def _chained(first: Record, rest: Iterator[Record]) -> Iterator[Record]:
    yield first
    yield from rest


def _record(row: Row) -> Record | str:
    """The record of a row, or the reason for which there is none."""
    if not isinstance(row, RawPair):
        return row.reason
    if row.pictures:
        return "dialogue with a picture"
    try:
        return dialogue(row) or "no turns"
    except (UserError, OSError, StorageError):
        return "malformed dialogue"
