"""A checkpoint on the devices of this process: its weights in the compute dtype, spread over a mesh.

Every process evaluates with its own devices, so a mesh spans those of one process. Processes only share files.
"""

from __future__ import annotations

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from qwenvl_jax.checkpoint import restore
from qwenvl_jax.checkpoint.deferred import Deferred
from qwenvl_jax.checkpoint.starting_point import IMPORT, StartingPoint
from qwenvl_jax.checkpoint.steps import folder_of
from qwenvl_jax.config import TOWERS, ComputeConfig, MeshConfig
from qwenvl_jax.models.loaded import LoadedModel
from qwenvl_jax.models.qwen_vl import Params
from qwenvl_jax.params import flatten, unflatten
from qwenvl_jax.runtime import storage
from qwenvl_jax.runtime.errors import UserError
from qwenvl_jax.sharding.mesh import make_mesh
from qwenvl_jax.sharding.rules import check_heads, param_shardings

# Parameters that the model casts to the compute dtype before it uses them. The others (norms, biases, positions) are
# small and partly used in float32.
CAST = ("kernel", "embedding", "lm_head", "proj")


_BLOCKS = ("decoder", "blocks")


def local_mesh(config: MeshConfig) -> Mesh:
    """The mesh over the devices of this process.

    Raises:
      UserError: if its sizes do not fit them.
    """
    try:
        return make_mesh(config, jax.local_devices())
    except UserError as error:
        if jax.process_count() == 1:
            raise
        raise UserError(f"{error} (every process evaluates with its own devices)") from None


def load(starting_point: StartingPoint, mesh: Mesh | None = None, dtype: str = "") -> LoadedModel:
    """The model of exactly this step, with the attention that suits the present device.

    Leaves are read one after the other, so the host holds the largest of them and never the model.

    Args:
      starting_point: the checkpoint.
      mesh: of `local_mesh`; None is the first device.
      dtype: of matrix products and of the weights on the devices; "" is the compute dtype of the run.

    Raises:
      UserError: if the checkpoint is damaged or lacks a tower, a run that still trains removes it meanwhile, or the
        mesh does not fit the model.
    """
    model = starting_point.config.model
    if mesh is not None:
        check_heads(model, mesh)
    compute = dataclasses.replace(
        starting_point.config.compute,
        attention="auto",
        compute_dtype=dtype or starting_point.config.compute.compute_dtype,
    )
    try:
        stored, _ = restore.deferred_params(starting_point.workdir, step=starting_point.step)
        if missing := [tower for tower in TOWERS if tower not in stored]:
            raise UserError(f"{starting_point.workdir} holds no {missing[0]}; name a checkpoint of the whole model")
        return LoadedModel(placed(stored, mesh, compute), model, compute)
    except Exception as error:
        if starting_point.stage != IMPORT and not storage.exists(
            folder_of(starting_point.workdir, starting_point.step)
        ):
            raise UserError(
                f"step {starting_point.step} of {starting_point.workdir} was removed while it was read, because the "
                "run there keeps only its newest checkpoints; evaluate again, or raise that run's "
                "config.train.keep_checkpoints"
            ) from error
        raise


def placed(params: Params, mesh: Mesh | None, compute: ComputeConfig) -> Params:
    """Parameters on the devices of a mesh by the sharding rules, or on the first device; matrices in the compute dtype.

    Args:
      params: arrays, or `Deferred` leaves.
      mesh: of this process, or None.
      compute: names the dtype.

    Returns:
      The tree of `params`. On GPUs and CPUs the blocks of the decoder are apart, see `qwen_vl.layers_apart`.
    """
    shardings = flatten(param_shardings(params, mesh)) if mesh is not None else {}
    apart = _apart(mesh)
    layers: list[dict[tuple[str, ...], jax.Array]] = []
    leaves = {}
    for path, leaf in flatten(params).items():
        values = leaf.load() if isinstance(leaf, Deferred) else leaf
        if path[-1] in CAST:
            values = _cast(values, compute.compute_dtype)
        if apart and path[: len(_BLOCKS)] == _BLOCKS:
            layers = layers or [{} for _ in range(len(values))]
            of_layer = mesh and NamedSharding(mesh, P(*shardings[path].spec[1:]))
            for layer, part in zip(layers, values, strict=True):
                layer[path[len(_BLOCKS) :]] = jax.device_put(part, of_layer)
        else:
            leaves[path] = jax.device_put(values, shardings.get(path))
    tree = unflatten(leaves)
    if layers:
        tree["decoder"]["blocks"] = tuple(map(unflatten, layers))
    return tree


def _apart(mesh: Mesh | None) -> bool:
    """Whether the layers of the decoder are put on the devices apart."""
    device = jax.local_devices()[0] if mesh is None else mesh.devices.flat[0]
    return device.platform != "tpu" and (mesh is None or mesh.shape["fsdp"] == 1)


def _cast(values: np.ndarray | jax.Array, dtype: str) -> np.ndarray | jax.Array:
    """Values in a dtype; a large array of the host is cast by parts, so that no second whole copy is made for long."""
    target = jnp.dtype(dtype)
    if values.dtype == target or isinstance(values, jax.Array) or values.ndim < 2:
        return values.astype(target)
    cast = np.empty(values.shape, target)
    step = max(1, len(values) // 64)
    for first, last in itertools.pairwise([*range(0, len(values), step), len(values)]):
        cast[first:last] = values[first:last]
    return cast
