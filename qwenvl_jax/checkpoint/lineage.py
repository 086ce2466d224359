"""Where every component of a run came from, and whether a folder belongs to the run that wants to use it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from etils import epath

from qwenvl_jax.config import COMPONENTS, Config, config_hash, from_config_dict, to_dict
from qwenvl_jax.runtime import artifacts
from qwenvl_jax.runtime.errors import UserError

CONFIG = "config.json"
LINEAGE = "lineage.json"

# What may change when a run is continued: it alters where and how the same numbers are computed and kept.
FREE_ON_RESUME = (
    "config.mesh.",
    "config.compute.compute_dtype",
    "config.compute.attention",
    "config.data.decode_workers",
    "config.data.max_corrupt_share",
    "config.compute.remat_",
    "config.compute.unroll_layers",
    "config.compute.loss_chunk",
    "config.compute.rotary_by_product",
    "config.compute.xla_options",
    "config.optimizer.moments_memory",
    "config.train.log_every",
    "config.train.checkpoint_every",
    "config.train.keep_checkpoints",
)


def differences(here: Any, there: Any, path: str) -> Iterator[tuple[str, Any, Any]]:
    """(key, value here, value there) of all leaves in which two trees of JSON values differ, in order."""
    if isinstance(here, dict) and isinstance(there, dict):
        for key in [*here, *(key for key in there if key not in here)]:
            yield from differences(here.get(key), there.get(key), f"{path}.{key}")
    elif isinstance(here, list) and isinstance(there, list) and len(here) == len(there):
        for index, (a, b) in enumerate(zip(here, there, strict=True)):
            yield from differences(a, b, f"{path}[{index}]")
    elif here != there:
        yield path, here, there


def read_config(workdir: epath.PathLike) -> Config:
    """The config that a run was started with.

    Raises:
      UserError: if the folder is not that of a run.
    """
    path = epath.Path(workdir) / CONFIG
    if not path.exists():
        raise UserError(f"{workdir} is not the folder of a run (it has no {CONFIG}); check the path")
    return from_config_dict(Config, artifacts.read_json(path))


def read_lineage(workdir: epath.PathLike) -> dict[str, Any]:
    """The lineage of a run; see `write`. Raises UserError if there is none."""
    return artifacts.read_json(epath.Path(workdir) / LINEAGE)


def check_resumable(workdir: epath.PathLike, config: Config) -> None:
    """Refuses to continue a run with another config than it was started with. An empty folder is fine.

    Raises:
      UserError: naming the first key that differs.
    """
    path = epath.Path(workdir) / CONFIG
    if not path.exists():
        return
    for key, here, there in differences(to_dict(config), to_dict(read_config(workdir)), "config"):
        if not key.startswith(FREE_ON_RESUME):
            raise UserError(
                f"{workdir} was started with {key} = {there!r}, not {here!r}; "
                "use the old value to continue, or another --workdir to start anew"
            )


def write(workdir: epath.PathLike, config: Config, sources: dict[str, dict[str, Any] | None]) -> None:
    """Writes `config.json` and `lineage.json` of a new run.

    Args:
      workdir: the run's folder.
      config: its config.
      sources: per initialised component (`vit`, `resampler`, `decoder`) the `source_of` the checkpoint it starts
        from, or None for fresh initialisation.
    """
    artifacts.write_json(epath.Path(workdir) / CONFIG, to_dict(config))
    this = {"stage": config.train.stage, "config": config_hash(config), "model": config.model.name}
    components = {}
    for name in COMPONENTS:
        source = sources["vit" if name == "vit_head" else name]
        components[name] = {
            "trained": name in config.train.trainable,
            "from": source or {"stage": "fresh", "seed": config.train.seed},
        }
    artifacts.write_json(epath.Path(workdir) / LINEAGE, {**this, "components": components})


def source_of(workdir: epath.PathLike, step: int, component: str) -> dict[str, Any]:
    """What a later run notes of the checkpoint it starts from, with that checkpoint's own history."""
    lineage = read_lineage(workdir)
    return {
        "path": str(workdir),
        "step": step,
        "stage": lineage["stage"],
        "config": lineage["config"],
        **lineage["components"][component],
    }
