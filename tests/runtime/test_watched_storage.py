"""`storage.watched` names every file that a thread reads in a block, before it is read."""

from __future__ import annotations

import contextlib
import os
import threading
from pathlib import Path

from qwenvl_jax.runtime import storage


def test_every_way_of_reading_is_seen_before_it_happens(tmp_path: Path) -> None:
    files = [tmp_path / name for name in "abc"]
    for file in files:
        file.write_text("x")
    seen: list[str] = []
    with storage.watched(seen.append):
        storage.read_bytes(files[0])
        with storage.open_read(files[1]) as stream, storage.local_copy(files[2]):
            stream.read()
        with contextlib.suppress(FileNotFoundError):
            storage.read_bytes(tmp_path / "missing")
        storage.exists(files[0])
    storage.read_bytes(files[0])
    assert seen == [*map(str, files), str(tmp_path / "missing")]


def test_what_the_watcher_reads_and_other_threads_read_is_not_seen(tmp_path: Path) -> None:
    for name in "ab":
        (tmp_path / name).write_text(name)
    seen: list[bytes] = []
    with storage.watched(lambda path: seen.append(storage.read_bytes(path))):
        storage.read_bytes(tmp_path / "a")
        thread = threading.Thread(target=storage.read_bytes, args=(tmp_path / "b",))
        thread.start()
        thread.join()
    assert seen == [b"a"]


def test_replacing_a_file_shows_even_if_its_time_is_set_back(tmp_path: Path) -> None:
    file = tmp_path / "a"
    file.write_text("one")
    before = storage.entry(file)
    file.write_text("two")
    os.utime(file, ns=(before.changed, before.changed))
    after = storage.entry(file)
    assert (after.size, after.changed) == (before.size, before.changed)
    assert after.touched != before.touched
