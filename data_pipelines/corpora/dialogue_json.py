"""Dialogues in JSON: those of LLaVA, and those of the released fine-tuning of Qwen-VL.

LLaVA, https://huggingface.co/datasets/liuhaotian/LLaVA-Instruct-150K. Licence: CC-BY-4.0 and the terms of use of
OpenAI; the pictures are those of COCO and others, of their owners.

    FOLDER/llava_instruct_150k.json      [{"id", "image": "000000033471.jpg", "conversations": [{"from", "value"}]}]
    FOLDER/train2017/000000033471.jpg    a picture that is named without a folder
    FOLDER/coco/train2017/..             one that is named with its folder, as in llava_v1_5_mix665k.json

`from` is "human" or "gpt"; `<image>` in `value` is the picture.

Qwen-VL, https://github.com/QwenLM/Qwen-VL#data-preparation. Licence: that of the authors of the dialogues.

    FOLDER/dialogues.json                [{"id", "conversations": [{"from", "value": "<img>a/b.jpg</img> .."}]}]
    FOLDER/a/b.jpg

`from` is "user" or "assistant"; docs/data.md has the tags. Regions are in thousandths.

All `.json` and `.jsonl` files directly in FOLDER are read: each is one list, or has one object per line.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from etils import epath

from data_pipelines.corpora.corpus import Corpus, Layout
from data_pipelines.corpora.json_stream import entries
from data_pipelines.corpora.rows import (
    BadRow,
    encodable,
    json_object,
    label_at,
    lines,
    object_of,
    picture_path,
    read_each,
    text_at,
    whole_line,
)
from data_pipelines.pair import Picture, RawPair, Row
from qwenvl_jax.data.readers.conversations import parse_conversation, parse_llava
from qwenvl_jax.runtime import storage
from qwenvl_jax.runtime.errors import UserError

_LLAVA_PICTURES = "train2017"

# (folder, row) -> pictures, turns, the system's text, and whether regions are in thousandths.
Parse = Callable[[epath.Path, Mapping[str, Any]], dict[str, Any]]


def _files(folder: epath.Path, split: str) -> list[epath.Path]:
    try:
        sizes = storage.sizes(folder)
    except (FileNotFoundError, NotADirectoryError):
        sizes = {}
    names = sorted(name for name, size in sizes.items() if size is not None and name.endswith((".json", ".jsonl")))
    if not names:
        raise UserError(f"{folder} has no .json and no .jsonl file of dialogues; correct the folder")
    return [folder / name for name in names]


def _read_file(parse: Parse, corpus: Corpus, folder: epath.Path, split: str, file: epath.Path) -> Iterator[Row]:
    def read(numbered: tuple[int, Mapping[str, Any] | BadRow]) -> RawPair:
        number, row = numbered
        if isinstance(row, BadRow):
            raise row
        try:
            fields = parse(folder, row)
        except UserError as error:
            raise BadRow("malformed dialogue", f"entry {number}: {error}") from None
        return RawPair(
            # The ids of LLaVA are those of pictures, which have several dialogues.
            id=f"{encodable(file.stem)}/{number}",
            source=corpus.name,
            license=label_at(row, "license") or corpus.license,
            language=label_at(row, "language") or corpus.language,
            **fields,
        )

    yield from read_each(_lines(file) if file.suffix == ".jsonl" else _items(file), read)


def _lines(file: epath.Path) -> Iterator[tuple[int, Mapping[str, Any] | BadRow]]:
    """The number and object of every line."""
    for number, line in lines(file):
        try:
            yield number, json_object(whole_line(line))
        except BadRow as error:
            yield number, error


def _items(file: epath.Path) -> Iterator[tuple[int, Mapping[str, Any] | BadRow]]:
    """The number and object of every item of the list in a file."""
    for number, entry in enumerate(entries(file)):
        if entry.name:
            raise UserError(f"{file} is one object, not a list of dialogues; leave it out of the folder, or correct it")
        if entry.failure is not None:
            yield number, BadRow(entry.failure.reason, entry.failure.detail)
            continue
        try:
            yield number, object_of(entry.value)
        except BadRow as error:
            yield number, error


def _llava(folder: epath.Path, row: Mapping[str, Any]) -> dict[str, Any]:
    names = row.get("image", row.get("images"))
    names = [] if names is None else [names] if isinstance(names, str) else names
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise BadRow("wrong type", "'image' is neither a name nor a list of names")
    system, turns = parse_llava(row.get("conversations"), len(names))
    paths = [picture_path(folder if "/" in name else folder / _LLAVA_PICTURES, name) for name in names]
    return {"pictures": tuple(Picture(path=path) for path in paths), "turns": tuple(turns), "system": system}


def _qwen(folder: epath.Path, row: Mapping[str, Any]) -> dict[str, Any]:
    content, names = parse_conversation(row.get("conversations"), text_at(row, "system", default=""))
    prefix = os.fspath(folder).rstrip("/") + "/"
    paths = [picture_path(folder, name.removeprefix(prefix)) for name in names]
    return {
        "pictures": tuple(Picture(path=path) for path in paths),
        "turns": tuple(content["turns"]),
        "system": content["system"],
        "in_thousandths": True,
    }


LLAVA = Layout(_files, functools.partial(_read_file, _llava), cut=True)
QWEN_VL = Layout(_files, functools.partial(_read_file, _qwen), cut=True)
