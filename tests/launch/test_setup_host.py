"""The script that installs a job on a host: it makes the environment, moves the source, and spares an active run."""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """`launch/NAME` on a host, with a new source without requirements, and an environment that is there already."""
    (tmp_path / "venv" / "bin").mkdir(parents=True)
    python = tmp_path / "venv" / "bin" / "python"
    pip = f'[ "$2" = pip ] && {{ echo "$@" >> {tmp_path}/pip.txt; exit "${{PIP:-0}}"; }}'
    python.write_text(f'#!/bin/sh\n{pip}\nexec {sys.executable} "$@"\n')
    python.chmod(0o755)
    put_source(tmp_path, "new")
    return tmp_path


def put_source(folder: Path, revision: str) -> None:
    source = folder / "source.new"
    (source / "launch").mkdir(parents=True)
    shutil.copy(ROOT / "launch" / "setup_host.sh", source / "launch")
    (source / "REVISION").write_text(revision)


def install(folder: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    script = folder / "source.new" / "launch" / "setup_host.sh"
    return subprocess.run(
        ["bash", str(script)], env={**os.environ, **variables}, capture_output=True, text=True, check=False
    )


def test_the_new_source_replaces_the_old_one(folder: Path) -> None:
    done = install(folder)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip().endswith("revision new")
    put_source(folder, "newer")
    assert install(folder).returncode == 0
    assert (folder / "source" / "REVISION").read_text() == "newer"
    assert not (folder / "source.new").exists()
    installed = (folder / "pip.txt").read_text()
    assert f"--requirement={folder}/source.new/requirements.txt" in installed
    assert f"--requirement={folder}/source.new/requirements-tpu.txt" in installed


def test_an_active_run_keeps_its_source(folder: Path) -> None:
    assert install(folder).returncode == 0
    put_source(folder, "newer")
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        refused = install(folder)
    assert refused.returncode == 2
    assert "a run is active here; stop it first" in refused.stderr
    assert (folder / "source" / "REVISION").read_text() == "new"


def test_requirements_that_cannot_be_installed_change_nothing(folder: Path) -> None:
    refused = install(folder, PIP="1")
    assert refused.returncode == 2
    assert "hosts without external addresses need Cloud NAT" in refused.stderr
    assert not (folder / "source").exists()


@pytest.mark.slow
def test_an_environment_is_made_if_there_is_none(folder: Path) -> None:
    shutil.rmtree(folder / "venv")
    (folder / "source.new" / "requirements.txt").touch()
    (folder / "source.new" / "requirements-tpu.txt").touch()
    done = install(folder, PATH=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    assert done.returncode == 0, done.stderr
    assert "Python 3.1" in done.stdout
