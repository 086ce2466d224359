"""`python -m launch stages PATH`: the stages of a folder of configs, one after another on the same hosts.

Before anything is called, every hand-off is checked: a stage that starts from another stage names that one's workdir,
and both have the same model. The hosts must exist and be set up (`create`, `setup`), and are kept.
"""

from __future__ import annotations

import dataclasses
import itertools
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from launch import finished
from launch.command import Command
from launch.job import Job
from launch.path import LaunchPath
from qwenvl_jax.config import Config
from qwenvl_jax.runtime.errors import UserError

_FILE = re.compile(r"stage(\d+)_\w+\.py")


class Stage(NamedTuple):
    """One stage of a chain.

    Attributes:
      name: of its config file, and of its workdir below `--runs`.
      config: checked.
      job: what the hosts run.
    """

    name: str
    config: Config
    job: Job


def files(config_dir: str, first: int, last: int) -> list[Path]:
    """The config files `stageN_NAME.py` of a folder, by N.

    Raises:
      UserError: if the folder has none in this range, or two of one number.
    """
    numbered = [
        (int(match[1]), path) for path in Path(config_dir).glob("*.py") if (match := _FILE.fullmatch(path.name))
    ]
    chosen = sorted((number, path) for number, path in numbered if first <= number <= last)
    if not chosen:
        raise UserError(
            f"--config_dir={config_dir} has no file stageN_NAME.py with N from {first} to {last}; change it or --stages"
        )
    for (number, path), (other, twin) in itertools.pairwise(chosen):
        if number == other:
            raise UserError(f"{path} and {twin} are both stage {number}; rename one")
    return [path for _, path in chosen]


def check_handoffs(stages: Sequence[Stage]) -> list[str]:
    """Checks that every stage but the first continues from the one before it.

    Returns:
      One sentence per hand-off.

    Raises:
      UserError: naming the key that does not fit.
    """
    sentences = []
    for before, after in itertools.pairwise(stages):
        init = after.config.init
        if init.stage != before.config.train.stage:
            raise UserError(
                f"{after.name} starts from a run of the stage {init.stage!r}, but the one before it, {before.name}, is "
                f"{before.config.train.stage!r}; correct config.init.stage"
            )
        sources = {tower: getattr(init, tower).rstrip("/") for tower in ("vit", "resampler", "decoder")}
        workdir = before.job.workdir.rstrip("/")
        wrong = [tower for tower, source in sources.items() if source not in ("", workdir)]
        if wrong or not any(sources.values()):
            tower = (wrong or ["decoder"])[0]
            raise UserError(
                f"config.init.{tower} of {after.name} is {sources[tower]!r}, not {workdir}, where {before.name} leaves "
                "its checkpoints; let the config take it from its argument `runs`"
            )
        if _shape(before.config.model) != _shape(after.config.model):
            raise UserError(f"{before.name} and {after.name} have different models; give both the same config.model")
        sizes = [stage.config.data.image_size for stage in (before, after)]
        same = sizes[0] == sizes[1]
        change = f"{sizes[0]} px in both" if same else f"{sizes[0]} px, then {sizes[1]} px: positions are interpolated"
        sentences.append(f"{after.name} starts from {before.job.workdir}; {change}.")
    return sentences


def _shape(model: Any) -> Any:
    return dataclasses.asdict(model)


def commands(path: LaunchPath, stages: Sequence[Stage], first: str = "") -> list[Command]:
    """Runs every stage and waits for its last checkpoint, before which the next one is not started.

    What a stage has made, such as its logs on GKE, stays if it fails.

    Args:
      path: of the hosts.
      stages: in their order.
      first: name of the stage to begin with; the one before it is waited for, but not started. Empty for the first.
    """
    names = [stage.name for stage in stages]
    begin = names.index(first) if first else 0
    made = [_wait(stage) for stage in stages[max(0, begin - 1) : begin]]
    for stage in stages[begin:]:
        made += [dataclasses.replace(command, creates="", undo=()) for command in path.builders["run"](stage.job)]
        made += [path.wait(stage.job)] if path.wait else []
        made.append(_wait(stage))
    return made


def left(stages: Sequence[Stage], progress: Callable[[str, int], str] = finished.progress) -> list[Stage]:
    """The stages that have not finished, looked up in their workdirs."""
    return [stage for stage in stages if progress(stage.job.workdir, stage.config.train.steps) != finished.FINISHED]


def _wait(stage: Stage) -> Command:
    arguments = ("python", "-m", "launch.finished", stage.job.workdir, f"--steps={stage.config.train.steps}")
    why = f"Wait until {stage.name} has written the checkpoint of its last step, or has ended without it."
    advice = f"the log in {stage.job.workdir}/logs says why; mend that and run the same command again"
    return Command(arguments, why, until=(finished.FINISHED,), unless=(finished.ENDED,), advice=advice)
