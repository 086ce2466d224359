"""The supervisor on a host survives its session, starts again what can go on, stops, and keeps secrets out of sight."""

from __future__ import annotations

import fcntl
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
# Ends with the code in a file, once each line: `42 0` fails retryably, then finishes.
SCRIPT = """
import os, pathlib, signal, sys, time
codes = pathlib.Path("codes")
left = codes.read_text().split()
codes.write_text(" ".join(left[1:]))
print("run", os.environ.get("COLOUR"), os.environ.get("PASSWORD"), flush=True)
if left[0] == "wait":
    signal.signal(signal.SIGTERM, lambda *_: (print("checkpoint written", flush=True), sys.exit(143)))
    pathlib.Path("waiting").touch()
    time.sleep(60)
sys.exit(int(left[0]))
"""


class Host:
    """A host with a source folder, where the launcher's lines run."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.source = folder / "launch" / "stage" / "source"
        self.source.mkdir(parents=True)
        (self.source / "script.py").write_text(SCRIPT)
        (folder / "bin").mkdir()
        gcloud = folder / "bin" / "gcloud"
        gcloud.write_text(
            '#!/bin/sh\n[ "$5" = --secret=known ] && echo "s3cret with space" || { echo denied >&2; exit 1; }\n'
        )
        gcloud.chmod(0o755)

    @property
    def log(self) -> Path:
        return self.source.parent / "log.txt"

    def call(self, *arguments: str, codes: str = "") -> subprocess.CompletedProcess[str]:
        if codes:
            (self.source / "codes").write_text(codes)
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "PATH": f"{self.folder / 'bin'}:{os.environ['PATH']}"}
        command = [sys.executable, "-c", PATCHED, *arguments]
        return subprocess.run(
            command, cwd=self.source, env=environment, capture_output=True, text=True, check=False, timeout=60
        )

    def start(self, codes: str, *flags: str) -> subprocess.CompletedProcess[str]:
        workdir = self.folder / "workdir"
        return self.call("start", f"--workdir={workdir}", *flags, "--", sys.executable, "script.py", codes=codes)

    def ended(self) -> str:
        for _ in range(300):
            status = self.call("status").stdout
            if ": ended" in status:
                return status
            time.sleep(0.1)
        raise AssertionError(status)


# The pauses of minutes are shortened; everything else is the program.
PATCHED = """
import sys
from launch import host
from qwenvl_jax.runtime.errors import exit_on_user_error
host.FIRST_PAUSE_S = 0.01
host.MOST_RESTARTS = 3
with exit_on_user_error():
    sys.exit(host.main(sys.argv[1:]))
