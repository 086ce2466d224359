"""The shards of one split as columns, small enough to be sent to every process of a run."""

from __future__ import annotations

import base64
import dataclasses
import zlib
from collections.abc import Mapping, Sequence
from typing import Any, Self

import numpy as np

_CODEC = ("utf-8", "surrogatepass")  # JSON may hold half a pair of surrogates


class Names:
    """The names of files, by index, in one piece of memory; separate strings would take six times as much.

    Args:
      payload: the names in UTF-8, with NUL between them.
      count: how many there are.
    """

    def __init__(self, payload: bytes, count: int):
        self.payload = payload
        ends = np.flatnonzero(np.frombuffer(payload, np.uint8) == 0)
        self._ends_S = np.append(ends, len(payload))[:count]
        if len(self._ends_S) != count:
            raise ValueError(f"{len(self._ends_S)} names instead of {count}")

    @classmethod
    def of(cls, names: Sequence[str]) -> Self:
        """From strings, none of which may contain NUL."""
        return cls("\0".join(names).encode(*_CODEC), len(names))

    def __len__(self) -> int:
        return len(self._ends_S)

    def __getitem__(self, index: int) -> str:
        if not 0 <= index < len(self):
            raise IndexError(f"name {index} of {len(self)}")
        start = int(self._ends_S[index - 1]) + 1 if index else 0
        return self.payload[start : int(self._ends_S[index])].decode(*_CODEC)


@dataclasses.dataclass(frozen=True)
class ShardTable:
    """The shards of one split of a folder. S is their number, 346,000 for the pre-training mixture in small shards.

    Attributes:
      folder: that holds the files.
      files: their names, in the order of the records.
      records_S: records of each, int64.
      samples: of all records; a record with several annotations has several.
      digest: hex digits of the records, as `Source.digest` gives them.
      tasks: of the records, if they are known.
    """

    folder: str
    files: Names
    records_S: np.ndarray
    samples: int
    digest: str
    tasks: tuple[str, ...] = ()

    def packed(self) -> dict[str, Any]:
        """The table as a JSON value: about seven bytes per shard, because names and counts are compressed."""
        return {
            "folder": self.folder,
            "files": _compressed(self.files.payload),
            "records": _compressed(self.records_S.astype("<i8").tobytes()),
            "samples": self.samples,
            "digest": self.digest,
            "tasks": list(self.tasks),
        }

    @classmethod
    def unpacked(cls, value: Mapping[str, Any]) -> Self:
        """The inverse of `packed`."""
        records_S = np.frombuffer(_decompressed(value["records"]), "<i8").astype(np.int64)
        return cls(
            folder=value["folder"],
            files=Names(_decompressed(value["files"]), len(records_S)),
            records_S=records_S,
            samples=value["samples"],
            digest=value["digest"],
            tasks=tuple(value["tasks"]),
        )


def and_more(count: int) -> str:
    """The end of a sentence about one shard; it says how many other shards the sentence applies to."""
    return f" (and {count:,} more {'shard' if count == 1 else 'shards'})" if count else ""


def _compressed(payload: bytes) -> str:
    return base64.b64encode(zlib.compress(payload)).decode()


def _decompressed(text: str) -> bytes:
    return zlib.decompress(base64.b64decode(text))
