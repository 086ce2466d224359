"""Child processes: signals reach them, and they end with the one that started them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from qwenvl_jax.runtime import child, exit_codes


def wait_for(holds: Callable[[], bool], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signals_reach_the_run_which_ends_by_itself(tmp_path: Path, number: int) -> None:
    ready = tmp_path / "ready"
    program = (
        "import pathlib, signal, sys, time\n"
        "signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))\n"
        f"pathlib.Path({str(ready)!r}).touch()\n"
        "time.sleep(60)"
    )

    def send() -> None:
        wait_for(ready.exists, 30)
        os.kill(os.getpid(), number)

    before = signal.getsignal(number)
    threading.Thread(target=send).start()
    assert child.run([sys.executable, "-c", program]) == exit_codes.PREEMPTED
    assert signal.getsignal(number) is before


def test_a_command_that_had_just_finished_when_the_signal_came_is_the_last_one(tmp_path: Path) -> None:
    ready = tmp_path / "ready"
    program = (
        "import pathlib, signal, sys, time\n"
        "signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))\n"
        f"pathlib.Path({str(ready)!r}).touch()\n"
        "time.sleep(60)"
    )

    def send() -> None:
        wait_for(ready.exists, 30)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=send).start()
    assert child.run([sys.executable, "-c", program]) == exit_codes.PREEMPTED


def test_a_run_that_a_signal_ends_has_the_exit_code_of_a_shell() -> None:
    program = "import os, signal; os.kill(os.getpid(), signal.SIGKILL)"
    assert child.run([sys.executable, "-c", program]) == 128 + signal.SIGKILL
    assert child.run([sys.executable, "-c", "raise SystemExit(2)"]) == 2


def test_a_command_ends_if_the_process_that_runs_it_is_killed(tmp_path: Path) -> None:
    ready, ended = tmp_path / "ready", tmp_path / "ended"
    program = (
        "import pathlib, signal, sys, time\n"
        f"signal.signal(signal.SIGTERM, lambda *_: (pathlib.Path({str(ended)!r}).touch(), sys.exit(143)))\n"
        f"pathlib.Path({str(ready)!r}).touch()\n"
        "time.sleep(60)"
    )
    parent = f"import sys; from qwenvl_jax.runtime import child; child.run([sys.executable, '-c', {program!r}])"
    process = subprocess.Popen([sys.executable, "-c", parent])
    wait_for(ready.exists, 30)
    process.kill()
    process.wait()
    wait_for(ended.exists, 10)


def test_a_command_whose_parent_was_killed_first_does_not_begin(tmp_path: Path) -> None:
    parent = subprocess.Popen([sys.executable, "-c", ""])
    parent.wait()
    begun = tmp_path / "begun"
    program = (
        f"import pathlib; from qwenvl_jax.runtime import child; child.end_with_parent({parent.pid})\n"
        f"pathlib.Path({str(begun)!r}).touch()"
    )
    assert child.run([sys.executable, "-c", program]) == exit_codes.PREEMPTED
    assert not begun.exists()


@pytest.mark.parametrize("code", [0, 2])
def test_commands_run_at_the_same_time_and_only_the_first_writes_meanwhile(tmp_path: Path, code: int) -> None:
    """Each waits for the other's file; the second writes first, and is shown last."""
    program = (
        "import pathlib, sys, time\n"
        "mine, other = map(pathlib.Path, sys.argv[1:3])\n"
        "name = mine.name.replace('second', 'second ü')\n"
        "sys.stdout.buffer.write(name.encode() + b'\\n')\n"
        "sys.stdout.flush()\n"
        "print(mine.name, 'fails', file=sys.stderr, flush=True)\n"
        "mine.touch()\n"
        "while not other.exists(): time.sleep(0.01)\n"
        "sys.exit(int(sys.argv[3]))"
    )
    first, second = str(tmp_path / "first"), str(tmp_path / "second")
    late = f"import time; time.sleep(1)\n{program}"
    commands = [
        [sys.executable, "-c", late, first, second, "0"],
        [sys.executable, "-c", program, second, first, f"{code}"],
    ]
    parent = (
        "from qwenvl_jax.runtime.child import Command, run_together\n"
        f"print([end.code for end in run_together([Command(arguments) for arguments in {commands!r}])])"
    )
    ascii_only = {**os.environ, "PYTHONIOENCODING": "ascii"}  # what commands write is passed on as it is
    shown = subprocess.run(
        [sys.executable, "-c", parent], capture_output=True, encoding="utf-8", timeout=60, check=True, env=ascii_only
    )
    assert shown.stdout == ("first\n[0, 2]\n" if code else "first\nsecond ü\nsecond fails\n[0, 0]\n")
    assert shown.stderr == ("first fails\nsecond ü\nsecond fails\n" if code else "first fails\n")


def test_a_signal_reaches_all_commands(tmp_path: Path) -> None:
    ready = [tmp_path / name for name in ("first", "second")]
    program = (
        "import pathlib, signal, sys, time\n"
        "signal.signal(signal.SIGTERM, lambda *_: sys.exit(int(sys.argv[2])))\n"
        "pathlib.Path(sys.argv[1]).touch()\n"
        "time.sleep(60)"
    )

    def send() -> None:
        wait_for(lambda: all(path.exists() for path in ready), 30)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=send).start()
    commands = [[sys.executable, "-c", program, str(path), code] for path, code in zip(ready, "34", strict=True)]
    ended = child.run_together([child.Command(arguments) for arguments in commands])
    assert [end.code for end in ended] == [3, 4]


def test_a_command_that_cannot_start_ends_those_before_it(tmp_path: Path) -> None:
    mark = tmp_path / "alive"
    program = f"import pathlib, time; time.sleep(2); pathlib.Path({str(mark)!r}).touch()"
    with pytest.raises(FileNotFoundError):
        child.run_together([child.Command([sys.executable, "-c", program]), child.Command([str(tmp_path / "none")])])
    time.sleep(3)
    assert not mark.exists()


@pytest.mark.parametrize("stream", ["closed", "full"])
def test_a_stream_that_takes_nothing_changes_no_exit_code(stream: str, tmp_path: Path) -> None:
    parent = (
        "import pathlib, sys\n"
        "from qwenvl_jax.runtime import child, standard_streams\n"
        "standard_streams.make_lasting()\n"
        "programs = ('raise SystemExit(3)', 'print(1)')\n"
        "commands = [child.Command([sys.executable, '-c', program]) for program in programs]\n"
        f"pathlib.Path({str(tmp_path / 'codes')!r}).write_text(str([end.code for end in child.run_together(commands)]))"
    )
    where = {"closed": ">&-", "full": ">/dev/full"}[stream]
    subprocess.run(["bash", "-c", f'"$0" -c "$1" {where} 2>/dev/null', sys.executable, parent], timeout=60)
    assert (tmp_path / "codes").read_text() == "[3, 0]"
