"""What lies where in a WebDataset shard: one pass over its headers, kept beside it for the next run.

A shard is an uncompressed tar file. Neighbouring members whose names agree up to the first dot are one sample:
`000001.jpg`, `000001.txt`, `000001.json`. Texts are read during the pass, so that whatever cannot be used is known,
and counted, before training; images are not.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import io
import json
import os
import re
import tarfile
import zipfile
from collections.abc import Iterator
from typing import Any, BinaryIO

import numpy as np
from etils import epath

from qwenvl_jax.data.formats import language_name
from qwenvl_jax.runtime import artifacts
from qwenvl_jax.runtime.errors import UserError

VERSION = 1
IMAGE_SUFFIXES = ("jpg", "jpeg", "png", "webp", "gif", "bmp")
MAX_TEXT_BYTES = 1 << 20
_KEY_BYTES = 128  # of a name that are kept; names only serve messages

# One per kind of thing that is left out, with what a person is told.
LEFT_OUT = {
    "refused": "members refused (an absolute path, '..', a link or a sparse file)",
    "no_image": "samples without an image",
    "no_caption": "samples without a caption",
    "unreadable": "samples whose text is not UTF-8, not JSON or too long",
    "language": "samples in a language without a prompt",
    "truncated": "shards that are cut off or damaged, read up to there",
}

_DTYPE = [("image", "<i8"), ("image_size", "<i8"), ("text", "<i8"), ("text_size", "<i8"), ("json", "?")]
_HAN = re.compile(r"[\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff]")


@dataclasses.dataclass(frozen=True)
class ShardIndex:
    """One shard.

    Attributes:
      path: of the tar file.
      samples_S: [S] structured: `image`, `image_size`, `text`, `text_size` int64 places and lengths in bytes, `json`
        bool, whether the caption is the one of the `.json` member, `language` and `key` bytes.
      left_out: how many, by the keys of LEFT_OUT.
      first: by the same keys, the name of the first.
    """

    path: epath.Path
    samples_S: np.ndarray
    left_out: dict[str, int]
    first: dict[str, str]


def index_shard(path: epath.Path) -> ShardIndex:
    """The index of a shard: the kept one if the shard has not changed since, else made and, where possible, kept.

    It is kept as `.NAME.index.npz` beside the shard or, if nothing can be written there, in
    `$XDG_CACHE_HOME/qwenvl_jax` (`~/.cache/qwenvl_jax`).

    Raises:
      UserError: if the file cannot be read or is no uncompressed tar file.
    """
    try:
        stat = path.stat()
        stamp = [VERSION, int(stat.length), int(stat.mtime)]
        places = _places(path)
        for place in places:
            if (kept := _load(place, path, stamp)) is not None:
                return kept
        index = _scan(path, int(stat.length))
    except OSError as error:
        raise UserError(f"the shard {path} cannot be read ({error})") from None
    notes = json.dumps({"stamp": stamp, "left_out": index.left_out, "first": index.first})
    payload = io.BytesIO()
    np.savez(payload, samples=index.samples_S, notes=np.array(notes))
    for place in places:
        try:
            artifacts.write_bytes(place, payload.getvalue())
        except Exception:  # object stores have errors of their own for what is read-only
            continue
        break
    return index


def _places(path: epath.Path) -> list[epath.Path]:
    """Where the index of a shard may lie, the best first."""
    cache = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    name = hashlib.sha256(os.path.abspath(path).encode() if "://" not in str(path) else str(path).encode()).hexdigest()
    return [path.parent / f".{path.name}.index.npz", epath.Path(cache) / "qwenvl_jax" / f"{name[:32]}.index.npz"]


def _load(place: epath.Path, path: epath.Path, stamp: list[int]) -> ShardIndex | None:
    """A kept index, or None if there is none, it is damaged, or it is of another state of the shard."""
    with contextlib.suppress(OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        if place.exists():
            with np.load(io.BytesIO(place.read_bytes()), allow_pickle=False) as arrays:
                notes = json.loads(str(arrays["notes"]))
                if notes["stamp"] == stamp:
                    return ShardIndex(path, arrays["samples"], notes["left_out"], notes["first"])
    return None


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
    try:
        value = json.loads(payload.decode("utf-8-sig"))  # json would guess UTF-16 and let surrogates pass
        if b"\\u" in payload:
            json.dumps(value, ensure_ascii=False).encode()  # raises for half a surrogate pair
    except RecursionError:
        raise ValueError("nested too deeply") from None
    if not isinstance(value, dict):
        raise ValueError("not an object")
    return value


class _Sample:
    """The members of one sample as they come by."""

    def __init__(self, key: str):
        self.key = key
        self.image: tuple[int, int] | None = None
        self.texts: dict[str, tuple[int, bytes]] = {}
        self.unreadable = False

    def add(self, suffix: str, member: tarfile.TarInfo, file: BinaryIO) -> None:
        if suffix in IMAGE_SUFFIXES:
            self.image = self.image or (member.offset_data, member.size)
        elif suffix in ("txt", "json"):
            if member.size > MAX_TEXT_BYTES:
                self.unreadable = True
                return
            file.seek(member.offset_data)
            self.texts.setdefault(suffix, (member.offset_data, file.read(member.size)))

    def row(self) -> tuple[Any, ...] | str:
        """A row of the index, or the key of LEFT_OUT that says why there is none."""
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
        language = notes.get("language") or _guess_language(caption)
        try:
            language_name(str(language))
        except UserError:
            return "language"
        key = self.key.encode("utf-8", "replace")[-_KEY_BYTES:]
        return (*self.image, start, len(payload), suffix == "json", str(language).encode(), key)


def _guess_language(caption: str) -> str:
    """zh if at least half of the letters are Chinese characters, else en: the corpora rarely say."""
    letters = sum(character.isalpha() for character in caption)
    return "zh" if letters and 2 * len(_HAN.findall(caption)) >= letters else "en"


def _scan(path: epath.Path, size: int) -> ShardIndex:
    rows: list[tuple[Any, ...]] = []
    left_out = dict.fromkeys(LEFT_OUT, 0)
    first: dict[str, str] = {}

    def leave_out(why: str, name: str) -> None:
        left_out[why] += 1
        first.setdefault(why, name.encode("utf-8", "replace").decode())

    def finish(sample: _Sample | None) -> None:
        if sample is not None and (sample.image or sample.texts or sample.unreadable):
            row = sample.row()
            leave_out(row, sample.key) if isinstance(row, str) else rows.append(row)

    sample: _Sample | None = None
    with path.open("rb") as file:
        for member in _members(path, file, size):
            if member is None:
                leave_out("truncated", path.name)
            elif member.isdir():
                continue
            elif not member.isreg() or member.issparse() or _leaves(member.name):
                leave_out("refused", member.name)
            else:
                folder, _, base = member.name.rpartition("/")
                stem, _, suffix = base.partition(".")
                if not stem:  # hidden files, such as those that macOS adds
                    continue
                key = f"{folder}/{stem}" if folder else stem
                if sample is None or sample.key != key:
                    finish(sample)
                    sample = _Sample(key)
                sample.add(suffix.lower(), member, file)
    finish(sample)
    widths = [("language", f"S{_width(rows, -2)}"), ("key", f"S{_width(rows, -1)}")]
    return ShardIndex(path, np.array(rows, dtype=[*_DTYPE, *widths]), left_out, first)


def _width(rows: list[tuple[Any, ...]], column: int) -> int:
    return max((len(row[column]) for row in rows), default=1)


def _leaves(name: str) -> bool:
    return name.startswith("/") or ".." in name.split("/")


def _members(path: epath.Path, file: BinaryIO, size: int) -> Iterator[tarfile.TarInfo | None]:
    """All whole members; then None if the archive does not end as it should."""
    if size < tarfile.BLOCKSIZE:
        yield None
        return
    try:
        archive = tarfile.open(fileobj=file, mode="r:")  # noqa: SIM115 (the file is the caller's)
    except tarfile.TarError:
        raise UserError(f"{path} is not an uncompressed tar file; unpack or remove it") from None
    before = -1
    while True:
        try:
            member = archive.next()
        except (tarfile.TarError, ValueError, OverflowError):
            yield None
            return
        if member is None:
            break
        # Sizes come from the file: a negative one would lead backwards, one too large beyond the end.
        if member.offset <= before or member.size < 0 or (member.isreg() and member.offset_data + member.size > size):
            yield None
            return
        before = member.offset
        archive.members = []  # type: ignore[attr-defined]  # else every header stays in memory
        yield member
    # tarfile also stops, without a word, at a header that is cut off or damaged. A whole archive ends in zeros.
    file.seek(archive.offset)
    end = file.read(tarfile.BLOCKSIZE)
    if len(end) < tarfile.BLOCKSIZE or any(end):
        yield None
