"""Which checkpoints of a run are finished, and what happens to the others.

A checkpoint is the folder `checkpoints/<step>`. Orbax writes `commit_success.txt` into it last: on a disk into a
folder with a temporary name, which is then renamed; on gs://, where nothing can be renamed at once, into the final one.
So a folder without it was cut short, unless an older Orbax wrote it, which left the file out on disks; then the
metadata that Orbax wrote for the step decides. A checkpoint is removed in an order that keeps this true.
"""

from __future__ import annotations

import json
import os
import re
from concurrent.futures import ThreadPoolExecutor

from etils import epath

from qwenvl_jax.checkpoint.layout import CHECKPOINTS
from qwenvl_jax.runtime import storage
from qwenvl_jax.runtime.errors import UserError
from qwenvl_jax.runtime.retries import retried

ITEMS = ("params", "optimizer", "progress")
MARKER = "commit_success.txt"
DAMAGED = ".damaged"  # ends the name of a checkpoint that was set aside
NOTES = "_CHECKPOINT_METADATA"  # Orbax's metadata of a step; it adds the time when all items are written
_TEMPORARY = ".orbax-checkpoint-tmp"
# Orbax looks for its files by a pattern, and TensorStore reads gs:// as a URL and a backslash as `/`: with these
# characters in the path, the arrays of a checkpoint are written somewhere else, or cannot be found again.
_UNFIT = re.compile(r"[*?\[\\\x00-\x1f\x7f]")
_UNFIT_REMOTE = re.compile(r"[*?#\[\]\\\x00-\x1f\x7f]|(?<=/)\.\.(?=/|$)")
_LONGEST = 800  # bytes of a run's path on gs://, where a name may have 1,024
_COPIES = 16  # objects copied at once


def folder_of(workdir: epath.PathLike, step: int) -> epath.Path:
    """The folder of the checkpoint of `step`, whether it exists or not."""
    return storage.path(workdir) / CHECKPOINTS / str(step)


def check_name(workdir: epath.PathLike) -> None:
    """Refuses a folder in which checkpoints would be lost because of its name.

    Raises:
      UserError: naming what cannot be in it.
    """
    unfit = (_UNFIT_REMOTE if storage.is_remote(workdir) else _UNFIT).search(str(storage.absolute(workdir)))
    if unfit:
        raise UserError(
            f"{workdir} has {unfit[0]!r} in its path, which the libraries that write checkpoints take for something "
            "else than a name; choose a folder without it"
        )
    if storage.is_remote(workdir) and len(os.fspath(workdir).encode()) > _LONGEST:
        raise UserError(f"the path {str(workdir)[:80]}.. is longer than {_LONGEST} bytes; choose a shorter one")


def finished_steps(workdir: epath.PathLike) -> list[int]:
    """The complete checkpoints of a run's folder, oldest first. Looks at names and markers, not at contents.

    Raises:
      UserError: for checkpoints on gs:// that were copied there without their marks.
    """
    return sorted(
        int(name) for name in _names(workdir) if _is_step(name) and _is_finished(folder_of(workdir, int(name)))
    )


def latest_step(workdir: epath.PathLike) -> int | None:
    """The newest complete checkpoint, or None; as `finished_steps`."""
    steps = finished_steps(workdir)
    return steps[-1] if steps else None


def damaged_names(workdir: epath.PathLike) -> list[str]:
    """Names of the folders of checkpoints that were set aside."""
    return [name for name in _names(workdir) if DAMAGED in name]


def clear_unfinished(workdir: epath.PathLike) -> None:
    """Removes checkpoints whose writing or removal was cut short; one process calls it before it writes.

    An incomplete copy on a disk, which this code never leaves there, gets another name.
    """
    finished = set(map(str, finished_steps(workdir)))
    for name in _names(workdir):
        folder = storage.path(workdir) / CHECKPOINTS / name
        if storage.is_remote(folder) and not storage.is_folder(folder):
            continue
        if _TEMPORARY in name or (_is_step(name) and name not in finished and storage.is_remote(folder)):
            storage.remove(folder)
        elif _is_step(name) and name not in finished:
            set_aside(workdir, int(name))


def remove(workdir: epath.PathLike, step: int) -> None:
    """Removes a checkpoint; if it is killed half-way, the rest counts as unfinished."""
    folder = folder_of(workdir, step)
    if storage.is_remote(folder):
        _unmark(folder)
        storage.remove(folder)
    else:
        aside = folder.with_name(f"{step}{_TEMPORARY}-removed")
        storage.remove(aside)
        storage.rename(folder, aside)
        storage.remove(aside)


def remove_temporary(folder: epath.Path) -> None:
    """Removes the rest of a failed save into `folder`."""
    storage.remove(temporary_of(folder))


def temporary_of(folder: epath.Path) -> epath.Path:
    """The folder into which Orbax writes a checkpoint before it is finished."""
    return folder if storage.is_remote(folder) else folder.with_name(folder.name + _TEMPORARY)


def free_name(name: str, taken: set[str]) -> str:
    """The name, or with a number if it is taken."""
    numbered = (f"{name}-{number}" for number in range(2, len(taken) + 3))
    return next(free for free in (name, *numbered) if free not in taken)


def set_aside(workdir: epath.PathLike, step: int, suffix: str = DAMAGED) -> str:
    """Gives a checkpoint another name, so that its step can be written again; returns the name."""
    folder = folder_of(workdir, step)
    name = free_name(f"{step}{suffix}", set(_names(workdir)))
    target = folder.with_name(name)
    if not storage.is_remote(folder):
        storage.rename(folder, target)
        return name
    with ThreadPoolExecutor(_COPIES) as threads:  # copied by the server, object by object
        list(threads.map(lambda file: _copy(folder / file, target / file), storage.files_below(folder)))
    _unmark(folder)
    storage.remove(folder)
    return name


def _names(workdir: epath.PathLike) -> list[str]:
    folder = storage.path(workdir) / CHECKPOINTS
    return storage.names(folder) if storage.is_folder(folder) else []


def _is_step(name: str) -> bool:
    """Whether a checkpoint of this name can be one of ours: steps are counted in int32 on the devices."""
    return name.isascii() and name.isdigit() and len(name) <= 10 and str(int(name)) == name and int(name) < 2**31


def _is_finished(folder: epath.Path) -> bool:
    if storage.exists(folder / MARKER):
        return True
    try:
        written = json.loads(storage.read_bytes(folder / NOTES))["commit_timestamp_nsecs"] is not None
    except (FileNotFoundError, NotADirectoryError, ValueError, LookupError, TypeError):
        return False
    if not written or not storage.is_remote(folder):
        return written
    if any(storage.exists(folder / item / MARKER) for item in ITEMS):
        return False  # written on gs://, killed before the last file
    raise UserError(
        f"{folder} lacks {MARKER}, without which nothing on gs:// shows that a checkpoint is whole: it was copied from "
        f"a disk; make sure that the copy is complete and mark it, `echo copied | gsutil cp - {folder}/{MARKER}`, and "
        "every other step of it likewise"
    )


def _unmark(folder: epath.Path) -> None:
    """Makes a checkpoint on gs:// an unfinished one; the marks of its items go later."""
    storage.remove(folder / MARKER)
    storage.remove(folder / NOTES)


def _copy(file: epath.Path, target: epath.Path) -> None:
    retried(lambda: file.copy(target, overwrite=True), f"copy {file}")
