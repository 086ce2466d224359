"""What all processes of a run agree on before they do anything together."""

from __future__ import annotations

from typing import Any

from etils import epath

from qwenvl_jax.checkpoint import lineage
from qwenvl_jax.checkpoint.restore import StartingPoint, check_init
from qwenvl_jax.checkpoint.steps import folder_of, latest_step
from qwenvl_jax.config import Config, from_config_dict, to_dict
from qwenvl_jax.runtime import distributed
from qwenvl_jax.runtime.errors import UserError
from qwenvl_jax.runtime.versions import versions


def find_start(config: Config, workdir: epath.Path) -> tuple[int | None, dict[str, StartingPoint | None]]:
    """The step that a run continues from; where there is none, None and the checkpoints that a new one starts from.

    All processes must run the same code with the same config. Then process 0 asks the file system, and the others, who
    might see an earlier state of it, are told.

    Raises:
      UserError: if a process differs, if the folder holds another run, or for what `check_init` refuses.
    """
    distributed.agree({**versions(), "--workdir": str(workdir), **dict(_leaves(to_dict(config), "config"))})

    def look() -> dict[str, Any]:
        lineage.check_resumable(workdir, config)
        step = latest_step(workdir)
        if step is not None and step > config.train.steps:
            raise UserError(
                f"{folder_of(workdir, step)} is none of this run's {config.train.steps} steps; it was put there or "
                "renamed: move it away"
            )
        sources = check_init(config) if step is None else {}
        return {"step": step, "sources": {name: source and _to_json(source) for name, source in sources.items()}}

    told = distributed.from_primary(look)
    return told["step"], {name: source and _from_json(source) for name, source in told["sources"].items()}


def _leaves(value: Any, path: str) -> list[tuple[str, str]]:
    """(name, text) of every value of a config."""
    if isinstance(value, dict) and value:
        return [leaf for key, own in value.items() for leaf in _leaves(own, f"{path}.{key}")]
    if isinstance(value, list) and value:
        return [leaf for index, own in enumerate(value) for leaf in _leaves(own, f"{path}[{index}]")]
    return [(path, repr(value))]


def _to_json(source: StartingPoint) -> dict[str, Any]:
    return {**vars(source), "config": to_dict(source.config)}


def _from_json(source: dict[str, Any]) -> StartingPoint:
    return StartingPoint(**{**source, "config": from_config_dict(Config, source["config"])})
