"""`--execute` against the pretended cloud: states, zones in turn, what is undone, one sentence per refusal."""

from __future__ import annotations

import dataclasses
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from launch import execution, gce, gke, tpu_vm
from launch.cloud_errors import CloudError, explain
from launch.command import Command
from launch.job import Job
from qwenvl_jax.chips import parse_topology
from qwenvl_jax.runtime.errors import UserError
from tests.support.cloud.pretended import PretendedCloud
from tests.support.commands import Answer, assert_refused

ROOT = Path(__file__).parents[2]
Builder = Callable[[Job], list[Command]]


def a_job(topology: str = "v5p:2x2x2", **fields: object) -> Job:
    job = Job(
        name="stage1",
        topology=parse_topology(topology),
        command=("python", "-m", "qwenvl_jax.train"),
        workdir="gs://bucket/stage1",
        zones=("us-east5-a",),
    )
    return dataclasses.replace(job, **fields)  # type: ignore[arg-type]


def on_gke(topology: str = "v5p:2x2x2@2", **fields: object) -> Job:
    return a_job(topology, project="a-project", cluster="pods", image="image", **fields)


def refusal(build: Builder, job: Job) -> str:
    """The sentence with which a verb is refused."""
    with pytest.raises(UserError) as error:
        execution.run_in_zones(build, job)
    text = str(error.value)
    assert "\n" not in text and len(text) < 700
    return text


def test_create_and_delete(cloud: PretendedCloud) -> None:
    execution.run_in_zones(tpu_vm.create, a_job())
    assert cloud.resources()["node/us-east5-a/stage1"]["state"] == "READY"
    execution.run_in_zones(tpu_vm.delete, a_job())
    assert not cloud.resources()


def test_zones_are_tried_in_turn(cloud: PretendedCloud, capfd: pytest.CaptureFixture[str]) -> None:
    """One has no such chip, one has no room, the third has both; a fourth is not asked."""
    cloud.set(capacity={"us-central1-a": 4})
    job = a_job(zones=("us-east5-b", "us-central1-a", "us-east5-a", "europe-west4-b"))
    execution.run_in_zones(tpu_vm.create, job)
    assert list(cloud.resources()) == ["node/us-east5-a/stage1"]
    assert "give --zone=us-east5-a" in capfd.readouterr().out
    cloud.set(capacity={"us-east5-a": 0})
    text = refusal(tpu_vm.create, a_job(name="b", zones=("us-east5-b", "us-central1-a")))
    assert "none of 2 zones grants v5p:2x2x2" in text and "not found in zone us-east5-b" in text
    assert "no more capacity" in text


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"account": ""}, ("active account", "gcloud auth login")),
        ({"project": ""}, ("[project]", "--project")),
        ({"denied": ["tpu.nodes.create"]}, ("'tpu.nodes.create' denied", "ask an owner")),
        ({"quota": {"tpu/v5p/on_demand": 4}}, ("Quota limit 'TPUV5P", "ask for more quota")),
        ({"capacity": {"us-east5-a": 0}}, ("no more capacity", "another zone")),
        ({"zones": {"us-east5-a": ["v6e"]}}, ("v5p-16 was not found in zone us-east5-a", "launch where")),
        ({"fails": ["stage1"]}, ("internal error",)),
    ],
)
def test_refusals_are_one_sentence_and_leave_nothing(
    cloud: PretendedCloud, settings: dict[str, object], words: tuple[str, ...]
) -> None:
    cloud.set(**settings)
    text = refusal(tpu_vm.create, a_job())
    for word in words:
        assert word in text
    assert not cloud.resources()


def test_a_name_that_exists_is_left_alone(cloud: PretendedCloud) -> None:
    execution.run_in_zones(tpu_vm.create, a_job())
    before = cloud.resources()
    text = refusal(tpu_vm.create, a_job(zones=("us-east5-a", "us-central1-a")))
    assert "already exists" in text and "left as it is" in text
    assert cloud.resources() == before
    assert not [call for call in cloud.calls() if "delete" in call]


def test_a_name_that_does_not_exist(cloud: PretendedCloud) -> None:
    assert "was not found; check --name" in refusal(tpu_vm.delete, a_job())


def test_a_deletion_goes_on_after_what_is_gone(cloud: PretendedCloud) -> None:
    """A call that was interrupted, or somebody else, has deleted the first group or pool; the others cost money."""
    cloud.set(clusters={"pods": "us-east5"})
    for path, job, first in ((gce, a_job("v5p:2x2x2@2", project="a-project"), 0), (gke, on_gke(), 1)):
        execution.run_in_zones(path.create, job)
        if path is gke:
            execution.run_in_zones(gke.setup, job)
        execution.run([path.delete(job)[first]])
        execution.run_in_zones(path.delete, job)
        assert not cloud.resources()
        assert "not found" in refusal(path.delete, job).lower()


def test_a_deletion_that_is_refused_is_told_after_the_others_have_run(cloud: PretendedCloud) -> None:
    cloud.set(clusters={"pods": "us-east5"})
    job = on_gke()
    execution.run_in_zones(gke.create, job)
    execution.run_in_zones(gke.setup, job)
    commands = gke.delete(job)
    commands[1] = dataclasses.replace(commands[1], arguments=(*commands[1].arguments, "--no-such-flag"))
    with pytest.raises(CloudError, match="unrecognized arguments"):
        execution.run(commands)
    assert list(cloud.resources()) == ["pool/pods/stage1-0"]


def test_hosts_that_are_not_there_are_not_passed_over(cloud: PretendedCloud) -> None:
    """xargs would run nothing and succeed."""
    job = a_job(project="a-project")
    for command in gce.create(job):
        if "resize" not in command.arguments and not command.until:
            execution.run([command])
    assert "lists nothing, so nothing was done" in refusal(gce.PATH.builders["run"], job)


