"""The joined index of all WebDataset shards of a source: one file, from which a run reads only the rows that it needs.

Rows are stored in blocks of 256 samples, in the order of the shards. A block holds 16 bytes per sample, the ends of the
keys, and the keys, so one read of about 7 kB gives everything about a sample. Every block has a checksum in a table of
12 bytes per block. A process holds that table and the list of shards, and nothing else: 66 MB for the table of 1.4
billion samples, whose file has 38 GB.

    MAGIC | blocks | offset of every block, uint64 | CRC-32 of every block, uint32 | notes, JSON packed by zlib | footer
"""

from __future__ import annotations

import collections
import concurrent.futures
import functools
import hashlib
import json
import struct
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, BinaryIO, NamedTuple, TypeVar

import numpy as np
from etils import epath

from qwenvl_jax.data.readers import tar_index
from qwenvl_jax.data.readers.tar_samples import LEFT_OUT, ShardIndex
from qwenvl_jax.runtime import storage
from qwenvl_jax.runtime.errors import StorageError, UserError

MAGIC = b"QVLTARS1"
_SAMPLES_PER_BLOCK = 256
_UNIT = 512  # contents of a tar file begin at multiples of it
# Offsets count units. The last number holds the bytes of the text (21 bits), whether it is JSON, and its language.
_ROW = np.dtype([("image", "<u4"), ("image_size", "<u4"), ("text", "<u4"), ("packed", "<u4")])
_TEXT_BITS = 21
_JSON_BIT = 1 << _TEXT_BITS
_MOST_LANGUAGES = 1 << (31 - _TEXT_BITS)
# Magic, samples, blocks, offset of the table, offset of the notes, CRC-32 of both, CRC-32 of the footer so far.
_FOOTER = struct.Struct("<8sQQQQII")
_CACHED_BLOCKS = 256
_THREADS = 16  # that read indexes to be joined

_T = TypeVar("_T")
_R = TypeVar("_R")


class SampleLocation(NamedTuple):
    """Where a sample is in its shard: offsets and lengths in bytes.

    Attributes:
      shard: index of the shard.
      is_json: whether the text is a `.json` member.
      key: the end of the sample's name; only messages and ids use it.
    """

    shard: int
    image: int
    image_size: int
    text: int
    text_size: int
    is_json: bool
    language: str
    key: str


class Shard(NamedTuple):
    """A shard as it was when it was indexed: its name below the source's folder, size in bytes, checksum, samples."""

    name: str
    size: int
    checksum: str
    samples: int


class Digest:
    """The digest of a source: hex digits of the names of all shards and of the rows of their samples, in order."""

    def __init__(self) -> None:
        self._digest = hashlib.sha256()

    def add(self, name: str, samples_S: np.ndarray) -> None:
        """Adds a shard by its file name."""
        self._digest.update(f"{name}:{len(samples_S)};".encode())
        for field in samples_S.dtype.names or ():
            self._digest.update(samples_S[field].tobytes())

    def hexdigest(self) -> str:
        """The digest of the shards so far."""
        return self._digest.hexdigest()


class LeftOut:
    """What is left out of all shards, with the first example of each reason.

    Attributes:
      counts: how many, by the keys of LEFT_OUT.
      first: by the same keys, the file name of the first shard that has any, and the first name in it.
    """

    def __init__(self) -> None:
        self.counts = dict.fromkeys(LEFT_OUT, 0)
        self.first: dict[str, list[str]] = {}

    def add(self, index: ShardIndex) -> None:
        """Adds a shard."""
        for why in LEFT_OUT:
            if index.left_out[why]:
                self.counts[why] += index.left_out[why]
                self.first.setdefault(why, [index.path.name, index.first[why]])