"""


@pytest.fixture
def host(tmp_path: Path) -> Iterator[Host]:
    made = Host(tmp_path)
    yield made
    made.call("stop", "--seconds=20")


def test_a_retryable_end_is_followed_by_another_start(host: Host) -> None:
    started = host.start("42 137 0", "--env=COLOUR=blue, it's", "--secret=PASSWORD=known")
    assert started.returncode == 0, started.stderr
    status = host.ended()
    assert "; code 0; " in status
    assert host.log.read_text().count("run blue, it's s3cret with space") == 3
    copies = list((host.folder / "workdir" / "logs").iterdir())
    assert [copy.read_text() for copy in copies] == [host.log.read_text()]
    assert "s3cret" not in started.stdout + started.stderr + (host.log.parent / "state.json").read_text()


@pytest.mark.parametrize("code", [0, 1, 2])
def test_a_permanent_end_is_the_end(host: Host, code: int) -> None:
    host.start(f"{code} 0")
    assert f"; code {code}; " in host.ended()
    assert host.log.read_text().count("run None None") == 1


def test_restarts_that_fail_at_once_are_given_up(host: Host) -> None:
    host.start("42 " * 9)
    assert "; code 42; " in host.ended()
    assert host.log.read_text().count("run None") == 4
    assert "no restart after 3 in a row" in host.log.read_text()


def test_stop_lets_the_run_write_its_checkpoint_and_starts_nothing_again(host: Host) -> None:
    assert host.start("wait 0").returncode == 0
    while not (host.source / "waiting").exists():
        time.sleep(0.05)
    assert ": running" in host.call("status").stdout
    again = host.start("0")
    assert again.returncode == 0 and "this run is active already" in again.stdout
    other = host.call("start", f"--workdir={host.folder}", "--", sys.executable, "-c", "pass")
    assert other.returncode == 2
    assert "another run is active here; stop it first" in other.stderr
    stopped = host.call("stop", "--seconds=20")
    assert stopped.returncode == 0 and "ended, exit code 143" in stopped.stdout
    assert "checkpoint written" in host.log.read_text()
    assert host.log.read_text().count("run None") == 1


def test_a_stage_waits_until_the_one_before_it_has_ended(host: Host) -> None:
    host.start("wait 0")
    following = ("start", f"--workdir={host.folder}", "--follows", "--", sys.executable, "-c", "print('the next one')")
    with ThreadPoolExecutor(1) as thread:
        started = thread.submit(host.call, *following)
        while not (host.source / "waiting").exists():
            time.sleep(0.05)
        time.sleep(2)
        assert not started.done()
        host.call("stop", "--seconds=20")
        assert started.result().returncode == 0 and "started, supervisor" in started.result().stdout
    assert "ended; code 0" in host.ended() and "the next one" in host.log.read_text()


def test_a_killed_supervisor_is_told_from_a_running_one_and_leaves_no_run(host: Host) -> None:
    host.start("wait")
    while not (host.source / "waiting").exists():
        time.sleep(0.05)
    state = json.loads((host.log.parent / "state.json").read_text())
    os.kill(state["supervisor"], signal.SIGKILL)
    deadline = time.monotonic() + 20
    while Path(f"/proc/{state['child']}").exists():
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert "checkpoint written" in host.log.read_text()
    assert ": lost (the supervisor was killed" in host.call("status").stdout


@pytest.mark.parametrize("text", ["", '[{"supervisor": 1}]'])
def test_a_state_that_a_power_failure_has_spoilt(host: Host, text: str) -> None:
    (host.log.parent / "state.json").write_text(text)
    assert ": never started" in host.call("status").stdout
    host.start("0")
    assert "code 0" in host.ended()


def test_stop_signals_no_process_that_has_the_number_of_an_earlier_supervisor(host: Host) -> None:
    """A host was restarted: the state names a number that another program has now, and a new run has begun."""
    with subprocess.Popen(["sleep", "60"]) as other:
        state = host.log.parent / "state.json"
        state.write_text(json.dumps({"state": "running", "supervisor": other.pid}))
        with (host.log.parent / "lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # a supervisor that begins
            host.call("stop", "--seconds=0.5")
        code = other.poll()
        other.kill()
    assert code is None


def test_a_run_goes_on_under_a_supervisor_that_cannot_write(host: Host) -> None:
    """A full disk: without its supervisor the command would hold the chips, and nothing could stop it."""
    host.start("42 42 42 wait")
    (host.log.parent / "state.json.tmp").mkdir()  # in the place of the file
    deadline = time.monotonic() + 30
    while not (host.source / "waiting").exists():
        assert time.monotonic() < deadline, host.log.read_text()
        time.sleep(0.05)
    assert host.call("stop", "--seconds=20").returncode == 0
    assert "checkpoint written" in host.log.read_text()


def test_a_secret_of_any_bytes(host: Host) -> None:
    gcloud = host.folder / "bin" / "gcloud"
    gcloud.write_text("#!/bin/sh\nprintf 'a\\r\\n\\377\\n'\n")
    show = "import os; print(os.environb[b'PASSWORD'])"
    done = host.call("once", "--secret=PASSWORD=known", "--", sys.executable, "-c", show)
    assert done.stdout == "b'a\\r\\n\\xff'\n", done
    gcloud.write_text("#!/bin/sh\nprintf 'a\\0b'\n")
    done = host.call("once", "--secret=PASSWORD=known", "--", sys.executable, "-c", show)
    assert done.returncode == 2 and "has a zero byte" in done.stderr


def test_a_command_in_the_foreground_that_a_signal_ends(host: Host) -> None:
    assert host.call("once", "--", "sh", "-c", "kill -TERM $$").returncode == 143


def test_a_secret_that_cannot_be_read_starts_nothing(host: Host) -> None:
    refused = host.start("0", "--secret=PASSWORD=other")
    assert refused.returncode == 2
    assert "the secret other cannot be read: denied" in refused.stderr
    assert not host.log.exists()


def test_a_command_in_the_foreground(host: Host) -> None:
    done = host.call("once", "--env=COLOUR=red", "--", sys.executable, "script.py", codes="7")
    assert done.returncode == 7
    assert done.stdout == "run red None\n"
