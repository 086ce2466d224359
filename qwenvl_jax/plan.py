"""Predicts a run before any hardware is rented: whether it fits, how fast it is, and what it costs.

python -m qwenvl_jax.plan --config=configs/stage2_multitask.py --topology=v5p:8x8x8 [--config.key=value]
    [--json] [--dump_hlo=step.txt] [--prices=prices.json] [--compare=v5e:16x16,compute.remat_vit=full]
    [--search] [--jobs=4] [--dump_sharding=sharding.json] [--decode --batch=32 --context=512]
python -m qwenvl_jax.plan --paper --topology=v5p:8x8x8,v4:8x8x8 [--json] [--prices=prices.json] [--html=paper.html]

XLA's TPU compiler (libtpu) compiles the real training step on this machine, and the figures are derived from the
schedule; no TPU is used. A topology is KIND:AxB[xC][@SLICES]. If the config file has an argument `mesh` that is not
given, it becomes the recipe of the topology's chip (`configs/meshes/KIND.py`). `--compare` takes topologies, settings,
or both separated by a space, one entry for each line of its table. `--prices` names a JSON file of dollars per chip and
hour. If the step does not fit, the command prints its table and ends with exit code 2; `--json` prints `fits` instead.

`--dump_sharding` compiles nothing and does not need libtpu: it checks the mesh, writes the sharding of every parameter
on the topology and prints the sums per component.

`--decode` predicts a step of decoding instead of a training step: `--batch` rows with `--context` tokens each in the
cache, on the mesh of the config. Its mesh is data 1, fsdp 1, tensor all chips, unless the command line sets one.

`--paper` adds up what all of the paper costs: corpora, three stages and the evaluation, on every slice of `--topology`;
stage 3 takes the slice of its recipe. It needs no `--config`, and no libtpu where the recipe's prediction is stored.

libtpu must not become the default backend of other runs: install requirements-tpu.txt into a separate environment.
Compilation runs in processes with JAX_PLATFORMS=cpu and the variables of `planning.aot.compiler_environment`.
"""

from __future__ import annotations

import concurrent.futures
import importlib.metadata
import json
import os

from absl import flags

os.environ.setdefault("JAX_PLATFORMS", "cpu")  # before jax is imported: this process needs no other device

from qwenvl_jax.config import FORMER_KEYS
from qwenvl_jax.planning import aot, assumptions, candidates, decoding, requests, shardings, tables
from qwenvl_jax.planning.candidates import Candidate, Outcome
from qwenvl_jax.planning.paper import page, plan
from qwenvl_jax.planning.prediction import Prediction, misfit_text
from qwenvl_jax.runtime import artifacts, commandline, log
from qwenvl_jax.runtime.errors import UserError

commandline.define_config("The stage, e.g. configs/stage2_multitask.py.", FORMER_KEYS)
_TOPOLOGY = flags.DEFINE_string("topology", None, "Chips to plan for, e.g. v5p:8x8x8 or v5p:8x8x8@4 (four slices).")
_JSON = flags.DEFINE_bool("json", False, "Print the figures as one JSON object and nothing else.")
_DUMP_HLO = flags.DEFINE_string("dump_hlo", None, "File for the scheduled HLO that the figures are read from.")
_COMPARE = flags.DEFINE_string(
    "compare",
    None,
    "Compare with further topologies or settings, e.g. 'v5e:16x16,data.accumulation=4 mesh.fsdp=32'.",
)
_SEARCH = flags.DEFINE_bool("search", False, "Try meshes, remat policies and accumulations; rank what fits.")
_JOBS = flags.DEFINE_integer(
    "jobs", 1, "Compilations at once for --compare and --search; each takes 2-4 GiB.", lower_bound=1
)
_DUMP_SHARDING = flags.DEFINE_string("dump_sharding", None, "JSON file for the shardings of the state; no compilation.")
_PRICES = flags.DEFINE_string("prices", None, 'JSON file of dollars per chip and hour, e.g. {"v5p": 2.94}.')

_PAPER = flags.DEFINE_bool("paper", False, "Add up what the whole paper costs on the slices of --topology.")
_HTML = flags.DEFINE_string("html", None, "HTML file for the page of --paper.")
_DECODE = flags.DEFINE_bool("decode", False, "Predict a step of decoding instead of a training step.")
_BATCH = flags.DEFINE_integer("batch", 32, "Rows that --decode continues together.", lower_bound=1)
_CONTEXT = flags.DEFINE_integer("context", 512, "Tokens of a row that --decode has in the cache.", lower_bound=1)


