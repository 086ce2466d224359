"""Compiling the real training step for TPUs that are not there.

libtpu compiles for any topology on any machine; nothing is allocated and no device is touched. It must not become the
default backend of this process, so the variables of `compiler_environment` are set before jax is imported.
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
from qwenvl_jax.config import Config
from qwenvl_jax.models.attention import resolve_attention
from qwenvl_jax.runtime.errors import UserError
from qwenvl_jax.sharding.batch import abstract_batch
from qwenvl_jax.sharding.mesh import AnyMesh, make_mesh
from qwenvl_jax.training.state import abstract_state
from qwenvl_jax.training.step import make_train_step

# How the compiler says that a step does not fit: with all it needs, or with its temporaries alone.
_EXCEEDED = (
    re.compile(r"Used ([\d.]+)([KMG]?) of ([\d.]+)([KMG]?) hbm"),
    re.compile(r"HLO temporaries \(([\d.]+)([KMG]?)\) exceeds available HBM \(([\d.]+)([KMG]?)\)"),
)
_UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30}


@dataclasses.dataclass(frozen=True)
class Memory:
    """HBM of one chip in GiB. `total` is the peak of what lives at once and the code; the parts add up to more, because
    arguments and temporaries are not all needed at the same time. `host` is what it keeps in its host's memory.

    Where the step does not fit, the compiler tells only `total`, or what of it are temporaries, and `capacity`.
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
      mesh: over the topology's devices.
      coordinates: per partition its place on the torus, then its slice.
      seconds: what lowering and compiling took.
    """

    hlo: str
    memory: Memory
    mesh: Mesh
    coordinates: tuple[tuple[int, ...], ...]
    seconds: float


def compiler_environment(environment: MutableMapping[str, str]) -> None:
    """Sets what keeps libtpu from looking for a TPU, or a second process from being refused; keeps what is set.

    JAX_PLATFORMS=cpu leaves the default backend alone. TPU_SKIP_MDS_QUERY, TPU_WORKER_HOSTNAMES and
    TPU_ACCELERATOR_TYPE stop the search for a metadata server. ALLOW_MULTIPLE_LIBTPU_LOAD lets several processes
    compile at once: they share no device.
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
            "libtpu, the TPU compiler, is not installed; make an environment of its own for planning and run "
            "pip install -r requirements-tpu.txt in it"
        )


def devices(topology: Topology) -> list[Any]:
    """Descriptions of a topology's devices, that a mesh can be made of.

    Raises:
      UserError: if the compiler does not know the topology.
    """
    check_compiler()
    try:
        found = topologies.get_topology_desc(**topology.compiler_arguments()).devices
    except Exception as error:  # libtpu raises what it likes
        line = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UserError(f"the TPU compiler refuses the topology {topology.name}: {line}") from error
    if len(found) != topology.chips:
        raise UserError(f"the topology {topology.name} has {len(found)} devices, not one for each chip; use another")
    return list(found)


def for_topology(config: Config, topology: Topology) -> Config:
    """The config as it would run there: the topology's slices, and the attention that `auto` means on a TPU."""
    attention = resolve_attention(config.compute.attention, "tpu", config.compute.compute_dtype)
    return dataclasses.replace(
        config,
        mesh=dataclasses.replace(config.mesh, slices=topology.slices),
        compute=dataclasses.replace(config.compute, attention=attention),
    )


def compile_step(config: Config, topology: Topology, options: Mapping[str, Any] | None = None) -> CompiledStep:
    """Lowers and compiles the training step of a config for a topology.

    Args:
      config: the run; see `for_topology` for what is taken from the topology instead.
      topology: the chips.
      options: XLA options besides those that the step itself asks for.

    Raises:
      UserError: if the config does not fit the topology in any way but memory.
    """
    config = for_topology(config, topology)
    mesh = make_mesh(config.mesh, devices(topology))
    state = abstract_state(config, mesh)
    coordinates = tuple(
        (*device.coords[: len(topology.shape)], getattr(device, "slice_index", 0) or 0) for device in mesh.devices.flat
    )
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
        memory = _memory(compiled.memory_analysis(), topology)
    return CompiledStep(hlo, memory, mesh, coordinates, time.monotonic() - start)


def misfit(message: str) -> Memory | None:
    """What the compiler's message says of a step that does not fit; None if it is about something else."""
    for pattern in _EXCEEDED if "RESOURCE_EXHAUSTED" in message else ():
        if found := pattern.search(message):
            used, capacity = (float(found[k]) * _UNITS[found[k + 1]] / GIB for k in (1, 3))
            return Memory(False, used, capacity)
    return None


def _memory(stats: Any, topology: Topology) -> Memory:
    arguments = (stats.argument_size_in_bytes + stats.output_size_in_bytes - stats.alias_size_in_bytes) / GIB
    temporaries, code = stats.temp_size_in_bytes / GIB, stats.generated_code_size_in_bytes / GIB
    host = stats.host_argument_size_in_bytes + stats.host_output_size_in_bytes - stats.host_alias_size_in_bytes
    # The compiler's peak counts what lies in the host's memory all through the step as if it were here.
    total = (stats.peak_memory_in_bytes - host) / GIB + code
    host = (host + stats.host_temp_size_in_bytes) / GIB
    return Memory(True, total, topology.chip.hbm_bytes / GIB, arguments, temporaries, code, host)


def remedies(config: Config, mesh: AnyMesh) -> list[str]:
    """What would make a step that does not fit smaller, the cheapest first."""
    found = []
    data, compute = config.data, config.compute
    shards = mesh.shape["data"] * mesh.shape["fsdp"]
    doubled = 2 * data.accumulation
    if data.rows_per_step % (doubled * shards) == 0:
        found.append(f"config.data.accumulation={doubled}")
    weaker = {"none": "matmuls_saved", "matmuls_saved": "attention_saved", "attention_saved": "full"}
    for tower in ("decoder", "vit"):
        policy = getattr(compute, f"remat_{tower}")
        if policy in weaker:
            found.append(f"config.compute.remat_{tower}={weaker[policy]}")
    if config.optimizer.moments_memory == "device":
        found.append("config.optimizer.moments_memory=pinned_host")
    copies, fsdp = mesh.shape["data"] // config.mesh.slices, 2 * mesh.shape["fsdp"]
    if copies % 2 == 0 and math.gcd(config.model.vit.width, config.model.decoder.width) % fsdp == 0:
        found.append(f"config.mesh.fsdp={fsdp}")
    found.append("more chips")
    return found
