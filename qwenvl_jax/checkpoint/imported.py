"""Writes converted weights as a checkpoint that a run can start from."""

from __future__ import annotations

import dataclasses
from typing import Any

from etils import epath

from qwenvl_jax.checkpoint import layout, lineage
from qwenvl_jax.checkpoint.manager import save_frozen
from qwenvl_jax.checkpoint.starting_point import IMPORT
from qwenvl_jax.config import TOWERS, Config, LoraConfig
from qwenvl_jax.params import Params
from qwenvl_jax.runtime import artifacts, storage
from qwenvl_jax.runtime.errors import UserError


def save_params(
    workdir: epath.PathLike,
    params: Params,
    config: Config,
    stage: str = IMPORT,
    *,
    source: dict[str, Any] | None = None,
) -> None:
    """Writes converted weights as a folder that `config.init` can name; a failed write leaves nothing.

    Args:
      workdir: a folder without a run.
      params: arrays, or all of them `Deferred`; of the whole model or of some of `vit`, `resampler`, `decoder`. Every
        leaf is stored in its own dtype.
      config: of the run they come from; only the model, the vocabulary and the image size matter here.
      stage: the value that `config.init.stage` needs in a run that starts from it.
      source: what was converted, for the lineage: its `path` and what identifies it, as JSON values; or that of each
        tower under its name.

    Raises:
      UserError: if the folder already holds a run, or files under a name that is needed.
    """
    train = dataclasses.replace(config.train, stage=stage, trainable=())
    config = dataclasses.replace(config, train=train, lora=LoraConfig())
    check_empty(workdir)
    with artifacts.undone_on_failure(workdir):
        lineage.begin(workdir, config)
        save_frozen(workdir, params)
        source = source or {}
        origins: dict[str, dict[str, Any] | None] = {
            name: {"stage": stage, **source.get(name, source)} for name in TOWERS if name in params
        }
        lineage.write(workdir, config, origins)


def check_empty(workdir: epath.PathLike) -> None:
    """Raises UserError if the folder has a run or a file with a name that a run uses; other files may be there."""
    if storage.exists(storage.path(workdir) / layout.LINEAGE):
        raise UserError(f"{workdir} already holds a run; choose an empty folder")
    lineage.check_free(workdir)
