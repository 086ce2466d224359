"""Processes that stop to answer: the others end within a stated time and name them. Real processes, really stopped."""

from __future__ import annotations

import asyncio
import errno
import json
import socket
from pathlib import Path

import pytest

from benchmarks.chaos_run import clock_variables, make_clock
from qwenvl_jax.runtime import distributed
from qwenvl_jax.runtime.coordinator import Coordinator
from qwenvl_jax.runtime.errors import UserError
from qwenvl_jax.runtime.membership import Membership, encoded
from tests.runtime.processes import Parent, joined, parents
from tests.support.ports import free_port

# The process `stopped` stops itself for `seconds`, as SIGSTOP from outside would; the others wait for it.
STOP = """
import os, signal, subprocess, sys, time, jax
from qwenvl_jax.runtime import distributed
from qwenvl_jax.runtime.errors import exit_on_user_error
stopped, seconds = int(sys.argv[1]), sys.argv[2]
with exit_on_user_error():
    distributed.initialize()
    with distributed.together():
        me = distributed.process_index()
        distributed.agree({"all": "here"})
        if me == stopped:
            subprocess.Popen(["sh", "-c", f"sleep {seconds}; kill -CONT {os.getpid()}"])
            os.kill(os.getpid(), signal.SIGSTOP)
        distributed.agree({"all": "back"})
        distributed.agree({"all": "done"})
        print("went on")
"""


@pytest.mark.parametrize("stopped", [0, 1])
def test_a_stopped_process_is_named_to_the_others(parent: Parent, stopped: int) -> None:
    ended = parent.run(STOP, joined(3, QWENVL_SILENCE_SECONDS="2"), str(stopped), "12")
    ended.pop(stopped)
    for one in ended:
        assert one.code == 42, one
        assert one.err.count("\n") == 1 and "Traceback" not in one.err
        assert f"error: process {stopped} (" in one.err and "has not answered for 2 s" in one.err, one.err


@pytest.mark.parametrize("stopped", [0, 1])
def test_a_process_that_is_stopped_for_a_moment_is_waited_for(parent: Parent, stopped: int) -> None:
    ended = parent.run(STOP, joined(2, QWENVL_SILENCE_SECONDS="5"), str(stopped), "2")
    assert [one.code for one in ended] == [0, 0], ended
    assert all("went on" in one.out for one in ended)


def test_a_process_whose_network_is_gone_counts_as_silent(monkeypatch: pytest.MonkeyPatch) -> None:
    readline = asyncio.StreamReader.readline

    async def until_cut(reader: asyncio.StreamReader) -> bytes:
        if (line := await readline(reader)) == encoded({"cut": True}):
            raise TimeoutError(errno.ETIMEDOUT, "the network gives the connection up")
        return line

    monkeypatch.setattr(asyncio.StreamReader, "readline", until_cut)
    port = free_port()
    Coordinator(Membership(f"127.0.0.1:{port}", 2, 0, "a test"), seconds=30, silence=1)
    with socket.create_connection(("127.0.0.1", port)) as first, socket.create_connection(("127.0.0.1", port)) as other:
        for index, connection in enumerate((first, other)):
            connection.sendall(encoded({"process": index, "of": 2, "token": str(index), "host": f"host{index}"}))
        told = first.makefile()
        assert [json.loads(told.readline()) for _ in range(2)] == [{"heard": True}, {"complete": True}]
        other.sendall(encoded({"cut": True}))
        first.settimeout(20)
        stop = json.loads(told.readline())
    assert stop["stop"].startswith("process 1 (host host1) has not answered for 1 s") and stop["code"] == 42


def test_clocks_are_compared_over_the_connection(parent: Parent) -> None:
    code = (
        "import json, os, time\n"
        "if os.environ['JAX_PROCESS_ID'] == '1':\n"
        "    now = time.time\n"
        "    time.time = lambda: now() - 100\n"
        "from qwenvl_jax.runtime import distributed\n"
        "distributed.initialize()\n"
        "with distributed.together():\n"
        "    print(json.dumps(distributed.gather(distributed.connection().clock_offset(5))))\n"
    )
    first, second = parent.run(code, joined(2))
    offsets = json.loads(first.out)
    assert abs(offsets[0]) < 1 and abs(offsets[1] + 100) < 1, (first, second)


def test_a_wall_clock_that_is_set_forward_ends_nothing(tmp_path: Path) -> None:
    code = (
        "import sys, time\n"
        "from pathlib import Path\n"
        "from benchmarks.chaos_run import set_clock\n"
        "from qwenvl_jax.runtime import distributed\n"
        "distributed.initialize()\n"
        "with distributed.together():\n"
        "    distributed.agree({'all': 'here'})\n"
        "    before = time.time()\n"
        "    if distributed.is_primary():\n"
        "        set_clock(Path(sys.argv[1]), 3600)\n"
        "    time.sleep(8)\n"
        "    distributed.agree({'all': 'back'})\n"
        "    print(time.time() - before)\n"
    )
    clock = make_clock(tmp_path)
    if clock is None:
        pytest.skip("there is no C compiler")
    for parent in parents(tmp_path, **clock_variables(clock)):
        first, _ = ended = parent.run(code, joined(2), str(clock))
        assert [one.code for one in ended] == [0, 0], ended
        assert abs(float(first.out) - 3600) < 60


@pytest.mark.parametrize("value", ["0", "1000000", "1.5", "long"])
def test_an_odd_time_is_refused(value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QWENVL_SILENCE_SECONDS", value)
    with pytest.raises(UserError, match=r"QWENVL_SILENCE_SECONDS is .*; give whole seconds from 1 to 999999"):
        distributed.silence_seconds()
