"""The start of a run: which checkpoints it continues or begins from, agreed on by all processes."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import jax
from etils import epath
from jax.sharding import Mesh

from qwenvl_jax.checkpoint import layout, lineage
from qwenvl_jax.checkpoint.local import KEPT
from qwenvl_jax.checkpoint.local_files import held_bytes
from qwenvl_jax.checkpoint.restore import StartingPoint, check_init
from qwenvl_jax.checkpoint.steps import folder_of, latest_step
from qwenvl_jax.config import Config, from_config_dict, to_dict
from qwenvl_jax.data.loader import Loader, make_loader
from qwenvl_jax.data.tokenizer import Tokenizer
from qwenvl_jax.params import PyTree
from qwenvl_jax.runtime import distributed, log, preflight
from qwenvl_jax.runtime.errors import UserError
from qwenvl_jax.runtime.versions import SETUP_AGAIN, versions
from qwenvl_jax.training.state import State


def find_start(
    config: Config, workdir: epath.Path, going_back: int | None = None
) -> tuple[int | None, dict[str, StartingPoint | None]]:
    """The step that a run continues from, or None and the checkpoints by tower that a new run starts from.

    All processes must run the same code with the same config. Process 0 looks into the file system and tells the
    others, which might see an earlier state of it.

    Args:
      config: the run's.
      workdir: its folder.
      going_back: continue from this older checkpoint instead of the newest one.

    Raises:
      UserError: if a process differs, if the folder holds another run, or if `check_init` refuses a checkpoint.
    """
    check_equal(config, workdir)

    def look() -> dict[str, Any]:
        lineage.check_resumable(workdir, config)
        step = latest_step(workdir) if going_back is None else going_back
        if step is not None and step > config.train.steps:
            raise UserError(
                f"{folder_of(workdir, step)} does not belong to this run of {config.train.steps} steps; it was put "
                "there or renamed: move it away"
            )
        starting_points = check_init(config) if step is None else {}
        return {
            "step": step,
            "starting_points": {tower: point and _to_json(point) for tower, point in starting_points.items()},
        }

    start = distributed.from_primary(look)
    return start["step"], {tower: values and _from_json(values) for tower, values in start["starting_points"].items()}


def check_equal(config: Config, workdir: epath.Path) -> None:
    """Compares code, versions, workdir and config of all processes.

    Raises:
      UserError: on every process, naming the processes that differ, the key, and both values.
    """
    distributed.agree(versions(), SETUP_AGAIN)
    distributed.agree({"--workdir": str(workdir), **dict(_leaves(to_dict(config), "config"))})


def check_hosts(workdir: epath.Path, mesh: Mesh, abstract: State, *, begins: bool, local: str) -> None:
    """The pre-flight of a run (`runtime.preflight`): devices, collectives, workdir, space and clocks.

    A run that begins needs space for the frozen weights and two checkpoints, because the first is kept while the second
    is written. One that continues has older checkpoints, which make room; it needs space for one. A folder for local
    checkpoints (`config.checkpoint.local`) that a host cannot use keeps a run from beginning, not from continuing.
    """
    checkpoint = _bytes_of((abstract.trainable, abstract.opt_state))
    needed = _bytes_of(abstract.frozen) + 2 * checkpoint if begins else checkpoint
    preflight.check(mesh, workdir, needed)
    if local:
        held = held_bytes((abstract.trainable, abstract.opt_state))
        preflight.check_own_folder(local, (KEPT + 1) * held if begins else held, refuse=begins)


def note_moves(workdir: epath.Path, config: Config, step: int) -> None:
    """Notes the paths of the config that have changed since the run began, e.g. of records, in its lineage."""
    for key in distributed.from_primary(lambda: lineage.note_moves(workdir, config, step)):
        log.line(f"{key} has moved; noted in {layout.LINEAGE}")


@contextlib.contextmanager
def make_agreed_loader(config: Config, tokenizer: Tokenizer, streams: Sequence[int]) -> Iterator[Loader]:
    """`make_loader`, once all processes have compared the records that they read.

    Raises:
      UserError: on every process, if they differ.
    """
    with make_loader(config, tokenizer, streams=streams) as loader:
        distributed.agree(loader.facts())
        yield loader


def _bytes_of(tree: PyTree) -> int:
    """Bytes of the leaves of a tree of arrays or shapes, without copies."""
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def _leaves(value: Any, path: str) -> list[tuple[str, str]]:
    """(name, text) of every value of a config."""
    if isinstance(value, dict) and value:
        return [leaf for key, entry in value.items() for leaf in _leaves(entry, f"{path}.{key}")]
    if isinstance(value, list) and value:
        return [leaf for index, entry in enumerate(value) for leaf in _leaves(entry, f"{path}[{index}]")]
    return [(path, repr(value))]


def _to_json(starting_point: StartingPoint) -> dict[str, Any]:
    return {**vars(starting_point), "config": to_dict(starting_point.config)}


def _from_json(values: dict[str, Any]) -> StartingPoint:
    return StartingPoint(**{**values, "config": from_config_dict(Config, values["config"])})
