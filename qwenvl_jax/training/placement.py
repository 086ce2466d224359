"""The state of a run laid out on a mesh, after everything that can be wrong with the mesh was looked for."""

from __future__ import annotations

from qwenvl_jax.config import Config
from qwenvl_jax.sharding.mesh import AnyMesh
from qwenvl_jax.sharding.report import check_replicated, report
from qwenvl_jax.sharding.rules import check_batch, check_heads
from qwenvl_jax.training.partition import merge
from qwenvl_jax.training.step import State, abstract_state


def placed_state(config: Config, mesh: AnyMesh) -> State:
    """Shapes, dtypes and shardings of the state; allocates nothing.

    Args:
      config: the run's.
      mesh: of devices, of devices that are only described (ahead of time), or of sizes alone.

    Raises:
      UserError: if the mesh does not divide the rows of a microbatch, the attention heads or the width of a
        parameter, or leaves a big parameter whole on every device.
    """
    check_batch(config.data.rows, mesh)
    check_heads(config.model, mesh)
    state = abstract_state(config, mesh)
    check_replicated(report(merge(state.trainable, state.frozen), mesh), mesh, config.mesh.max_replicated_bytes)
    return state
