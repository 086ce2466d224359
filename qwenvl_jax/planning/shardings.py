"""The shardings of the training state on a topology, as JSON and as a table. Compiles nothing."""

from __future__ import annotations

from etils import epath

from qwenvl_jax.planning.aot import for_topology
from qwenvl_jax.planning.candidates import Candidate
from qwenvl_jax.runtime import artifacts
from qwenvl_jax.sharding.mesh import abstract_mesh, check_torus
from qwenvl_jax.sharding.report import as_json, json_text
from qwenvl_jax.training.state import abstract_state
from qwenvl_jax.training.summary import show_components


def write(candidate: Candidate, path: epath.PathLike) -> None:
    """Writes the shardings of a candidate as JSON and prints their sums per component.

    Raises:
      UserError: if the mesh does not suit the topology or the model.
    """
    config = for_topology(candidate.config, candidate.topology)
    check_torus(config.mesh, candidate.topology.devices)
    mesh = abstract_mesh(config.mesh, candidate.topology.devices)
    state = abstract_state(config, mesh)
    artifacts.write_text(path, json_text(as_json(state.trainable, state.frozen, state.opt_state, mesh)))
    show_components(config, state, mesh)
