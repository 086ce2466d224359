"""Computes the table of docs/performance.md: all full-size stages on all chips, predicted by `qwenvl_jax.plan`.

Usage, in an environment with requirements-tpu.txt: python benchmarks/plan_figures.py OUTPUT.json [ROW ...]
The predictions that `plan --paper` uses are such a file, qwenvl_jax/planning/predictions.json; delete from it what is
to be computed again. Rows `decode KIND` are steps of decoding, of 32 rows with 512 tokens each.

Every row is one compilation, which takes two to six minutes on two cores, or twice as long for v6e and tpu7x. Rows that
are already in OUTPUT.json are not computed again.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

os.environ.setdefault("JAX_PLATFORMS", "cpu")

from configs import stage1_pretrain, stage2_multitask, stage3_sft
from qwenvl_jax.chips import parse_topology
from qwenvl_jax.config import load_config
from qwenvl_jax.planning import aot, candidates, decoding, predictions, tables
from qwenvl_jax.planning.assumptions import read_prices
from qwenvl_jax.runtime import artifacts, log

STAGES = {1: stage1_pretrain, 2: stage2_multitask, 3: stage3_sft}
# Row -> stage, topology, changes to the config, which takes the recipe of its chip.
ROWS: dict[str, tuple[int, str, dict[str, Any]]] = {
    "1 v5p": (1, "v5p:8x8x8", {}),
    "2 v5p": (2, "v5p:8x8x8", {}),
    "3 v5p": (3, "v5p:2x2x4", {}),
    "1 v5e": (1, "v5e:16x16", {}),
    "2 v5e": (2, "v5e:16x16", {}),
    "3 v5e": (3, "v5e:4x8", {}),
    "1 v6e": (1, "v6e:16x16", {}),
    "2 v6e": (2, "v6e:16x16", {}),
    "3 v6e": (3, "v6e:4x4", {}),
    "1 v4": (1, "v4:8x8x8", {}),
    "2 v4": (2, "v4:8x8x8", {}),
    "3 v4": (3, "v4:2x2x4", {}),
    "1 tpu7x": (1, "tpu7x:4x4x8", {}),
    "2 tpu7x": (2, "tpu7x:4x4x8", {}),
    "3 tpu7x": (3, "tpu7x:2x2x1", {}),
}
# Kind -> the slice on which decoding is predicted.
DECODING = {"v5p": "v5p:1x1x1", "v5e": "v5e:2x2", "v6e": "v6e:2x2", "v4": "v4:2x2x1", "tpu7x": "tpu7x:1x1x1"}
BATCH, CONTEXT = 32, 512


def candidate_of(row: str) -> candidates.Candidate:
    """The compilation of a row."""
    stage, name, changes = ROWS[row]
    topology = parse_topology(name)
    values = STAGES[stage].get_config(mesh=topology.chip.kind)
    values.update_from_flattened_dict(changes)
    return candidates.Candidate(row, load_config(values), topology)


def decoding_of(kind: str) -> dict[str, Any]:
    """The values of a row `decode KIND`."""
    topology = parse_topology(DECODING[kind])
    config = predictions.decoding_config(load_config(stage3_sft.get_config(mesh=kind)), topology)
    predicted = decoding.predict(config, topology, BATCH, CONTEXT)
    return dict(
        topology=topology.name,
        batch=BATCH,
        context=CONTEXT,
        step_seconds_roofline=predicted.seconds_roofline,
        step_seconds_cycles=predicted.seconds_cycles,
        config=predictions.decoding_settings(config),
    )


def main(output: str, *rows: str) -> None:
    done: dict[str, Any] = artifacts.read_json(output) if Path(output).exists() else {}
    prices = read_prices({})
    aot.compiler_environment(os.environ)
    for row in rows or (*ROWS, *(f"decode {kind}" for kind in DECODING)):
        if row in done:
            continue
        if row.startswith("decode "):
            done[row] = decoding_of(row.removeprefix("decode "))
            artifacts.write_json(output, done)
            continue
        candidate = candidate_of(row)
        outcome = candidates.run(candidate)
        log.line("  ".join(str(cell) for cell in tables.comparison_row(row, outcome, prices)))
        if isinstance(outcome, candidates.Prediction):
            names = dict(stage=candidate.config.train.stage, topology=candidate.topology.name)
            settings = predictions.compiled_settings(candidate.config)
            done[row] = {**names, **outcome.json(), "compile_seconds": outcome.compile_seconds, "config": settings}
            artifacts.write_json(output, done)
    print(json.dumps(done, indent=2))


if __name__ == "__main__":
    main(*sys.argv[1:])
