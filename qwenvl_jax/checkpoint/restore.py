"""Starting from checkpoints: loading parameters, chaining stages, writing imported weights."""

from __future__ import annotations

import dataclasses
import functools

import jax
from etils import epath
from jax.sharding import Mesh

from qwenvl_jax.checkpoint import lineage
from qwenvl_jax.checkpoint.deferred import Deferred
from qwenvl_jax.checkpoint.manager import (
    latest_step,
    params_folder,
    read_host_leaf,
    restore_frozen,
    restore_params,
    save_frozen,
    stored_leaves,
)
from qwenvl_jax.config import Config, to_dict
from qwenvl_jax.models import qwen_vl
from qwenvl_jax.runtime import artifacts
from qwenvl_jax.runtime.errors import UserError
from qwenvl_jax.sharding.rules import param_shardings
from qwenvl_jax.training.partition import Tree, flatten, merge, split, unflatten

TOWERS = ("vit", "resampler", "decoder")
IMPORT = "import"  # the stage of weights that were converted, not trained


@dataclasses.dataclass(frozen=True)
class Source:
    """A checkpoint to start from: its folder, the newest step, the run's config and stage."""

    workdir: str
    step: int
    config: Config
    stage: str


def find_source(workdir: epath.PathLike, step: int | None = None) -> Source:
    """The newest complete checkpoint of a folder, or that of `step`.

    Raises:
      UserError: if the folder is not that of a run or holds no such checkpoint.
    """
    config = lineage.read_config(workdir)
    stage = lineage.read_lineage(workdir)["stage"]
    if stage == IMPORT:
        return Source(str(workdir), 0, config, stage)
    found = latest_step(workdir) if step is None else step
    if found is None:
        raise UserError(f"{workdir} holds no finished checkpoint yet; train it first")
    if not (epath.Path(workdir) / "checkpoints" / str(found)).exists():
        raise UserError(f"{workdir} holds no checkpoint of step {found}; its newest is {latest_step(workdir)}")
    return Source(str(workdir), found, config, stage)


def read_leaves(source: Source, abstract: Tree) -> Tree:
    """Reads the leaves of `abstract` (shapes with dtypes and maybe shardings; any part of the whole tree).

    Raises:
      UserError: if the checkpoint lacks one of them, as converted weights may that hold one tower alone.
    """
    stored = stored_params(source)
    for path in flatten(abstract):
        if path not in stored:
            raise UserError(f"{source.workdir} holds no {'/'.join(path)}; name a checkpoint that has the {path[0]}")
    if source.stage == IMPORT:
        return restore_frozen(source.workdir, abstract)
    trainable, frozen = split(abstract, source.config.train.trainable)
    if frozen:
        frozen = restore_frozen(source.workdir, frozen)
    if trainable:
        trainable = restore_params(source.workdir, source.step, trainable)
    return merge(trainable, frozen)


def load_params(
    workdir: epath.PathLike,
    *,
    step: int | None = None,
    components: tuple[str, ...] = TOWERS,
    mesh: Mesh | None = None,
) -> tuple[Tree, Config, int]:
    """Parameters of a run, trained and frozen together, as they are stored.

    Args:
      workdir: the run's folder, or one of converted weights.
      step: default the newest.
      components: top-level names out of `vit`, `resampler`, `decoder`.
      mesh: where the parameters go, by the sharding rules; default the first device.

    Returns:
      (parameters, the run's config, the step).

    Raises:
      UserError: if there is no such checkpoint, or it holds other components only.
    """
    source = find_source(workdir, step)
    stored = stored_params(source)
    for name in components:
        if not any(path[0] == name for path in stored):
            raise UserError(f"{workdir} holds no {name}; name a checkpoint of the whole model")
    abstract = unflatten({path: leaf for path, leaf in stored.items() if path[0] in components})
    if mesh is not None:
        abstract = _with_shardings(abstract, mesh)
    return read_leaves(source, abstract), source.config, source.step


def stored_params(source: Source) -> dict[tuple[str, ...], jax.ShapeDtypeStruct]:
    """Shape and stored dtype of every parameter that a checkpoint holds, trained and frozen, by path."""
    trained = {} if source.stage == IMPORT else stored_leaves(params_folder(source.workdir, source.step))
    stored = stored_leaves(params_folder(source.workdir, None)) | trained
    shapes = flatten(qwen_vl.abstract_params(source.config.model))
    return {path: stored[path] for path in shapes if path in stored}  # in the model's order


