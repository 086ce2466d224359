"""The index of a WebDataset shard: made in one pass over its headers, and stored next to it for the next run.

A shard is an uncompressed tar file, or several that were joined with `cat`. Neighbouring members whose names agree up
to the first dot are one sample, as webdataset has it: `000001.jpg`, `000001.txt`, `000001.json`. Texts are read during
the pass, so that whatever cannot be used is known, and counted, before training; images are not.
"""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
import os
import tarfile
from collections.abc import Iterator
from typing import Any, BinaryIO, Literal

import numpy as np
from etils import epath

from qwenvl_jax.data.images.exact import SUFFIXES as IMAGE_SUFFIXES
from qwenvl_jax.data.languages import guess_language, language_name
from qwenvl_jax.data.readers.json_entries import json_value
from qwenvl_jax.runtime import storage
from qwenvl_jax.runtime.errors import StorageError, UserError

VERSION = 3
# Suffixes of pictures that are not decoded.
_OTHER_PICTURES = ("avif", "heic", "heif", "jxl", "jp2", "tif", "tiff", "svg", "ico", "psd", "eps", "ppm")
MAX_TEXT_BYTES = 1 << 20
_ZEROS = 1 << 20  # bytes that are read at once where an archive has ended
_AHEAD = 16 << 20  # bytes of one request for a shard on an object store
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


def index_shard(path: epath.Path, entry: storage.Entry) -> ShardIndex:
    """The index of a shard: the kept one if the shard has not changed since, else made and, if possible, kept.

    It is kept as `.NAME.index.npz` beside the shard or, if nothing can be written there, in
    `$XDG_CACHE_HOME/qwenvl_jax` (`~/.cache/qwenvl_jax`).

    Args:
      path: of the shard.
      entry: what the listing of its folder says of it.

    Raises:
      UserError: if the file cannot be read or is no uncompressed tar file.
    """
    try:
        size = entry.size or 0
        stamp = [VERSION, size, entry.changed]
        index_paths = _index_paths(path)
        for index_path in index_paths:
            if (kept := _load(index_path, path, stamp)) is not None:
                return kept
        index = _scan(path, size)
    except OSError as error:
        raise UserError(
            f"the shard {path} cannot be read ({error}); copy it again, or correct its permissions"
        ) from None
    notes = json.dumps({"stamp": stamp, "left_out": index.left_out, "first": index.first})
    payload = io.BytesIO()
    np.savez(payload, samples=index.samples_S, notes=np.array(notes))
    for index_path in index_paths:
        try:
            storage.write_bytes(index_path, payload.getvalue())
        except Exception:  # object stores raise various errors if they are read-only
            continue
        break
    return index


def _index_paths(path: epath.Path) -> list[epath.Path]:
    """The paths at which the index of a shard may be stored, the best first."""
    cache = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    name = hashlib.sha256(str(storage.absolute(path)).encode()).hexdigest()
    return [path.parent / f".{path.name}.index.npz", epath.Path(cache) / "qwenvl_jax" / f"{name[:32]}.index.npz"]


def _load(index_path: epath.Path, path: epath.Path, stamp: list[int]) -> ShardIndex | None:
    """A kept index, or None if there is none, it is damaged, or it is of another state of the shard."""
    try:
        kept = io.BytesIO(storage.read_bytes(index_path))
        with np.load(kept, allow_pickle=False) as arrays:
            notes = json.loads(str(arrays["notes"]))
            if notes["stamp"] == stamp and _lie_within(arrays["samples"], stamp[1]):
                return ShardIndex(path, arrays["samples"], notes["left_out"], notes["first"])
    except (MemoryError, StorageError):
        raise
    except Exception:  # zipfile, zlib and numpy raise nearly anything on damaged files
        return None
    return None


def _lie_within(samples_S: np.ndarray, size: int) -> bool:
    """Whether all offsets are inside a shard of `size` bytes: an index file is not trusted, as a shard is not."""
    for start, length, most in (("image", "image_size", size), ("text", "text_size", MAX_TEXT_BYTES)):
        starts_S = samples_S[start]
        lengths_S = samples_S[length]
        if ((starts_S < 0) | (lengths_S < 0) | (lengths_S > most) | (starts_S > size - lengths_S)).any():
            return False
    return {"json", "language", "key"} <= set(samples_S.dtype.names or ())


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