class JoinedWriter:
    """Writes the joined index of a source into an open file, shard by shard, in a memory that does not grow.

    Args:
      file: opened for writing in binary; the caller closes it after `finish`.
    """

    def __init__(self, file: BinaryIO):
        self._file = file
        self._digest = Digest()
        self._left_out = LeftOut()
        self._languages: dict[bytes, int] = {}
        self._shards: list[Shard] = []
        self._samples = 0
        self._offsets = [len(MAGIC)]
        self._checksums: list[int] = []
        self._waiting: list[tuple[np.ndarray, np.ndarray, bytes]] = []  # rows, lengths of keys, keys
        file.write(MAGIC)

    def add(self, name: str, entry: storage.Entry, index: ShardIndex) -> None:
        """Adds the next shard.

        Args:
          name: of the shard below the source's folder.
          entry: its size and checksum.
          index: its samples.

        Raises:
          UserError: if the shard is larger than 2 TiB, or if there are more than 1,024 languages.
        """
        samples_S = index.samples_S
        self._digest.add(index.path.name, samples_S)
        self._left_out.add(index)
        self._shards.append(Shard(name, entry.size or 0, entry.checksum, len(samples_S)))
        self._samples += len(samples_S)
        if (entry.size or 0) >= _UNIT << 32:
            raise UserError(f"the shard {index.path} is larger than 2 TiB; split it")
        rows_S = np.empty(len(samples_S), _ROW)
        rows_S["image"] = samples_S["image"] // _UNIT
        rows_S["image_size"] = np.minimum(samples_S["image_size"], (1 << 32) - 1)
        rows_S["text"] = samples_S["text"] // _UNIT
        rows_S["packed"] = samples_S["text_size"] | samples_S["json"].astype(np.int64) << _TEXT_BITS
        codes_S = np.zeros(len(samples_S), np.int64)
        for language in np.unique(samples_S["language"]).tolist():
            codes_S[samples_S["language"] == language] = self._languages.setdefault(language, len(self._languages))
        if len(self._languages) > _MOST_LANGUAGES:
            raise UserError(f"{index.path} has more than {_MOST_LANGUAGES:,} languages; correct their names")
        rows_S["packed"] |= (codes_S << (_TEXT_BITS + 1)).astype(np.uint32)
        keys = samples_S["key"].tolist()
        self._waiting.append((rows_S, np.fromiter(map(len, keys), np.int64, len(keys)), b"".join(keys)))
        if sum(len(rows) for rows, _, _ in self._waiting) >= _SAMPLES_PER_BLOCK:
            self._write_blocks(_SAMPLES_PER_BLOCK)

    def finish(self) -> None:
        """Writes the last block, the tables and the footer."""
        if self._waiting:
            self._write_blocks(1)
        table_start = self._offsets[-1]
        tables = np.array(self._offsets, "<u8").tobytes() + np.array(self._checksums, "<u4").tobytes()
        notes = {
            "shards": self._shards,
            "languages": [language.decode() for language in self._languages],
            "digest": self._digest.hexdigest(),
            "left_out": self._left_out.counts,
            "first": self._left_out.first,
        }
        tail = tables + zlib.compress(json.dumps(notes).encode(), 1)
        facts = (MAGIC, self._samples, len(self._checksums), table_start, table_start + len(tables), zlib.crc32(tail))
        footer = _FOOTER.pack(*facts, 0)[:-4]
        self._file.write(tail + footer + struct.pack("<I", zlib.crc32(footer)))

    def _write_blocks(self, least: int) -> None:
        """Writes the waiting samples in blocks; a block of fewer than `least` samples waits for more."""
        rows_S = np.concatenate([rows for rows, _, _ in self._waiting])
        ends_S = np.cumsum(np.concatenate([lengths for _, lengths, _ in self._waiting]))
        keys = b"".join([keys for _, _, keys in self._waiting])
        start = 0
        key_start = 0
        while len(rows_S) - start >= least:
            stop = min(start + _SAMPLES_PER_BLOCK, len(rows_S))
            key_stop = int(ends_S[stop - 1])
            block = rows_S[start:stop].tobytes() + (ends_S[start:stop] - key_start).astype("<u2").tobytes()
            block += keys[key_start:key_stop]
            self._file.write(block)
            self._offsets.append(self._offsets[-1] + len(block))
            self._checksums.append(zlib.crc32(block))
            start = stop
            key_start = key_stop
        lengths = np.diff(ends_S[start:], prepend=key_start)
        self._waiting = [(rows_S[start:], lengths, keys[key_start:])] if start < len(rows_S) else []


class _IndexesMissing(Exception):
    """Some shards have no index that fits them; `args[0]` says how many."""


def join_indexes(target: epath.Path, base: str, entries: Mapping[str, storage.Entry], folder: str) -> tuple[int, int]:
    """Joins the kept indexes of all shards into one file, which appears whole or not at all.

    Args:
      target: path of the joined index.
      base: the folder above all shards.
      entries: of all shards by their paths, in order, with checksums.
      folder: of the kept indexes, as for `tar_index.index_paths`.

    Returns:
      How many samples there are, and how many shards have no index that fits them; if there are any, nothing is
      written.

    Raises:
      UserError: if the file cannot be written.
    """

    def load(shard: tuple[str, storage.Entry]) -> ShardIndex | None:
        path = epath.Path(shard[0])
        return tar_index.load_index(path, shard[1], tar_index.index_paths(path, folder)[:1])

    missing = 0
    samples = 0
    try:
        with storage.local_output(target) as temporary, temporary.open("wb") as file:
            writer = JoinedWriter(file)
            for (path, entry), index in zip(entries.items(), _in_order(load, entries.items()), strict=True):
                if index is None:
                    missing += 1
                elif not missing:
                    writer.add(path[len(base) :].lstrip("/"), entry, index)
                    samples += len(index.samples_S)
            if missing:
                raise _IndexesMissing(missing)
            writer.finish()
    except _IndexesMissing:
        return 0, missing
    except (StorageError, UserError, MemoryError):
        raise
    except Exception as error:  # object stores raise various errors if they are read-only
        raise tar_index.unwritable(target.parent, error) from None
    return samples, 0


