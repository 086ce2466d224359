"""Which checkpoints are finished, on a disk and on a real object store, whatever a kill or a copy has left."""

from __future__ import annotations

import json
import shutil
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from etils import epath

from qwenvl_jax.checkpoint import steps
from qwenvl_jax.checkpoint.manager import restore_state
from qwenvl_jax.checkpoint.restore import newest_state
from qwenvl_jax.runtime import storage
from qwenvl_jax.runtime.errors import UserError
from tests.checkpoint.saved_run import MOMENTS, TREE, assert_is, save, without_checksums


@pytest.fixture(params=["disk", "gs"])
def run(request: pytest.FixtureRequest, tmp_path: Path) -> epath.Path:
    return (
        epath.Path(tmp_path) / "run" if request.param == "disk" else epath.Path(request.getfixturevalue("gcs")) / "run"
    )


def test_the_newest_stay_and_each_comes_back(run: epath.Path) -> None:
    assert steps.finished_steps(run) == [] and steps.latest_step(run) is None
    save(run, 2, 4, 6, 8, keep=2)
    assert steps.finished_steps(run) == [6, 8]
    assert storage.names(run / "checkpoints") == ["6", "8"]  # nothing is left of the others
    for step in (6, 8):
        assert_is(step, restore_state(run, step, TREE, MOMENTS))
    assert_is(8, newest_state(run, TREE, MOMENTS)[1:])


def test_one_that_was_removed_halfway_is_not_found_and_goes(run: epath.Path) -> None:
    save(run, 3, 6)
    folder = run / "checkpoints" / "3"
    if storage.is_remote(run):  # the order of `steps.remove`: both marks, then the rest
        for name in ("commit_success.txt", "_CHECKPOINT_METADATA", "params/commit_success.txt"):
            storage.remove(folder / name)
    else:
        folder.rename(folder.with_name("3.orbax-checkpoint-tmp-removed"))
    assert steps.finished_steps(run) == [6]
    save(run, 9)
    assert steps.finished_steps(run) == [6, 9] and storage.names(run / "checkpoints") == ["6", "9"]


def test_a_save_that_was_cut_short_on_gs_is_never_found(gcs: str) -> None:
    run = epath.Path(gcs) / "run"
    save(run, 3, 6)
    folder = run / "checkpoints" / "6"
    storage.remove(folder / "commit_success.txt")  # killed before the last file
    assert steps.finished_steps(run) == [3]
    notes = json.loads(storage.read_bytes(folder / "_CHECKPOINT_METADATA"))
    storage.write_bytes(folder / "_CHECKPOINT_METADATA", json.dumps({**notes, "commit_timestamp_nsecs": None}).encode())
    storage.remove(folder / "optimizer")  # killed earlier
    assert steps.finished_steps(run) == [3]
    assert_is(3, newest_state(run, TREE, MOMENTS)[1:])
    save(run, 6)
    assert steps.finished_steps(run) == [3, 6]
    assert_is(6, newest_state(run, TREE, MOMENTS)[1:])


def copied(source: epath.Path, target: epath.Path) -> None:
    """As `gsutil cp -r` does: file by file."""
    for name in storage.files_below(source):
        storage.write_bytes(target / name, storage.read_bytes(source / name))


def test_a_run_without_marks_on_gs_is_refused_and_untouched(tmp_path: Path, gcs: str) -> None:
    local, run = epath.Path(tmp_path) / "run", epath.Path(gcs) / "run"
    save(local, 3, 6)
    for mark in list(Path(local).rglob("commit_success.txt")):
        mark.unlink()  # as older versions of Orbax wrote on disks
    for step in (3, 6):
        without_checksums(local / "checkpoints" / str(step))
    assert steps.finished_steps(local) == [3, 6]
    copied(local, run)
    before = {name: storage.read_bytes(run / name) for name in storage.files_below(run)}
    for read in (steps.finished_steps, steps.latest_step, steps.clear_unfinished, lambda run: save(run, 9)):
        with pytest.raises(
            UserError, match=r"/3 lacks commit_success.txt.*copied from a disk.*gsutil cp - gs://.*/3/com"
        ):
            read(run)
    assert {name: storage.read_bytes(run / name) for name in storage.files_below(run)} == before
    for step in (3, 6):  # what the message says
        storage.write_bytes(run / "checkpoints" / str(step) / "commit_success.txt", b"copied\n")
    assert_is(6, newest_state(run, TREE, MOMENTS)[1:])


