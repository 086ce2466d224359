"""A pretended cloud for tests: programs on PATH, a state, and what a test may do to it."""

from __future__ import annotations

import contextlib
import copy
import json
import os
import random
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.support.cloud import compute, jobset_controller, metadata, tpus, world
from tests.support.ports import free_port

ROOT = Path(__file__).parents[3]
_PROGRAMS = {"gcloud": ("gcloud", "main"), "gsutil": ("gcloud", "gsutil"), "kubectl": ("kubectl", "main")}
_PROGRAM = """#!{python}{flags}
import sys
sys.path.insert(0, {root!r})
from tests.support.cloud.{module} import {function}
sys.exit({function}(sys.argv[1:]))
"""
# The Python of a host's image. Environments that it makes have the packages of this one; pip checks its files alone.
_HOST_PYTHON = """#!/bin/sh
case "$1 $2" in
"-m venv")
  for folder; do :; done
  mkdir -p "$folder/bin" && cp "$0" "$folder/bin/python" ;;
"-m pip")
  for argument; do
    case "$argument" in --requirement=*) [ -f "${{argument#*=}}" ] || exit 1 ;; esac
  done ;;
*)
  exec {python} "$@" ;;
esac
"""
# A host's Python believes that it has four chips of a TPU. JAX looks for them on the PCI bus.
_TPU_MACHINE = """
import importlib.abc, importlib.machinery, sys

class Finder(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name != "jax._src.hardware_utils":
            return None
        spec = importlib.machinery.PathFinder.find_spec(name, path)
        load = spec.loader.exec_module
        def exec_module(module):
            load(module)
            module.num_available_tpu_chips_and_device_id = lambda: (4, None)
        spec.loader.exec_module = exec_module
        return spec

sys.meta_path.insert(0, Finder())
"""


class PretendedCloud:
    """A cloud with an account, a project, zones with chips, and nothing else.

    Attributes:
      folder: of its state.
      metadata_port: on which the metadata server answers, at the address of each host.
      environment: the variables with which its programs are found.
    """

    def __init__(self, folder: Path, metadata_port: int):
        self.folder = folder
        self.metadata_port = metadata_port
        self.environment = {
            **os.environ,
            "PATH": f"{folder / 'bin'}:{os.environ['PATH']}",
            world.FOLDER: str(folder),
        }
        os.environ[world.FOLDER] = str(folder)  # of `world.locked` in this process
        for name in ("bin", "host_bin", "tpu_machine", "hosts"):
            (folder / name).mkdir(parents=True)
        for name, (module, function) in _PROGRAMS.items():
            program = folder / "bin" / name
            program.write_text(
                _PROGRAM.format(
                    python=sys.executable,
                    flags="" if name == "kubectl" else " -S",  # without site-packages it starts sooner
                    root=str(ROOT),
                    module=module,
                    function=function,
                )
            )
            program.chmod(0o755)
        for name in ("sudo", "nice"):
            program = folder / "host_bin" / name
            program.write_text('#!/bin/sh\nwhile [ "${1#-}" != "$1" ]; do shift; done\nexec "$@"\n')
            program.chmod(0o755)
        python = folder / "host_bin" / "python3.11"
        python.write_text(_HOST_PYTHON.format(python=sys.executable))
        python.chmod(0o755)
        (folder / "tpu_machine" / "sitecustomize.py").write_text(_TPU_MACHINE)
        state = {
            "settings": copy.deepcopy(world.SETTINGS),
            "resources": {},
            "hosts": {},
            "network": [random.randint(1, 250), random.randint(1, 250)],
            "metadata_port": metadata_port,
            "coordinator_port": free_port(),
        }
        (folder / "state.json").write_text(json.dumps(state))
        (folder / "calls.jsonl").touch()

    def set(self, **settings: Any) -> None:
        """Changes settings; see `world.SETTINGS`."""
        assert not set(settings) - set(world.SETTINGS), settings
        with world.locked() as state:
            for name, value in settings.items():
                current = state["settings"][name]
                state["settings"][name] = {**current, **value} if isinstance(current, dict) else value

    def resources(self) -> dict[str, Any]:
        """Everything that exists now, by its key, e.g. `node/us-east5-a/stage1`."""
        with world.locked() as state:
            tpus.advance(state)
            compute.advance(state)
            return copy.deepcopy(state["resources"])

    def hosts(self) -> dict[str, Any]:
        """All hosts by their marks."""
        with world.locked() as state:
            return copy.deepcopy(state["hosts"])

    def calls(self) -> list[list[str]]:
        """The command lines so far."""
        return [json.loads(line) for line in (self.folder / "calls.jsonl").read_text().splitlines()]

    def preempt(self, key: str) -> None:
        """Takes a spot node, queued resource's node or managed group away, as the cloud does."""
        with world.locked() as state:
            (compute if state["resources"][key]["kind"] == "group" else tpus).preempt(state, key)

    def announce_maintenance(self, mark: str) -> None:
        """Lets the metadata server of a host announce that its machine will be taken for maintenance."""
        with world.locked() as state:
            state["hosts"][mark]["notice"] = "TERMINATE_ON_HOST_MAINTENANCE"

    def preempt_pod(self, name: str) -> None:
        """Takes the machine of a pod away."""
        jobset_controller.preempt_pod(name)

    def jobset(self, name: str) -> dict[str, Any]:
        """The state of a JobSet: `state`, `restarts`, `counted`, `pods`, `events`."""
        with world.locked() as state:
            return copy.deepcopy(state["jobsets"][name])

    def signal(self, mark: str, number: int) -> None:
        """Sends a signal to all processes of a host."""
        world.power_off(mark, number)

    def close(self) -> None:
        """Ends all processes of all hosts."""
        for mark in ("controller", "node", "instance", "pod"):
            world.power_off(mark)


@contextlib.contextmanager
def pretended_cloud(folder: Path) -> Iterator[PretendedCloud]:
    """A new cloud in an empty folder."""
    with metadata.serving(folder) as port:
        cloud = PretendedCloud(folder, port)
        try:
            yield cloud
        finally:
            cloud.close()
            os.environ.pop(world.FOLDER, None)
