"""Predicts a step of decoding: the loop of `evaluation.slots.advance`, compiled for TPUs that are not here.

A step reads the weights once, the embedding apart, and the live columns of the cache once. These bytes at the bandwidth
of the chip's memory bound its speed, because a few rows per chip keep the matrix units nearly idle.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from qwenvl_jax.chips import Topology
from qwenvl_jax.config import ComputeConfig, Config, ModelConfig
from qwenvl_jax.evaluation.generation import slots
from qwenvl_jax.evaluation.generation.sampling import Limits, Sampling
from qwenvl_jax.evaluation.placement import CAST
from qwenvl_jax.models import qwen_vl
from qwenvl_jax.models.loaded import LoadedModel
from qwenvl_jax.params import flatten, unflatten
from qwenvl_jax.planning import aot, roofline
from qwenvl_jax.planning.hlo import program
from qwenvl_jax.runtime import storage
from qwenvl_jax.runtime.errors import UserError
from qwenvl_jax.sharding.compiler import compiler_options
from qwenvl_jax.sharding.mesh import AXES, batch_shards, make_mesh
from qwenvl_jax.sharding.rules import check_heads, param_shardings

# Figures that a decoding program should keep: bytes by the least possible, and operations likewise.
MOST_BYTES = 1.15
MOST_FLOPS = 1.05

_MAX_NEW = 32


@dataclasses.dataclass(frozen=True)
class Minimum:
    """The least that a step can do, on one chip.

    Attributes:
      weight_bytes: weights of the decoder without its embedding, of which only a few rows are read.
      cache_bytes: live columns of the cache.
      flops: two per weight and row, and four per live value of keys.
    """

    weight_bytes: float
    cache_bytes: float
    flops: float

    @property
    def bytes(self) -> float:
        """Weights and cache."""
        return self.weight_bytes + self.cache_bytes


@dataclasses.dataclass(frozen=True)
class Decoding:
    """A predicted step of decoding, on one chip; nothing in it is measured.

    Attributes:
      topology, mesh: the machine.
      batch, context: rows, and tokens of each row in the cache.
      hbm_gib, hbm_capacity_gib: memory with all towers, and memory of a chip.
      minimum: the least that a step can do.
      bytes, flops: of the compiled step; a product that became a sum of the vector units counts no operations.
      call_bytes: read and written once per call of the loop, however many steps it takes.
      seconds_roofline, seconds_cycles: the two ends of the predicted range of a step.
      bound_seconds: `minimum.bytes` at the bandwidth of the memory.
    """

    topology: str
    mesh: tuple[int, ...]
    batch: int
    context: int
    hbm_gib: float
    hbm_capacity_gib: float
    minimum: Minimum
    bytes: float
    flops: float
    call_bytes: float
    seconds_roofline: float
    seconds_cycles: float
    bound_seconds: float

    def json(self) -> dict[str, Any]:
        """JSON values of all fields, and the ratios that matter."""
        return dataclasses.asdict(self) | {
            "bytes_over_minimum": self.bytes / self.minimum.bytes,
            "flops_over_minimum": self.flops / self.minimum.flops,
            "share_of_bound_roofline": self.bound_seconds / self.seconds_roofline,
            "share_of_bound_cycles": self.bound_seconds / self.seconds_cycles,
            "tokens_per_second_roofline": self.batch / self.seconds_roofline,
            "tokens_per_second_cycles": self.batch / self.seconds_cycles,
        }


def minimum(model: ModelConfig, dtype: str, batch: int, context: int, shards: int = 1, tensor: int = 1) -> Minimum:
    """The least that a step can do on one of `shards` x `tensor` chips."""
    decoder = model.decoder
    weights = 0.0
    count = 0
    for path, leaf in flatten(qwen_vl.abstract_params(model)["decoder"]).items():
        if path == ("embedding",):
            continue
        item = jnp.dtype(dtype if path[-1] in CAST else "float32").itemsize
        weights += leaf.size * item
        count += leaf.size
    rows = batch / shards
    values = rows * context * decoder.layers * decoder.width / tensor
    return Minimum(
        weights / tensor,
        2 * values * jnp.dtype(dtype).itemsize,
        2.0 * count / tensor * rows + 4 * values,
    )


def abstract_model(model: ModelConfig, compute: ComputeConfig, mesh: Any) -> LoadedModel:
    """A model as `evaluation.placement` puts it on a mesh; allocates nothing."""
    params = qwen_vl.abstract_params(model)
    shardings = flatten(param_shardings(params, mesh))
    leaves = {}
    for path, leaf in flatten(params).items():
        dtype = jnp.dtype(compute.compute_dtype if path[-1] in CAST else leaf.dtype)
        leaves[path] = jax.ShapeDtypeStruct(leaf.shape, dtype, sharding=shardings[path])
    return LoadedModel(unflatten(leaves), model, compute)


def lower(model: LoadedModel, mesh: Any, batch: int, columns: int) -> Any:
    """The decoding loop, lowered for a mesh of devices that need not be here."""

    def on_mesh(leaf: Any, spec: P) -> Any:
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=NamedSharding(mesh, spec))

    with jax.set_mesh(mesh):
        empty = functools.partial(slots.empty_slots, count=batch, columns=columns, max_new_tokens=_MAX_NEW)
        cache, *small = jax.eval_shape(empty, model)
        rows = AXES[:2] if batch % batch_shards(mesh) == 0 else None
        cache = jax.tree.map(lambda part: on_mesh(part, P(None, rows, "tensor")), cache)
        state = slots.Slots(cache, *(on_mesh(leaf, P()) for leaf in small))
        number = on_mesh(jax.ShapeDtypeStruct((), jnp.int32), P())
        return slots.advance.lower(model, state, number, number, limits=Limits(_MAX_NEW, 0, (0,)), sampling=Sampling())


def predict(config: Config, topology: Topology, batch: int, context: int, dump_hlo: str | None = None) -> Decoding:
    """Compiles the loop for a topology and predicts one step.

    Args:
      config: names the model, the mesh and the compute dtype.
      topology: the chips.
      batch: rows that are continued together.
      context: tokens of each row in the cache, all of them live.
      dump_hlo: path for the scheduled HLO.

    Raises:
      UserError: if the mesh does not suit the topology or the model, or the program does not fit.
    """
    config = aot.for_topology(config, topology)
    mesh = make_mesh(config.mesh, aot.devices(topology))
    check_heads(config.model, mesh)
    lowered = lower(abstract_model(config.model, config.compute, mesh), mesh, batch, context)
    try:
        compiled = lowered.compile(compiler_options=compiler_options(mesh))
    except jax.errors.JaxRuntimeError as error:
        memory = aot.misfit(str(error))
        if memory is None:
            raise
        raise UserError(
            f"decoding {batch} rows of {context} tokens does not fit {topology.name}: a chip needs "
            f"{memory.total:.1f} of {memory.capacity:.4g} GiB; raise config.mesh.tensor or take more chips"
        ) from error
    hlo = compiled.as_text()
    if dump_hlo:
        storage.write_bytes(storage.path(dump_hlo), hlo.encode())
    memory = aot.memory_of(compiled.memory_analysis(), topology)
    module = program.parse(hlo)
    coordinates = aot.coordinates_of(mesh, topology)
    estimates = {
        (cycles, trips): roofline.estimate(module, topology, coordinates, cycles=cycles, dynamic_trips=trips)
        for cycles in (False, True)
        for trips in (1, 2)
    }
    once, twice = estimates[False, 1], estimates[False, 2]
    slow = estimates[True, 2].seconds - estimates[True, 1].seconds
    least = minimum(
        config.model, config.compute.compute_dtype, batch, context, batch_shards(mesh), mesh.shape["tensor"]
    )
    return Decoding(
        topology=topology.name,
        mesh=tuple(mesh.shape[axis] for axis in AXES),
        batch=batch,
        context=context,
        hbm_gib=memory.total,
        hbm_capacity_gib=memory.capacity,
        minimum=least,
        bytes=twice.hbm_bytes - once.hbm_bytes,
        flops=twice.hardware_flops - once.hardware_flops,
        call_bytes=2 * once.hbm_bytes - twice.hbm_bytes,
        seconds_roofline=twice.seconds - once.seconds,
        seconds_cycles=slow,
        bound_seconds=least.bytes / topology.chip.device.hbm_bandwidth,
    )