def test_a_bucket_s_run_copied_to_a_disk_goes_on_there(tmp_path: Path, gcs: str) -> None:
    run, local = epath.Path(gcs) / "run", epath.Path(tmp_path) / "run"
    save(run, 3, 6)
    storage.remove(run / "checkpoints/6/commit_success.txt")
    notes = json.loads(storage.read_bytes(run / "checkpoints/6/_CHECKPOINT_METADATA"))
    notes["commit_timestamp_nsecs"] = None
    storage.write_bytes(run / "checkpoints/6/_CHECKPOINT_METADATA", json.dumps(notes).encode())
    copied(run, local)
    assert steps.finished_steps(local) == [3]  # the other was never whole
    save(local, 6)
    assert storage.names(local / "checkpoints") == ["3", "6", "6.damaged"]
    assert_is(6, newest_state(local, TREE, MOMENTS)[1:])


def test_a_damaged_checkpoint_is_set_aside_under_a_name_that_is_free(run: epath.Path) -> None:
    save(run, 3, 6)
    assert steps.set_aside(run, 6) == "6.damaged"
    save(run, 6)
    assert steps.set_aside(run, 6) == "6.damaged-2"
    assert steps.finished_steps(run) == [3] and steps.damaged_names(run) == ["6.damaged", "6.damaged-2"]
    storage.remove(run / "checkpoints" / "3")
    if not storage.is_remote(run):  # renamed back it is what it was
        (run / "checkpoints/6.damaged").rename(run / "checkpoints/6")
        assert_is(6, newest_state(run, TREE, MOMENTS)[1:])


class Snapshots:
    """Copies of a folder, one at every change that Python makes below it: what a SIGKILL there would leave."""

    def __init__(self, folder: Path, target: Path):
        self.folder, self.target, self.count, self.active = folder, target, 0, False
        self._lock, self._busy = threading.Lock(), threading.local()
        sys.addaudithook(self._see)

    def _see(self, event: str, arguments: tuple[Any, ...]) -> None:
        if not self.active or getattr(self._busy, "inside", False):
            return
        if event not in ("open", "os.rename", "os.remove", "os.mkdir", "os.rmdir", "shutil.rmtree"):
            return
        if not any(isinstance(argument, str) and str(self.folder) in argument for argument in arguments):
            return
        self._busy.inside = True
        try:
            with self._lock:
                shutil.copytree(
                    self.folder, self.target / f"{self.count:04}", symlinks=True, ignore_dangling_symlinks=True
                )
                self.count += 1
        except (shutil.Error, OSError):  # another thread was faster: this copy would show two moments
            shutil.rmtree(self.target / f"{self.count:04}", ignore_errors=True)
        finally:
            self._busy.inside = False

    def __iter__(self) -> Iterator[Path]:
        return iter(sorted(self.target.iterdir()))


def test_a_kill_at_any_change_leaves_a_run_that_goes_on(tmp_path: Path) -> None:
    run = tmp_path / "run"
    save(run, 2, 4)
    shots = Snapshots(run, tmp_path / "killed")
    shots.active = True
    save(run, 6, 8, keep=2)
    shots.active = False
    assert shots.count > 15
    seen = set()
    for killed in shots:
        finished = steps.finished_steps(killed)
        step, *restored = newest_state(killed, TREE, MOMENTS)
        assert step == finished[-1] and len(finished) >= 2 and steps.damaged_names(killed) == []
        assert_is(step, tuple(restored))
        seen.add(step)
    assert seen == {4, 6, 8}
    last = list(shots)[-1]
    save(last, 10, keep=2)
    assert storage.names(last / "checkpoints") == ["10", "8"]
