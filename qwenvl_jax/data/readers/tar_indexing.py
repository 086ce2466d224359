"""Indexes the shards of a source, several at once in processes of their own."""

from __future__ import annotations

import concurrent.futures
import multiprocessing
import os
import random
import signal
import threading
import time
from collections.abc import Iterator

from etils import epath

from qwenvl_jax.data.readers import tar_index
from qwenvl_jax.runtime import exit_codes, log, storage
from qwenvl_jax.runtime.errors import UserError
from qwenvl_jax.runtime.storage import Entry

_SECONDS_PER_LINE = 30.0


def index_all(shards: dict[str, Entry], folder: str, workers: int) -> None:
    """Makes the index of every shard that has none, and says how far it is every half minute.

    Args:
      shards: entries of the shards, by path.
      folder: for the indexes; "" if they are kept next to the shards.
      workers: processes of this machine.

    Raises:
      UserError: after all others are done, if shards cannot be indexed.
    """
    samples = 0
    errors = []
    size = sum(entry.size or 0 for entry in shards.values())
    done = 0
    start = time.monotonic()
    shown = start
    with log.progress("indexing", len(shards)) as advance:
        for number, (path, indexed, error) in enumerate(_indexed(shards, folder, workers), 1):
            samples += indexed
            errors += [error] if error else []
            done += shards[path].size or 0
            advance()
            now = time.monotonic()
            if now - shown > _SECONDS_PER_LINE:
                shown = now
                left = (now - start) * (size - done) / max(1, done)
                log.line(f"{number:,} of {len(shards):,} shards, {samples:,} samples; about {left / 60:,.0f} min left")
    if errors:
        raise UserError(f"{len(errors):,} of {len(shards):,} shards cannot be indexed, the first: {errors[0]}")


def missing_indexes(shards: dict[str, Entry], folder: str) -> int:
    """How many shards have no file with an index, whatever its state, from one listing of every folder."""
    wanted: dict[epath.Path, list[str]] = {}
    for shard in shards:
        index = tar_index.index_paths(epath.Path(shard), folder)[0]
        wanted.setdefault(index.parent, []).append(index.name)
    missing = 0
    for parent, names in wanted.items():
        missing += len(set(names) - storage.entries(parent).keys())
    return missing


def _indexed(shards: dict[str, Entry], folder: str, workers: int) -> Iterator[tuple[str, int, str]]:
    """Path, samples and error of every shard, in the order in which they are done."""
    jobs = [(path, entry, folder) for path, entry in shards.items()]
    random.SystemRandom().shuffle(jobs)  # two processes with one number then do different shards first
    if workers == 1 or len(jobs) < 2:
        yield from map(_index, jobs)
        return
    # Not by fork: the client of the object store has threads.
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(min(workers, len(jobs)), context, _end_with_parent) as pool:
        try:
            # Workers inherit that Ctrl-C is ignored, which is the parent's to handle.
            handler = signal.signal(signal.SIGINT, signal.SIG_IGN)
            try:
                futures = [pool.submit(_index, job) for job in jobs]
            finally:
                signal.signal(signal.SIGINT, handler)
            for future in concurrent.futures.as_completed(futures):
                yield future.result()
        except BaseException:
            pool.shutdown(wait=True, cancel_futures=True)
            raise


def _index(job: tuple[str, Entry, str]) -> tuple[str, int, str]:
    """Indexes one shard; an error that is the shard's own is returned as its message."""
    path, entry, folder = job
    try:
        shard = epath.Path(path)
        try:
            checked = tar_index.with_checksum(path, entry)
        except OSError as error:
            raise tar_index.unreadable(path, error) from None
        index = tar_index.index_shard(shard, checked, folder, must_keep=True)
    except tar_index.Unwritable:
        raise
    except UserError as error:
        return path, 0, str(error)
    return path, len(index.samples_S), ""


def _end_with_parent() -> None:
    """Ends a worker whose parent was killed: it would wait for work for ever."""
    parent = multiprocessing.parent_process()

    def watch() -> None:
        if parent is not None:
            parent.join()
            os._exit(exit_codes.RETRY)

    threading.Thread(target=watch, daemon=True, name="parent").start()