def deferred_params(workdir: epath.PathLike, *, step: int | None = None) -> tuple[Tree, Config]:
    """The parameters of `load_params`, each to be read by this host when its turn comes; and the run's config.

    Raises:
      UserError: if there is no such checkpoint.
    """
    source = find_source(workdir, step)
    trained = {} if source.stage == IMPORT else stored_leaves(params_folder(source.workdir, source.step))
    leaves = {}
    for path, leaf in stored_params(source).items():
        folder = params_folder(source.workdir, source.step if path in trained else None)
        leaves[path] = Deferred(leaf.shape, leaf.dtype, functools.partial(read_host_leaf, folder, path))
    return unflatten(leaves), source.config


def save_params(workdir: epath.PathLike, params: Tree, config: Config, stage: str = IMPORT) -> None:
    """Writes converted weights as something that `config.init` can name; nothing is left of a write that fails.

    Args:
      workdir: a folder without a run.
      params: arrays, or all of them `Deferred`; of the whole model or of some of `vit`, `resampler`, `decoder`. Every
        leaf is stored in its own dtype.
      config: of the run they come from; only the model, the vocabulary and the image size mean something here.
      stage: what `config.init.stage` of a run that starts from it must say.

    Raises:
      UserError: if the folder already holds a run.
    """
    check_empty(workdir)
    config = dataclasses.replace(config, train=dataclasses.replace(config.train, stage=stage, trainable=()))
    with artifacts.undone_on_failure(workdir):
        save_frozen(workdir, params)
        lineage.write(workdir, config, dict.fromkeys(TOWERS))


def check_empty(workdir: epath.PathLike) -> None:
    """Raises UserError if the folder holds a run; other files may lie there."""
    if (epath.Path(workdir) / lineage.LINEAGE).exists():
        raise UserError(f"{workdir} already holds a run; choose an empty folder")


def check_init(config: Config, *, missing_ok: bool = False) -> dict[str, Source | None]:
    """Finds the checkpoint that each of `vit`, `resampler`, `decoder` starts from; None is fresh initialisation.

    Args:
      config: the run's.
      missing_ok: None also for a folder that does not exist yet, when a run is only planned.

    Raises:
      UserError: if one is missing, is of another model (naming the key that differs) or of another stage.
    """
    sources: dict[str, Source | None] = {}
    for name in TOWERS:
        workdir = getattr(config.init, name)
        if not workdir:
            sources[name] = None
            continue
        if not epath.Path(workdir).exists():
            if missing_ok:
                sources[name] = None
                continue
            raise UserError(f"config.init.{name} is {workdir}, which does not exist; train that stage first")
        source = find_source(workdir)
        same_name = dataclasses.replace(source.config.model, name=config.model.name)
        for key, here, there in lineage.differences(to_dict(config.model), to_dict(same_name), "config.model"):
            raise UserError(
                f"config.init.{name} ({workdir}) is a checkpoint of another model: {key} is {there!r} there and "
                f"{here!r} here"
            )
        if config.init.stage and source.stage != config.init.stage:
            raise UserError(
                f"config.init.{name} ({workdir}) was written by stage {source.stage!r}, but config.init.stage asks "
                f"for {config.init.stage!r}"
            )
        sources[name] = source
    return sources


def initial_params(config: Config, sources: dict[str, Source | None], abstract: Tree) -> Tree:
    """The parameters a fresh run starts with: from checkpoints where `sources` has one, else initialised.

    Args:
      config: the run's.
      sources: from `check_init`.
      abstract: the whole tree of shapes, with the dtypes and shardings to produce.
    """
    fresh = {name for name, source in sources.items() if source is None}
    loaded: Tree = {}
    for source in {source for source in sources.values() if source is not None}:
        names = {name for name, other in sources.items() if other == source}
        part = {tower: leaves for tower, leaves in abstract.items() if tower in names}
        loaded = merge(loaded, read_leaves(source, part))
    if not fresh:
        return loaded
    wanted = {tower: leaves for tower, leaves in abstract.items() if tower in fresh}

    # One program for all fresh leaves: each is born on its own devices, the unwanted ones never.
    @functools.partial(jax.jit, out_shardings=jax.tree.map(lambda leaf: leaf.sharding, wanted))
    def initialise(key: jax.Array) -> Tree:
        params = qwen_vl.init_params(config.model, key)
        return jax.tree.map(lambda like, leaf: leaf.astype(like.dtype), wanted, {name: params[name] for name in wanted})

    return merge(loaded, initialise(jax.random.key(config.train.seed)))


def _with_shardings(abstract: Tree, mesh: Mesh) -> Tree:
    return jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        abstract,
        param_shardings(abstract, mesh),
    )
