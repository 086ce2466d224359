"""Processes that stop to answer: the others end within a stated time and name them. Real processes, really stopped."""

from __future__ import annotations

import json

import pytest

from qwenvl_jax.runtime import distributed
from qwenvl_jax.runtime.errors import UserError
from tests.runtime.processes import Parent, joined

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


@pytest.mark.parametrize("value", ["0", "91", "1.5", "long"])
def test_an_odd_time_is_refused(value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QWENVL_SILENCE_SECONDS", value)
    with pytest.raises(UserError, match=r"QWENVL_SILENCE_SECONDS is .*; give whole seconds from 1 to 90"):
        distributed.silence_seconds()
