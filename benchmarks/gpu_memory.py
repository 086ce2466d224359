"""Memory of the full-size step on H200s that are not there: XLA's plan for CUDA, computed on a CPU.

    python benchmarks/gpu_memory.py [--gpus=1]

Needs requirements-gpu.txt but no GPU. Compiles the step of `gpu_step.py` for every row of CASES, half a minute each,
and prints what one GPU holds at most: arguments and temporaries of the compiled program. Not in it: workspaces of cuDNN
and NCCL, fragmentation, and the driver's own memory. An H200 has 141 GiB, of which `gpu_step.py` lets JAX take 96 %.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from typing import Any

os.environ.setdefault("JAX_PLATFORMS", "cpu")  # compiling only: no device is touched
# Without a device nothing can be timed, so there is nothing to choose kernels by.
os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_gpu_autotune_level=0"

import gpu_step
from jax.experimental import topologies

from qwenvl_jax.runtime.errors import UserError, exit_on_user_error
from qwenvl_jax.sharding.batch import abstract_batch
from qwenvl_jax.sharding.mesh import make_mesh
from qwenvl_jax.training.state import abstract_state
from qwenvl_jax.training.step import make_train_step

GIB = 2**30

# What the compiler asks of a GPU: NVIDIA's figures for the H200 SXM and limits of compute capability 9.0, in the form
# of XLA's `GpuTargetConfigProto`.
H200 = """
gpu_device_info {
  name: "NVIDIA H200"
  device_vendor: "NVIDIA Corporation"
  cuda_compute_capability { major: 9 feature_extension: ACCELERATED_FEATURES }
  device_memory_size: 151397597184
  memory_bandwidth: 4800000000000
  l2_cache_size: 52428800
  clock_rate_ghz: 1.98
  core_count: 132
  fpus_per_core: 128
  threads_per_warp: 32
  threads_per_block_limit: 1024
  threads_per_core_limit: 2048
  block_dim_limit_x: 2147483647
  block_dim_limit_y: 65535
  block_dim_limit_z: 65535
  registers_per_core_limit: 65536
  registers_per_block_limit: 65536
  shared_memory_per_core: 233472
  shared_memory_per_block: 49152
  shared_memory_per_block_optin: 232448
}
platform_name: "CUDA"
dnn_version_info { major: 9 minor: 10 }
device_description_str: "NVIDIA H200"
"""

# Stage, rows of one microbatch on one GPU, remat of both towers.
CASES = (
    ("1", 64, "full"),
    ("1", 256, "full"),
    ("1", 32, "matmuls_saved"),
    ("2", 2, "full"),
    ("2", 4, "full"),
    ("3", 4, "full"),
    ("3", 8, "full"),
    ("3", 4, "matmuls_saved"),
    ("lora", 8, "full"),
    ("lora", 16, "full"),
    ("lora", 8, "matmuls_saved"),
)


def devices(count: int) -> list[Any]:
    """Descriptions of H200s in one machine.

    Raises:
      UserError: if JAX has no compiler for CUDA here.
    """
    try:
        return list(topologies.get_topology_desc(platform="cuda", target_config=H200, topology=f"1x1x{count}").devices)
    except (NotImplementedError, RuntimeError) as error:
        raise UserError(f"JAX cannot compile for CUDA here ({error}); install requirements-gpu.txt") from error


def memory(stage: str, rows: int, remat: str, gpus: list[Any]) -> dict[str, Any]:
    """JSON values of one case; GiB of one GPU."""
    options = dict(stage=stage, rows=rows, remat=remat, accumulation=1, size="full", moments_memory="device")
    config = gpu_step.config_of(argparse.Namespace(**options), len(gpus), "cudnn")
    mesh = make_mesh(config.mesh, gpus)
    abstract = abstract_state(config, mesh)
    lowered = make_train_step(config, mesh, abstract).lower(abstract, abstract_batch(config, mesh))
    stats = lowered.compile().memory_analysis()
    arguments = stats.argument_size_in_bytes + stats.output_size_in_bytes - stats.alias_size_in_bytes
    return {
        "stage": stage,
        "gpus": len(gpus),
        "rows": rows,
        "remat": remat,
        "first_moment_dtype": config.optimizer.first_moment_dtype,
        "arguments_gib": arguments / GIB,
        "temporaries_gib": stats.temp_size_in_bytes / GIB,
        "total_gib": (arguments + stats.temp_size_in_bytes) / GIB,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gpus", type=int, default=1, help="over which everything is split")
    arguments = parser.parse_args()
    cases = []
    with exit_on_user_error():
        gpus = devices(arguments.gpus)
        for case in CASES:
            cases.append(memory(*case, gpus))
            print(
                "stage {stage:4} on {gpus} x {rows:3} rows, {remat:13} {arguments_gib:6.1f} GiB of arguments, "
                "{temporaries_gib:6.1f} of temporaries, {total_gib:6.1f} in all".format(**cases[-1]),
                file=sys.stderr,
            )
    print(json.dumps(cases))


if __name__ == "__main__":
    main()
