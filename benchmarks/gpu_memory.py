"""Memory of the full-size step on GPUs that are not there: XLA's plan for CUDA, computed on a CPU.

    python benchmarks/gpu_memory.py [--gpus=1] [--card=h200]
    python benchmarks/gpu_memory.py --card=h100 --config=configs/finetune/lora.py data.accumulation=1 [key=value ..]

Needs requirements-gpu.txt but no GPU. Compiles the step of `gpu_step.py` for every row of CASES, or the step of a
config with changes, half a minute each, and prints what one GPU holds at most: arguments and temporaries of the
compiled program. Not in it: workspaces of cuDNN and NCCL, fragmentation, and the driver's own memory. A step counts as
fitting if it leaves a twentieth of the card free for these. `XLA_CLIENT_MEM_FRACTION=0.95` gives JAX all the rest;
otherwise JAX takes three quarters of the card. Moments in host memory are counted as if they were on the card.
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

from qwenvl_jax.config import Config, load_config
from qwenvl_jax.runtime import commandline
from qwenvl_jax.runtime.errors import UserError, exit_on_user_error
from qwenvl_jax.sharding.batch import abstract_batch
from qwenvl_jax.sharding.mesh import make_mesh
from qwenvl_jax.training.state import abstract_state
from qwenvl_jax.training.step import make_train_step

GIB = 2**30

# What the compiler asks of a GPU, in the form of XLA's `GpuTargetConfigProto`.
TARGET = """
gpu_device_info {{
  name: "NVIDIA {name}"
  device_vendor: "NVIDIA Corporation"
  cuda_compute_capability {{ {capability} }}
  device_memory_size: {memory}
  memory_bandwidth: {bandwidth}
  l2_cache_size: {l2_cache}
  clock_rate_ghz: {clock}
  core_count: {cores}
  fpus_per_core: 128
  threads_per_warp: 32
  threads_per_block_limit: 1024
  threads_per_core_limit: {threads_per_core}
  block_dim_limit_x: 2147483647
  block_dim_limit_y: 65535
  block_dim_limit_z: 65535
  registers_per_core_limit: 65536
  registers_per_block_limit: 65536
  shared_memory_per_core: {shared_memory}
  shared_memory_per_block: 49152
  shared_memory_per_block_optin: {shared_memory_optin}
}}
platform_name: "CUDA"
dnn_version_info {{ major: 9 minor: 10 }}
device_description_str: "NVIDIA {name}"
"""
HOPPER = dict(
    capability="major: 9 feature_extension: ACCELERATED_FEATURES",
    l2_cache=50 * 2**20,
    clock=1.98,
    cores=132,
    threads_per_core=2048,
    shared_memory=228 * 2**10,
    shared_memory_optin=227 * 2**10,
)
# NVIDIA's figures of each card (H200 and H100 SXM), limits of its compute capability, and bytes as `nvidia-smi` says.
CARDS: dict[str, dict[str, Any]] = {
    "h200": dict(HOPPER, name="H200", memory=151_397_597_184, bandwidth=4_800_000_000_000),
    "h100": dict(HOPPER, name="H100 80GB HBM3", memory=81_559 * 2**20, bandwidth=3_350_000_000_000),
    # The smallest usable memory of the cards of 24 GB.
    "l4": dict(
        name="L4",
        capability="major: 8 minor: 9",
        memory=23_034 * 2**20,
        bandwidth=300_000_000_000,
        l2_cache=48 * 2**20,
        clock=2.04,
        cores=58,
        threads_per_core=1536,
        shared_memory=100 * 2**10,
        shared_memory_optin=99 * 2**10,
    ),
}
USABLE = 0.95  # of a card's memory

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


def devices(card: str, count: int) -> list[Any]:
    """Descriptions of GPUs in one machine; `card` is a key of CARDS.

    Raises:
      UserError: if JAX has no compiler for CUDA here.
    """
    target = TARGET.format(**CARDS[card])
    try:
        return list(
            topologies.get_topology_desc(platform="cuda", target_config=target, topology=f"1x1x{count}").devices
        )
    except (NotImplementedError, RuntimeError) as error:
        raise UserError(f"JAX cannot compile for CUDA here ({error}); install requirements-gpu.txt") from error


def case_config(stage: str, rows: int, remat: str, gpus: int) -> Config:
    """The config of a row of CASES."""
    options = dict(stage=stage, rows=rows, remat=remat, accumulation=1, size="full", moments_memory="device")
    return gpu_step.config_of(argparse.Namespace(**options), gpus, "cudnn")


def memory(config: Config, card: str, gpus: list[Any]) -> dict[str, Any]:
    """JSON values of one step; GiB of one GPU."""
    mesh = make_mesh(config.mesh, gpus)
    abstract = abstract_state(config, mesh)
    lowered = make_train_step(config, mesh, abstract).lower(abstract, abstract_batch(config, mesh))
    stats = lowered.compile().memory_analysis()
    arguments = stats.argument_size_in_bytes + stats.output_size_in_bytes - stats.alias_size_in_bytes
    total = arguments + stats.temp_size_in_bytes
    return {
        "card": card,
        "gpus": len(gpus),
        "rows": config.data.rows_per_microbatch // len(gpus),
        "remat": config.compute.remat_decoder,
        "first_moment_dtype": config.optimizer.first_moment_dtype,
        "arguments_gib": arguments / GIB,
        "temporaries_gib": stats.temp_size_in_bytes / GIB,
        "total_gib": total / GIB,
        "usable_gib": USABLE * CARDS[card]["memory"] / GIB,
        "fits": total <= USABLE * CARDS[card]["memory"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gpus", type=int, default=1, help="over which everything is split")
    parser.add_argument("--card", choices=CARDS, default="h200")
    parser.add_argument("--config", help="a config with its arguments, instead of CASES")
    parser.add_argument("settings", nargs="*", help="changes of the config, e.g. data.accumulation=1")
    arguments = parser.parse_args()
    cases = []
    with exit_on_user_error():
        if arguments.config:
            values = commandline.changed(commandline.config_of(arguments.config), arguments.settings)
            steps = [(arguments.config, load_config(values))]
        else:
            steps = [(f"stage {case[0]}", case_config(*case, arguments.gpus)) for case in CASES]
        gpus = devices(arguments.card, arguments.gpus)
        for name, config in steps:
            cases.append({"step": name, **memory(config, arguments.card, gpus)})
            print(
                "{step} on {gpus} {card} x {rows} rows, {remat}: {arguments_gib:.1f} GiB of arguments, "
                "{temporaries_gib:.1f} of temporaries, {total_gib:.1f} of {usable_gib:.1f} in all".format(**cases[-1]),
                file=sys.stderr,
            )
    print(json.dumps(cases))


if __name__ == "__main__":
    main()
