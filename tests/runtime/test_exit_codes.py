"""The contract of exit codes, and that commands keep it."""

from __future__ import annotations

import re
import subprocess
import sys

import jax
import pytest

from qwenvl_jax.runtime import exit_codes
from qwenvl_jax.runtime.errors import PeerError, StorageError, StorageOutage, UserError, exit_on_user_error
from tests.runtime.processes import ROOT

PAGE = ROOT / "docs" / "processes.md"


def test_the_docs_have_the_contract() -> None:
    lines = re.findall(r"^\| (\d+) \| ([A-Z]+) \| (yes|no) \| (.+) \|$", PAGE.read_text(), re.MULTILINE)
    expected = [
        (str(one.code), one.name, "yes" if exit_codes.retryable(one.code) else "no", one.meaning)
        for one in exit_codes.CONTRACT
    ]
    assert lines == expected


def test_codes_of_signals_and_of_lost_processes_are_retried() -> None:
    retried = [code for code in range(-20, 300) if exit_codes.retryable(code)]
    assert retried == [42, *range(127, 256)]
    assert [one.name for one in exit_codes.CONTRACT if exit_codes.retryable(one.code)] == [
        "RETRY",
        "INTERRUPTED",
        "PREEMPTED",
    ]
    assert all(getattr(exit_codes, one.name) == one.code for one in exit_codes.CONTRACT)


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (UserError("no such folder"), exit_codes.MISTAKE),
        (StorageError("no permission"), exit_codes.MISTAKE),
        (StorageOutage("no answer for 300 seconds"), exit_codes.RETRY),
        (PeerError("process 3 is gone"), exit_codes.RETRY),
        (PeerError("process 3 has a wrong path", exit_codes.MISTAKE), exit_codes.MISTAKE),
        (KeyboardInterrupt(), exit_codes.INTERRUPTED),
    ],
    ids=lambda value: type(value).__name__,
)
def test_an_error_has_its_code(error: BaseException, code: int, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended, exit_on_user_error():
        raise error
    assert ended.value.code == code
    assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.parametrize(
    ("message", "code"),
    [
        ("UNAVAILABLE: Socket closed", exit_codes.RETRY),
        ("INTERNAL: Gloo all-reduce failed: Connection closed by peer [127.0.0.1]:2341", exit_codes.RETRY),
        ("INTERNAL: CUDA error: uncorrectable ECC error encountered", exit_codes.RETRY),
        ("INVALID_ARGUMENT: the service is UNAVAILABLE in this shape", exit_codes.ERROR),
        ("RESOURCE_EXHAUSTED: Out of memory allocating 1 bytes", exit_codes.ERROR),
    ],
)
def test_a_lost_device_is_told_from_a_bug(message: str, code: int) -> None:
    assert exit_codes.of_exception(jax.errors.JaxRuntimeError(message)) == code
    assert exit_codes.of_exception(ValueError(message)) == exit_codes.ERROR


@pytest.mark.parametrize(
    ("raised", "code"),
    [
        ("jax.errors.JaxRuntimeError('UNAVAILABLE: Socket closed')", exit_codes.RETRY),
        ("KeyError('x')", exit_codes.ERROR),
        ("StorageOutage('no answer')", exit_codes.RETRY),
    ],
)
def test_a_command_ends_with_the_code(raised: str, code: int) -> None:
    source = (
        "import jax\n"
        "from qwenvl_jax.runtime import commandline\n"
        "from qwenvl_jax.runtime.errors import StorageOutage\n"
        "def main():\n"
        f"    raise {raised}\n"
        "commandline.run(main)\n"
    )
    run = subprocess.run([sys.executable, "-c", source], cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == code
    assert ("Traceback" in run.stderr) == ("Outage" not in raised)
