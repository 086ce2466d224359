"""Writes tests/golden/launch: the commands of every path for chips and ways to buy. Run it as

python -m tests.launch.make_golden_commands
"""

from __future__ import annotations

from pathlib import Path

from launch.job import CAPACITIES, Job
from launch.path import LaunchPath
from launch.paths import PATHS
from qwenvl_jax.chips import parse_topology
from qwenvl_jax.runtime.errors import UserError

FOLDER = Path(__file__).parents[1] / "golden" / "launch"
# Every kind of chip, several slices, one host, a grid without an accelerator type.
TOPOLOGIES = ("v4-32", "v5litepod-16", "v5p-1024", "v5p:4x4x16", "v6e-256@2", "v6e-8", "tpu7x-128")
NAMES = ("tpu_vm", "queued_resource", "gce", "gke")


def job_of(topology: str, capacity: str) -> Job:
    """A job that uses every flag of the builders."""
    return Job(
        name="stage2",
        topology=parse_topology(topology),
        command=("python", "-m", "qwenvl_jax.train", "--config=c.py", "--workdir=gs://bucket/runs/it's 2"),
        workdir="gs://bucket/runs/it's 2",
        capacity=capacity,
        reservation="winter" if capacity == "reserved" else "",
        hours=24 if capacity == "flex_start" else 0,
        project="acme",
        zones=("us-east5-a",),
        network="net",
        subnetwork="subnet",
        service_account="trainer@acme.iam.gserviceaccount.com",
        internal_addresses=True,
        labels={"team": "vision", "run": "2"},
        environment={"NOTE": 'a "b" $c'},
        secrets={"WANDB_API_KEY": "wandb"},
        image="us-docker.pkg.dev/acme/images/qwenvl:1",
        cluster="pod",
        host="1" if topology != "v6e-8" else "0",
        preflight=("python", "-m", "qwenvl_jax.preflight"),
    )


def golden(path: LaunchPath) -> str:
    """The text of one file: `create` for all combinations, and all other verbs for those on demand."""
    parts = []
    for topology in TOPOLOGIES:
        for capacity in CAPACITIES:
            job = job_of(topology, capacity)
            title = f"## {topology} {capacity}"
            try:
                path.check(job)
            except UserError as error:
                parts.append(f"{title}\n\nrefused: {error}\n")
                continue
            verbs = path.builders if capacity == "on_demand" and path.name != "gke" else ("create",)
            for verb in verbs:
                shown = [f"# {command.why}\n{command.shell}" for command in path.builders[verb](job)]
                parts.append(f"{title} {verb}\n\n" + "\n\n".join(shown) + "\n")
    return "\n".join(parts)


if __name__ == "__main__":
    FOLDER.mkdir(exist_ok=True)
    for name in NAMES:
        (FOLDER / f"{name}.txt").write_text(golden(PATHS[name]))
