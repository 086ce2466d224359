"""Starting from checkpoints: loading parameters and chaining stages."""

from __future__ import annotations

import functools
from typing import Any

import jax
from etils import epath
from jax.sharding import Mesh

from qwenvl_jax.checkpoint import handoff, layout, lineage, merging
from qwenvl_jax.checkpoint.deferred import Deferred
from qwenvl_jax.checkpoint.failures import DamagedError
from qwenvl_jax.checkpoint.manager import (
    check_state,
    restore_frozen,
    restore_params,
    restore_state,
    verify_params,
)
from qwenvl_jax.checkpoint.merging import read_merged_leaf
from qwenvl_jax.checkpoint.starting_point import (
    IMPORT,
    StartingPoint,
    check_vocabulary,
    damage_reported,
    find_starting_point,
    frozen_damage_reported,
    stored_params,
    stored_trained,
)
from qwenvl_jax.checkpoint.steps import finished_steps, set_aside
from qwenvl_jax.config import TOWERS, Config, to_dict
from qwenvl_jax.models import lora, quantised
from qwenvl_jax.params import Params, flatten, merge, split, unflatten
from qwenvl_jax.runtime import distributed, log, storage
from qwenvl_jax.runtime.errors import UserError
from qwenvl_jax.sharding.compiler import options_for_quick_compilation
from qwenvl_jax.sharding.rules import param_shardings


def newest_state(workdir: epath.PathLike, params: Params, opt_state: Any) -> tuple[int, Params, Any, dict[str, Any]]:
    """The newest checkpoint that is whole; all processes use the same one.

    Damaged checkpoints that are newer are set aside, and a line in the log says so; none is renamed before a whole one
    has been read.

    Args:
      workdir: the run's folder.
      params: shapes, dtypes and shardings of the trained parameters.
      opt_state: of the optimiser's state.

    Returns:
      (step, params, opt_state, progress).

    Raises:
      UserError: if all are damaged.
    """
    damaged: dict[int, str] = {}
    for step in reversed(distributed.from_primary(lambda: finished_steps(workdir))):
        restored, reason = read_and_check(workdir, step, params, opt_state)
        if restored is None:
            damaged[step] = reason
            continue
        for worse, why in damaged.items():
            name = distributed.from_primary(functools.partial(set_aside, workdir, worse))
            log.line(f"the checkpoint of step {worse} is damaged ({why}): it is kept as {name}, step {step} is taken")
        return step, *restored
    first = max(damaged)
    raise UserError(
        f"all {len(damaged)} checkpoints of {workdir} are damaged; the newest one, of step {first}: {damaged[first]}; "
        "copy a whole one there from elsewhere, or name another --workdir to start anew"
    )


def read_and_check(
    workdir: epath.PathLike, step: int, params: Params, opt_state: Any
) -> tuple[tuple[Params, Any, dict[str, Any]] | None, str]:
    """(params, opt_state, progress) of a checkpoint and "", or None and why it is damaged; alike on all processes."""
    restored = None
    reason = ""
    try:
        restored = restore_state(workdir, step, params, opt_state)
    except DamagedError as error:
        reason = str(error)
    reason = max(distributed.from_primary(functools.partial(list, distributed.gather(reason))))
    if reason or restored is None:
        return None, reason
    try:
        check_state(*restored)
    except DamagedError as error:  # the same on all processes: the sums are over the whole arrays
        return None, str(error)
    return restored, ""


def frozen_of(workdir: epath.PathLike, frozen: Params) -> Params:
    """The frozen tree of a run that is continued. Raises UserError if it is damaged; there is no older one."""
    with frozen_damage_reported(workdir):
        return restore_frozen(workdir, frozen, together=True)


