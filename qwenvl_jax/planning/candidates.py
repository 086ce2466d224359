"""Many predictions, each in a process of its own: a crash or lack of memory in the compiler loses only one.

Also the worker that such a process runs: `python -m qwenvl_jax.planning.candidates REQUEST.json ANSWER.json`.
"""

from __future__ import annotations

import concurrent.futures
import dataclasses
import itertools
import json
import math
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from qwenvl_jax.chips import Topology, parse_topology
from qwenvl_jax.config import Config, load_config, to_dict
from qwenvl_jax.planning import aot
from qwenvl_jax.planning.prediction import Prediction, predict
from qwenvl_jax.runtime import storage
from qwenvl_jax.runtime.errors import UserError

# From the fastest and largest to the smallest; both towers take the same.
REMAT_ORDER = ("matmuls_saved", "attention_saved", "full")


@dataclasses.dataclass(frozen=True)
class Candidate:
    """One compilation to try; `name` is what tables call it."""

    name: str
    config: Config
    topology: Topology


@dataclasses.dataclass(frozen=True)
class Failure:
    """Why there is no prediction, in one sentence; `mistake` if the config is to blame and not the compiler."""

    reason: str
    mistake: bool


Outcome = Prediction | Failure


def run(candidate: Candidate, dump_hlo: str | None = None, options: dict[str, Any] | None = None) -> Outcome:
    """Predicts in a new process that compiles for TPUs and has no other backend than the CPU."""
    with tempfile.TemporaryDirectory() as folder:
        request, answer = Path(folder) / "request.json", Path(folder) / "answer.json"
        values = {
            "config": to_dict(candidate.config),
            "topology": candidate.topology.name,
            "dump_hlo": dump_hlo and str(storage.absolute(dump_hlo)),
            "options": options or {},
        }
        request.write_text(json.dumps(values))
        environment = dict(os.environ)
        aot.compiler_environment(environment)
        command = [sys.executable, "-m", "qwenvl_jax.planning.candidates", str(request), str(answer)]
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        if answer.exists():
            found = json.loads(answer.read_text())
            return Failure(found["error"], True) if "error" in found else Prediction(**_tuples(found))
    if done.returncode < 0:
        return Failure(f"the compiler crashed with {signal.Signals(-done.returncode).name}", False)
    lines = [line for line in done.stderr.splitlines() if line.strip()]
    return Failure(f"the compiler failed: {lines[-1] if lines else done.returncode}", False)


def _tuples(values: dict[str, Any]) -> dict[str, Any]:
    return {key: tuple(value) if isinstance(value, list) else value for key, value in values.items()}


def worker(request: str, answer: str) -> None:
    """Answers one request: a prediction, or the sentence of a `UserError`."""
    values = json.loads(Path(request).read_text())
    try:
        config = load_config(values["config"])
        topology = parse_topology(values["topology"])
        found: dict[str, Any] = dataclasses.asdict(predict(config, topology, values["options"], values["dump_hlo"]))
    except UserError as error:
        found = {"error": str(error)}
    temporary = Path(f"{answer}.tmp")
    temporary.write_text(json.dumps(found))
    temporary.rename(answer)


def search(
    config: Config, topology: Topology, attempt: Callable[[Candidate], Outcome], jobs: int = 1
) -> list[tuple[Candidate, Outcome]]:
    """Tries meshes, remat policies and accumulations; everything tried, ordered by mesh, policy and accumulation.

    For each mesh and remat policy the smallest accumulation that fits is the fastest: every further microbatch
    gathers the weights once more. So accumulation grows until the step fits.

    Args:
      config: the run; what is not searched stays.
      topology: the chips.
      attempt: `run`, or something that reports as well; called from `jobs` threads.
      jobs: how many to try at once.

    Raises:
      UserError: if no mesh gives every device whole rows.
    """
    found = meshes(config, topology)
    if not found:
        raise UserError(
            f"no mesh of {topology.name} with config.mesh.tensor {config.mesh.tensor} gives every chip whole rows of "
            f"config.data.rows_per_step {config.data.rows_per_step}; change one of the two or take fewer chips"
        )

    def grow(choice: tuple[tuple[int, int], str]) -> list[tuple[Candidate, Outcome]]:
        (data, fsdp), remat = choice
        tried = []
        for accumulation in accumulations(config, topology, data * fsdp):
            candidate = _changed(config, topology, data, fsdp, remat, accumulation)
            outcome = attempt(candidate)
            tried.append((candidate, outcome))
            if not isinstance(outcome, Prediction) or outcome.fits:
                break
        return tried

    with concurrent.futures.ThreadPoolExecutor(jobs) as pool:
        return [pair for tried in pool.map(grow, itertools.product(found, REMAT_ORDER)) for pair in tried]


def ranked(tried: list[tuple[Candidate, Outcome]]) -> list[tuple[Candidate, Prediction]]:
    """What fits, the fastest first, by the middle of the predicted range."""

    def seconds(prediction: Prediction) -> float:
        return (prediction.step_seconds_roofline or math.inf) + (prediction.step_seconds_cycles or math.inf)

    fitting = [(candidate, found) for candidate, found in tried if isinstance(found, Prediction) and found.fits]
    return sorted(fitting, key=lambda pair: seconds(pair[1]))


def meshes(config: Config, topology: Topology) -> list[tuple[int, int]]:
    """(data, fsdp) within one slice: fsdp over one or two whole axes of the torus, or the config's own.

    Over all three axes gradients are all-reduced instead of reduce-scattered, an fsdp that does not divide the ViT's
    width of 1664 = 13 * 128 is no choice, and every device needs whole rows.
    """
    per_slice = math.prod(topology.shape) // config.mesh.tensor
    sides = sorted(topology.shape)
    sizes = {sides[0], sides[-1], math.prod(sides[-2:]), math.prod(sides[-2:]) // 2, config.mesh.fsdp}
    width = math.gcd(config.model.vit.width, config.model.decoder.width)
    fitting = (fsdp for fsdp in sorted(sizes, reverse=True) if fsdp > 0 and not (per_slice % fsdp or width % fsdp))
    return [(per_slice // fsdp, fsdp) for fsdp in fitting if accumulations(config, topology, per_slice)]


def accumulations(config: Config, topology: Topology, shards: int) -> list[int]:
    """Numbers of microbatches, fewest first, that give every device whole rows: 1 to 64 times the fewest."""
    rows = config.data.rows_per_step
    shards *= topology.slices
    return [count for count in range(1, 65) if rows % count == 0 and (rows // count) % shards == 0]


def _changed(config: Config, topology: Topology, data: int, fsdp: int, remat: str, accumulation: int) -> Candidate:
    changed = dataclasses.replace(
        config,
        mesh=dataclasses.replace(config.mesh, data=data, fsdp=fsdp),
        compute=dataclasses.replace(config.compute, remat_decoder=remat, remat_vit=remat),
        data=dataclasses.replace(config.data, accumulation=accumulation),
    )
    name = f"data {data} x fsdp {fsdp} x tensor {config.mesh.tensor}, accumulation {accumulation}, remat {remat}"
    return Candidate(name, changed, topology)


if __name__ == "__main__":
    worker(*sys.argv[1:])
