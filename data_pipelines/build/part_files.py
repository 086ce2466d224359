"""The file of a part: its survivors one after the other, then tables about them, then a footer. Checksums everywhere.

    frames      one per survivor: its records and pictures
    sections    index (where the frame of each survivor is, and how large its records will be), one section of keys per
                rule across pairs, failed, examples, evidence (all pairs that were dropped with some), read (the files
                that the rows named)
    footer      JSON: counts, and where the sections are

A frame is read by itself, so a shard that begins in the middle of a part reads nothing else.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import struct
import zlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, BinaryIO

import numpy as np
from etils import epath

from data_pipelines.clean.across import KEY_BYTES, Candidate
from qwenvl_jax.data.schema import Record
from qwenvl_jax.runtime import storage
from qwenvl_jax.runtime.errors import StorageError

_MAGIC = b"QVLPART1"
_END = struct.Struct("<QI8s")  # length and checksum of the footer
_LENGTH = struct.Struct("<I")  # a frame begins with its checksum and the length of its head
_KEY = struct.Struct("<QQqI")
_READ_AHEAD = 4 << 20


class PartDamaged(Exception):
    """A file in the work folder that is not what was written. It is made again by the next run."""


def index_dtype(tasks: int) -> np.dtype:
    """One survivor: its position in the part, where its frame is, and the size of its record of each task, 0: none."""
    return np.dtype([("position", "<u8"), ("offset", "<u8"), ("length", "<u8"), ("sizes", "<u8", (tasks,))])


def key_dtype(signature_bytes: int) -> np.dtype:
    """One key of one survivor; `index` counts the survivors of the part."""
    return np.dtype(
        [("high", "<u8"), ("low", "<u8"), ("rank", "<i8"), ("index", "<u4"), ("signature", "u1", (signature_bytes,))]
    )


def encode_frame(records: Mapping[str, Record], facts: Mapping[str, Any]) -> bytes:
    """The records of one survivor, by task, with each picture once, and JSON facts about it."""
    pictures: dict[bytes, int] = {}
    described = {}
    for task, record in records.items():
        numbers = [pictures.setdefault(image, len(pictures)) for image in record.images]
        fields = {key: getattr(record, key) for key in ("id", "source", "language", "license", "content")}
        described[task] = {**fields, "images": numbers}
    head = json.dumps({"records": described, "facts": facts, "pictures": [len(each) for each in pictures]}).encode()
    body = b"".join([_LENGTH.pack(len(head)), head, *pictures])
    return _LENGTH.pack(zlib.crc32(body)) + body


def decode_frame(frame: bytes, where: object) -> tuple[dict[str, Record], dict[str, Any]]:
    """The inverse of `encode_frame`."""
    if len(frame) < 2 * _LENGTH.size or zlib.crc32(memoryview(frame)[_LENGTH.size :]) != _LENGTH.unpack_from(frame)[0]:
        raise PartDamaged(f"{where}: the checksum of a survivor is wrong")
    first = 2 * _LENGTH.size
    start = first + _LENGTH.unpack_from(frame, _LENGTH.size)[0]
    head = json.loads(frame[first:start])
    pictures = []
    for size in head["pictures"]:
        pictures.append(frame[start : start + size])
        start += size
    records = {}
    for task, fields in head["records"].items():
        images = tuple(pictures[number] for number in fields.pop("images"))
        records[task] = Record(task=task, images=images, **fields)
    return records, head["facts"]


class PartWriter:
    """Writes the file of a part; survivors are added in the order of their rows."""

    def __init__(self, file: BinaryIO, tasks: Sequence[str], signatures: Sequence[int]):
        self._file = file
        self._tasks = tasks
        self._signatures = signatures
        self._index = bytearray()
        self._keys = [bytearray() for _ in signatures]
        self._offset = 0
        self._content = hashlib.sha256()
        self.survivors = 0
        self.records = dict.fromkeys(tasks, 0)

    def add(self, position: int, frame: bytes, sizes: Sequence[int], candidates: Sequence[Candidate | None]) -> None:
        """Adds a survivor: its frame, the size of its record of each task, and its candidate of each rule."""
        for keys, length, candidate in zip(self._keys, self._signatures, candidates, strict=True):
            if candidate is not None:
                keys += self._packed(candidate, length)
        self._add(position, frame, sizes)

    def copy(self, position: int, frame: bytes, sizes: Sequence[int], keys: Sequence[np.ndarray]) -> None:
        """Adds a survivor of another file with its keys."""
        for target, rows in zip(self._keys, keys, strict=True):
            renumbered = rows.copy()
            renumbered["index"] = self.survivors
            target += renumbered.tobytes()
        self._add(position, frame, sizes)

    def _add(self, position: int, frame: bytes, sizes: Sequence[int]) -> None:
        self._index += struct.pack(f"<QQQ{len(sizes)}Q", position, self._offset, len(frame), *sizes)
        self._write(frame)
        self.survivors += 1
        for task, size in zip(self._tasks, sizes, strict=True):
            self.records[task] += size > 0

    def _packed(self, candidate: Candidate, length: int) -> bytes:
        if len(candidate.signature) != length:
            raise ValueError(f"a signature has {len(candidate.signature)} bytes instead of {length}")
        rows = []
        for key in dict.fromkeys(candidate.keys):
            if not 0 < len(key) <= KEY_BYTES:
                raise ValueError(f"a key has {len(key)} bytes; it must have 1 to {KEY_BYTES}")
            high, low = struct.unpack("<QQ", key.ljust(KEY_BYTES, b"\0"))
            rows.append(_KEY.pack(high, low, candidate.rank, self.survivors) + candidate.signature)
        return b"".join(rows)

    def finish(self, facts: Mapping[str, Any], sections: Mapping[str, bytes]) -> None:
        """Writes the sections and the footer.

        Args:
          facts: JSON values for the footer.
          sections: in addition to the index and the keys.
        """
        tables = {"index": bytes(self._index)}
        tables |= {f"keys-{number}": bytes(keys) for number, keys in enumerate(self._keys)}
        directory = {}
        for name, payload in {**tables, **sections}.items():
            directory[name] = [self._offset, len(payload), zlib.crc32(payload)]
            self._write(payload)
        footer = {
            **facts,
            "survivors": self.survivors,
            "records": self.records,
            "sections": directory,
            "content": self._content.hexdigest(),
        }
        payload = json.dumps(footer).encode()
        self._file.write(payload + _END.pack(len(payload), zlib.crc32(payload), _MAGIC))

    def _write(self, payload: bytes) -> None:
        self._file.write(payload)
        self._content.update(payload)
        self._offset += len(payload)


class PartReader:
    """Reads the file of a part. Nothing is read before it is asked for but the footer."""

    def __init__(self, path: epath.PathLike):
        self.path = path
        size = storage.size(path)
        end = storage.read_bytes(path, max(0, size - _END.size), _END.size)
        if len(end) != _END.size:
            raise PartDamaged(f"{path} is too short")
        length, checksum, magic = _END.unpack(end)
        if magic != _MAGIC or length > size:
            raise PartDamaged(f"{path} has no footer")
        payload = storage.read_bytes(path, size - _END.size - length, length)
        if zlib.crc32(payload) != checksum:
            raise PartDamaged(f"{path}: the checksum of the footer is wrong")
        self.footer: dict[str, Any] = json.loads(payload)

    def section(self, name: str) -> bytes:
        """The bytes of a section."""
        offset, length, checksum = self.footer["sections"][name]
        payload = storage.read_bytes(self.path, offset, length) if length else b""
        if len(payload) != length or zlib.crc32(payload) != checksum:
            raise PartDamaged(f"{self.path}: the checksum of {name} is wrong")
        return payload

    def lines(self, name: str) -> list[Any]:
        """The values of a section of JSON lines."""
        return [json.loads(line) for line in self.section(name).splitlines()]

    def index(self) -> np.ndarray:
        """The survivors, [N] of `index_dtype`."""
        return np.frombuffer(self.section("index"), index_dtype(len(self.footer["records"])))

    def keys(self, rule: int, signature_bytes: int) -> np.ndarray:
        """The keys of the survivors for one rule across pairs, in order, [K] of `key_dtype`."""
        return np.frombuffer(self.section(f"keys-{rule}"), key_dtype(signature_bytes))

    @contextlib.contextmanager
    def frames(self) -> Iterator[Frames]:
        """The survivors' frames; cheap if they are asked for in their order."""
        with storage.open_read(self.path, _READ_AHEAD) as file:
            yield Frames(self, file)


class Frames:
    """The frames of a part, by the entries of its index."""

    def __init__(self, reader: PartReader, file: BinaryIO):
        self._reader = reader
        self._file = file

    def encoded(self, entry: np.void) -> bytes:
        """The frame of one survivor as it is stored."""
        self._file.seek(int(entry["offset"]))
        return self._file.read(int(entry["length"]))

    def __getitem__(self, entry: np.void) -> tuple[dict[str, Record], dict[str, Any]]:
        return decode_frame(self.encoded(entry), self._reader.path)


@contextlib.contextmanager
def damage_named(path: epath.PathLike) -> Iterator[None]:
    """Turns damage of a work file into an error that says what to do."""
    try:
        yield
    except PartDamaged as error:
        raise StorageError(f"{error}; remove the file and run the same command again") from None