def read_leaves(
    start: StartingPoint, abstract: Params, *, together: bool = False, adapters_apart: bool = False
) -> Params:
    """Reads the leaves of `abstract` (shapes with dtypes and maybe shardings; any part of the whole tree).

    Low-rank adapters are merged into their kernels.

    Args:
      start: the checkpoint.
      abstract: what to read.
      together: all processes call this now; each verifies its share of the files.
      adapters_apart: return them beside their kernels instead, as a run has them.

    Raises:
      UserError: if the checkpoint is damaged, lacks a leaf (converted weights may have one tower only), or has a leaf
        of another shape.
    """
    stored = stored_params(start)
    for path, leaf in flatten(abstract).items():
        name = "/".join(path)
        if path not in stored:
            raise UserError(f"{start.workdir} holds no {name}; name a checkpoint that has the {path[0]}")
        if stored[path].shape != leaf.shape:
            raise UserError(
                f"{start.workdir} holds {name} in the shape {stored[path].shape}, its {layout.CONFIG} says "
                f"{leaf.shape}; one of the two is of another model: copy the whole folder again"
            )
    wanted = merging.with_adapters(start, abstract)
    trainable, frozen = split(wanted, () if start.stage == IMPORT else start.config.train.trainable)
    with frozen_damage_reported(start.workdir):
        if frozen:
            frozen = restore_frozen(start.workdir, frozen, together=together)
    with damage_reported(start):
        if trainable:
            trainable = restore_params(start.workdir, start.step, trainable, together=together)
    params = merge(trainable, frozen)
    return params if adapters_apart else merging.merged(params, abstract)


def load_params(
    workdir: epath.PathLike,
    *,
    step: int | None = None,
    towers: tuple[str, ...] = TOWERS,
    mesh: Mesh | None = None,
    adapters_apart: bool = False,
) -> tuple[Params, Config, int]:
    """Parameters of a run, trained and frozen together, as they are stored; low-rank adapters are merged.

    Args:
      workdir: the run's folder, or one of converted weights.
      step: default the newest.
      towers: those to load, of `vit`, `resampler`, `decoder`.
      mesh: where the parameters go, by the sharding rules; default the first device.
      adapters_apart: see `read_leaves`.

    Returns:
      (parameters, the run's config, the step).

    Raises:
      UserError: if there is no such checkpoint, or it holds other towers only.
    """
    start = find_starting_point(workdir, step)
    stored = stored_params(start)
    for name in towers:
        if not any(path[0] == name for path in stored):
            raise UserError(f"{workdir} holds no {name}; name a checkpoint of the whole model")
    abstract = unflatten({path: leaf for path, leaf in stored.items() if path[0] in towers})
    if mesh is not None:
        abstract = _with_shardings(abstract, mesh)
    return read_leaves(start, abstract, adapters_apart=adapters_apart), start.config, start.step


def deferred_params(workdir: epath.PathLike, *, step: int | None = None) -> tuple[Params, Config]:
    """The parameters of `load_params`, each read by this host when it is needed; and the run's config.

    Raises:
      UserError: if there is no such checkpoint, or it is damaged; the latter also while a leaf is read.
    """
    start = find_starting_point(workdir, step)
    with frozen_damage_reported(start.workdir):
        verify_params(start.workdir, None)
    trained = stored_trained(start)
    if trained:
        with damage_reported(start):
            verify_params(start.workdir, start.step)
    leaves = {}
    for path, leaf in stored_params(start).items():
        load = functools.partial(read_merged_leaf, start, path, frozen=path not in trained)
        leaves[path] = Deferred(leaf.shape, leaf.dtype, load)
    return unflatten(leaves), start.config


def check_init(config: Config, *, missing_ok: bool = False) -> dict[str, StartingPoint | None]:
    """Finds the checkpoint that each of `vit`, `resampler`, `decoder` starts from; None is fresh initialisation.

    Args:
      config: the run's. `init.step` names a step; without it only the end of a finished stage is taken.
      missing_ok: None also for a folder that does not exist yet, when a run is only planned.

    Raises:
      UserError: if one is missing or unfinished, is of another model (naming the key that differs), of another stage,
        or, for the decoder, of another vocabulary.
    """
    return {tower: _starting_point_of(config, tower, missing_ok=missing_ok) for tower in TOWERS}


