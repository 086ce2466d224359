"""Brings a stage to the cloud: prints the exact commands with their reasons, or runs them with `--execute`.

python -m launch PATH VERB --config=configs/stage2_multitask.py --topology=v5p:8x8x8 --workdir=gs://bucket/runs/stage2
    --zone=us-east5-a [--name=stage2] [--capacity=spot] [--reservation=NAME] [--hours=24] [--project=PROJECT]
    [--config.key=value] [--env=NAME=VALUE] [--secret=VARIABLE=SECRET] [--repository=URL --revision=COMMIT] [--execute]
python -m launch where --topology=v5p:8x8x8 [--prices=prices.json] [--config=.. --plan=plan.json]
python -m launch stages PATH --config_dir=configs --runs=gs://bucket/runs --data=gs://bucket/data --name=qwen-vl
    --topology=.. --zone=.. [--stages=2-3] [--execute]
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from absl import flags

from launch import execution, local, request, stages, status, where
from launch.command import Command
from launch.path import VERBS, LaunchPath
from launch.paths import PATHS
from qwenvl_jax.runtime import commandline
from qwenvl_jax.runtime.errors import UserError, nearest

_WAIT_HOURS = flags.DEFINE_float(
    "wait_hours", execution.WAIT_HOURS, "How long --execute waits for chips, per zone.", lower_bound=0
)
_EXECUTE = flags.DEFINE_bool("execute", False, "Run the commands instead of printing them.")
for _module in (request, local):
    flags.adopt_module_key_flags(_module)  # so that `--help` shows them


def main(path_name: str = "", verb: str = "") -> None:
    """Prints or runs the commands of one verb on one path, or of all stages, or shows where chips are."""
    if not path_name:
        known = f"{'|'.join(PATHS)} {'|'.join(VERBS)}"
        raise UserError(f"name a path and a verb: python -m launch {known} --config=..; --help explains them")
    if path_name == "where":
        if verb:
            raise UserError(f"unexpected argument {verb!r}; `where` shows all paths, so leave it out")
        topology, prices = request.topology_and_prices()
        print(where.report(topology, prices, request.pace_of_flags()))
    elif path_name == "stages":
        if not verb:
            raise UserError(f"name the path of the hosts: python -m launch stages {'|'.join(PATHS)} --runs=..")
        _chain(_path(verb, tuple(PATHS)))
    else:
        _one_verb(_path(path_name, (*PATHS, "where", "stages")), verb)


def _path(name: str, known: Sequence[str]) -> LaunchPath:
    if name not in PATHS:
        raise UserError(f"there is no path {name!r}, only {', '.join(known)}{nearest(name, known)}")
    return PATHS[name]


def overview() -> str:
    """The paths and the verbs with what they are for, as `--help` shows them."""
    paths = [f"  {name:15}  {path.summary}" for name, path in PATHS.items()]
    verbs = [f"  {name:15}  {purpose}" for name, purpose in VERBS.items()]
    return "\n".join(["PATH is one of", *paths, "", "VERB is one of", *verbs])


def _one_verb(path: LaunchPath, verb: str) -> None:
    known = ", ".join(path.builders)
    if not verb:
        raise UserError(f"the verb is missing; {path.name} has {known}")
    if verb not in path.builders:
        raise UserError(f"{path.name} has no verb {verb!r}, only {known}{nearest(verb, path.builders)}")
    job = request.job_of_flags(path, verb)
    if path.zoned:
        print(f"# {job.topology.description}")
    if _EXECUTE.value and path.replaces:
        execution.become(path.builders[verb](job)[0])
    if _EXECUTE.value and verb == "status":
        outputs: list[str] = []
        try:
            execution.run(path.builders[verb](job), outputs=outputs)
        finally:
            print(status.summary("\n".join(outputs)))
        return
    if _EXECUTE.value:
        execution.run_in_zones(path.builders[verb], job, _WAIT_HOURS.value)
        return
    show(path.builders[verb](job))
    if len(job.zones) > 1:
        print(f"\n# If {job.zone} has no room: the same in {', then '.join(job.zones[1:])}.")


def _chain(path: LaunchPath) -> None:
    """Prints or runs all stages, one after another."""
    chain, first = request.stages_of_flags(path)
    for sentence in stages.check_handoffs(chain):
        print(f"# {sentence}")
    if not _EXECUTE.value:
        show(stages.commands(path, chain, first))
        return
    names = [stage.name for stage in stages.left(chain)]
    for stage in chain:
        if stage.name not in names:
            print(f"# {stage.name} has finished.")
    if names:
        begin = max(names[0], first, key=[stage.name for stage in chain].index)
        execution.run(stages.commands(path, chain, begin), math.inf)  # a stage takes as long as it takes


def show(commands: Sequence[Command]) -> None:
    """Prints commands with their reasons, as a script that a shell could run."""
    for command in commands:
        print(f"\n# {command.why}\n{command.shell}")


if __name__ == "__main__":
    __doc__ = f"{__doc__}\n{overview()}\n"
    commandline.run(main, positional=2, needs_config=False)