def test_a_pipe_passes_any_bytes_on(tmp_path: Path) -> None:
    """A secret may be no text, and its line breaks are part of it."""
    (tmp_path / "secret").write_bytes(b"\xff\r\n\0")
    copy = Command(("tee", str(tmp_path / "copy")), "Why.", input_from=("cat", str(tmp_path / "secret")))
    execution.run([copy], outputs=[])
    assert (tmp_path / "copy").read_bytes() == b"\xff\r\n\0"


def test_missing_programs_are_reported_before_anything_runs(
    cloud: PretendedCloud, monkeypatch: pytest.MonkeyPatch
) -> None:
    commands = [*tpu_vm.create(a_job()), Command(("no-such-program",), "Why.")]
    with pytest.raises(UserError, match="'no-such-program' is not installed"):
        execution.run(commands)
    assert not cloud.resources()
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(UserError, match="'gcloud' is not installed"):
        execution.run(tpu_vm.create(a_job()))


def test_what_a_call_has_made_is_deleted_again_if_a_later_command_fails(cloud: PretendedCloud) -> None:
    """Two node pools, of which quota grants one; a pool of somebody else stays."""
    cloud.set(clusters={"pods": "us-east5"}, quota={"gce/v5p/on_demand": 100})
    execution.run_in_zones(gke.create, on_gke(name="other"))
    cloud.set(denied=[])
    job = on_gke()
    commands = gke.create(job)
    commands[1] = dataclasses.replace(commands[1], arguments=(*commands[1].arguments, "--num-nodes=3"))
    with pytest.raises(CloudError, match="does not match the TPU topology 2x2x2"):
        execution.run(commands)
    assert set(cloud.resources()) == {"pool/pods/other-0", "pool/pods/other-1"}


def test_waiting_ends_with_a_state_that_cannot_come_and_with_the_limit(cloud: PretendedCloud, tmp_path: Path) -> None:
    made = tmp_path / "made"
    create = Command(("touch", str(made)), "Why.", creates="file/made", undo=("rm", str(made)))
    failed = Command(("echo", "FAILED"), "Why.", until=("ACTIVE",), unless=("FAILED",))
    with pytest.raises(UserError, match="reports FAILED"):
        execution.run([create, failed])
    assert not made.exists()
    waits = Command(("echo", "WAITING_FOR_RESOURCES"), "Why.", until=("ACTIVE",))
    with pytest.raises(UserError, match="still WAITING_FOR_RESOURCES after 0 hours"):
        execution.run([create, waits], wait_hours=0)
    assert made.exists()  # its place in the queue is kept
    with pytest.raises(UserError):
        execution.run([create, waits], wait_hours=0, keep_waiting=False)
    assert not made.exists()


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, -15), (signal.SIGHUP, -1)])
def test_signals_delete_nothing_and_say_what_exists(cloud: PretendedCloud, number: int, code: int) -> None:
    cloud.set(seconds={"provision": 1000})
    flags = ("--config=configs/quickstart/stage0_text.py", "--workdir=gs://b/stage1", "--topology=v5p:2x2x2")
    command = [sys.executable, "-m", "launch", "tpu_vm", "create", *flags, "--zone=us-east5-a", "--execute"]
    with subprocess.Popen(
        command, cwd=ROOT, env=cloud.environment, stderr=subprocess.PIPE, text=True, start_new_session=True
    ) as process:
        deadline = time.monotonic() + 60
        while "node/us-east5-a/stage1" not in cloud.resources():
            assert time.monotonic() < deadline
            time.sleep(0.05)
        if number == signal.SIGINT:
            os.killpg(process.pid, number)  # as a terminal does
        else:
            process.send_signal(number)
        _, err = process.communicate(timeout=60)
    assert process.returncode == code
    assert "tpu-vm/stage1 may exist; to delete it: gcloud compute tpus tpu-vm delete stage1" in err
    assert "node/us-east5-a/stage1" in cloud.resources()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--topology=v5p:3x3x3",), "3x3x3"),
        (("--topology=v6e:4x4", "--config=configs/stage2_multitask.py:mesh=v5p"), "mesh=v5p is for other chips"),
        (("--topology=v5p:2x2x2", "--capacity=flex_start"), "give --hours"),
    ],
)
def test_wrong_combinations_end_the_command_before_any_call(
    cloud: PretendedCloud, arguments: tuple[str, ...], words: str
) -> None:
    config = () if "--config" in arguments[-1] else ("--config=configs/quickstart/stage0_text.py",)
    flags = (*config, "--workdir=gs://b/stage1", "--zone=us-east5-a", *arguments, "--execute")
    command = [sys.executable, "-m", "launch", "tpu_vm", "create", *flags]
    run = subprocess.run(command, cwd=ROOT, env=cloud.environment, capture_output=True, text=True)
    assert_refused(Answer(run.returncode, run.stderr), words)
    assert not cloud.calls()


@pytest.mark.parametrize(
    ("printed", "words"),
    [
        ('Error from server (NotFound): jobsets.jobset.x-k8s.io "a" not found', '"a" not found; check --name'),
        ("error: You must be logged in to the server (Unauthorized)", "You must be logged in"),
        ("ERROR: gcloud crashed (OSError): disk", "gcloud crashed (OSError): disk"),
        ("", "with exit code 7"),
        ("WARNING: old\nlast words\n", "last words"),
    ],
)
def test_unknown_messages_are_passed_on(printed: str, words: str) -> None:
    assert words in str(explain("gcloud", 7, printed))
