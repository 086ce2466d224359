"""The paths of sources: brace patterns, and the kinds of files that cannot be a source."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator

from qwenvl_jax.runtime.errors import UserError

MAX_SHARDS = 1_000_000  # limit of one pattern; a typing error can name more than fit in memory

_RANGE = re.compile(r"(-?\d{1,18})\.\.(-?\d{1,18})(?:\.\.(\d{1,18}))?")
_UNPACK = "is compressed, which allows no seek; unpack it"

# How the names of other kinds of files end, the longest first, and what to do about each.
_OTHER_KINDS = {
    ".jsonl.gz": f"{_UNPACK} with gunzip to a .jsonl file",
    ".json.gz": f"{_UNPACK} with gunzip to a .json file",
    ".jsonl.zst": f"{_UNPACK} with unzstd to a .jsonl file",
    ".tar.gz": f"{_UNPACK} with gunzip to a .tar file",
    ".tar.bz2": f"{_UNPACK} with bunzip2 to a .tar file",
    ".tar.xz": f"{_UNPACK} with unxz to a .tar file",
    ".tar.zst": f"{_UNPACK} with unzstd to a .tar file",
    ".tgz": f"{_UNPACK} with gunzip to a .tar file",
    ".zip": "is a ZIP archive; unpack it and list its samples in a .jsonl file",
    ".parquet": "is a Parquet table; write its rows as a .jsonl file with the pictures beside it",
    ".arrow": "is an Arrow table; write its rows as a .jsonl file with the pictures beside it",
    ".csv": "is a table; write its rows as a .jsonl file",
    ".tsv": "is a table; write its rows as a .jsonl file",
    ".txt": "is plain text; write its samples as a .jsonl file",
    ".tfrecord": "is a TFRecord file; prepare the data set with TFDS and file_format='array_record'",
    ".array_record": "is one shard; name the record folder that it lies in",
}
_SHARD = re.compile(r"\.(array_record|tfrecord)(-\d+-of-\d+)?$")


def expand_braces(pattern: str) -> list[str]:
    """The names that a pattern such as `{00000..00127}.tar` or `{train,val}/*.tar` stands for, as a shell writes them.

    Raises:
      UserError: if there are more than MAX_SHARDS.
    """
    names = list(itertools.islice(_expand(pattern), MAX_SHARDS + 1))
    if len(names) > MAX_SHARDS:
        raise UserError(f"{pattern} names more than {MAX_SHARDS:,} shards; correct its braces")
    return names


def _expand(text: str) -> Iterator[str]:
    index = 0
    while (start := text.find("{", index)) >= 0:
        stop = _closing(text, start)
        choices = _choices(text[start + 1 : stop]) if stop > 0 else None
        if choices is None:  # braces that mean themselves
            index = start + 1
            continue
        for choice in choices:
            for rest in _expand(text[stop + 1 :]):
                yield text[:start] + choice + rest
        return
    yield text


def _closing(text: str, start: int) -> int:
    """The index at which the brace that opens at `start` is closed; -1 if it is not."""
    depth = 0
    for index in range(start, len(text)):
        depth += {"{": 1, "}": -1}.get(text[index], 0)
        if not depth:
            return index
    return -1


def _choices(inside: str) -> Iterator[str] | None:
    """The alternatives that braces around this text stand for; None if it is neither a range nor a list."""
    if match := _RANGE.fullmatch(inside):
        first, last, stride = match.groups()
        step = max(1, int(stride or 1))
        padded = any(len(number.lstrip("-")) > 1 and number.lstrip("-")[0] == "0" for number in (first, last))
        width = max(len(first), len(last)) if padded else 0
        down = int(first) > int(last)
        numbers = range(int(first), int(last) - 1, -step) if down else range(int(first), int(last) + 1, step)
        return (str(number).zfill(width) for number in numbers)
    parts = []
    depth = 0
    begin = 0
    for index, sign in enumerate(inside):
        depth += {"{": 1, "}": -1}.get(sign, 0)
        if sign == "," and not depth:
            parts.append(inside[begin:index])
            begin = index + 1
    parts.append(inside[begin:])
    return (name for part in parts for name in _expand(part)) if len(parts) > 1 else None


def other_kind(path: str) -> str:
    """Why the files at a path cannot be a source, and what to do; "" if their kind is not known to be wrong."""
    name = _SHARD.sub(r".\1", path.lower())
    for ending, advice in _OTHER_KINDS.items():
        if name.endswith(ending):
            return f"{path} {advice} (docs/data.md lists what can be read)"
    return ""
