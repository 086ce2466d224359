"""Saving and finding the checkpoints of one run.

A run's folder W holds `config.json`, `lineage.json`, `frozen/` (weights that the stage does not train, written
once) and `checkpoints/<step>/` with three items: `params` (the trainable tree), `optimizer` and `progress` (JSON:
the place in the data and metrics not yet logged). A checkpoint is written beside its final place and then renamed
or committed, so that one that was cut short is never found.
"""

from __future__ import annotations

from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath

from qwenvl_jax.checkpoint import deferred
from qwenvl_jax.runtime.errors import UserError, file_errors_of

CHECKPOINTS = "checkpoints"
FROZEN = "frozen"


def _restore_args(abstract: Any) -> ocp.args.PyTreeRestore:
    """Restores exactly the leaves of `abstract`, in its dtypes and shardings (default: the first device)."""
    here = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])

    def leaf_args(leaf: Any) -> ocp.ArrayRestoreArgs:
        sharding = getattr(leaf, "sharding", None) or here
        return ocp.ArrayRestoreArgs(sharding=sharding, global_shape=leaf.shape, dtype=leaf.dtype)

    return ocp.args.PyTreeRestore(item=abstract, restore_args=jax.tree.map(leaf_args, abstract), partial_restore=True)


class Manager:
    """Checkpoints of one run, written in the background.

    Args:
      workdir: the run's folder.
      keep: how many of the newest checkpoints stay.
    """

    def __init__(self, workdir: epath.PathLike, *, keep: int):
        self._manager = ocp.CheckpointManager(
            (epath.Path(workdir) / CHECKPOINTS).resolve(),
            options=ocp.CheckpointManagerOptions(max_to_keep=keep, create=True, cleanup_tmp_directories=True),
            item_handlers={
                "params": ocp.PyTreeCheckpointHandler(),
                "optimizer": ocp.PyTreeCheckpointHandler(),
                "progress": ocp.JsonCheckpointHandler(),
            },
        )

    def save(self, step: int, params: Any, opt_state: Any, progress: dict[str, Any]) -> None:
        """Starts writing a checkpoint; returns once the values are copied, so that the arrays may be donated."""
        self._manager.save(
            step,
            args=ocp.args.Composite(
                params=ocp.args.PyTreeSave(params),
                optimizer=ocp.args.PyTreeSave(opt_state),
                progress=ocp.args.JsonSave(progress),
            ),
            force=True,
        )

    def restore(self, step: int, params: Any, opt_state: Any) -> tuple[Any, Any, dict[str, Any]]:
        """Reads (params, opt_state, progress) of `step` into the given shapes, dtypes and shardings."""
        restored = self._manager.restore(
            step,
            args=ocp.args.Composite(
                params=_restore_args(params),
                optimizer=_restore_args(opt_state),
                progress=ocp.args.JsonRestore(),
            ),
        )
        return restored["params"], restored["optimizer"], restored["progress"]

    def __enter__(self) -> Manager:
        return self

    def __exit__(self, *error: object) -> None:
        """Waits until everything is written."""
        self._manager.wait_until_finished()
        self._manager.close()


def latest_step(workdir: epath.PathLike) -> int | None:
    """The newest complete checkpoint of a run's folder, or None. Looks at names only."""
    folder = epath.Path(workdir) / CHECKPOINTS
    if not folder.exists():
        return None
    steps = ocp.utils.checkpoint_steps(folder)
    return max(steps) if steps else None


def restore_params(workdir: epath.PathLike, step: int, params: Any) -> Any:
    """Reads some or all of the trained parameters of `step`, without the optimiser."""
    return _restore(params_folder(workdir, step), params)


def save_frozen(workdir: epath.PathLike, frozen: Any) -> None:
    """Writes the frozen tree of a run, whole or not at all; its leaves are arrays, or all of them `Deferred`."""
    folder = (epath.Path(workdir) / FROZEN).resolve()
    if any(isinstance(leaf, deferred.Deferred) for leaf in jax.tree.leaves(frozen)):
        handler, args = deferred.handler(), deferred.save_args(frozen)
    else:
        handler, args = ocp.PyTreeCheckpointHandler(), ocp.args.PyTreeSave(frozen)
    with file_errors_of(folder), ocp.Checkpointer(handler) as checkpointer:
        checkpointer.save(folder, args=args, force=True)


def restore_frozen(workdir: epath.PathLike, frozen: Any) -> Any:
    """Reads some or all of the frozen tree into the given shapes, dtypes and shardings.

    Raises:
      UserError: if it is missing.
    """
    return _restore(params_folder(workdir, None), frozen)


def params_folder(workdir: epath.PathLike, step: int | None) -> epath.Path:
    """Where the trained parameters of `step` lie, or with None the frozen tree."""
    return epath.Path(workdir) / (FROZEN if step is None else f"{CHECKPOINTS}/{step}/params")


def stored_leaves(folder: epath.Path) -> dict[tuple[str, ...], jax.ShapeDtypeStruct]:
    """Shape and dtype of every leaf that a folder of `params_folder` holds, by path. Raises UserError if it is gone."""
    _check_there(folder)
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer:
        tree = checkpointer.metadata(folder.resolve()).item_metadata.tree
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {tuple(key.key for key in path): jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) for path, leaf in leaves}


def read_host_leaf(folder: epath.Path, path: tuple[str, ...]) -> np.ndarray:
    """One leaf in its stored dtype, in this host's memory alone."""
    item: Any = 0
    args: Any = ocp.RestoreArgs(restore_type=np.ndarray)
    for key in reversed(path):
        item, args = {key: item}, {key: args}
    with ocp.Checkpointer(deferred.reader()) as checkpointer:
        restore = ocp.args.PyTreeRestore(item=item, restore_args=args, partial_restore=True)
        leaf = checkpointer.restore(folder.resolve(), args=restore)
    for key in path:
        leaf = leaf[key]
    return leaf


def _check_there(folder: epath.Path) -> None:
    if not folder.exists():
        raise UserError(f"{folder} is missing; the checkpoint is incomplete, so copy the whole folder of the run")


def _restore(folder: epath.Path, abstract: Any) -> Any:
    _check_there(folder)
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer:
        return checkpointer.restore(folder.resolve(), args=_restore_args(abstract))