def _in_order(function: Callable[[_T], _R], values: Iterable[_T]) -> Iterator[_R]:
    """The results of a function, computed by threads a little ahead of their use."""
    with concurrent.futures.ThreadPoolExecutor(_THREADS, "join") as threads:
        futures: collections.deque[concurrent.futures.Future[_R]] = collections.deque()
        for value in values:
            futures.append(threads.submit(function, value))
            if len(futures) > 2 * _THREADS:
                yield futures.popleft().result()
        while futures:
            yield futures.popleft().result()


class JoinedIndex:
    """A joined index, opened for reading; threads may read at the same time.

    Args:
      path: of the file, on a disk or an object store.
      is_copy: whether it is a copy in the cache of this host, which is simply made again.

    Attributes:
      shards: all shards, in order.
      left_out: how many, by the keys of LEFT_OUT.
      first: an example for each of these keys, as in `LeftOut`.

    Raises:
      UserError: if the file is cut off or damaged.
      FileNotFoundError: if there is none.
    """

    def __init__(self, path: epath.PathLike, *, is_copy: bool = False):
        self._is_copy = is_copy
        self.path = storage.path(path)
        size = storage.size(self.path)
        footer = storage.read_bytes(self.path, max(0, size - _FOOTER.size), _FOOTER.size)
        if len(footer) < _FOOTER.size or zlib.crc32(footer[:-4]) != struct.unpack("<I", footer[-4:])[0]:
            raise self._damaged()
        magic, self._samples, blocks, table_start, notes_start, checksum, _ = _FOOTER.unpack(footer)
        tail = storage.read_bytes(self.path, table_start, size - _FOOTER.size - table_start)
        if magic != MAGIC or zlib.crc32(tail) != checksum or len(tail) < 12 * blocks + 8:
            raise self._damaged()
        self._offsets = np.frombuffer(tail, "<u8", blocks + 1)
        self._checksums = np.frombuffer(tail, "<u4", blocks, 8 * (blocks + 1))
        notes: dict[str, Any] = json.loads(zlib.decompress(tail[notes_start - table_start :]))
        self.shards = [Shard(*shard) for shard in notes["shards"]]
        self.left_out: dict[str, int] = notes["left_out"]
        self.first: dict[str, list[str]] = notes["first"]
        self._languages: list[str] = notes["languages"]
        self._digest: str = notes["digest"]
        self._ends = np.cumsum([shard.samples for shard in self.shards])
        # The name of a copy: equal tables have checksums of equal blocks.
        self.content = hashlib.sha256(footer).hexdigest()[:32]

    def __len__(self) -> int:
        return int(self._samples)

    def digest(self) -> str:
        """As `Digest`, from the file."""
        return self._digest

    def location(self, index: int) -> SampleLocation:
        """The location of a sample.

        Raises:
          StorageError: if the file is gone or damaged.
        """
        number, position = divmod(index, _SAMPLES_PER_BLOCK)
        start = int(self._offsets[number])
        block = self._block(start, int(self._offsets[number + 1]) - start, int(self._checksums[number]))
        samples = min(_SAMPLES_PER_BLOCK, len(self) - index + position)
        image, image_size, text, packed = struct.unpack_from("<IIII", block, _ROW.itemsize * position)
        ends = np.frombuffer(block, "<u2", samples, _ROW.itemsize * samples)
        keys_start = (_ROW.itemsize + ends.itemsize) * samples
        key_start = int(ends[position - 1]) if position else 0
        key = block[keys_start + key_start : keys_start + int(ends[position])]
        return SampleLocation(
            shard=int(np.searchsorted(self._ends, index, side="right")),
            image=image * _UNIT,
            image_size=image_size,
            text=text * _UNIT,
            text_size=packed & (_JSON_BIT - 1),
            is_json=bool(packed & _JSON_BIT),
            language=self._languages[packed >> (_TEXT_BITS + 1)],
            key=key.decode("utf-8", "replace"),
        )

    def _block(self, start: int, size: int, checksum: int) -> bytes:
        try:
            return _read_block(str(self.path), start, size, checksum)
        except FileNotFoundError:
            raise StorageError(f"{self.path} was there when it was opened and is gone; put it back") from None
        except ValueError:
            raise StorageError(str(self._damaged())) from None

    def _damaged(self) -> UserError:
        step = "start again" if self._is_copy else "run the same `python -m qwenvl_jax.index` again"
        return UserError(f"the joined index {self.path} is cut off or damaged; remove it and {step}")


@functools.lru_cache(_CACHED_BLOCKS)
def _read_block(path: str, start: int, size: int, checksum: int) -> bytes:
    """A block of a file. Raises ValueError if it is not the one that has this checksum."""
    block = storage.read_bytes(path, start, size)
    if len(block) != size or zlib.crc32(block) != checksum:
        raise ValueError("damaged")
    return block
