"""Processes on this machine: roles, restarts by the contract of exit codes, signals, output."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from launch.local import code_of_group, variables_of
from qwenvl_jax.runtime import exit_codes
from qwenvl_jax.runtime.errors import UserError

ROOT = Path(__file__).parents[2]


def local(script: str, *flags: str, processes: int = 2) -> list[str]:
    command = [sys.executable, "-m", "launch.local", f"--processes={processes}", "--devices=2", *flags]
    return [*command, "--", "sh", "-c", script]


def run(script: str, *flags: str, processes: int = 2) -> tuple[int, str]:
    ended = subprocess.run(
        local(script, *flags, processes=processes),
        cwd=ROOT,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        timeout=120,
    )
    return ended.returncode, ended.stdout


def test_every_process_has_its_number_and_its_lines_a_prefix() -> None:
    code, output = run('echo "$JAX_PROCESS_ID of $JAX_NUM_PROCESSES at $JAX_COORDINATOR_ADDRESS"; printf "no end"')
    lines = sorted(output.splitlines())
    assert code == 0
    assert [line.split(" at ")[0] for line in lines] == ["[0] 0 of 2", "[0] no end", "[1] 1 of 2", "[1] no end"]
    assert lines[0].split(" at ")[1] == lines[2].split(" at ")[1]


def test_retryable_ends_are_started_again_until_the_limit(tmp_path: Path) -> None:
    script = f'echo x >> {tmp_path}/starts; [ "$(wc -l < {tmp_path}/starts)" -ge 3 ] || exit 42'
    code, output = run(script, processes=1)
    assert code == 0 and "start 3 of 21" in output
    code, output = run("exit 42", "--restarts=1", processes=1)
    assert code == 42 and output.count("exit code 42") == 1


def test_permanent_errors_are_not_started_again() -> None:
    code, output = run('[ "$JAX_PROCESS_ID" = 0 ] && exit 42; exit 2')
    assert code == 2 and "start" not in output


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_signals_reach_all_processes_and_end_the_group(number: int, code: int) -> None:
    script = f"trap 'echo saved; exit {code}' TERM INT; echo up; while :; do sleep 0.1; done"
    with subprocess.Popen(local(script), cwd=ROOT, text=True, stdout=subprocess.PIPE) as process:
        assert process.stdout
        assert {process.stdout.readline(), process.stdout.readline()} == {"[0] up\n", "[1] up\n"}
        process.send_signal(number)
        rest = process.stdout.read()
    assert process.returncode == code
    assert sorted(rest.splitlines()) == ["[0] saved", "[1] saved"]


def test_a_signal_while_processes_are_started_is_not_lost() -> None:
    first = '[ "$JAX_PROCESS_ID" = 0 ] && kill -TERM $PPID'
    code, output = run(f"trap 'exit 143' TERM; {first}; while :; do sleep 0.1; done", processes=4)
    assert code == 143 and "start" not in output


def test_no_process_outlives_a_supervisor_that_is_killed() -> None:
    script = "echo $$; exec sleep 300"
    with subprocess.Popen(local(script), cwd=ROOT, text=True, stdout=subprocess.PIPE) as process:
        assert process.stdout
        children = [int(process.stdout.readline().split()[1]) for _ in range(2)]
        process.kill()
    deadline = time.monotonic() + 20
    while any(Path(f"/proc/{child}/cmdline").exists() and _alive(child) for child in children):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def _alive(number: int) -> bool:
    try:
        return Path(f"/proc/{number}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_a_missing_program_and_a_missing_command_are_one_sentence() -> None:
    for end in (["--", "no-such-program"], []):
        ended = subprocess.run([sys.executable, "-m", "launch.local", *end], cwd=ROOT, text=True, capture_output=True)
        assert ended.returncode == 2 and ended.stderr.startswith("error: ") and ended.stderr.count("\n") == 1


def test_gpus_are_divided_among_processes() -> None:
    assert [variables_of(index, 2, 1, 0, 4)["JAX_LOCAL_DEVICE_IDS"] for index in range(2)] == ["0,1", "2,3"]
    assert "JAX_LOCAL_DEVICE_IDS" not in variables_of(0, 1, 1, 0, 4)
    with pytest.raises(UserError, match="cannot be divided"):
        variables_of(0, 3, 1, 0, 4)


@given(st.lists(st.one_of(st.integers(0, 255), st.integers(-31, -1)), min_size=1))
def test_a_permanent_error_of_one_process_is_that_of_the_group(codes: list[int]) -> None:
    as_shell = [128 - code if code < 0 else code for code in codes]
    code = code_of_group(codes)
    assert code in as_shell
    assert (code == 0) == (set(as_shell) == {0})
    permanent = [one for one in as_shell if one and not exit_codes.retryable(one)]
    assert exit_codes.retryable(code) == (not permanent and code != 0)


@pytest.mark.slow
def test_the_launcher_ends_with_the_exit_code_of_the_run(tmp_path: Path) -> None:
    """A config that the trainer refuses is a mistake, not a reason to start again."""
    flags = ("--config=configs/quickstart/stage0_text.py:data=/nowhere", f"--workdir={tmp_path}/run", "--execute")
    command = [sys.executable, "-m", "launch", "local", "run", *flags, "--processes=1", "--devices=1"]
    ended = subprocess.run(command, cwd=ROOT, text=True, capture_output=True, timeout=300)
    assert ended.returncode == exit_codes.MISTAKE, ended.stdout + ended.stderr
    assert "/nowhere" in ended.stdout and "start 2" not in ended.stdout
