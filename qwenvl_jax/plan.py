"""Predicts a run before any hardware is rented: does it fit, how fast is it, what does it cost.

python -m qwenvl_jax.plan --config=configs/stage2_multitask.py --topology=v5p:8x8x8 [--config.key=value]
    [--json] [--dump_hlo=step.txt] [--prices=prices.json] [--compare=v5e:16x16,compute.remat_vit=full]
    [--search] [--jobs=4] [--dump_sharding=sharding.json]

The real training step is compiled by XLA's TPU compiler (libtpu) on this machine, and the figures are read off the
schedule; no TPU is touched. A topology is KIND:AxB[xC][@SLICES]. A config whose argument `mesh` is left out takes the
recipe of the topology's chip (`configs/meshes/KIND.py`). `--compare` takes topologies, settings, or both with a space
between, one for each line of its table. `--prices` names a JSON file of dollars per chip and hour. A step that does not
fit ends with exit code 2, after its table; `--json` says it with `fits`.

`--dump_sharding` compiles nothing and needs no libtpu: it writes how every parameter lies on the topology, checks the
mesh on the way and prints the sums per tower.

libtpu must not become the default backend of other runs: install requirements-tpu.txt into an environment of its own.
Compilation runs in processes that have JAX_PLATFORMS=cpu and the variables of `planning.aot.compiler_environment`.
"""

from __future__ import annotations

import concurrent.futures
import importlib.metadata
import json
import os
from typing import Any

from absl import flags
from ml_collections import config_flags

from qwenvl_jax.config import FORMER_KEYS, load_config
from qwenvl_jax.runtime import artifacts, commandline
from qwenvl_jax.runtime.errors import UserError

_CONFIG = commandline.define_config("The stage, e.g. configs/stage2_multitask.py.", FORMER_KEYS)
_TOPOLOGY = flags.DEFINE_string("topology", None, "Chips to plan for, e.g. v5p:8x8x8 or v5p:8x8x8@4 (four slices).")
_JSON = flags.DEFINE_bool("json", False, "Print the figures as one JSON object and nothing else.")
_DUMP_HLO = flags.DEFINE_string("dump_hlo", None, "File for the scheduled HLO that the figures are read from.")
_COMPARE = flags.DEFINE_string(
    "compare",
    None,
    "For one table: further topologies or settings, 'v5e:16x16,data.accumulation=4 mesh.fsdp=32'.",
)
_SEARCH = flags.DEFINE_bool("search", False, "Try meshes, remat policies and accumulations; rank what fits.")
_JOBS = flags.DEFINE_integer(
    "jobs", 1, "Compilations at once for --compare and --search; each takes 2-4 GiB.", lower_bound=1
)
_DUMP_SHARDING = flags.DEFINE_string("dump_sharding", None, "JSON file for the shardings of the state; no compilation.")
_PRICES = flags.DEFINE_string("prices", None, 'JSON file of dollars per chip and hour, e.g. {"v5p": 2.94}.')


def main() -> None:
    """Predicts the run, or writes its shardings."""
    if not _TOPOLOGY.value:
        raise UserError("--topology is missing; name the chips, e.g. --topology=v5p:8x8x8")
    if sum(map(bool, (_COMPARE.value, _SEARCH.value, _JSON.value, _DUMP_SHARDING.value))) > 1:
        raise UserError("--compare, --search, --json and --dump_sharding exclude one another; choose one")
    if _DUMP_SHARDING.value:
        dump_sharding(_TOPOLOGY.value, _DUMP_SHARDING.value)
    else:
        plan(_TOPOLOGY.value)


