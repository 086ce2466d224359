"""Brings a stage to the cloud: prints the exact commands with their reasons, or runs them with `--execute`.

python -m launch PATH VERB --config=configs/stage2_multitask.py --topology=v5p:8x8x8 --workdir=gs://bucket/runs/stage2
    --zone=us-east5-a [--name=stage2] [--capacity=spot] [--reservation=NAME] [--hours=24] [--project=PROJECT]
    [--config.key=value] [--env=NAME=VALUE] [--secret=VARIABLE=SECRET] [--repository=URL --revision=COMMIT] [--execute]
"""

from __future__ import annotations

from absl import flags

from launch import execution, request
from launch.path import VERBS
from launch.paths import PATHS
from qwenvl_jax.runtime import commandline
from qwenvl_jax.runtime.errors import UserError, nearest

_WAIT_HOURS = flags.DEFINE_float(
    "wait_hours", execution.WAIT_HOURS, "How long --execute waits for chips, per zone.", lower_bound=0
)
_EXECUTE = flags.DEFINE_bool("execute", False, "Run the commands instead of printing them.")


def main(path_name: str = "", verb: str = "") -> None:
    """Prints or runs the commands of one verb on one path."""
    if not path_name:
        raise UserError(f"name a path and a verb: python -m launch {'|'.join(PATHS)} {'|'.join(VERBS)} --config=..")
    if path_name not in PATHS:
        raise UserError(f"there is no path {path_name!r}, only {', '.join(PATHS)}{nearest(path_name, PATHS)}")
    path = PATHS[path_name]
    if verb not in path.builders:
        raise UserError(
            f"{path_name} has no verb {verb!r}, only {', '.join(path.builders)}{nearest(verb, path.builders)}"
        )
    job = request.job_of_flags(path, verb)
    if path.zoned:
        print(f"# {job.topology.description}")
    if _EXECUTE.value:
        execution.run_in_zones(path.builders[verb], job, _WAIT_HOURS.value)
        return
    commands = path.builders[verb](job)
    for command in commands:
        print(f"\n# {command.why}\n{command.shell}")


if __name__ == "__main__":
    commandline.run(main, positional=2, needs_config=False)
