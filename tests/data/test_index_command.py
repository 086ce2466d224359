"""The command `python -m qwenvl_jax.index`: shares of processes, continuing after a kill, mistakes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from qwenvl_jax.data.readers import tar_index
from qwenvl_jax.data.readers.tar_files import TarReader
from qwenvl_jax.data.readers.tar_indexing import index_all
from qwenvl_jax.data.readers.tar_paths import find_shards
from qwenvl_jax.runtime.errors import UserError
from tests.data.source_files import records_of, tar_sample, write_tar
from tests.support.commands import run_commands

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.usefixtures("index_cache")

AT_END = """
from jax._src import xla_bridge
print("backends", len(xla_bridge._backends), flush=True)
"""


def test_the_command(shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Processes share the shards, the last one joins; one sentence and exit code 2 for every mistake."""
    expected = records_of(TarReader(shards))
    for kept in shards.glob(".*"):
        kept.unlink()
    folder = tmp_path / "indexes"
    (tmp_path / "empty").mkdir()
    blocked = tmp_path / "a file"
    blocked.write_text("")
    mixed = tmp_path / "mixed"
    mixed.mkdir()
    write_tar(mixed / "good.tar", tar_sample(0))
    (mixed / "bad.tar").write_bytes(b"\x1f\x8b" + bytes(2000))
    path = f"--path={shards}"
    runs = [
        (
            (path, "--processes=2", "--workers=1"),
            0,
            "1 of 3 shards have no index yet; the process that ends last",
        ),
        ((path, "--processes=2", "--workers=1"), 0, "1 of 3 shards have no index yet"),  # twice the same number
        ((path, "--processes=2", "--process=1"), 0, "13 samples of 3 shards"),
        ((path, f"--index={folder}", "--workers=2"), 0, "13 samples of 3 shards"),
        ((f"--path={mixed}", "--workers=1"), 2, "1 of 2 shards cannot be indexed, the first: "),
        ((), 2, "error: --path is missing"),
        ((f"--path={tmp_path / 'empty'}",), 2, "empty names no .tar file"),
        ((path, "--process=2", "--processes=2"), 2, "error: --process=2 must be below --processes=2"),
        ((path, "--workers=0"), 2, "workers"),
        ((path, f"--index={blocked}", "--workers=1"), 2, "error: no index can be written to "),
        ((path, f"--index={blocked}/x", "--workers=2"), 2, "name another with --index=FOLDER"),
        ((path, "--proces=1"), 2, "error: unknown flag --proces; did you mean 'process'?"),
        ((path, "stray"), 2, "unexpected argument 'stray'"),
    ]
    answers = run_commands("qwenvl_jax.index", [arguments for arguments, _, _ in runs], at_end=AT_END)
    for answer, (arguments, code, text) in zip(answers, runs, strict=True):
        assert answer.code == code and text in answer.text, (arguments, answer)
        assert "Traceback" not in answer.text and "backends 0" in answer.text
    assert len(list(mixed.glob(".good.tar.index.npz"))) == 1
    monkeypatch.setattr(tar_index, "scan_shard", None)
    monkeypatch.setattr(tar_index, "load_index", None)
    assert records_of(TarReader(shards)) == expected
    monkeypatch.setenv("QWENVL_INDEX_FOLDER", str(folder))
    assert records_of(TarReader(shards)) == expected


def start(*arguments: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "qwenvl_jax.index", *arguments]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, cwd=ROOT, stdout=pipe, stderr=pipe, text=True, start_new_session=True)


def many_shards(folder: Path, *, shards: int, samples: int) -> Path:
    """A folder of equal shards."""
    many = folder / "many"
    many.mkdir()
    members = [member for k in range(samples) for member in tar_sample(k % 10)]
    payload = write_tar(folder / "x.tar", members).read_bytes()
    for number in range(shards):
        (many / f"{number:03d}.tar").write_bytes(payload)
    return many


def wait_for_an_index(shards: Path) -> None:
    """Waits until the index of some shard is kept."""
    deadline = time.monotonic() + 60
    while not list(shards.glob(".*.npz")) and time.monotonic() < deadline:
        time.sleep(0.01)


def test_a_killed_command_continues(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whole indexes stay, nothing half is left, and no worker outlives the command."""
    shards = many_shards(tmp_path, shards=80, samples=1000)
    process = start(f"--path={shards}", "--workers=2")
    wait_for_an_index(shards)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()  # returns when the workers, which write to the same pipes, have ended
    kept = {path: path.stat().st_mtime_ns for path in shards.glob(".*.npz")}
    assert 0 < len(kept) < 80 and not list(shards.glob(".*.joined"))
    continued = start(f"--path={shards}", "--workers=2")
    output, errors = continued.communicate()
    assert continued.returncode == 0, errors
    assert "samples of 80 shards" in output
    assert all(path.stat().st_mtime_ns == changed for path, changed in kept.items())
    monkeypatch.setattr(tar_index, "scan_shard", None)
    assert len(TarReader(shards)) == 80 * len(TarReader(shards / "000.tar"))


def test_two_commands_with_the_same_number_do_no_harm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both index the same shards and join all indexes at the same time."""
    shards = many_shards(tmp_path, shards=30, samples=200)
    for process in [start(f"--path={shards}", "--workers=2") for _ in range(2)]:
        output, errors = process.communicate()
        assert process.returncode == 0, errors
        assert "samples of 30 shards" in output
    assert all(name.endswith((".tar", ".npz", ".joined")) for name in os.listdir(shards))
    monkeypatch.setattr(tar_index, "scan_shard", None)
    monkeypatch.setattr(tar_index, "load_index", None)
    samples = len(TarReader(shards))
    monkeypatch.undo()
    assert samples == 30 * len(TarReader(shards / "000.tar")) > 0


def test_ctrl_c_ends_the_command_with_one_line(tmp_path: Path) -> None:
    shards = many_shards(tmp_path, shards=100, samples=1000)
    process = start(f"--path={shards}", "--workers=2")
    wait_for_an_index(shards)
    os.killpg(process.pid, signal.SIGINT)  # a terminal sends it to the workers as well
    _, errors = process.communicate()
    assert process.returncode == 128 + signal.SIGINT and errors == "interrupted\n"
    assert all(name.endswith((".tar", ".npz")) for name in os.listdir(shards))


def test_a_worker_that_cannot_write_ends_the_command(shards: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no index can be written"):
        index_all(find_shards(shards), str(tmp_path / "laion" / "00000.tar"), 2)
