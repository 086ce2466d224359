"""Many predictions, each in a process of its own: a crash or lack of memory in the compiler loses only one.

Also the worker that such a process runs: `python -m qwenvl_jax.perf.candidates REQUEST.json ANSWER.json`.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from qwenvl_jax.config import Config, from_config_dict, to_dict, validate
from qwenvl_jax.perf import aot
from qwenvl_jax.perf.hardware import Topology, parse_topology
from qwenvl_jax.perf.prediction import Prediction, predict
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
            "dump_hlo": dump_hlo and str(Path(dump_hlo).absolute() if "://" not in dump_hlo else dump_hlo),
            "options": options or {},
        }
        request.write_text(json.dumps(values))
        environment = dict(os.environ)
        aot.compiler_environment(environment)
        command = [sys.executable, "-m", "qwenvl_jax.perf.candidates", str(request), str(answer)]
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
        config = validate(from_config_dict(Config, values["config"]))
        topology = parse_topology(values["topology"])
        found: dict[str, Any] = dataclasses.asdict(predict(config, topology, values["options"], values["dump_hlo"]))
    except UserError as error:
        found = {"error": str(error)}
    temporary = Path(f"{answer}.tmp")
    temporary.write_text(json.dumps(found))
    temporary.rename(answer)


def search(
    config: Config, topology: Topology, attempt: Callable[[Candidate], Outcome]
) -> list[tuple[Candidate, Outcome]]:
    """Tries meshes, remat policies and accumulations; everything tried, in the order of trying.

    For each mesh and remat policy the smallest accumulation that fits is the fastest: every further microbatch
    gathers the weights once more. So accumulation grows until the step fits.

    Args:
      config: the run; what is not searched stays.
      topology: the chips.
      attempt: `run`, or something that reports as well.
    """
    tried = []
    for data, fsdp in meshes(config, topology):
        for remat in REMAT_ORDER:
            for accumulation in accumulations(config, topology, data * fsdp):
                candidate = _changed(config, topology, data, fsdp, remat, accumulation)
                outcome = attempt(candidate)
                tried.append((candidate, outcome))
                if not isinstance(outcome, Prediction) or outcome.fits:
                    break
    return tried


def ranked(tried: list[tuple[Candidate, Outcome]]) -> list[tuple[Candidate, Prediction]]:
    """What fits, the fastest first, by the middle of the predicted range."""

    def seconds(prediction: Prediction) -> float:
        return (prediction.step_seconds_roofline or math.inf) + (prediction.step_seconds_cycles or math.inf)

    fitting = [(candidate, found) for candidate, found in tried if isinstance(found, Prediction) and found.fits]
    return sorted(fitting, key=lambda pair: seconds(pair[1]))


def meshes(config: Config, topology: Topology) -> Iterator[tuple[int, int]]:
    """(data, fsdp) within one slice: fsdp over one or two whole axes of the torus, or the config's own.

    Over all three axes gradients are all-reduced instead of reduce-scattered, and an fsdp that does not divide the
    ViT's width of 1664 = 13 * 128 is no choice.
    """
    per_slice = math.prod(topology.shape) // config.mesh.tensor
    sides = sorted(topology.shape)
    sizes = {sides[0], sides[-1], math.prod(sides[-2:]), math.prod(sides[-2:]) // 2, config.mesh.fsdp}
    width = math.gcd(config.model.vit.width, config.model.decoder.width)
    for fsdp in sorted(sizes, reverse=True):
        if fsdp > 0 and per_slice % fsdp == 0 and width % fsdp == 0:
            yield per_slice // fsdp, fsdp


def accumulations(config: Config, topology: Topology, shards: int) -> list[int]:
    """Numbers of microbatches, fewest first, that give every device whole rows: 1 to 64 times the fewest."""
    rows = config.data.global_batch_size
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
