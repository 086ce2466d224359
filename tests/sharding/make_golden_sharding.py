"""Writes `tests/golden/sharding/`: how the state of the full-size stages lies on pod slices. Seconds, no compiler.

Usage: python tests/sharding/make_golden_sharding.py [CASE ...]

Each file is what `python -m qwenvl_jax.plan --dump_sharding` writes for the same stage and topology.
"""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import Any

from qwenvl_jax.chips import Topology, parse_topology
from qwenvl_jax.config import Config, load_config
from qwenvl_jax.planning.aot import for_topology
from qwenvl_jax.sharding.mesh import abstract_mesh
from qwenvl_jax.sharding.report import as_json, json_text
from qwenvl_jax.training.state import abstract_state

FOLDER = Path(__file__).parents[1] / "golden" / "sharding"
STAGES = {1: "stage1_pretrain", 2: "stage2_multitask", 3: "stage3_sft"}

ROWS = {"data.rows_per_step": 128, "data.image_groups": 64}  # of stage 3, all in one microbatch

# File -> stage, topology, changes to the recipe of the topology's chip.
CASES: dict[str, tuple[int, str, dict[str, Any]]] = {
    "stage1_v5p_8x8x8": (1, "v5p:8x8x8", {}),
    "stage1_v5e_16x16": (1, "v5e:16x16", {}),
    "stage1_v6e_16x16": (1, "v6e:16x16", {}),
    "stage1_v4_8x8x8": (1, "v4:8x8x8", {}),
    "stage1_tpu7x_4x4x8": (1, "tpu7x:4x4x8", {}),
    "stage2_v5p_8x8x8": (2, "v5p:8x8x8", {}),
    # 2048 chips need as many rows in a microbatch.
    "stage2_v5p_8x8x8_4_slices": (2, "v5p:8x8x8@4", {"data.rows_per_step": 2048, "data.image_groups": 512}),
    "stage2_v5e_16x16": (2, "v5e:16x16", {}),
    "stage2_v6e_16x16": (2, "v6e:16x16", {}),
    "stage2_v4_8x8x8": (2, "v4:8x8x8", {}),
    "stage2_tpu7x_4x4x8": (2, "tpu7x:4x4x8", {}),
    "stage3_v5p_2x2x4": (3, "v5p:2x2x4", {}),
    "stage3_v4_2x2x4": (3, "v4:2x2x4", {}),
    "stage3_v5e_4x8": (3, "v5e:4x8", {}),
    "stage3_v6e_4x4": (3, "v6e:4x4", {}),
    "stage3_tpu7x_2x2x1": (3, "tpu7x:2x2x1", {}),
    # 128 rows on more chips: they cannot be split over more than 128, so the heads have to be.
    "stage3_v5p_4x4x4": (3, "v5p:4x4x4", {**ROWS, "mesh.fsdp": 32}),
    "stage3_v5e_16x16_tensor_2": (3, "v5e:16x16", {**ROWS, "mesh.fsdp": 128, "mesh.tensor": 2}),
    "stage3_v6e_16x16_tensor_2": (3, "v6e:16x16", {**ROWS, "mesh.fsdp": 128, "mesh.tensor": 2}),
    "stage3_v4_8x8x8_tensor_4": (3, "v4:8x8x8", {**ROWS, "mesh.fsdp": 64, "mesh.tensor": 4}),
}


def config_of(stage: int, topology: Topology, changes: dict[str, Any]) -> Config:
    """A stage as it runs on a topology."""
    values = importlib.import_module(f"configs.{STAGES[stage]}").get_config(mesh=topology.chip.kind)
    values.update_from_flattened_dict(changes)
    return for_topology(load_config(values), topology)


def text_of(stage: int, name: str, changes: dict[str, Any]) -> str:
    """The text of one golden file."""
    topology = parse_topology(name)
    config = config_of(stage, topology, changes)
    mesh = abstract_mesh(config.mesh, topology.devices)
    state = abstract_state(config, mesh)
    return json_text(as_json(state.trainable, state.frozen, state.opt_state, mesh))


def main(names: list[str]) -> None:
    FOLDER.mkdir(parents=True, exist_ok=True)
    for name in names or CASES:
        (FOLDER / f"{name}.json").write_text(text_of(*CASES[name]))
        print(name)


if __name__ == "__main__":
    main(sys.argv[1:])
