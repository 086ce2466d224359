"""The samples of a WebDataset shard and what is left out of it, found in one pass over its members.

A shard is an uncompressed tar file, or several that were joined with `cat`. Neighbouring members whose names agree up
to the first dot are one sample, as webdataset has it: `000001.jpg`, `000001.txt`, `000001.json`. Texts are read during
the pass, so that whatever cannot be used is known, and counted, before training; images are not.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from etils import epath

from qwenvl_jax.data.images.exact import MAX_BYTES
from qwenvl_jax.data.images.exact import SUFFIXES as IMAGE_SUFFIXES
from qwenvl_jax.data.languages import guess_language, language_name
from qwenvl_jax.data.readers.json_entries import json_value
from qwenvl_jax.data.readers.tar_members import BlockFile, Member, members
from qwenvl_jax.runtime.errors import UserError

# Suffixes of pictures that are not decoded.
_OTHER_PICTURES = ("avif", "heic", "heif", "jxl", "jp2", "tif", "tiff", "svg", "ico", "psd", "eps", "ppm")
_IMAGES = frozenset(IMAGE_SUFFIXES)
_PICTURES = frozenset((*IMAGE_SUFFIXES, *_OTHER_PICTURES))
_TEXTS = frozenset(("txt", "json"))
MAX_TEXT_BYTES = 1 << 20
_KEY_BYTES = 128  # of a name that are kept; names only serve messages

# Reasons for leaving something out, and how messages describe it.
LEFT_OUT = {
    "refused": "members refused (an absolute path, '..', a link or a sparse file)",
    "no_image": "samples without an image",
    "unknown": "members that make no sample (no picture of a known kind, or a dot in the key, which ends at the first)",
    "repeated": "pictures in samples with two members of one name",
    "no_caption": "samples without a caption",
    "unreadable": "samples whose text is not UTF-8, not JSON or too long",
    "language": "samples in a language without a prompt",
    "truncated": "shards that are cut off or damaged, read up to there",
}

_DTYPE = [("image", "<i8"), ("image_size", "<i8"), ("text", "<i8"), ("text_size", "<i8"), ("json", "?")]


@dataclasses.dataclass(frozen=True)
class ShardIndex:
    """One shard.

    Attributes:
      path: of the tar file.
      samples_S: [S] structured: `image`, `image_size`, `text`, `text_size` int64 offsets and lengths in bytes, `json`
        bool, whether the caption is the one of the `.json` member, `language` and `key` bytes.
      left_out: how many, by the keys of LEFT_OUT.
      first: by the same keys, the name of the first.
    """

    path: epath.Path
    samples_S: np.ndarray
    left_out: dict[str, int]
    first: dict[str, str]


def read_caption(payload: bytes, is_json: bool) -> str:
    """The caption in a `.txt` or `.json` member, "" if it has none.

    Raises:
      ValueError: if the bytes are not UTF-8 or not a JSON object.
    """
    if not is_json:
        return payload.decode("utf-8-sig").strip()
    caption = _json_object(payload).get("caption")
    return caption.strip() if isinstance(caption, str) else ""


def _json_object(payload: bytes) -> dict[str, Any]:
    value = json_value(payload)
    if not isinstance(value, dict):
        raise ValueError("not an object")
    return value


@functools.lru_cache(1024)
def _has_prompt(language: str) -> bool:
    try:
        language_name(language)
    except UserError:
        return False
    return True


class LeftOut(NamedTuple):
    """A member that is refused, or the end of a damaged shard; `why` is a key of LEFT_OUT."""

    why: str
    name: str


class Sample:
    """The members of one sample as they come by.

    Attributes:
      key: their common name, up to the first dot.
      image: offset and length in bytes of the first image; None if there is none.
      picture: the bytes of that image; empty if they are not asked for, or longer than MAX_BYTES.
      texts: offset and bytes of the first `txt` and the first `json`.
      unreadable: whether a text is longer than MAX_TEXT_BYTES.
      suffixes: of all members.
    """

    __slots__ = ("image", "key", "picture", "pictures", "suffixes", "texts", "unreadable")

    def __init__(self, key: str, pictures: bool = False):
        self.key = key
        self.pictures = pictures
        self.image: tuple[int, int] | None = None
        self.picture = b""
        self.texts: dict[str, tuple[int, bytes]] = {}
        self.unreadable = False
        self.suffixes: list[str] = []

    def suffix_of(self, name: str) -> str:
        """The suffix of a member by its name, "" if the member may be of another sample."""
        prefix = self.key + "."
        if name.startswith(prefix):
            suffix = name[len(prefix) :]
            return "" if "/" in suffix else suffix.lower()
        return ""

    def add(self, suffix: str, member: Member, file: BlockFile) -> None:
        """Takes a member with its suffix; `file` is where its bytes are."""
        self.suffixes.append(suffix)
        if suffix in _IMAGES:
            if self.image is None:
                self.image = (member.start, member.size)
                if self.pictures and member.size <= MAX_BYTES:
                    self.picture = file.bytes_at(member.start, member.size)
        elif suffix in _TEXTS:
            if member.size > MAX_TEXT_BYTES:
                self.unreadable = True
                return
            if suffix not in self.texts:
                self.texts[suffix] = (member.start, file.bytes_at(member.start, member.size))

    def lost(self) -> list[str]:
        """Suffixes of members that look like samples of their own, but belong to this one by the rule of the first dot.

        If the sample has an image, these are the dotted pictures that have a text. Otherwise they are all members that
        may be pictures or, if there are none, the first member.
        """
        ends = [suffix.rpartition(".") for suffix in self.suffixes]
        captioned = {start for start, _, end in ends if end in _TEXTS}
        pictures = [(start, end) for start, _, end in ends if end in _PICTURES]
        if self.image is not None:
            return [f"{start}.{end}" for start, end in pictures if start and start in captioned]
        if pictures or self.texts or self.unreadable:
            return [f"{start}.{end}" if start else end for start, end in pictures]
        return self.suffixes[:1]

    def repeats(self) -> bool:
        """Whether two members have one name, so that nobody can tell which text belongs to which picture."""
        used = [suffix for suffix in self.suffixes if suffix in _IMAGES or suffix in _TEXTS]
        return len(set(used)) < len(used)

    def row(self) -> tuple[Any, ...] | str:
        """A row of the index, or the key of LEFT_OUT that says why there is none."""
        if self.repeats():
            return "repeated"
        if self.image is None:
            return "no_image"
        if self.unreadable:
            return "unreadable"
        try:
            notes = _json_object(self.texts["json"][1]) if "json" in self.texts else {}
            suffix = "txt" if "txt" in self.texts else "json"
            start, payload = self.texts.get(suffix, (0, b"{}"))
            caption = read_caption(payload, suffix == "json")
        except ValueError:
            return "unreadable"
        if not caption:
            return "no_caption"
        language = str(notes.get("language") or guess_language(caption))
        if not _has_prompt(language):
            return "language"
        key = self.key.encode("utf-8", "replace")[-_KEY_BYTES:]
        return (*self.image, start, len(payload), suffix == "json", language.encode(), key)


class _Shard:
    """The rows of a shard and what is left out, sample by sample."""

    def __init__(self) -> None:
        self.rows: list[tuple[Any, ...]] = []
        self.left_out = dict.fromkeys(LEFT_OUT, 0)
        self.first: dict[str, str] = {}

    def leave_out(self, why: str, name: str, number: int = 1) -> None:
        self.left_out[why] += number
        self.first.setdefault(why, name.encode("utf-8", "replace").decode())

    def finish(self, sample: Sample) -> None:
        row = sample.row()
        if not isinstance(row, str):
            self.rows.append(row)
            if not any("." in suffix for suffix in sample.suffixes):
                return  # no member can be another sample's
        lost = sample.lost()
        if row == "repeated":
            number = sum(suffix in _IMAGES for suffix in sample.suffixes)
            self.leave_out("repeated", sample.key, max(1, number))
            return
        if isinstance(row, str) and (row != "no_image" or not lost):
            self.leave_out(row, sample.key)
        if lost:
            self.leave_out("unknown", f"{sample.key}.{lost[0]}".rstrip("."), len(lost))


def scan_shard(path: epath.Path, size: int) -> ShardIndex:
    """The index of a shard of `size` bytes, from one pass over it.

    Raises:
      UserError: if the file is no uncompressed tar file.
    """
    shard = _Shard()
    for item in samples_of_shard(path, size):
        if isinstance(item, LeftOut):
            shard.leave_out(*item)
        else:
            shard.finish(item)
    return ShardIndex(path, _table(shard.rows), shard.left_out, shard.first)


def samples_of_shard(path: epath.Path, size: int, *, pictures: bool = False) -> Iterator[Sample | LeftOut]:
    """The samples of a shard of `size` bytes in their order, from one pass over it, and the members that are refused.

    Args:
      path: of the shard.
      size: in bytes.
      pictures: whether the bytes of the images are kept in the samples.

    Raises:
      UserError: if the file is no uncompressed tar file.
    """
    sample: Sample | None = None
    file = BlockFile(path, size)
    for member in members(path, file):
        if member == "end":  # what follows belongs to another archive
            if sample:
                yield sample
            sample = None
        elif isinstance(member, str):  # the last
            if sample:
                yield sample
            sample = None
            yield LeftOut("truncated", path.name)
        elif not member.regular or _leaves(member.name):
            yield LeftOut("refused", member.name)
        elif sample and (suffix := sample.suffix_of(member.name)):
            sample.add(suffix, member, file)
        else:
            folder, _, base = member.name.rpartition("/")
            stem, _, suffix = base.partition(".")
            if not stem:  # hidden files, such as those that macOS adds
                continue
            key = f"{folder}/{stem}" if folder else stem
            if sample is None or sample.key != key:
                if sample:
                    yield sample
                sample = Sample(key, pictures)
            sample.add(suffix.lower(), member, file)
    if sample:
        yield sample


def _table(rows: Sequence[tuple[Any, ...]]) -> np.ndarray:
    widths = [max((len(row[column]) for row in rows), default=1) for column in (-2, -1)]
    dtype = np.dtype([*_DTYPE, ("language", f"S{widths[0]}"), ("key", f"S{widths[1]}")])
    samples_S = np.zeros(len(rows), dtype)
    for name, column in zip(dtype.names or (), zip(*rows, strict=True), strict=False):
        samples_S[name] = column
    return samples_S


def _leaves(name: str) -> bool:
    return name.startswith("/") or (".." in name and ".." in name.split("/"))
