"""A checkpoint that something starts from: found by folder and step, and what is said if it is damaged."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator

from etils import epath

from qwenvl_jax.checkpoint import lineage
from qwenvl_jax.checkpoint.failures import DamagedError
from qwenvl_jax.checkpoint.manager import params_folder, read_host_leaf, read_progress, stored_leaves
from qwenvl_jax.checkpoint.steps import finished_steps, folder_of
from qwenvl_jax.config import Config
from qwenvl_jax.runtime.errors import UserError

IMPORT = "import"  # the stage of weights that were converted, not trained


@dataclasses.dataclass(frozen=True)
class Source:
    """A checkpoint to start from: its folder, the newest step, the run's config and stage."""

    workdir: str
    step: int
    config: Config
    stage: str


def find_source(workdir: epath.PathLike, step: int | None = None) -> Source:
    """The newest complete checkpoint of a folder, or that of `step`. Of imported weights the step is 0.

    Raises:
      UserError: if the folder is not that of a run or holds no such checkpoint.
    """
    config = lineage.read_config(workdir)
    stage = lineage.read_lineage(workdir)["stage"]
    if stage == IMPORT:
        return Source(str(workdir), 0, config, stage)
    found = finished_steps(workdir)
    if not found:
        raise UserError(f"{workdir} holds no finished checkpoint yet; train it first")
    if step is not None and step not in found:
        known = ", ".join(map(str, found))
        raise UserError(f"{workdir} holds no checkpoint of step {step}; its newest is {found[-1]} (there are {known})")
    return Source(str(workdir), found[-1] if step is None else step, config, stage)


@contextlib.contextmanager
def sound_frozen(workdir: epath.PathLike) -> Iterator[None]:
    """Turns damage of the frozen tree into a sentence: there is one of it."""
    try:
        yield
    except DamagedError as error:
        raise UserError(
            f"the weights in {params_folder(workdir, None)} are damaged ({error}); copy that folder again from "
            "elsewhere, or make the whole run anew"
        ) from error


@contextlib.contextmanager
def sound(source: Source) -> Iterator[None]:
    """Turns damage into a sentence with the newest checkpoint that could be taken instead: never taken unasked."""
    try:
        yield
    except DamagedError as error:
        workdir = source.workdir
        older = (step for step in reversed(finished_steps(workdir)) if step < source.step and _is_whole(source, step))
        whole = next(older, None)
        advice = "no older one is whole: copy it again from elsewhere"
        if whole is not None:
            advice = (
                f"the newest whole one is of step {whole}: name that, or move {source.step} away and train on from it"
            )
        raise UserError(f"the checkpoint of step {source.step} of {workdir} is damaged ({error}); {advice}") from error


def _is_whole(source: Source, step: int) -> bool:
    """Whether the parameters of `step` can be read; reads them all, one at a time."""
    try:
        read_progress(folder_of(source.workdir, step))
        folder = params_folder(source.workdir, step)
        for path in stored_leaves(folder):
            read_host_leaf(folder, path)
    except DamagedError:
        return False
    return True
