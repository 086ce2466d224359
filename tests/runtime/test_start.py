"""How a run of several processes starts, and what tools that are no run leave alone."""

from __future__ import annotations

import io
import os
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
from PIL import Image

from tests.runtime.processes import ROOT, Ended, Parent, joined

TRAIN = """
import os, sys
from qwenvl_jax import train
from qwenvl_jax.runtime import commandline
folders, arguments = sys.argv[1:3], sys.argv[3:]
os.chdir(folders[int(os.environ["JAX_PROCESS_ID"])])
sys.argv = ["train", *arguments, *os.environ.get("TEST_ARGUMENTS", "").split()]
commandline.run(train.main)
"""


def train(parent: Parent, folders: tuple[Path, Path], *arguments: str, others: str = "") -> list[Ended]:
    """Two processes, each in a folder of its own, as two hosts are; `others` is what only process 1 is told."""
    first, second = joined(2, PYTHONPATH=str(ROOT), XLA_FLAGS="--xla_force_host_platform_device_count=1")
    config = f"--config={ROOT / 'tests' / 'support' / 'tiny_config.py'}:data"
    steps = ("--config.data.image_groups=2", "--config.data.streams=2", "--config.train.steps=5")
    second["TEST_ARGUMENTS"] = others
    return parent.run(TRAIN, [first, second], *map(str, folders), config, *steps, *arguments, timeout=300)


def assert_all_end_with(ended: list[Ended], *words: str) -> None:
    for one in ended:
        assert one.code == 2, one
        lines = [line for line in one.err.splitlines() if line.startswith("error: ")]
        assert len(lines) == 1 and "Traceback" not in one.err, one.err
        for word in words:
            assert word in lines[0], (word, lines[0])


@pytest.fixture
def hosts(tmp_path: Path, tiny_data: Path) -> tuple[Path, Path]:
    """The local disks of two hosts, with the same records."""
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        shutil.copytree(tiny_data, tmp_path / name / "data")
    return tmp_path / "a", tmp_path / "b"


def test_a_setting_that_differs_is_named(parent: Parent, hosts: tuple[Path, Path], tmp_path: Path) -> None:
    run = f"--workdir={tmp_path / 'run'}"
    ended = train(parent, hosts, run, others="--config.train.log_every=2")
    assert_all_end_with(ended, "process 1 (", "differs from process 0 in config.train.log_every: 2 instead of 5")
    ended = train(parent, hosts, run, others="--config.train.steps=0")
    assert_all_end_with(ended, "config.train.steps must be positive")
    assert not (tmp_path / "run").exists()


def test_a_workdir_that_is_not_shared_is_named(parent: Parent, hosts: tuple[Path, Path]) -> None:
    assert_all_end_with(train(parent, hosts, "--workdir=run"), "run is another folder on process 1 (host")
    assert not (hosts[0] / "run").exists() and not (hosts[1] / "run").exists()


def test_hosts_that_would_repeat_work_are_refused(parent: Parent, hosts: tuple[Path, Path], tmp_path: Path) -> None:
    ended = train(parent, hosts, f"--workdir={tmp_path / 'run'}", "--config.data.streams=1")
    assert_all_end_with(ended, "2 processes share 1 logical stream, and 2 of them would read", "config.data.streams=2")
    assert not list((tmp_path / "run").glob("*"))


def test_records_that_differ_or_are_missing_on_one_host_end_all(
    parent: Parent, hosts: tuple[Path, Path], tmp_path: Path
) -> None:
    run = f"--workdir={tmp_path / 'run'}"
    shutil.rmtree(hosts[1] / "data" / "vqa")
    shutil.copytree(hosts[1] / "data" / "caption", hosts[1] / "data" / "vqa")
    assert_all_end_with(train(parent, hosts, run), "vqa")
    shutil.rmtree(hosts[1] / "data" / "vqa")
    assert_all_end_with(train(parent, hosts, run), "vqa")


@pytest.mark.slow
def test_records_of_other_content_are_named(parent: Parent, hosts: tuple[Path, Path], tmp_path: Path) -> None:
    from tests.support import tiny_run

    shutil.rmtree(hosts[1] / "data")
    tiny_run.write_data(hosts[1] / "data", count=64)
    shutil.copy(hosts[0] / "data" / "tiny.model", hosts[1] / "data" / "tiny.model")
    ended = train(parent, hosts, f"--workdir={tmp_path / 'run'}")
    assert_all_end_with(ended, "process 1 (", "differs from process 0 in")


@pytest.mark.slow
def test_a_finished_run_is_finished_for_all(parent: Parent, hosts: tuple[Path, Path], tmp_path: Path) -> None:
    for _ in range(2):
        ended = train(parent, hosts, f"--workdir={tmp_path / 'run'}")
        assert [one.code for one in ended] == [0, 0], ended
        assert ("all sources" in ended[0].out) == ("is finished" not in ended[0].out)
    assert "is finished: 5 steps" in ended[0].out and "finished" not in ended[1].out


def test_lines_and_tables_touch_no_device(parent: Parent) -> None:
    code = (
        "import jax._src.xla_bridge as bridge\n"
        "from qwenvl_jax.runtime import log, versions\n"
        "log.line('a line')\n"
        "log.table('a table', ['x'], [[1]])\n"
        "assert versions.versions() == versions.versions()\n"
        "assert not bridge.backends_are_initialized()\n"
    )
    (one,) = parent.run(code, [{"JAX_PLATFORMS": "no_such_device"}])
    assert one.code == 0 and "a line" in one.out, one.err


def test_an_audit_of_tar_shards_needs_no_device(tiny_data: Path, tmp_path: Path) -> None:
    (tmp_path / "shards").mkdir()
    with tarfile.open(tmp_path / "shards" / "0.tar", "w") as archive:
        for index in range(8):
            buffer = io.BytesIO()
            Image.new("RGB", (20, 20), (30 * index, 0, 0)).save(buffer, "PNG")
            for ending, payload in (("png", buffer.getvalue()), ("txt", f"a red square {index}".encode())):
                member = tarfile.TarInfo(f"{index:03d}.{ending}")
                member.size = len(payload)
                archive.addfile(member, io.BytesIO(payload))
    config = tmp_path / "config.py"
    config.write_text(
        f"import sys; sys.path.insert(0, {str(ROOT)!r})\n"
        "from tests.support import tiny_config\n"
        "def get_config():\n"
        f"    config = tiny_config.get_config({str(tiny_data)!r})\n"
        f"    source = dict(name='tars', task='caption', records={str(tmp_path / 'shards' / '*.tar')!r}, weight=1.0)\n"
        "    config.data.mixture = (source,)\n"
        "    return config\n"
    )
    command = [sys.executable, "-m", "qwenvl_jax.audit", f"--config={config}", f"--output={tmp_path / 'seen'}"]
    environment = os.environ | {"JAX_PLATFORMS": "no_such_device"}
    run = subprocess.run([*command, "--samples=8"], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert (tmp_path / "seen" / "audit.html").exists()
