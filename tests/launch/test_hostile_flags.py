"""Names, numbers and flags that no cloud takes are refused in one sentence, before anything is called."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import pytest

from launch import gke, jobset, tpu_vm, where, zones
from launch.job import Job
from qwenvl_jax.chips import parse_topology
from qwenvl_jax.runtime.errors import UserError
from tests.support.cloud.pretended import PretendedCloud
from tests.support.commands import Answer, assert_refused

ROOT = Path(__file__).parents[2]
A_JOB = Job(
    name="stage1",
    topology=parse_topology("v5p:2x2x2"),
    command=("python",),
    workdir="gs://b/stage1",
    zones=("us-east5-a",),
    project="p",
    cluster="c",
    image="i",
)


@pytest.mark.parametrize("value", ["--format=x", "a b", "a\nb", "$(id)", "it's", "caf\u00e9", " a"])
@pytest.mark.parametrize("field", ["project", "cluster", "location", "image", "queue", "network", "service_account"])
def test_names_of_the_cloud(field: str, value: str) -> None:
    with pytest.raises(UserError, match="is no name of the cloud"):
        dataclasses.replace(A_JOB, **{field: value})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "fields",
    [
        {"zones": ("us-east5-a", "-x")},
        {"secrets": {"KEY": "a b"}},
        {"labels": {"a": "x,y"}},
        {"labels": {"a": ",:;|#%~@"}},
        {"labels": {"Team": "x"}},
        {"labels": {"a": "-x"}},
        {"labels": {"a": "x" * 64}},
        {"hours": float("nan")},
        {"hours": float("inf")},
        {"hours": 1e300},
        {"hours": 1e-9},
    ],
)
def test_other_values_that_no_cloud_takes(fields: dict[str, object]) -> None:
    with pytest.raises(UserError):
        dataclasses.replace(A_JOB, **fields)  # type: ignore[arg-type]


def test_names_that_clouds_have_are_taken() -> None:
    dataclasses.replace(
        A_JOB,
        project="example.com:project-1",
        image="us-docker.pkg.dev/p/images/qwenvl@sha256:0a",
        subnetwork="projects/p/regions/us-east5/subnetworks/s",
        service_account="1-compute@developer.gserviceaccount.com",
        labels={"team": "a_1", "empty": ""},
    )


def test_a_limit_of_time_that_a_path_does_not_keep_is_refused() -> None:
    job = dataclasses.replace(A_JOB, hours=24.0)
    for check in (tpu_vm.check, gke.check):
        with pytest.raises(UserError, match=r"leave .*--hours|--hours .* leave"):
            check(job)


@pytest.mark.parametrize(
    "name", ["v5p-" + "9" * 5000, "v5p:4x4x" + "4" * 5000, "v5p:4x4x4@99999999999", "v5p:\u0664x4x4"]
)
def test_topologies_of_any_length(name: str) -> None:
    with pytest.raises(UserError, match=r"has not the form|there is no slice"):
        parse_topology(name)


@pytest.mark.parametrize("text", ['{"v5p": NaN}', '{"v5p": 1e999}', f'{{"v5p": 1{"0" * 400}}}', "[" * 100_000, "\xff"])
def test_prices_that_are_none(tmp_path: Path, text: str) -> None:
    (tmp_path / "prices.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(UserError):
        zones.read_prices(str(tmp_path / "prices.json"))


@pytest.mark.parametrize("seconds", [float("nan"), -3.0, 0.0, 10**400, "x", None])
def test_predictions_that_are_none(tmp_path: Path, seconds: object) -> None:
    file = tmp_path / "plan.json"
    file.write_text(json.dumps({"step_seconds_roofline": 1.0, "step_seconds_cycles": seconds}))
    with pytest.raises(UserError, match="is no prediction of a step that fits"):
        where.read_pace(str(file), 100.0)


def test_secrets_of_two_variables_or_jobs_never_share_a_name() -> None:
    with pytest.raises(UserError, match="that of A_B; rename"):
        gke.check(dataclasses.replace(A_JOB, secrets={"A_B": "x", "a_b": "y"}))
    with pytest.raises(UserError, match="no name in the cluster; rename"):
        gke.check(dataclasses.replace(A_JOB, secrets={"_": "x"}))
    one, other = dataclasses.replace(A_JOB, name="a"), dataclasses.replace(A_JOB, name="a-b")
    assert jobset.secret_name(one, "B_C") != jobset.secret_name(other, "C")


@pytest.mark.parametrize(
    ("path", "flag", "words"),
    [
        ("tpu_vm", "--image=i", "--image means nothing on tpu_vm"),
        ("tpu_vm", "--workdir=gs://b/a*b", "must be gs://BUCKET/FOLDER"),
        ("tpu_vm", "--workdir=gs://b/../c", "must be gs://BUCKET/FOLDER"),
        ("tpu_vm", "--host=\u0663", "is none of the 2 hosts"),
        ("tpu_vm", "--wait_hours=nan", "is no finite number"),
        ("gke", "--restarts=99999999999", "--restarts=99999999999"),
        ("local", "--secret=A=b", "--secret means nothing on local"),
        ("local", "--devices=-3", "--devices=-3"),
    ],
)
def test_flags_that_a_path_cannot_take(cloud: PretendedCloud, path: str, flag: str, words: str) -> None:
    verb = "run" if path == "local" else "logs"
    zoned = () if path == "local" else ("--topology=v5p:2x2x2", "--zone=us-east5-a", "--project=p")
    on_gke = ("--cluster=c", "--image=i") if path == "gke" else ()
    flags = ("--config=configs/quickstart/stage0_text.py", "--workdir=gs://b/stage1", *zoned, *on_gke, flag)
    command = [sys.executable, "-m", "launch", path, verb, *flags, "--execute"]
    run = subprocess.run(command, cwd=ROOT, env=cloud.environment, capture_output=True, text=True)
    assert_refused(Answer(run.returncode, run.stderr), words)
    assert not cloud.calls()


def test_a_workdir_may_end_with_a_slash_and_needs_no_name_on_this_machine() -> None:
    config = "--config=configs/quickstart/stage0_text.py"
    gce = ("gce", "run", config, "--topology=v5p:2x2x2@2", "--zone=us-east5-a", "--project=p", "--workdir=gs://b/r/")
    for arguments, words in (
        (gce, "gs://b/r/launch/coordinator.txt"),
        (("local", "run", config, "--workdir=7/"), "=7"),
    ):
        run = subprocess.run([sys.executable, "-m", "launch", *arguments], cwd=ROOT, capture_output=True, text=True)
        assert run.returncode == 0 and words in run.stdout, run
