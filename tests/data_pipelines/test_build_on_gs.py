"""The data set on an object store has the same bytes as on a disk, and never looks finished before it is."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from data_pipelines.quickstart.build import build
from data_pipelines.quickstart.settings import QuickstartSettings
from data_pipelines.quickstart.shards import FOLDERS
from qwenvl_jax.data.readers.record_folder import RecordReader
from qwenvl_jax.runtime import storage
from qwenvl_jax.runtime.errors import UserError


def contents(folder: object) -> dict[str, bytes]:
    root = storage.path(str(folder))
    return {name: storage.read_bytes(root / name) for name in storage.files_below(root)}


def test_the_bytes_are_those_on_a_disk(built: Path, settings: QuickstartSettings, gcs: str) -> None:
    build(settings, f"{gcs}/data/quickstart", built.parent / "cache")
    assert contents(f"{gcs}/data/quickstart") == contents(built)
    assert storage.names(f"{gcs}/data") == ["quickstart"]
    changed = storage.entry(f"{gcs}/data/quickstart/text/manifest.json")
    build(settings, f"{gcs}/data/quickstart", built.parent / "cache")  # up to date
    assert storage.entry(f"{gcs}/data/quickstart/text/manifest.json") == changed


def test_foreign_files_are_never_removed(built: Path, settings: QuickstartSettings, gcs: str) -> None:
    storage.write_bytes(f"{gcs}/data/thesis.txt", b"x")
    with pytest.raises(UserError, match=r"gs://.*/data contains files that this pipeline did not write"):
        build(settings, f"{gcs}/data", built.parent / "cache")
    assert storage.names(f"{gcs}/data") == ["thesis.txt"]


@pytest.mark.slow
def test_killed_and_run_again(tmp_path: Path, gcs: str, gcs_environment: dict[str, str]) -> None:
    """At any moment the folder is complete, or has no manifest; the next run completes it."""
    flags = [
        "--source=rendered",
        "--train=40",
        "--heldout=10",
        "--records_per_shard=5",
        "--vocab_size=400",
        "--num_stamps=12",
    ]
    program = [sys.executable, "-m", "data_pipelines.quickstart", f"--cache={tmp_path / 'cache'}", "--workers=1"]
    subprocess.run([*program, *flags, f"--output={tmp_path / 'disk'}"], env=gcs_environment, check=True)
    expected = contents(tmp_path / "disk")
    output = f"{gcs}/quickstart"
    killed = 0
    for wait in (0.0, 0.7, 1.5):
        run = subprocess.Popen([*program, *flags, f"--output={output}"], env=gcs_environment)
        while not storage.exists(f"{gcs}/.quickstart.building") and run.poll() is None:
            time.sleep(0.02)
        time.sleep(wait)
        run.send_signal(signal.SIGKILL)
        killed += run.wait() == -signal.SIGKILL
        if storage.exists(f"{output}/manifest.json"):
            assert contents(output) == expected
            break
    assert killed
    subprocess.run([*program, *flags, f"--output={output}"], env=gcs_environment, check=True)
    assert contents(output) == expected and storage.names(gcs) == ["quickstart"]


def test_a_replaced_data_set_leaves_no_file(tiny: QuickstartSettings, tmp_path: Path, gcs: str) -> None:
    leftover = "quickstart-train.array_record-00008-of-00009"
    storage.write_bytes(f"{gcs}/q/manifest.json", b"{}")
    for task in FOLDERS:
        storage.write_bytes(f"{gcs}/q/{task}/{leftover}", b"of another run")
    build(tiny, f"{gcs}/q", tmp_path / "cache")
    assert not [name for name in storage.files_below(f"{gcs}/q") if name.endswith(leftover)]
    assert all(len(RecordReader(f"{gcs}/q/{task}", "heldout")) == 2 for task in FOLDERS)