def main() -> None:
    """Predicts the run, or writes its shardings."""
    if not _TOPOLOGY.value:
        raise UserError("--topology is missing; name the chips, e.g. --topology=v5p:8x8x8")
    if _HTML.value and not _PAPER.value:
        raise UserError("--html belongs to --paper; give both")
    if _PAPER.value:
        others = (_COMPARE, _SEARCH, _JOBS, _DUMP_SHARDING, _DUMP_HLO, _DECODE, _BATCH, _CONTEXT)
        if any(flag.present for flag in others) or flags.FLAGS.config is not None:
            raise UserError("--paper takes only --topology, --json, --html and --prices; leave the others out")
        whole_paper(_TOPOLOGY.value)
        return
    if flags.FLAGS.config is None:
        raise UserError("--config is missing; name a config file, e.g. --config=configs/stage2_multitask.py")
    if _DECODE.value and any((_COMPARE.value, _SEARCH.value, _DUMP_SHARDING.value)):
        raise UserError("--decode excludes --compare, --search and --dump_sharding; leave those out")
    if sum(map(bool, (_COMPARE.value, _SEARCH.value, _JSON.value, _DUMP_SHARDING.value))) > 1:
        raise UserError("--compare, --search, --json and --dump_sharding exclude one another; choose one")
    if _DUMP_SHARDING.value:
        shardings.write(requests.candidate(_TOPOLOGY.value), _DUMP_SHARDING.value)
        return
    if _DECODE.value:
        decode(requests.decoding_candidate(_TOPOLOGY.value))
        return
    prices = assumptions.read_prices(artifacts.read_json(_PRICES.value) if _PRICES.value else {})
    changes = [entry for entry in (_COMPARE.value or "").split(",") if entry]
    requested = [requests.candidate(_TOPOLOGY.value, entry) for entry in ("", *changes)]
    aot.check_compiler()
    if _SEARCH.value:
        search(requested[0], prices)
    elif changes:
        compare(requested, prices)
    else:
        predict(requested[0], prices)
    if not _JSON.value:
        packages = ("jax", "jaxlib", "libtpu")
        tables.show_assumptions(", ".join(f"{name} {importlib.metadata.version(name)}" for name in packages))


def whole_paper(names: str) -> None:
    """Prints the cost of all of the paper on some slices, and writes the page of it."""
    slices = plan.topologies(names)
    named = artifacts.read_json(_PRICES.value) if _PRICES.value else {}
    prices = assumptions.read_prices(named)
    if _PRICES.value:
        plan.check_prices(named, [topology.chip.kind for topology in slices])
    results = {topology.name: plan.plan(topology, prices, requests.paper_config) for topology in slices}
    plans = {name: lines for name, (lines, _) in results.items()}
    if _HTML.value:
        artifacts.write_text(_HTML.value, page.html(plans))
    if _JSON.value:
        print(page.json_text(plans, {name: steps for name, (_, steps) in results.items()}))
    else:
        page.show(plans)


def decode(candidate: Candidate) -> None:
    """Prints the prediction of a step of decoding."""
    aot.check_compiler()
    aot.compiler_environment(os.environ)
    prediction = decoding.predict(candidate.config, candidate.topology, _BATCH.value, _CONTEXT.value, _DUMP_HLO.value)
    if _JSON.value:
        print(json.dumps(prediction.json(), indent=2))
        return
    log.line(candidate.name)
    tables.show_decoding(prediction)


def predict(candidate: Candidate, prices: dict[str, float]) -> None:
    """Prints one prediction."""
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


def compare(requested: list[Candidate], prices: dict[str, float]) -> None:
    """Prints one table of several predictions."""

    def attempt(candidate: Candidate) -> tuple[str, Outcome]:
        return candidate.name, _run_and_report(candidate, prices)

    with concurrent.futures.ThreadPoolExecutor(_JOBS.value) as pool:
        outcomes = list(pool.map(attempt, requested))
    tables.show_comparison("predicted, not measured", outcomes, prices)


def search(candidate: Candidate, prices: dict[str, float]) -> None:
    """Prints the meshes, remat policies and accumulations that fit, fastest first."""
    tried = candidates.search(
        candidate.config, candidate.topology, lambda choice: _run_and_report(choice, prices), _JOBS.value
    )
    fitting = candidates.ranked(tried)
    if not fitting:
        raise UserError(f"nothing that was tried fits {candidate.topology.name}; take more chips")
    rows = [(choice.name, prediction) for choice, prediction in fitting]
    tables.show_comparison(f"what fits {candidate.topology.name}, fastest first", rows, prices)


def _run_and_report(candidate: Candidate, prices: dict[str, float]) -> Outcome:
    outcome = candidates.run(candidate)
    cells = tables.comparison_row(candidate.name, outcome, prices)
    log.line("  ".join(str(cell) for cell in cells if cell))
    return outcome


if __name__ == "__main__":
    commandline.run(main, needs_config=False)
