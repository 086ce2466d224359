"""The lease on a folder of a bucket: one owner at a time, whatever becomes of it."""

from __future__ import annotations

import concurrent.futures
import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from qwenvl_jax.runtime import lease, storage
from qwenvl_jax.runtime.claim import claimed
from qwenvl_jax.runtime.errors import UserError
from qwenvl_jax.runtime.lease import Lease, Owner

ROOT = Path(__file__).parents[2]
OWNER = """
import sys, time
from qwenvl_jax.runtime import lease
lease.RENEWED = 0.2
lease.Lease(sys.argv[1]).acquire()
print("has it", flush=True)
time.sleep(600)
"""


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease, "RENEWED", 0.2)
    monkeypatch.setattr(lease, "EXPIRES", 3.0)
    monkeypatch.setattr(lease, "_POLL", 0.1)


def start_owner(folder: str, environment: dict[str, str]) -> subprocess.Popen[str]:
    """A process that has the lease until it is killed."""
    command = [sys.executable, "-c", OWNER, folder]
    owner = subprocess.Popen(
        command, cwd=ROOT, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert owner.stdout is not None and owner.stdout.readline() == "has it\n"
    return owner


def test_a_second_run_is_refused_until_the_first_has_ended(gcs: str, capsys: pytest.CaptureFixture[str]) -> None:
    with claimed(f"{gcs}/run"):
        with (
            pytest.raises(UserError, match=f"another process trains in .*process {os.getpid()} on host"),
            claimed(f"{gcs}/run"),
        ):
            raise AssertionError("two have it")
        with claimed(f"{gcs}/other"):
            pass
    capsys.readouterr()
    began = time.monotonic()
    with claimed(f"{gcs}/run"):
        assert time.monotonic() - began < lease.EXPIRES
    assert "taken over" not in capsys.readouterr().out
    assert json.loads(storage.read_bytes(f"{gcs}/run/lock"))["released"]


def test_of_many_that_come_at_once_one_gets_it(gcs: str) -> None:
    def attempt(_: int) -> Lease | None:
        each = Lease(f"{gcs}/run")
        try:
            each.acquire()
        except UserError:
            return None
        return each

    with concurrent.futures.ThreadPoolExecutor(6) as threads:
        owners = [each for each in threads.map(attempt, range(6)) if each is not None]
    assert len(owners) == 1
    owners[0].release()


def test_a_killed_owner_is_replaced_at_once_on_its_machine_and_later_elsewhere(
    gcs: str, gcs_environment: dict[str, str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    owner = start_owner(f"{gcs}/run", gcs_environment)
    owner.send_signal(signal.SIGKILL)
    owner.wait()
    with monkeypatch.context() as patch:
        patch.setattr(lease, "_machine", lambda: "another")
        elsewhere = Lease(f"{gcs}/run")
        elsewhere.acquire()
    said = capsys.readouterr().out
    assert "waiting for at most 3 s" in said
    assert f"was held by process {owner.pid} on host" in said and "taken over" in said
    elsewhere.release()
    owner = start_owner(f"{gcs}/run", gcs_environment)
    owner.send_signal(signal.SIGKILL)
    owner.wait()
    here = Lease(f"{gcs}/run")
    here.acquire()
    said = capsys.readouterr().out
    assert "waiting" not in said and f"was held by process {owner.pid} on host" in said
    here.release()


def test_an_owner_that_was_stopped_ends_when_it_wakes_up(gcs: str, gcs_environment: dict[str, str]) -> None:
    owner = start_owner(f"{gcs}/run", gcs_environment)
    owner.send_signal(signal.SIGSTOP)
    with claimed(f"{gcs}/run"):
        owner.send_signal(signal.SIGCONT)
        _, said = owner.communicate(timeout=30)
    assert owner.returncode == 2
    assert f"process {os.getpid()} on host" in said and "has taken over" in said and said.count("\n") == 1


def test_a_renewal_whose_answer_was_lost_is_still_ours(gcs: str, monkeypatch: pytest.MonkeyPatch) -> None:
    ours = Lease(f"{gcs}/run", lambda sentence: pytest.fail(sentence))
    ours.acquire()
    write = ours._store.write_if
    monkeypatch.setattr(ours._store, "write_if", lambda *arguments: write(*arguments) and None)
    time.sleep(5 * lease.RENEWED)
    monkeypatch.setattr(ours._store, "write_if", write)
    ours.release()
    assert json.loads(storage.read_bytes(f"{gcs}/run/lock"))["released"]


def test_whether_a_process_is_gone() -> None:
    this = Lease("gs://bucket/unused")._owner
    assert not this.gone()
    ended = subprocess.Popen(["true"])
    ended.wait()
    assert dataclasses.replace(this, pid=ended.pid).gone()
    assert not Owner("", "elsewhere", ended.pid, "another machine").gone()
    assert not Owner("", "elsewhere", ended.pid, "").gone()
