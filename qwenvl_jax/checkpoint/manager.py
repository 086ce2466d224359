"""Writes and reads the checkpoints of one run and its frozen weights, and removes old checkpoints.

The folder of a run (`layout`) has `frozen/`, the weights that the stage does not train, written once, and
`checkpoints/<step>/` with three items: `params` (the trainable tree), `optimizer` and `progress` (JSON: the position in
the data, metrics that are not logged yet, sums of the leaves). Both have `checksums.json`, with which every read begins
(`file_checksums`). `steps` says which checkpoints are finished.
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

from qwenvl_jax.checkpoint import checksums, deferred, failures, file_checksums, layout, lineage, retention, steps
from qwenvl_jax.checkpoint.failures import DamagedError
from qwenvl_jax.checkpoint.layout import FROZEN
from qwenvl_jax.config.checkpoint_schema import ONLY_THE_NEWEST, CheckpointConfig
from qwenvl_jax.params import flatten, unflatten
from qwenvl_jax.runtime import distributed, phases, storage
from qwenvl_jax.runtime.errors import file_errors_of

_PROGRESS = "progress/metadata"
SUMS = "sums"  # key of the sums of the leaves in the progress
WINDOW = "window"  # key in the progress: the metrics of the steps since the last line of the log
STEP = "step"  # key of the number of the step in the progress
CHECKSUMS = "checksums"  # key in the progress: the files have checksums, which cannot be missing
_TIME_LIMIT = 7200  # seconds that processes wait for one another when a checkpoint is written
# Size of a file of arrays: several are written and verified at once, and a checkpoint has few files all the same.
_FILE_BYTES = 128 << 20


def _restore_args(abstract: Any) -> ocp.args.PyTreeRestore:
    """Restores exactly the leaves of `abstract`, in its dtypes and shardings (default: the first device)."""
    here = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])

    def leaf_args(leaf: Any) -> ocp.ArrayRestoreArgs:
        sharding = getattr(leaf, "sharding", None) or here
        return ocp.ArrayRestoreArgs(sharding=sharding, global_shape=leaf.shape, dtype=leaf.dtype)

    return ocp.args.PyTreeRestore(item=abstract, restore_args=jax.tree.map(leaf_args, abstract), partial_restore=True)


class _StepHandler(ocp.CompositeCheckpointHandler):
    """Writes the checksums of a checkpoint when all else is written, before it counts as finished."""

    def expect(self, folder: epath.Path, params: Any, opt_state: Any) -> None:
        """Starts to take the sums of the leaves and the checksums of the files that are about to be saved."""
        self._sums = {"params": checksums.start(params), "optimizer": checksums.start(opt_state)}
        self._follower = file_checksums.Follower(folder) if distributed.is_primary() else None

    def finalize(self, directory: epath.Path) -> None:
        super().finalize(directory)
        self.settle()
        values = {item: checksums.fetch(started) for item, started in self._sums.items()}
        file_checksums.write(directory, late=False, values=values, follower=self._follower)

    def settle(self) -> None:
        """Ends what `expect` has started."""
        if self._follower is not None:
            self._follower.stop()


@ocp.args.register_with_handler(_StepHandler, for_save=True, for_restore=True)
class _StepArgs(ocp.args.Composite):
    """The items of a checkpoint; Orbax finds a handler by the type of its arguments."""


def _item_handler() -> ocp.PyTreeCheckpointHandler:
    # Weights hardly shrink when they are compressed, and it takes several times as long as writing them.
    return ocp.PyTreeCheckpointHandler(use_compression=False)


class Checkpoints:
    """Checkpoints of one run, written in the background.

    Entering removes checkpoints that were cut short; all processes must enter, save and leave together.

    Args:
      workdir: the run's folder.
      keep: how many of the newest checkpoints are kept; there is one more while one is written.
      rules: which others are kept.
    """

    name = "checkpoint"  # for messages

    def __init__(self, workdir: epath.PathLike, *, keep: int, rules: CheckpointConfig = ONLY_THE_NEWEST):
        self._workdir = storage.path(workdir)
        self._keep = keep
        self._rules = rules
        self._folder = storage.absolute(self._workdir / layout.CHECKPOINTS)
        self._step: int | None = None  # of the checkpoint that was begun last, until it has been waited for
        self._writing: Future[None] | None = None

    def __enter__(self) -> Checkpoints:
        failures.quiet()
        distributed.from_primary(lambda: steps.clear_unfinished(self._workdir))
        progress = ocp.JsonCheckpointHandler()
        self._handler = _StepHandler(params=_item_handler(), optimizer=_item_handler(), progress=progress)
        self._orbax = ocp.AsyncCheckpointer(self._handler, async_options=ocp.AsyncOptions(timeout_secs=_TIME_LIMIT))
        self._thread = ThreadPoolExecutor(1)
        return self

    @phases.phase("checkpoint", unlimited=True)
    def save(self, step: int, params: Any, opt_state: Any, progress: dict[str, Any]) -> None:
        """Starts to write a checkpoint; returns once the values are copied, so that the arrays may be donated.

        Raises:
          OSError: if there is no space for this checkpoint or the one before; the unfinished one is removed.
        """
        self.wait()
        self._step = step
        noted = checksums.with_digest({**progress, STEP: step, CHECKSUMS: True})
        with self._removed_on_failure():
            self._handler.expect(steps.temporary_of(self._folder / str(step)), params, opt_state)
            self._orbax.save(
                self._folder / str(step),
                args=_StepArgs(
                    params=_save_args(params), optimizer=_save_args(opt_state), progress=ocp.args.JsonSave(noted)
                ),
            )
        self._writing = self._thread.submit(self._finish, step)

    @property
    def writing(self) -> int | None:
        """The step of the checkpoint that this process is writing, None if there is none."""
        writing = self._writing
        return None if writing is not None and writing.done() else self._step

    @phases.phase("checkpoint", unlimited=True)
    def wait(self) -> None:
        """Waits until the last checkpoint is written; raises the error if it could not be."""
        try:
            if self._writing is not None:
                with self._removed_on_failure():
                    self._writing.result()
        finally:
            self._step = self._writing = None

    def _finish(self, step: int) -> None:
        self._orbax.wait_until_finished()
        if distributed.is_primary():
            file_checksums.complete(self._folder / str(step))
            finished = steps.finished_steps(self._workdir)
            best = self._rules.keep_best > 0
            figures = retention.figures_of(self._workdir, finished, self._rules.best_by) if best else {}
            for old in retention.superfluous(finished, self._keep, self._rules, figures):
                steps.remove(self._workdir, old)

    @contextlib.contextmanager
    def _removed_on_failure(self) -> Iterator[None]:
        try:
            with file_errors_of(self._folder):
                yield
        except Exception:
            self._handler.settle()
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


def _save_args(tree: Any) -> ocp.args.PyTreeSave:
    return ocp.args.PyTreeSave(tree, ocdbt_target_data_file_size=_FILE_BYTES)


@contextlib.contextmanager
def _verified(folder: epath.Path, *items: str, sums: dict[str, Any], together: bool = False) -> Iterator[None]:
    """Verifies the files of some items while the block reads them; `sums` by item names a damaged leaf."""
    try:
        with file_checksums.verifying(folder, items or ("",), together=together):
            yield
    except file_checksums.DamagedFileError as error:
        item = error.file.split("/")[0]
        stored, noted = (folder / item, sums.get(item, {})) if item in sums else (folder, sums)
        leaf = _damaged_leaf(stored, noted)
        raise DamagedError(f"{error}, with the weights or moments of {leaf}" if leaf else str(error)) from error


def _damaged_leaf(folder: epath.Path, noted: dict[str, int]) -> str:
    """The path of the first stored leaf that is not what was saved; "" if no leaf can be named. Reads one at a time."""
    try:
        with _open(folder, ocp.PyTreeCheckpointHandler()) as (handler, source):
            leaves = jax.tree_util.tree_leaves_with_path(handler.metadata(source).tree)
            arrays = deferred.StoredArrays(source)
    except DamagedError:
        return ""
    for path, leaf in leaves:
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        try:
            with failures.reading(folder):
                value = checksums.host_sum(arrays.read(leaf.name))
        except DamagedError:
            return name
        if noted.get(name, value) != value:
            return name
    return ""


def restore_state(workdir: epath.PathLike, step: int, params: Any, opt_state: Any) -> tuple[Any, Any, dict[str, Any]]:
    """Reads (params, opt_state, progress) of `step` into the given shapes, dtypes and shardings.

    No process waits for another here, so that one whose part is damaged can report it. Call `check_state` afterwards.

    Raises:
      DamagedError: if a part of the checkpoint is missing or cut short, or a file of this process's share is changed.
    """
    folder = steps.folder_of(workdir, step)
    with _verified(folder, sums=_sums_of(folder), together=True):
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
    if progress.get(CHECKSUMS) and not file_checksums.has_any(folder):
        raise DamagedError(f"{file_checksums.NAME} is missing")
    progress.setdefault(SUMS, file_checksums.values_of(folder))  # earlier versions kept them in the progress itself
    return progress


def _sums_of(folder: epath.Path) -> dict[str, Any]:
    """The sums of the leaves of a checkpoint by item; none if they cannot be read."""
    try:
        return read_progress(folder).get(SUMS, {})
    except DamagedError:
        return {}


def restore_params(workdir: epath.PathLike, step: int, params: Any, *, together: bool = False) -> Any:
    """Reads some or all of the trained parameters of `step`, without the optimiser.

    Args:
      workdir: the run's folder.
      step: of the checkpoint.
      params: shapes, dtypes and shardings; another dtype than the stored one is converted to.
      together: all processes call this now; each verifies its share of the files.

    Raises:
      DamagedError: if a part of them is missing, cut short or changed.
    """
    folder = steps.folder_of(workdir, step)
    with _verified(folder, "params/", "progress/", sums=_sums_of(folder), together=together):
        noted = read_progress(folder).get(SUMS, {}).get("params", {})
        return _restore_checked(folder / "params", params, noted)


def verify_params(workdir: epath.PathLike, step: int | None) -> None:
    """Compares the files of the trained parameters of `step`, or, if that is None, of the frozen tree.

    For readers of single leaves. Raises DamagedError.
    """
    if step is None:
        folder = storage.path(workdir) / FROZEN
        with _verified(folder, sums=_frozen_sums(workdir)):
            return
    folder = steps.folder_of(workdir, step)
    with _verified(folder, "params/", "progress/", sums=_sums_of(folder)):
        read_progress(folder)


def save_frozen(workdir: epath.PathLike, frozen: Any) -> None:
    """Writes the frozen tree of a run, whole or not at all; its leaves are arrays, or all of them `Deferred`.

    The frozen tree of an earlier attempt is replaced.
    """
    steps.check_name(workdir)
    folder = storage.absolute(storage.path(workdir) / FROZEN)
    sums: dict[str, int] = {}
    if any(isinstance(leaf, deferred.Deferred) for leaf in jax.tree.leaves(frozen)):
        handler, args = deferred.handler(sums), deferred.save_args(frozen)
    else:
        handler, args = _item_handler(), _save_args(frozen)
        sums = checksums.sums(frozen)
    failures.quiet()
    try:
        with file_errors_of(folder):
            distributed.from_primary(lambda: storage.remove(folder))
            with ocp.Checkpointer(handler) as checkpointer:
                checkpointer.save(folder, args=args)
            if distributed.is_primary():
                file_checksums.write(folder, late=True, values=sums)
    except Exception:
        if distributed.is_primary():
            with contextlib.suppress(Exception):  # on a full disk the error of the save matters
                steps.remove_temporary(folder)
        raise


def restore_frozen(workdir: epath.PathLike, frozen: Any, *, together: bool = False) -> Any:
    """Reads some or all of the frozen tree into the given shapes, dtypes and shardings.

    Args:
      workdir: the run's folder.
      frozen: shapes, dtypes and shardings.
      together: see `restore_params`.

    Raises:
      DamagedError: if a part of it is missing, cut short or changed.
    """
    sums = _frozen_sums(workdir)
    with _verified(params_folder(workdir, None), sums=sums, together=together):
        return _restore_checked(params_folder(workdir, None), frozen, sums)


def _frozen_sums(workdir: epath.PathLike) -> dict[str, int]:
    """The sums of the frozen leaves; none in a run of an earlier version. Raises DamagedError."""
    folder = params_folder(workdir, None)
    if not file_checksums.has_any(folder) and lineage.expects_checksums(workdir):
        raise DamagedError(f"{file_checksums.NAME} is missing")
    return file_checksums.values_of(folder)


def params_folder(workdir: epath.PathLike, step: int | None) -> epath.Path:
    """The folder of the trained parameters of `step`, or, if that is None, of the frozen tree."""
    return storage.path(workdir) / FROZEN if step is None else steps.folder_of(workdir, step) / "params"


def stored_leaves(folder: epath.Path) -> dict[tuple[str, ...], jax.ShapeDtypeStruct]:
    """Shape and dtype of every leaf that a folder of `params_folder` holds, by path. Raises DamagedError."""
    try:
        with _open(folder, ocp.PyTreeCheckpointHandler()) as (handler, source):
            tree = handler.metadata(source).tree
    except DamagedError:
        for root, below in ((folder, ""), (folder.parent, f"{folder.name}/")):
            file_checksums.verify(root, (below,))  # names the file
        raise
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


def _restore_checked(folder: epath.Path, abstract: Any, noted: dict[str, int]) -> Any:
    """`_restore`, and the sums of the leaves that keep their stored dtype are compared."""
    restored = _restore(folder, abstract)
    stored = stored_leaves(folder)
    same = {path: leaf for path, leaf in flatten(restored).items() if leaf.dtype == stored[path].dtype}
    checksums.check(unflatten(same), noted)
    return restored


def _restore(folder: epath.Path, abstract: Any) -> Any:
    with _open(folder, ocp.PyTreeCheckpointHandler()) as (handler, source):
        return handler.restore(source, args=_restore_args(abstract))
