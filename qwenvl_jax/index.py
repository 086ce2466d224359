"""Indexes the WebDataset shards of a source before training, on one machine or many, and joins the indexes.

python -m qwenvl_jax.index --path=gs://bucket/laion/*.tar [--index=FOLDER] [--process=0 --processes=8] [--workers=8]

Every shard is read once. Its index is kept next to it, or in FOLDER. With --processes, process I of N takes every N-th
shard, on a machine of its own; the process that ends last joins all indexes into one file, which runs open in seconds.
A shard whose index is there is skipped, so the same command continues after it was killed. docs/data.md says more.
"""

from __future__ import annotations

import os

from absl import flags

from qwenvl_jax.data.readers import tar_index
from qwenvl_jax.data.readers.tar_files import checked_entries, joined_path, no_shards
from qwenvl_jax.data.readers.tar_indexing import index_all, missing_indexes
from qwenvl_jax.data.readers.tar_joined import join_indexes
from qwenvl_jax.data.readers.tar_paths import base_and_pattern, find_shards
from qwenvl_jax.runtime import commandline, log
from qwenvl_jax.runtime.errors import UserError

_PATH = flags.DEFINE_string("path", None, "Shards as in config.data.mixture: a folder, a pattern or one file.")
_INDEX = flags.DEFINE_string("index", None, "Folder for the indexes; by default they are kept next to the shards.")
_PROCESS = flags.DEFINE_integer("process", 0, "Number of this process, from 0.", lower_bound=0)
_PROCESSES = flags.DEFINE_integer("processes", 1, "How many processes share the shards.", lower_bound=1)
_WORKERS = flags.DEFINE_integer("workers", os.cpu_count() or 1, "Shards indexed at once here.", lower_bound=1)


def main() -> None:
    """Indexes the share of this process and joins all indexes if it is the last."""
    if not _PATH.value:
        raise UserError("--path is missing; name the shards, e.g. --path=gs://bucket/laion/*.tar")
    if _PROCESS.value >= _PROCESSES.value:
        raise UserError(f"--process={_PROCESS.value} must be below --processes={_PROCESSES.value}; they count from 0")
    folder = tar_index.index_folder() if _INDEX.value is None else _INDEX.value
    shards = find_shards(_PATH.value)
    if not shards:
        raise no_shards(_PATH.value)
    share = dict(list(shards.items())[_PROCESS.value :: _PROCESSES.value])
    index_all(share, folder, _WORKERS.value)
    base, pattern = base_and_pattern(_PATH.value, shards)
    target = joined_path(base, pattern, folder)
    missing = missing_indexes(shards, folder) if _PROCESSES.value > 1 else 0
    if not missing:
        samples, missing = join_indexes(target, base, checked_entries(shards), folder)
    if missing:
        log.line(
            f"{missing:,} of {len(shards):,} shards have no index yet; the process that ends last joins them, or the "
            "same command when all have ended"
        )
        return
    log.line(f"{target}: {samples:,} samples of {len(shards):,} shards")


if __name__ == "__main__":
    commandline.run(main)
