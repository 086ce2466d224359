"""Runs many predictions, each in a separate process, so that a crash or lack of memory in the compiler loses only one.

The process runs `python -m qwenvl_jax.planning.candidates REQUEST.json ANSWER.json PID`; it ends with process PID.
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
from qwenvl_jax.runtime.child import end_with_parent
from qwenvl_jax.runtime.errors import UserError

# From the fastest, which needs the most memory, to the smallest; a search uses the same for both towers.
REMAT_ORDER = ("matmuls_saved", "attention_saved", "full")


@dataclasses.dataclass(frozen=True)
class Candidate:
    """One compilation to try; `name` is its label in tables."""

    name: str
    config: Config
    topology: Topology


@dataclasses.dataclass(frozen=True)
class Failure:
    """Why there is no prediction, in one sentence; `mistake` if the config is the cause and not the compiler."""

    reason: str
    mistake: bool


Outcome = Prediction | Failure


def run(candidate: Candidate, dump_hlo: str | None = None, options: dict[str, Any] | None = None) -> Outcome:
    """Predicts in a new process, whose only JAX backend is the CPU.

    Args:
      candidate: the compilation to try.
      dump_hlo: path to which the scheduled HLO text is written if the step fits.
      options: additional XLA options.
    """
    with tempfile.TemporaryDirectory() as folder:
        request = Path(folder) / "request.json"
        answer = Path(folder) / "answer.json"
        values = {
            "config": to_dict(candidate.config),
            "topology": candidate.topology.name,
            "dump_hlo": dump_hlo and str(storage.absolute(dump_hlo)),
            "options": options or {},
        }
        request.write_text(json.dumps(values))
        environment = dict(os.environ)
        aot.compiler_environment(environment)
        arguments = (str(request), str(answer), str(os.getpid()))
        command = [sys.executable, "-m", "qwenvl_jax.planning.candidates", *arguments]
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        if answer.exists():
            content = json.loads(answer.read_text())
            return Failure(content["error"], True) if "error" in content else Prediction(**_tuples(content))
    if done.returncode < 0:
        return Failure(f"the compiler crashed with {signal.Signals(-done.returncode).name}", False)
    lines = [line for line in done.stderr.splitlines() if line.strip()]
    return Failure(f"the compiler failed: {lines[-1] if lines else done.returncode}", False)


def _tuples(values: dict[str, Any]) -> dict[str, Any]:
    return {key: tuple(value) if isinstance(value, list) else value for key, value in values.items()}


def worker(request: str, answer: str, parent: str) -> None:
    """Answers one request with a prediction or with the message of a `UserError`; ends with the process that asked."""
    end_with_parent(int(parent))
    values = json.loads(Path(request).read_text())
    try:
        config = load_config(values["config"])
        topology = parse_topology(values["topology"])
        content = dataclasses.asdict(predict(config, topology, values["options"], values["dump_hlo"]))
    except UserError as error:
        content = {"error": str(error)}
    temporary = Path(f"{answer}.tmp")
    temporary.write_text(json.dumps(content))
    temporary.rename(answer)


def search(
    config: Config, topology: Topology, attempt: Callable[[Candidate], Outcome], jobs: int = 1
) -> list[tuple[Candidate, Outcome]]:
    """Tries meshes, remat policies and accumulations.

    For each mesh and remat policy the smallest accumulation that fits is the fastest, because every microbatch gathers
    the weights again. So accumulation is increased until the step fits.

    Args:
      config: the run; all other settings stay as they are.
      topology: the chips.
      attempt: `run`, or a function that also reports; it is called from `jobs` threads.
      jobs: the number of compilations at the same time.

    Returns:
      Everything that was tried, ordered by mesh, policy and accumulation.

    Raises:
      UserError: if no mesh gives every device whole rows.
    """
    choices = meshes(config, topology)
    if not choices:
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
        return [pair for tried in pool.map(grow, itertools.product(choices, REMAT_ORDER)) for pair in tried]


def ranked(tried: list[tuple[Candidate, Outcome]]) -> list[tuple[Candidate, Prediction]]:
    """The candidates that fit, fastest first, ordered by the middle of the predicted range."""

    def seconds(prediction: Prediction) -> float:
        return (prediction.step_seconds_roofline or math.inf) + (prediction.step_seconds_cycles or math.inf)

    fitting = [(candidate, outcome) for candidate, outcome in tried if isinstance(outcome, Prediction) and outcome.fits]
    return sorted(fitting, key=lambda pair: seconds(pair[1]))


def meshes(config: Config, topology: Topology) -> list[tuple[int, int]]:
    """The choices of (data, fsdp) within one slice: fsdp spans one or two axes of the torus, or is that of the config.

    If fsdp spanned all three axes, XLA would all-reduce the gradients instead of reduce-scattering them. fsdp must also
    divide the ViT's width of 1664 = 13 * 128, and every device needs whole rows.
    """
    per_slice = topology.devices // topology.slices // config.mesh.tensor
    sides = sorted(topology.shape)
    sizes = {sides[0], sides[-1], math.prod(sides[-2:]), math.prod(sides[-2:]) // 2, config.mesh.fsdp}
    width = math.gcd(config.model.vit.width, config.model.decoder.width)
    fitting = (fsdp for fsdp in sorted(sizes, reverse=True) if fsdp > 0 and not (per_slice % fsdp or width % fsdp))
    return [(per_slice // fsdp, fsdp) for fsdp in fitting if accumulations(config, topology, per_slice)]


def accumulations(config: Config, topology: Topology, shards: int) -> list[int]:
    """The numbers of microbatches up to 64 that give every device whole rows, in ascending order."""
    shards *= topology.slices
    tried = ((count, aot.with_accumulation(config.data, count)) for count in range(1, 65))
    return [count for count, data in tried if data is not None and data.rows_per_microbatch % shards == 0]


def _changed(config: Config, topology: Topology, data: int, fsdp: int, remat: str, accumulation: int) -> Candidate:
    regrouped = aot.with_accumulation(config.data, accumulation)
    assert regrouped is not None  # `accumulations` has no other numbers
    changed = dataclasses.replace(
        config,
        mesh=dataclasses.replace(config.mesh, data=data, fsdp=fsdp),
        compute=dataclasses.replace(config.compute, remat_decoder=remat, remat_vit=remat),
        data=regrouped,
    )
    name = f"data {data} x fsdp {fsdp} x tensor {config.mesh.tensor}, accumulation {accumulation}, remat {remat}"
    return Candidate(name, changed, topology)


if __name__ == "__main__":
    worker(*sys.argv[1:])
