"""The start of a run: which checkpoints it continues or begins from, agreed on by all processes."""

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
    """The step that a run continues from, or None and the checkpoints by tower that a new run starts from.

    All processes must run the same code with the same config. Process 0 looks into the file system and tells the
    others, which might see an earlier state of it.

    Raises:
      UserError: if a process differs, if the folder holds another run, or if `check_init` refuses a checkpoint.
    """
    distributed.agree({**versions(), "--workdir": str(workdir), **dict(_leaves(to_dict(config), "config"))})

    def look() -> dict[str, Any]:
        lineage.check_resumable(workdir, config)
        step = latest_step(workdir)
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
