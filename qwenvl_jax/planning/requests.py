"""The candidates that the flags of `python -m qwenvl_jax.plan` ask for."""

from __future__ import annotations

import dataclasses
import os
from typing import Any

from absl import flags
from ml_collections import config_flags

from qwenvl_jax.chips import parse_topology
from qwenvl_jax.config import Config, load_config
from qwenvl_jax.planning.candidates import Candidate
from qwenvl_jax.runtime import commandline
from qwenvl_jax.runtime.errors import UserError

CONFIGS = {
    "pretrain": "configs/stage1_pretrain.py",
    "multitask": "configs/stage2_multitask.py",
    "sft": "configs/stage3_sft.py",
}


def candidate(topology_name: str, changes: str = "") -> Candidate:
    """The config of `--config` on a topology, with the changes of one entry of `--compare`.

    Args:
      topology_name: the value of `--topology`, e.g. `v5p:8x8x8`.
      changes: another topology, settings such as `compute.remat_vit=full`, or both, separated by spaces.

    Raises:
      UserError: if a topology or a setting is wrong.
    """
    settings = [word for word in changes.split() if "=" in word]
    names = [topology_name, *(word for word in changes.split() if "=" not in word)]
    topology = parse_topology(names[-1])
    path, values = config_for_chip(topology.chip.kind)
    config = load_config(commandline.changed(values, settings))
    if topology.slices == 1:
        topology = dataclasses.replace(topology, slices=config.mesh.slices)
    return Candidate(", ".join([f"{path} on {topology.name}", *settings]), config, topology)


def decoding_candidate(topology_name: str) -> Candidate:
    """The config of `--config` for decoding on a topology: heads over all devices, unless the command line sets a mesh.

    Raises:
      UserError: if the topology or a setting is wrong.
    """
    topology = parse_topology(topology_name)
    path, values = config_for_chip(topology.chip.kind)
    flag = flags.FLAGS["config"]
    if not any(key.startswith("mesh.") for key in config_flags.get_override_values(flag)):
        values.mesh.update(dict(data=1, fsdp=1, tensor=topology.devices))
    return Candidate(f"decoding of {path} on {topology.name}", load_config(values), topology)


def paper_config(stage: str, kind: str) -> Config:
    """The config of a full-size stage with the recipe of a chip, from the folder `configs` of this repository.

    Raises:
      UserError: if there is no such folder here.
    """
    path = CONFIGS[stage]
    if not os.path.exists(path):
        raise UserError(f"{path} is not here; run --paper in the folder of the repository")
    values: Any = flags.FLAGS["config"].parser.parse(f"{path}:mesh={kind}")
    return load_config(values)


def config_for_chip(kind: str) -> tuple[str, Any]:
    """The path with arguments and the values of `--config`, with the recipe of a chip and the command line's overrides.

    The recipe is not changed if the user chose one, or if the config file takes no argument `mesh`.
    """
    flag = flags.FLAGS["config"]
    path = str(config_flags.get_config_filename(flag))
    file, _, arguments = path.partition(":")
    names = {argument.split("=")[0].strip() for argument in arguments.split(",")}
    if "mesh" in names or "mesh" not in commandline.argument_names(file):
        return path, flag.value
    path = ",".join([f"{file}:mesh={kind}", *filter(None, [arguments])])
    values: Any = flag.parser.parse(path)
    values.update_from_flattened_dict(config_flags.get_override_values(flag))
    return path, values