class _Sample:
    """The members of one sample as they come by."""

    def __init__(self, key: str):
        self.key = key
        self.image: tuple[int, int] | None = None
        self.texts: dict[str, tuple[int, bytes]] = {}
        self.unreadable = False
        self.suffixes: list[str] = []

    def add(self, suffix: str, member: tarfile.TarInfo, file: BinaryIO) -> None:
        self.suffixes.append(suffix)
        if suffix in IMAGE_SUFFIXES:
            self.image = self.image or (member.offset_data, member.size)
        elif suffix in ("txt", "json"):
            if member.size > MAX_TEXT_BYTES:
                self.unreadable = True
                return
            file.seek(member.offset_data)
            self.texts.setdefault(suffix, (member.offset_data, file.read(member.size)))

    def lost(self) -> list[str]:
        """Suffixes of members that look like samples of their own, but belong to this one by the rule of the first dot.

        If the sample has an image, these are the dotted pictures that have a text. Otherwise they are all members that
        may be pictures or, if there are none, the first member.
        """
        ends = [suffix.rpartition(".") for suffix in self.suffixes]
        told = {start for start, _, end in ends if end in ("txt", "json")}
        pictures = [(start, end) for start, _, end in ends if end in (*IMAGE_SUFFIXES, *_OTHER_PICTURES)]
        if self.image is not None:
            return [f"{start}.{end}" for start, end in pictures if start and start in told]
        if pictures or self.texts or self.unreadable:
            return [f"{start}.{end}" if start else end for start, end in pictures]
        return self.suffixes[:1]

    def row(self) -> tuple[Any, ...] | str:
        """A row of the index, or the key of LEFT_OUT that says why there is none."""
        used = [suffix for suffix in self.suffixes if suffix in (*IMAGE_SUFFIXES, "txt", "json")]
        if len(set(used)) < len(used):
            return "repeated"  # nobody can tell which text belongs to which picture
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
        language = notes.get("language") or guess_language(caption)
        try:
            language_name(str(language))
        except UserError:
            return "language"
        key = self.key.encode("utf-8", "replace")[-_KEY_BYTES:]
        return (*self.image, start, len(payload), suffix == "json", str(language).encode(), key)


def _scan(path: epath.Path, size: int) -> ShardIndex:
    rows: list[tuple[Any, ...]] = []
    left_out = dict.fromkeys(LEFT_OUT, 0)
    first: dict[str, str] = {}

    def leave_out(why: str, name: str, number: int = 1) -> None:
        left_out[why] += number
        first.setdefault(why, name.encode("utf-8", "replace").decode())

    def finish(sample: _Sample | None) -> None:
        if sample is None:
            return
        row = sample.row()
        lost = sample.lost()
        if not isinstance(row, str):
            rows.append(row)
        elif row == "repeated":
            leave_out(row, sample.key, max(1, sum(suffix in IMAGE_SUFFIXES for suffix in sample.suffixes)))
            return
        elif row != "no_image" or not lost:
            leave_out(row, sample.key)
        if lost:
            leave_out("unknown", f"{sample.key}.{lost[0]}".rstrip("."), len(lost))

    sample: _Sample | None = None
    # Texts and headers lie between images, so a request reads far ahead; a disk skips the images instead.
    with storage.open_read(path, _AHEAD if storage.is_remote(path) else io.DEFAULT_BUFFER_SIZE) as file:
        for member in _members(path, file, size):
            if member == "end":  # what follows belongs to another archive
                finish(sample)
                sample = None
            elif member == "damaged":
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


def _members(path: epath.Path, file: BinaryIO, size: int) -> Iterator[tarfile.TarInfo | Literal["end", "damaged"]]:
    """All whole members; "end" where an archive ends as it should, and "damaged" where nothing more can be read."""
    start = 0
    while start < size:
        file.seek(start)
        try:
            archive = tarfile.open(fileobj=file, mode="r:") if size - start >= tarfile.BLOCKSIZE else None  # noqa: SIM115
        except tarfile.TarError:
            if not start:
                raise UserError(f"{path} is not an uncompressed tar file; unpack or remove it") from None
            archive = None
        if archive is None:
            break
        before = -1
        while (member := _next(archive)) is not None:
            # Sizes come from the file: a negative one would lead backwards, one too large beyond the end.
            if member == "damaged" or member.offset <= before or member.size < 0:
                yield "damaged"
                return
            if member.isreg() and member.offset_data + member.size > size:
                yield "damaged"
                return
            before = member.offset
            archive.members = []  # type: ignore[attr-defined]  # else every header stays in memory
            yield member
        # tarfile also stops, without a word, at a header that is cut off or damaged. A whole archive ends in zeros,
        # after which another may follow.
        end = archive.offset
        start = _after_zeros(file, end)
        if start - end < tarfile.BLOCKSIZE:
            break
        yield "end"
    else:
        if size:
            return
    yield "damaged"


def _next(archive: tarfile.TarFile) -> tarfile.TarInfo | Literal["damaged"] | None:
    try:
        return archive.next()
    except (OSError, StorageError):
        raise
    except Exception:  # tarfile raises nearly anything on damaged headers
        return "damaged"


def _after_zeros(file: BinaryIO, start: int) -> int:
    """The first block from `start` on that is not all zeros, or the end of the file."""
    file.seek(start)
    while block := file.read(_ZEROS):
        kept = block.lstrip(b"\0")
        if kept:
            return start + (len(block) - len(kept)) // tarfile.BLOCKSIZE * tarfile.BLOCKSIZE
        start += len(block)
    return start
