"""Checks the hosts of a run without starting it: what every start of a training checks.

python -m qwenvl_jax.preflight --config=configs/stage1_pretrain.py --workdir=runs/stage1 [--topology=v5p:8x8x8]

Start it on all hosts, as the training itself. It compares versions and configs, sums known numbers along every axis of
the mesh, writes into the workdir and the folder for local checkpoints and removes that again, and compares the clocks.
The checkpoints of earlier stages may be missing.
"""

from __future__ import annotations

import jax
from absl import flags

from qwenvl_jax.chips import Topology, chip_of, parse_topology
from qwenvl_jax.config import FORMER_KEYS, load_config
from qwenvl_jax.runtime import commandline, distributed, storage
from qwenvl_jax.runtime.errors import UserError
from qwenvl_jax.training import start
from qwenvl_jax.training.loop import checked_mesh
from qwenvl_jax.training.state import abstract_state

_CONFIG = commandline.define_config("The stage, e.g. configs/stage1_pretrain.py.", FORMER_KEYS)
_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the run, local or gs://.")
_TOPOLOGY = flags.DEFINE_string("topology", None, "The chips that there should be, e.g. v5p:8x8x8 or v5p:8x8x8@4.")


def main() -> None:
    """Runs the pre-flight."""
    topology = parse_topology(_TOPOLOGY.value) if _TOPOLOGY.value else None
    if not _WORKDIR.value:
        raise UserError("--workdir is missing; name the folder where checkpoints and metrics will go")
    distributed.initialize()
    with distributed.together():
        config = load_config(_CONFIG.value)
        workdir = storage.path(_WORKDIR.value)
        start.check_equal(config, workdir)
        distributed.check_devices()
        if topology:
            _check_topology(topology)
        mesh = checked_mesh(config)
        start.check_hosts(workdir, mesh, abstract_state(config, mesh), begins=True, local=config.checkpoint.local)


def _check_topology(topology: Topology) -> None:
    """Raises UserError if the devices or processes are not those of a topology."""
    devices = jax.devices()
    chip = chip_of(devices[0].device_kind)
    if chip is None or chip.kind != topology.chip.kind:
        raise UserError(
            f"the devices are {devices[0].device_kind}, not the {topology.chip.kind} of --topology={topology.name}; "
            "start it on the hosts of that slice"
        )
    if len(devices) != topology.devices or distributed.process_count() != topology.hosts:
        raise UserError(
            f"{distributed.process_count()} processes have {len(devices)} devices, but {topology.name} has "
            f"{topology.hosts} hosts with {topology.devices} devices; start it on every host of the slice"
        )


if __name__ == "__main__":
    commandline.run(main)
