"""The checkpoint that a stage, an evaluation, a chat or a release starts from; what is said if it is damaged."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator

import jax
import jax.numpy as jnp
from etils import epath

from qwenvl_jax.checkpoint import lineage
from qwenvl_jax.checkpoint.failures import DamagedError
from qwenvl_jax.checkpoint.manager import params_folder, read_host_leaf, stored_leaves, verify_params
from qwenvl_jax.checkpoint.steps import finished_steps
from qwenvl_jax.config import Config, TokenizerConfig
from qwenvl_jax.data.tokenizer import vocabulary_digest
from qwenvl_jax.models import quantised, qwen_vl
from qwenvl_jax.params import flatten, parse_path, unflatten
from qwenvl_jax.runtime.errors import UserError

IMPORT = "import"  # the stage of weights that were converted, not trained


@dataclasses.dataclass(frozen=True)
class StartingPoint:
    """One checkpoint: the folder of its run, its step, and the config and the stage of the run."""

    workdir: str
    step: int
    config: Config
    stage: str


def find_starting_point(workdir: epath.PathLike, step: int | None = None) -> StartingPoint:
    """A finished checkpoint of a run; the step of imported weights is 0.

    Args:
      workdir: the folder of the run.
      step: None or -1 is the newest.

    Raises:
      UserError: if the folder is not that of a run, or has no such checkpoint.
    """
    config = lineage.read_config(workdir)
    stage = lineage.read_lineage(workdir)["stage"]
    if stage == IMPORT:
        if step not in (None, -1, 0):
            raise UserError(f"{workdir} holds imported weights, whose only step is 0, not {step}; leave the step out")
        return StartingPoint(str(workdir), 0, config, stage)
    finished = finished_steps(workdir)
    if not finished:
        raise UserError(f"{workdir} holds no finished checkpoint yet; train it first")
    newest = finished[-1]
    step = newest if step in (None, -1) else step
    if step not in finished:
        known = ", ".join(map(str, finished))
        raise UserError(f"{workdir} holds no checkpoint of step {step}; its newest is {newest} (there are {known})")
    return StartingPoint(str(workdir), step, config, stage)


def stored_params(start: StartingPoint) -> dict[tuple[str, ...], jax.ShapeDtypeStruct]:
    """Shape and stored dtype of every parameter that a checkpoint holds, trained and frozen, by path.

    Adapters are not listed: they are read as parts of their kernels, which are float32 therefore. Quantised kernels are
    listed as the float32 kernels that they stand for.

    Raises:
      UserError: if it is damaged.
    """
    with frozen_damage_reported(start.workdir):
        frozen = stored_leaves(params_folder(start.workdir, None))
    stored = flatten(quantised.plain(unflatten(frozen | stored_trained(start))))
    for target in start.config.lora.adapted:
        kernel = (*parse_path(target), "kernel")
        if kernel in stored:
            stored[kernel] = jax.ShapeDtypeStruct(stored[kernel].shape, jnp.float32)
    shapes = flatten(qwen_vl.abstract_params(start.config.model))
    return {path: stored[path] for path in shapes if path in stored}  # in the model's order


def stored_trained(start: StartingPoint) -> dict[tuple[str, ...], jax.ShapeDtypeStruct]:
    """As `stored_params`, without the frozen ones; none of imported weights."""
    if start.stage == IMPORT:
        return {}
    with damage_reported(start):
        return stored_leaves(params_folder(start.workdir, start.step))


def check_vocabulary(
    start: StartingPoint, vocabulary: TokenizerConfig, called: str = "", *, missing_ok: bool = False
) -> None:
    """Checks that tokens mean to the decoder what they meant when it was trained.

    Args:
      start: the checkpoint; a run of an earlier version, or imported weights, may not say with what it was trained.
      vocabulary: the one to use.
      called: what the message calls the checkpoint; by default the folder of its run.
      missing_ok: accept a vocabulary that cannot be read, because a run is only planned.

    Raises:
      UserError: if it was trained with another vocabulary, or this one cannot be read.
    """
    trained_with = lineage.read_lineage(start.workdir).get(lineage.VOCABULARY)
    if trained_with is None:
        return
    try:
        digest = vocabulary_digest(vocabulary)
    except UserError:
        if missing_ok:
            return
        raise
    if digest != trained_with:
        theirs = start.config.tokenizer.path or start.config.tokenizer.kind
        raise UserError(
            f"{called or start.workdir} was trained with another vocabulary ({theirs}, sha256 {trained_with[:12]}) "
            f"than {vocabulary.path or vocabulary.kind} (sha256 {digest[:12]}); name that one with "
            "--config.tokenizer.path"
        )


@contextlib.contextmanager
def frozen_damage_reported(workdir: epath.PathLike) -> Iterator[None]:
    """Reports damage of the frozen weights as a `UserError`; a run has no older copy of them."""
    try:
        yield
    except DamagedError as error:
        raise UserError(
            f"the weights in {params_folder(workdir, None)} are damaged ({error}); copy that folder again from "
            "elsewhere, or start the run again from its beginning"
        ) from error


@contextlib.contextmanager
def damage_reported(start: StartingPoint) -> Iterator[None]:
    """Reports damage as a `UserError` that names the newest checkpoint that is whole; it is never used unasked."""
    try:
        yield
    except DamagedError as error:
        workdir = start.workdir
        older = (step for step in reversed(finished_steps(workdir)) if step < start.step and _is_whole(start, step))
        whole = next(older, None)
        advice = "no older one is whole: copy it again from elsewhere"
        if whole is not None:
            advice = (
                f"the newest whole one is of step {whole}: name that, or move {start.step} away and train on from it"
            )
        raise UserError(f"the checkpoint of step {start.step} of {workdir} is damaged ({error}); {advice}") from error


def _is_whole(start: StartingPoint, step: int) -> bool:
    """Whether the parameters of `step` are what was saved; reads them all, one at a time."""
    try:
        verify_params(start.workdir, step)
        folder = params_folder(start.workdir, step)
        for path in stored_leaves(folder):
            read_host_leaf(folder, path)
    except DamagedError:
        return False
    return True