def _starting_point_of(config: Config, tower: str, *, missing_ok: bool) -> StartingPoint | None:
    """The checkpoint that a tower starts from; see `check_init`."""
    workdir = getattr(config.init, tower)
    if not workdir:
        return None
    if not storage.exists(storage.path(workdir)):
        if missing_ok:
            return None
        raise UserError(
            f"config.init.{tower} is {workdir}, which does not exist; train that stage or import that model first"
        )
    # One number counts for all towers, of which some may be imported.
    named = None if config.init.step < 0 or lineage.read_lineage(workdir)["stage"] == IMPORT else config.init.step
    start = find_starting_point(workdir, named)
    wanted, found = (to_dict(model.architecture()) for model in (config.model, start.config.model))
    for key, here, there in lineage.differences(wanted, found, "config.model"):
        if config.init.partial:
            break
        raise UserError(
            f"config.init.{tower} ({workdir}) is a checkpoint of another model: {key} is {there!r} there and "
            f"{here!r} here; name a checkpoint of this model, give the run that model, or load the tensors that fit "
            "with --config.init.partial"
        )
    if config.init.stage and start.stage != config.init.stage:
        raise UserError(
            f"config.init.{tower} ({workdir}) was written by stage {start.stage!r}, but config.init.stage asks "
            f"for {config.init.stage!r}; name a checkpoint of that stage, or correct config.init.stage"
        )
    if start.stage != IMPORT and named is None and start.step < start.config.train.steps:
        raise UserError(
            f"config.init.{tower} ({workdir}) is a stage that is not finished: its newest checkpoint is of step "
            f"{start.step} of {start.config.train.steps}; finish it first, or take that one on purpose with "
            f"--config.init.step={start.step}"
        )
    if tower == "decoder" and not config.init.partial:
        check_vocabulary(start, config.tokenizer, f"config.init.decoder ({workdir})", missing_ok=missing_ok)
    return start


def initial_params(config: Config, starting_points: dict[str, StartingPoint | None], abstract: Params) -> Params:
    """The parameters a new run starts with: from checkpoints if `starting_points` has one, else initialised.

    Kernels that the run quantises are read one after the other, so that no two of them are there as they were.

    Args:
      config: the run's.
      starting_points: from `check_init`.
      abstract: the whole tree of shapes, with the dtypes and shardings to produce.
    """
    fits = handoff.fits_of(starting_points, abstract)
    kernels = quantised.kernels(abstract)
    leaves = {path: leaf for path, leaf in flatten(abstract).items() if path[-1] not in quantised.NAMES}
    loaded: Params = {}
    # In one order on all processes.
    for start in dict.fromkeys(start for start in starting_points.values() if start is not None):
        towers = {name for name, other in starting_points.items() if other == start}
        # Without `config.init.partial` nothing but all leaves will do, and `read_leaves` names those that are missing.
        part = {
            path: leaf
            for path, leaf in leaves.items()
            if path[0] in towers and not lora.is_adapter(path)
            if fits[path].how == handoff.LOADED or not config.init.partial
        }
        loaded = merge(loaded, read_leaves(start, unflatten(part), together=True))
    for path, stored in kernels.items():
        loaded = merge(loaded, _quantised(config, starting_points[path[0]], path, stored, fits[path].how))
    missing = {path: leaf for path, leaf in leaves.items() if path not in flatten(loaded)}
    if not missing:
        return loaded
    fresh = flatten(_initialise(config, unflatten(missing)))
    for path in missing:
        source = starting_points[path[0]]
        if source is not None and fits[path].how == handoff.RESIZED:
            frozen = path not in stored_trained(source)
            fresh[path] = handoff.resized(path, read_merged_leaf(source, path, frozen=frozen), fresh[path])
    return merge(loaded, unflatten(fresh))


def _quantised(
    config: Config, start: StartingPoint | None, path: tuple[str, ...], stored: dict[str, Any], how: str
) -> Params:
    """The leaves `stored` of a quantised kernel at `path`, from a checkpoint or initialised."""
    kernel: Any
    if start is None or how != handoff.LOADED:
        shape = quantised.plain(unflatten({(*path[:-1], name): leaf for name, leaf in stored.items()}))
        kernel = flatten(_initialise(config, shape))[path]
    else:
        kernel = read_merged_leaf(start, path, frozen=path not in stored_trained(start))
    return unflatten(quantised.quantise_like(path, kernel, stored))


def _initialise(config: Config, shapes: Params) -> Params:
    """Fresh values of some leaves: one program creates each on its own devices and never computes the others."""
    shardings = jax.tree.map(lambda leaf: leaf.sharding, shapes)
    options = options_for_quick_compilation(jax.default_backend())

    @functools.partial(jax.jit, out_shardings=shardings, compiler_options=options)
    def initialise(key: jax.Array) -> Params:
        params = flatten(lora.init_params(config.model, config.lora, key))
        return unflatten({path: params[path].astype(leaf.dtype) for path, leaf in flatten(shapes).items()})

    return initialise(jax.random.key(config.train.seed))


def _with_shardings(abstract: Params, mesh: Mesh) -> Params:
    return jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        abstract,
        param_shardings(abstract, mesh),
    )
