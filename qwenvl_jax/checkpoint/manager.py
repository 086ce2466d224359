"""Writes and reads the checkpoints of one run and its frozen weights, and removes old checkpoints.

The folder of a run (`layout`) has `frozen/`, the weights that the stage does not train, written once, and
`checkpoints/<step>/` with three items: `params` (the trainable tree), `optimizer` and `progress` (JSON: the position in
the data, metrics that are not logged yet, checksums). `steps` says which checkpoints are finished.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath

from qwenvl_jax.checkpoint import checksums, deferred, failures, layout, steps
from qwenvl_jax.checkpoint.failures import DamagedError
from qwenvl_jax.checkpoint.layout import FROZEN
from qwenvl_jax.params import flatten, unflatten
from qwenvl_jax.runtime import distributed, phases, storage
from qwenvl_jax.runtime.errors import file_errors_of

_PROGRESS = "progress/metadata"
SUMS = "sums"  # key of the checksums in the progress
STEP = "step"  # key of the number of the step in the progress
# Seconds in which a checkpoint must be written, including repeated requests to the storage.
_TIME_LIMIT = 7200


def _restore_args(abstract: Any) -> ocp.args.PyTreeRestore:
    """Restores exactly the leaves of `abstract`, in its dtypes and shardings (default: the first device)."""
    here = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])

    def leaf_args(leaf: Any) -> ocp.ArrayRestoreArgs:
        sharding = getattr(leaf, "sharding", None) or here
        return ocp.ArrayRestoreArgs(sharding=sharding, global_shape=leaf.shape, dtype=leaf.dtype)

    return ocp.args.PyTreeRestore(item=abstract, restore_args=jax.tree.map(leaf_args, abstract), partial_restore=True)


class Checkpoints:
    """Checkpoints of one run, written in the background.

    Entering removes checkpoints that were cut short; all processes must enter, save and leave together.

    Args:
      workdir: the run's folder.
      keep: how many of the newest checkpoints are kept; there is one more while one is written.
    """

    def __init__(self, workdir: epath.PathLike, *, keep: int):
        self._workdir = storage.path(workdir)
        self._keep = keep
        self._folder = storage.absolute(self._workdir / layout.CHECKPOINTS)
        self._writing: Future[None] | None = None

    def __enter__(self) -> Checkpoints:
        failures.quiet()
        distributed.from_primary(lambda: steps.clear_unfinished(self._workdir))
        items = {name: ocp.PyTreeCheckpointHandler() for name in ("params", "optimizer")}
        self._orbax = ocp.AsyncCheckpointer(
            ocp.CompositeCheckpointHandler(**items, progress=ocp.JsonCheckpointHandler()),
            async_options=ocp.AsyncOptions(timeout_secs=_TIME_LIMIT),
        )
        self._thread = ThreadPoolExecutor(1)
        return self

    @phases.phase("checkpoint", unlimited=True)
    def save(self, step: int, params: Any, opt_state: Any, progress: dict[str, Any]) -> None:
        """Starts to write a checkpoint; returns once the values are copied, so that the arrays may be donated.

        Raises:
          OSError: if there is no space for this checkpoint or the one before; the unfinished one is removed.
        """
        self.wait()
        noted = {"params": checksums.sums(params), "optimizer": checksums.sums(opt_state)}
        with self._removed_on_failure():
            self._orbax.save(
                self._folder / str(step),
                args=ocp.args.Composite(
                    params=ocp.args.PyTreeSave(params),
                    optimizer=ocp.args.PyTreeSave(opt_state),
                    progress=ocp.args.JsonSave(checksums.with_digest({**progress, STEP: step, SUMS: noted})),
                ),
            )
        self._writing = self._thread.submit(self._finish)

    @phases.phase("checkpoint", unlimited=True)
    def wait(self) -> None:
        """Waits until the last checkpoint is written; raises the error if it could not be."""
        writing, self._writing = self._writing, None
        if writing is not None:
            with self._removed_on_failure():
                writing.result()

    def _finish(self) -> None:
        self._orbax.wait_until_finished()
        if distributed.is_primary():
            for step in steps.finished_steps(self._workdir)[: -self._keep]:
                steps.remove(self._workdir, step)

    @contextlib.contextmanager
    def _removed_on_failure(self) -> Iterator[None]:
        try:
            with file_errors_of(self._folder):
                yield
        except Exception:
            if distributed.is_primary():
                with contextlib.suppress(Exception):  # on a full disk the error of the save matters
                    steps.clear_unfinished(self._workdir)
            raise

    def __exit__(self, *error: object) -> None:
        """Waits until everything is written."""
        try:
            self.wait()
        finally:
            self._thread.shutdown()
            with file_errors_of(self._folder):
                self._orbax.close()


def restore_state(workdir: epath.PathLike, step: int, params: Any, opt_state: Any) -> tuple[Any, Any, dict[str, Any]]:
    """Reads (params, opt_state, progress) of `step` into the given shapes, dtypes and shardings.

    No process waits for another here, so that one whose part is damaged can report it. Call `check_state` afterwards.

    Raises:
      DamagedError: if a part of the checkpoint is missing or cut short.
    """
    folder = steps.folder_of(workdir, step)
    progress = read_progress(folder)
    return _restore(folder / "params", params), _restore(folder / "optimizer", opt_state), progress


def check_state(params: Any, opt_state: Any, progress: dict[str, Any]) -> None:
    """Compares the sums of a restored state with those in its progress; all processes must call it, or none.

    Raises:
      DamagedError: if the state is not what was saved. Checkpoints of versions without sums pass.
    """
    noted = progress.get(SUMS, {})
    checksums.check(params, noted.get("params", {}))
    checksums.check(opt_state, noted.get("optimizer", {}))


def read_progress(folder: epath.Path) -> dict[str, Any]:
    """The JSON values that were saved with the arrays of a checkpoint. Raises DamagedError."""
    with failures.reading(folder / _PROGRESS):
        progress = checksums.check_digest(json.loads(storage.read_bytes(folder / _PROGRESS)))
    if str(progress.get(STEP, folder.name)) != folder.name:
        raise DamagedError(f"it is that of step {progress[STEP]} under another name")
    return progress


def restore_params(workdir: epath.PathLike, step: int, params: Any) -> Any:
    """Reads some or all of the trained parameters of `step`, without the optimiser.

    Raises:
      DamagedError: if a part of them is missing, cut short or, if `params` has the stored dtype, changed.
    """
    restored = _restore(params_folder(workdir, step), params)
    noted = read_progress(steps.folder_of(workdir, step)).get(SUMS, {}).get("params", {})
    stored = stored_leaves(params_folder(workdir, step))
    same = {path: leaf for path, leaf in flatten(restored).items() if leaf.dtype == stored[path].dtype}
    checksums.check(unflatten(same), noted)
    return restored


def save_frozen(workdir: epath.PathLike, frozen: Any) -> None:
    """Writes the frozen tree of a run, whole or not at all; its leaves are arrays, or all of them `Deferred`.

    The frozen tree of an earlier attempt is replaced.
    """
    steps.check_name(workdir)
    folder = storage.absolute(storage.path(workdir) / FROZEN)
    if any(isinstance(leaf, deferred.Deferred) for leaf in jax.tree.leaves(frozen)):
        handler, args = deferred.handler(), deferred.save_args(frozen)
    else:
        handler, args = ocp.PyTreeCheckpointHandler(), ocp.args.PyTreeSave(frozen)
    failures.quiet()
    try:
        with file_errors_of(folder):
            distributed.from_primary(lambda: storage.remove(folder))
            with ocp.Checkpointer(handler) as checkpointer:
                checkpointer.save(folder, args=args)
    except Exception:
        if distributed.is_primary():
            with contextlib.suppress(Exception):  # on a full disk the error of the save matters
                steps.remove_temporary(folder)
        raise


def restore_frozen(workdir: epath.PathLike, frozen: Any) -> Any:
    """Reads some or all of the frozen tree into the given shapes, dtypes and shardings.

    Raises:
      DamagedError: if a part of it is missing, cut short or changed.
    """
    return _restore(params_folder(workdir, None), frozen)


def params_folder(workdir: epath.PathLike, step: int | None) -> epath.Path:
    """The folder of the trained parameters of `step`, or, if that is None, of the frozen tree."""
    return storage.path(workdir) / FROZEN if step is None else steps.folder_of(workdir, step) / "params"


def stored_leaves(folder: epath.Path) -> dict[tuple[str, ...], jax.ShapeDtypeStruct]:
    """Shape and dtype of every leaf that a folder of `params_folder` holds, by path. Raises DamagedError."""
    with _open(folder, ocp.PyTreeCheckpointHandler()) as (handler, source):
        tree = handler.metadata(source).tree
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {tuple(key.key for key in path): jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) for path, leaf in leaves}


def read_host_leaf(folder: epath.Path, path: tuple[str, ...]) -> np.ndarray:
    """One leaf in its stored dtype, in this host's memory alone. Raises DamagedError."""
    item: Any = 0
    args: Any = ocp.RestoreArgs(restore_type=np.ndarray)
    for key in reversed(path):
        item, args = {key: item}, {key: args}
    with _open(folder, deferred.reader()) as (handler, source):
        leaf = handler.restore(source, args=ocp.args.PyTreeRestore(item=item, restore_args=args, partial_restore=True))
    for key in path:
        leaf = leaf[key]
    return leaf


@contextlib.contextmanager
def _open(folder: epath.Path, handler: ocp.PyTreeCheckpointHandler) -> Iterator[tuple[Any, epath.Path]]:
    """The handler and the absolute path to read with it. An `ocp.Checkpointer` would wait for the other processes."""
    failures.quiet()
    with failures.reading(folder):
        if not storage.is_folder(folder):
            raise DamagedError(f"{folder} is missing")
        try:
            yield handler, storage.absolute(folder)
        finally:
            handler.close()


def _restore(folder: epath.Path, abstract: Any) -> Any:
    with _open(folder, ocp.PyTreeCheckpointHandler()) as (handler, source):
        return handler.restore(source, args=_restore_args(abstract))
