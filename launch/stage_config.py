"""The config of a stage as hosts get it: with the recipe of the chip, the overrides, and the number of slices."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from qwenvl_jax.chips import CHIPS, Topology
from qwenvl_jax.config import Config, load_config
from qwenvl_jax.runtime import commandline
from qwenvl_jax.runtime.errors import UserError


class StageConfig(NamedTuple):
    """A stage on a topology.

    Attributes:
      argument: the value of `--config` on the hosts.
      overrides: the arguments `--config.key=value` on the hosts.
      config: checked.
      topology: with the slices of the config.
      benchmarks: the value of `--benchmarks` on the hosts; "" asks nothing while the stage trains.
    """

    argument: str
    overrides: tuple[str, ...]
    config: Config
    topology: Topology
    benchmarks: str = ""

    def command(self, workdir: str) -> tuple[str, ...]:
        """What every host runs."""
        return (
            "python",
            "-m",
            "qwenvl_jax.train",
            f"--config={self.argument}",
            f"--workdir={workdir}",
            *self.overrides,
            *([f"--benchmarks={self.benchmarks}"] if self.benchmarks else []),
        )

    def preflight(self, workdir: str, *, slices: int) -> tuple[str, ...]:
        """What checks the hosts of so many slices."""
        topology = dataclasses.replace(self.topology, slices=slices)
        others = [override for override in self.overrides if not override.startswith("--config.mesh.slices=")]
        if slices != self.config.mesh.slices or len(others) != len(self.overrides):
            others.append(f"--config.mesh.slices={slices}")
        return (
            *("python", "-m", "qwenvl_jax.preflight", f"--config={self.argument}", f"--workdir={workdir}", *others),
            f"--topology={topology.name}",
        )


def read(argument: str, changes: Mapping[str, Any], topology: Topology, *, fit: bool = True) -> StageConfig:
    """Reads a config file.

    If the file has an argument `mesh` that is not given, it becomes the recipe of the chip.

    Args:
      argument: FILE or FILE:name=value,..
      changes: values by the keys that the command line overrides.
      topology: chips and slices.
      fit: whether the recipe, slices and mesh are fitted to the topology; if not, the config is taken as it is.

    Raises:
      UserError: if the config cannot be read, or does not fit the topology.
    """
    file, _, text = argument.partition(":")
    given = dict(part.split("=", 1) for part in text.split(",") if "=" in part)
    kind = topology.chip.kind
    if fit and "mesh" in commandline.argument_names(file):
        if "mesh" not in given:
            argument = ",".join([f"{file}:mesh={kind}", *filter(None, [text])])
        elif given["mesh"] in CHIPS and given["mesh"] != kind and (Path(file).parent / f"meshes/{kind}.py").exists():
            raise UserError(f"the recipe mesh={given['mesh']} is for other chips than {topology.name}; leave it out")
    values = commandline.config_of(argument)
    values.update_from_flattened_dict(dict(changes))
    config = load_config(values)
    overrides = [f"--config.{key}={_text(value)}" for key, value in sorted(changes.items())]
    if not fit:
        return StageConfig(argument, tuple(overrides), config, topology)
    if topology.slices == 1:
        topology = dataclasses.replace(topology, slices=config.mesh.slices)
    elif config.mesh.slices == 1:
        overrides.append(f"--config.mesh.slices={topology.slices}")
    elif config.mesh.slices != topology.slices:
        raise UserError(
            f"config.mesh.slices is {config.mesh.slices}, but {topology.name} has {topology.slices} slices; leave "
            "config.mesh.slices out"
        )
    _check_mesh(config, topology)
    return StageConfig(argument, tuple(overrides), config, topology)


def _text(value: Any) -> str:
    return value if isinstance(value, str) else repr(value)


def _check_mesh(config: Config, topology: Topology) -> None:
    """Raises UserError if the mesh of the config does not fit the devices of a slice."""
    mesh = config.mesh
    devices = topology.devices // topology.slices
    sizes = (mesh.data, mesh.fsdp, mesh.tensor)
    fixed = math.prod(size for size in sizes if size != -1)
    if devices % fixed if -1 in sizes else devices != fixed:
        raise UserError(
            f"config.mesh (data {mesh.data}, fsdp {mesh.fsdp}, tensor {mesh.tensor}) does not fit the {devices} "
            f"devices of a slice of {topology.name}; set e.g. --config.mesh.fsdp={math.gcd(fixed, devices)}"
        )
