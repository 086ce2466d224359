"""The index of one WebDataset shard, kept for the next run as long as the contents of the shard stay the same.

It is made in one pass (`tar_samples`). The indexes of many shards are joined into one file by `tar_joined`.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
from collections.abc import Sequence
from typing import Any

import numpy as np
from etils import epath

from qwenvl_jax.data.readers.tar_samples import MAX_TEXT_BYTES, ShardIndex, scan_shard
from qwenvl_jax.runtime import storage
from qwenvl_jax.runtime.errors import StorageError, UserError, one_line

VERSION = 4
FOLDER_VARIABLE = "QWENVL_INDEX_FOLDER"
# Of a shard on a disk, so many blocks, evenly spread from its first byte to its last, say what its contents are.
_SAMPLED_BLOCKS = 16
_SAMPLED_BYTES = 16 << 10


class Unwritable(UserError):
    """No index can be kept in a folder: a mistake of the command, not of a shard."""


def index_folder() -> str:
    """The folder that `QWENVL_INDEX_FOLDER` names for all indexes; "" if they are kept next to the shards."""
    return os.environ.get(FOLDER_VARIABLE, "")


def cache_folder() -> epath.Path:
    """The user's folder for indexes on this host, `$XDG_CACHE_HOME/qwenvl_jax` (`~/.cache/qwenvl_jax`)."""
    return epath.Path(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")) / "qwenvl_jax"


def hashed_name(path: epath.PathLike) -> str:
    """A short name that no other absolute path has, in hex digits."""
    return hashlib.sha256(str(storage.absolute(path)).encode()).hexdigest()[:32]


def index_paths(path: epath.Path, folder: str) -> list[epath.Path]:
    """The paths at which the index of a shard may be kept, the best first.

    Args:
      path: of the shard.
      folder: for all indexes; if it is "", they are kept next to the shards or, if nothing can be written there, in the
        user's cache.
    """
    name = f"{hashed_name(path)}.index.npz"
    if folder:
        return [storage.path(folder) / name]
    return [path.parent / f".{path.name}.index.npz", cache_folder() / name]


def with_checksum(path: epath.PathLike, entry: storage.Entry) -> storage.Entry:
    """The entry of a shard with a checksum of its contents, which neither copying nor touching the shard changes.

    An object store states one for all bytes. On a disk it is made from 256 KiB in 16 blocks: a shard that was written
    again with other contents differs in all of them, but a few bytes that were changed in place may go unnoticed.

    Raises:
      FileNotFoundError: if there is no such file.
    """
    if entry.checksum:
        return entry
    size = entry.size or 0
    offsets = {block * max(0, size - _SAMPLED_BYTES) // (_SAMPLED_BLOCKS - 1): None for block in range(_SAMPLED_BLOCKS)}
    digest = hashlib.sha256()
    with storage.open_read(path, _SAMPLED_BYTES) as file:
        for offset in offsets:
            file.seek(offset)
            digest.update(file.read(_SAMPLED_BYTES))
    return entry._replace(checksum=f"sampled:{digest.hexdigest()[:32]}")


def index_shard(path: epath.Path, entry: storage.Entry, folder: str = "", *, must_keep: bool = False) -> ShardIndex:
    """The index of a shard: the kept one if the shard still has the same contents, else made and, if possible, kept.

    Args:
      path: of the shard.
      entry: its size and checksum, by `with_checksum`.
      folder: as for `index_paths`.
      must_keep: an index that cannot be kept is an error, and the user's cache is not used.

    Raises:
      UserError: if the file cannot be read or is no uncompressed tar file, or if its index must be kept but cannot be.
    """
    paths = index_paths(path, folder)[: 1 if must_keep else None]
    kept = load_index(path, entry, paths)
    if kept is not None:
        return kept
    try:
        index = scan_shard(path, entry.size or 0)
    except OSError as error:
        raise unreadable(path, error) from None
    notes = json.dumps({"stamp": _stamp(entry), "left_out": index.left_out, "first": index.first})
    payload = io.BytesIO()
    np.savez(payload, samples=index.samples_S, notes=np.array(notes))
    for index_path in paths:
        try:
            storage.write_bytes(index_path, payload.getvalue())
        except Exception as error:  # object stores raise various errors if they are read-only
            if must_keep and not isinstance(error, (StorageError, MemoryError)):
                raise unwritable(index_path.parent, error) from None
            if must_keep:
                raise
            continue
        break
    return index


def load_index(path: epath.Path, entry: storage.Entry, paths: Sequence[epath.Path]) -> ShardIndex | None:
    """The kept index of a shard, or None if there is none, it is damaged, or the shard has other contents by now."""
    for index_path in paths:
        try:
            kept = io.BytesIO(storage.read_bytes(index_path))
            with np.load(kept, allow_pickle=False) as arrays:
                notes = json.loads(str(arrays["notes"]))
                if notes["stamp"] == _stamp(entry) and _within_shard(arrays["samples"], entry.size or 0):
                    return ShardIndex(path, arrays["samples"], notes["left_out"], notes["first"])
        except (MemoryError, StorageError):
            raise
        except Exception:  # zipfile, zlib and numpy raise nearly anything on damaged files
            continue
    return None


def unreadable(path: epath.PathLike, error: OSError) -> UserError:
    """The error for a shard that cannot be read."""
    return UserError(f"the shard {path} cannot be read ({error}); copy it again, or correct its permissions")


def unwritable(folder: epath.PathLike, error: Exception) -> Unwritable:
    """The error for a folder in which no index can be kept."""
    return Unwritable(
        f"no index can be written to {folder} ({one_line(error)}); correct its permissions, or name another with "
        f"--index=FOLDER and set {FOLDER_VARIABLE} to it for the runs"
    )


def _stamp(entry: storage.Entry) -> list[Any]:
    return [VERSION, entry.size or 0, entry.checksum]


def _within_shard(samples_S: np.ndarray, size: int) -> bool:
    """Whether all offsets are inside a shard of `size` bytes: an index file is not trusted, as a shard is not."""
    for start, length, most in (("image", "image_size", size), ("text", "text_size", MAX_TEXT_BYTES)):
        starts_S = samples_S[start]
        lengths_S = samples_S[length]
        if ((starts_S < 0) | (lengths_S < 0) | (lengths_S > most) | (starts_S > size - lengths_S)).any():
            return False
    return {"json", "language", "key"} <= set(samples_S.dtype.names or ())
