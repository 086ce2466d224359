"""Compiles the real training step for TPUs that this machine does not have.

libtpu compiles for any topology on any machine, without allocating memory or using a device. It must not become the
default backend of the process, so the variables of `compiler_environment` must be set before jax is imported.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import math
import re
import time
from collections.abc import Mapping, MutableMapping
from typing import Any

import jax
from jax.experimental import topologies
from jax.sharding import Mesh

from qwenvl_jax.chips import GIB, Topology
from qwenvl_jax.config import Config, DataConfig
from qwenvl_jax.models.attention import resolve_attention
from qwenvl_jax.runtime.errors import UserError
from qwenvl_jax.sharding.batch import abstract_batch
from qwenvl_jax.sharding.mesh import AnyMesh, make_mesh
from qwenvl_jax.training.state import abstract_state
from qwenvl_jax.training.step import make_train_step

# The compiler's messages for a step that does not fit give either all the memory it needs or only the temporaries.
_EXCEEDED = (
    re.compile(r"Used ([\d.]+)([KMG]?) of ([\d.]+)([KMG]?) hbm"),
    re.compile(r"HLO temporaries \(([\d.]+)([KMG]?)\) exceeds available HBM \(([\d.]+)([KMG]?)\)"),
)
_UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30}


@dataclasses.dataclass(frozen=True)
class Memory:
    """The memory that a step needs on one device, which is a chip or, on tpu7x, half a chip; in GiB.

    Attributes:
      fits: whether the step fits. If not, the compiler reports only `total` and `capacity`.
      total: HBM at its peak, with the code. If the step does not fit, it may count only the temporaries.
      capacity: the HBM of the device.
      arguments, temporaries, code: the parts. Their sum exceeds `total` because not all of it is allocated at once.
      host: memory of the host that the device uses.
    """

    fits: bool
    total: float
    capacity: float
    arguments: float = 0.0
    temporaries: float = 0.0
    code: float = 0.0
    host: float = 0.0


@dataclasses.dataclass(frozen=True)
class CompiledStep:
    """A step compiled for a topology.

    Attributes:
      hlo: scheduled HLO text; empty if the step does not fit.
      memory: of one chip.
      mesh: over the devices of the topology.
      coordinates: for every partition its coordinates on the torus, followed by the index of its slice.
      seconds: the time for lowering and compiling.
    """

    hlo: str
    memory: Memory
    mesh: Mesh
    coordinates: tuple[tuple[int, ...], ...]
    seconds: float


def compiler_environment(environment: MutableMapping[str, str]) -> None:
    """Sets variables so that libtpu does not look for a TPU and several processes can use it; keeps existing values.

    JAX_PLATFORMS=cpu keeps libtpu from becoming the default backend. TPU_SKIP_MDS_QUERY, TPU_WORKER_HOSTNAMES and
    TPU_ACCELERATOR_TYPE keep it from looking for a metadata server. ALLOW_MULTIPLE_LIBTPU_LOAD allows several processes
    to compile at the same time, which is safe because they use no device.
    """
    for name, value in {
        "JAX_PLATFORMS": "cpu",
        "TPU_SKIP_MDS_QUERY": "1",
        "TPU_WORKER_HOSTNAMES": "localhost",
        "TPU_ACCELERATOR_TYPE": "v5litepod-8",
        "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    }.items():
        environment.setdefault(name, value)


def check_compiler() -> None:
    """Raises UserError if there is no TPU compiler in this environment."""
    if importlib.util.find_spec("libtpu") is None:
        raise UserError(
            "libtpu, the TPU compiler, is not installed; create a separate environment for planning and run "
            "pip install -r requirements-tpu.txt in it"
        )


def devices(topology: Topology) -> list[Any]:
    """Descriptions of the devices of a topology, from which a mesh can be made.

    Raises:
      UserError: if the compiler does not support the topology.
    """
    check_compiler()
    try:
        described = topologies.get_topology_desc(**topology.compiler_arguments()).devices
    except Exception as error:  # libtpu raises exceptions of many types
        line = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UserError(f"the TPU compiler refuses the topology {topology.name}: {line}") from error
    if len(described) != topology.devices:
        raise UserError(
            f"the topology {topology.name} has {len(described)} devices, not {topology.chip.devices} for each chip; "
            "use another"
        )
    return list(described)


def for_topology(config: Config, topology: Topology) -> Config:
    """The config with the slices of the topology, and with the attention that `auto` stands for on a TPU."""
    attention = resolve_attention(config.compute.attention, "tpu", config.compute.compute_dtype)
    return dataclasses.replace(
        config,
        mesh=dataclasses.replace(config.mesh, slices=topology.slices),
        compute=dataclasses.replace(config.compute, attention=attention),
    )


def compile_step(config: Config, topology: Topology, options: Mapping[str, Any] | None = None) -> CompiledStep:
    """Lowers and compiles the training step of a config for a topology.

    Args:
      config: the run; `for_topology` adapts it to the topology.
      topology: the chips.
      options: XLA options in addition to those of the step.

    Raises:
      UserError: if the config cannot run on the topology for a reason other than memory.
    """
    config = for_topology(config, topology)
    mesh = make_mesh(config.mesh, devices(topology))
    state = abstract_state(config, mesh)
    coordinates = coordinates_of(mesh, topology)
    start = time.monotonic()
    hlo = ""
    try:
        lowered = make_train_step(config, mesh, state).lower(state, abstract_batch(config, mesh))
        compiled = lowered.compile(compiler_options=dict(options) if options else None)
    except jax.errors.JaxRuntimeError as error:
        memory = misfit(str(error))
        if memory is None:
            raise
    else:
        hlo = compiled.as_text()
        memory = memory_of(compiled.memory_analysis(), topology)
    return CompiledStep(hlo, memory, mesh, coordinates, time.monotonic() - start)


def misfit(message: str) -> Memory | None:
    """The memory that a compiler message gives for a step that does not fit; None if it is another message."""
    for pattern in _EXCEEDED if "RESOURCE_EXHAUSTED" in message else ():
        if match := pattern.search(message):
            used, capacity = (float(match[k]) * _UNITS[match[k + 1]] / GIB for k in (1, 3))
            return Memory(False, used, capacity)
    return None


def coordinates_of(mesh: Mesh, topology: Topology) -> tuple[tuple[int, ...], ...]:
    """For every device of a mesh the coordinates of its chip on the torus, followed by the index of its slice."""
    return tuple(
        (*device.coords[: len(topology.shape)], getattr(device, "slice_index", 0) or 0) for device in mesh.devices.flat
    )


def memory_of(stats: Any, topology: Topology) -> Memory:
    """The memory of a compiled program, from its `memory_analysis()`."""
    arguments = (stats.argument_size_in_bytes + stats.output_size_in_bytes - stats.alias_size_in_bytes) / GIB
    temporaries = stats.temp_size_in_bytes / GIB
    code = stats.generated_code_size_in_bytes / GIB
    host = stats.host_argument_size_in_bytes + stats.host_output_size_in_bytes - stats.host_alias_size_in_bytes
    # The compiler's peak includes arguments and outputs in host memory, as if they were in HBM.
    total = (stats.peak_memory_in_bytes - host) / GIB + code
    host = (host + stats.host_temp_size_in_bytes) / GIB
    return Memory(True, total, topology.chip.device.hbm_bytes / GIB, arguments, temporaries, code, host)


def with_accumulation(data: DataConfig, accumulation: int) -> DataConfig | None:
    """The same batch and image groups in another number of microbatches; None if the rows or groups do not divide.

    If a microbatch is one image group, it stays one.
    """
    rows, rest = divmod(data.rows_per_step, accumulation)
    if data.image_groups == 1 and not rest:
        return dataclasses.replace(data, accumulation=accumulation)
    if rest or not data.group_rows or rows % data.group_rows:
        return None
    groups = rows // data.group_rows
    return dataclasses.replace(
        data,
        accumulation=accumulation,
        image_groups=groups if data.image_groups else 0,
        streams=math.gcd(data.streams, groups),
    )


def remedies(config: Config, mesh: AnyMesh) -> list[str]:
    """Changes that would make a step smaller, the cheapest first."""
    changes = []
    data = config.data
    shards = mesh.shape["data"] * mesh.shape["fsdp"]
    halved = with_accumulation(data, 2 * data.accumulation)
    if halved is not None and halved.rows_per_microbatch % shards == 0:
        keys = [
            key for key in ("accumulation", "image_groups", "streams") if getattr(halved, key) != getattr(data, key)
        ]
        changes.append(" with ".join(f"config.data.{key}={getattr(halved, key)}" for key in keys))
    saves_less = {"none": "matmuls_saved", "matmuls_saved": "attention_saved", "attention_saved": "full"}
    for tower in ("decoder", "vit"):
        policy = getattr(config.compute, f"remat_{tower}")
        if policy in saves_less:
            changes.append(f"config.compute.remat_{tower}={saves_less[policy]}")
    if config.optimizer.moments_memory == "device":
        changes.append("config.optimizer.moments_memory=pinned_host")
    copies = mesh.shape["data"] // config.mesh.slices
    fsdp = 2 * mesh.shape["fsdp"]
    if copies % 2 == 0 and math.gcd(config.model.vit.width, config.model.decoder.width) % fsdp == 0:
        changes.append(f"config.mesh.fsdp={fsdp}")
    changes.append("more chips")
    return changes
