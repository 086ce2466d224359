"""A study: what its config file declares, and the ordinary training runs that its arms are.

The file has `get_config` as every config, and `STUDIES`: by the value of its argument `size`, the first by default, the
values of a `StudyConfig`. An arm is the config with the arm's arguments before those of the command line.
"""

from __future__ import annotations

import dataclasses
import re
import runpy
import shlex
from collections.abc import Mapping
from typing import Any

from etils import epath

from qwenvl_jax.checkpoint import lineage
from qwenvl_jax.config import Config, from_config_dict, load_config, validate
from qwenvl_jax.config.constraints import require
from qwenvl_jax.config.values import Count, Size
from qwenvl_jax.runtime import commandline, storage
from qwenvl_jax.runtime.errors import UserError

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")  # of an arm, whose folder is called so


@dataclasses.dataclass(frozen=True)
class ArmConfig:
    """One arm; `arguments` are those of the config file in which it differs, e.g. "queries=64"."""

    name: str
    arguments: str = ""

    def check(self, path: str) -> None:
        """Raises UserError if the name is none of a folder."""
        named = bool(_NAME.fullmatch(self.name))
        require(named, f"{path}.name {self.name!r} becomes that of a folder; use letters, digits and . _ -")


@dataclasses.dataclass(frozen=True)
class StudyConfig:
    """What a config file declares.

    Attributes:
      title: of the page.
      claim: what the paper says.
      arms: in the order in which they are trained and shown.
      initial_steps: the steps over which the initial loss is averaged.
      late_from: the step after which the late loss is.
      questions: a config file of benchmarks that every arm is asked while it trains, if it is not empty. It takes the
        arguments of the command line that it knows.
    """

    title: str
    claim: str
    arms: tuple[ArmConfig, ...]
    initial_steps: Size
    late_from: Count
    questions: str = ""

    def check(self, path: str) -> None:
        """Raises UserError if there is no arm, or two have one name."""
        names = [arm.name for arm in self.arms]
        require(bool(names), f"{path}.arms is empty; declare at least one")
        require(len(set(names)) == len(names), f"two of {path}.arms share a name; rename one")


@dataclasses.dataclass(frozen=True)
class Arm:
    """One training run of a study.

    Attributes:
      name: its name.
      config: the run's.
      workdir: the run's folder.
      command: what follows `python -m` to train it.
    """

    name: str
    config: Config
    workdir: epath.Path
    command: tuple[str, ...]

    @property
    def command_line(self) -> str:
        """The command for a shell."""
        return f"python -m {shlex.join(self.command)}"


@dataclasses.dataclass(frozen=True)
class Study:
    """A study in a folder, `workdir`, in which every arm has a folder of its name."""

    settings: StudyConfig
    arms: tuple[Arm, ...]
    workdir: epath.Path


def read_study(path: str, overrides: Mapping[str, Any], workdir: epath.PathLike) -> Study:
    """The study that a config file declares.

    Args:
      path: the value of `--config`, a file and its arguments.
      overrides: values of keys, which every arm takes; those of `--config.key=value`.
      workdir: the folder of the study.

    Raises:
      UserError: if the file declares no study, an arm's config is wrong, an override sets what the arms differ in, or
        an arm's folder holds a run of other settings.
    """
    settings = _declared(path)
    folder = storage.path(workdir)
    arms = tuple(_arm(path, settings, arm, overrides, folder / arm.name) for arm in settings.arms)
    if overrides:
        _check_overrides(path, settings, overrides)
    for arm in arms:
        lineage.check_resumable(arm.workdir, arm.config)
    return Study(settings, arms, folder)


def _declared(path: str) -> StudyConfig:
    """What the file says about the size that its arguments name."""
    file, _, arguments = path.partition(":")
    studies = runpy.run_path(file).get("STUDIES")
    if not isinstance(studies, Mapping) or not studies:
        raise UserError(f"{file} declares no arms; name a file with STUDIES, such as configs/ablations/queries.py")
    size = _values(arguments).get("size", next(iter(studies)))
    if size not in studies:
        raise UserError(f"{file} has no study of size {size!r}, only of {', '.join(studies)}")
    called = f"STUDIES[{size!r}]"
    return validate(from_config_dict(StudyConfig, studies[size], called), called)


def _values(arguments: str) -> dict[str, str]:
    """The values of `name=value,name=value` by their names."""
    pairs = [part.partition("=") for part in arguments.split(",") if "=" in part]
    return {name.strip(): value.strip() for name, _, value in pairs}


def _check_overrides(path: str, settings: StudyConfig, overrides: Mapping[str, Any]) -> None:
    """Raises UserError for an override of a key in which the arms differ: they would be one run under several names."""
    file, _, arguments = path.partition(":")
    first, *others = [
        commandline.config_of(_with_arguments(file, arm.arguments, arguments)).to_dict() for arm in settings.arms
    ]
    differing = {key for other in others for key, _, _ in lineage.differences(first, other, "config")}
    for key in overrides:
        if any(f"{known}.".startswith(f"config.{key}.") for known in differing):
            raise UserError(f"config.{key} is what the arms of {file} differ in; leave it out")


def _arm(path: str, settings: StudyConfig, arm: ArmConfig, overrides: Mapping[str, Any], workdir: epath.Path) -> Arm:
    file, _, arguments = path.partition(":")
    twice = [name for name in _values(arm.arguments) if name in _values(arguments)]
    if twice:
        raise UserError(f"the argument {twice[0]!r} of {file} is what its arms differ in; leave it out")
    path = _with_arguments(file, arm.arguments, arguments)
    values = commandline.config_of(path)
    values.update_from_flattened_dict(dict(overrides))
    config = load_config(values)
    command = ["qwenvl_jax.train", f"--config={path}", f"--workdir={workdir}"]
    command += [f"--config.{key}={value}" for key, value in overrides.items()]
    if settings.questions:
        known = commandline.argument_names(settings.questions)
        of_questions = [f"{name}={value}" for name, value in _values(arguments).items() if name in known]
        command.append(f"--benchmarks={_with_arguments(settings.questions, *of_questions)}")
    return Arm(arm.name, config, workdir, tuple(command))


def _with_arguments(file: str, *arguments: str) -> str:
    """The value of `--config` for a file and its arguments, of which some may be empty."""
    text = ",".join(filter(None, arguments))
    return f"{file}:{text}" if text else file