def plan(name: str) -> None:
    """One prediction, a comparison or a search."""
    # jax reads its environment when it is imported, which the modules below do.
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    from qwenvl_jax.planning import aot, assumptions, candidates, tables
    from qwenvl_jax.planning.prediction import Prediction, misfit_text
    from qwenvl_jax.runtime import log

    prices = assumptions.read_prices(artifacts.read_json(_PRICES.value) if _PRICES.value else {})
    entries = [entry(name), *(entry(name, part) for part in (_COMPARE.value or "").split(",") if part)]
    aot.check_compiler()
    candidate = entries[0]

    def attempt(candidate: candidates.Candidate) -> candidates.Outcome:
        outcome = candidates.run(candidate)
        log.line("  ".join(str(cell) for cell in tables.comparison_row(candidate.name, outcome, prices) if cell))
        return outcome

    if _SEARCH.value:
        found = candidates.ranked(candidates.search(candidate.config, candidate.topology, attempt, _JOBS.value))
        if not found:
            raise UserError(f"nothing that was tried fits {candidate.topology.name}; take more chips")
        best = [(which.name, outcome) for which, outcome in found]
        tables.show_comparison(f"what fits {candidate.topology.name}, fastest first", best, prices)
    elif len(entries) > 1:
        with concurrent.futures.ThreadPoolExecutor(_JOBS.value) as pool:
            outcomes = list(pool.map(lambda which: (which.name, attempt(which)), entries))
        tables.show_comparison("predicted, not measured", outcomes, prices)
    else:
        outcome = candidates.run(candidate, _DUMP_HLO.value)
        if not isinstance(outcome, Prediction):
            raise UserError(outcome.reason)
        if _JSON.value:
            print(json.dumps(outcome.json(), indent=2))
            return
        log.line(candidate.name)
        tables.show(outcome, prices[candidate.topology.chip.kind])
        if not outcome.fits:
            raise UserError(misfit_text(outcome))
    tables.show_assumptions(", ".join(f"{p} {importlib.metadata.version(p)}" for p in ("jax", "jaxlib", "libtpu")))


def dump_sharding(name: str, path: str) -> None:
    """Writes the shardings of a topology as JSON and shows their sums per tower."""
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    from qwenvl_jax.planning.aot import for_topology
    from qwenvl_jax.sharding.mesh import abstract_mesh, check_torus
    from qwenvl_jax.sharding.report import as_json, json_text
    from qwenvl_jax.training.state import abstract_state
    from qwenvl_jax.training.summary import show_towers

    candidate = entry(name)
    config = for_topology(candidate.config, candidate.topology)
    check_torus(config.mesh, candidate.topology.chips)
    mesh = abstract_mesh(config.mesh, candidate.topology.chips)
    state = abstract_state(config, mesh)
    artifacts.write_text(path, json_text(as_json(state.trainable, state.frozen, state.opt_state, mesh)))
    show_towers(config, state, mesh)


def entry(name: str, changes: str = "") -> Any:
    """The candidate that a topology of the command line means, with what `--compare` changes.

    Args:
      name: the topology.
      changes: another topology, settings as `compute.remat_vit=full`, or both, separated by spaces.
    """
    import dataclasses

    from qwenvl_jax.chips import parse_topology
    from qwenvl_jax.planning.candidates import Candidate

    settings = [word for word in changes.split() if "=" in word]
    *_, name = [name, *(word for word in changes.split() if "=" not in word)]
    topology = parse_topology(name)
    path, values = config_of(topology.chip.kind)
    values = commandline.changed(values, settings)
    config = load_config(values)
    if topology.slices == 1:
        topology = dataclasses.replace(topology, slices=config.mesh.slices)
    return Candidate(", ".join([f"{path} on {topology.name}", *settings]), config, topology)


def config_of(kind: str) -> tuple[str, Any]:
    """The config file's path and values with the recipe of a chip, and with the command line's overrides.

    A recipe that the user chose stays, and so does a config that has no recipes to choose from.
    """
    path = str(config_flags.get_config_filename(flags.FLAGS["config"]))
    file, _, arguments = path.partition(":")
    chosen = {argument.split("=")[0].strip() for argument in arguments.split(",")}
    if "mesh" in chosen or "mesh" not in commandline.argument_names(file):
        return path, _CONFIG.value
    path = ",".join([f"{file}:mesh={kind}", *filter(None, [arguments])])
    values: Any = flags.FLAGS["config"].parser.parse(path)
    values.update_from_flattened_dict(config_flags.get_override_values(flags.FLAGS["config"]))
    return path, values


if __name__ == "__main__":
    commandline.run(main)
