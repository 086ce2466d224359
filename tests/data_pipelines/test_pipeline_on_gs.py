"""The data set on an object store: the bytes of the one on a disk, and nothing that looks finished before it is."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from data_pipelines.quickstart.build import TASKS, build
from data_pipelines.quickstart.settings import QuickstartSettings
from qwenvl_jax.data.readers.record_folder import RecordReader
from qwenvl_jax.runtime import storage
from qwenvl_jax.runtime.errors import UserError


def contents(folder: object) -> dict[str, bytes]:
    root = storage.path(str(folder))
    return {name: storage.read_bytes(root / name) for name in storage.files_below(root)}


def test_equal_to_the_disk(built: Path, settings: QuickstartSettings, gcs: str) -> None:
    build(settings, f"{gcs}/data/quickstart", built.parent / "cache")
    assert contents(f"{gcs}/data/quickstart") == contents(built)
    assert storage.names(f"{gcs}/data") == ["quickstart"]
    changed = storage.entry(f"{gcs}/data/quickstart/text/manifest.json")
    build(settings, f"{gcs}/data/quickstart", built.parent / "cache")  # up to date
    assert storage.entry(f"{gcs}/data/quickstart/text/manifest.json") == changed


def test_files_of_somebody_else(built: Path, settings: QuickstartSettings, gcs: str) -> None:
    storage.write_bytes(f"{gcs}/data/thesis.txt", b"x")
    with pytest.raises(UserError, match=r"gs://.*/data holds files that are not of this pipeline"):
        build(settings, f"{gcs}/data", built.parent / "cache")
    assert storage.names(f"{gcs}/data") == ["thesis.txt"]


@pytest.mark.slow
def test_killed_and_run_again(tmp_path: Path, gcs: str, gcs_environment: dict[str, str]) -> None:
    """At any moment the folder is finished and whole, or has no manifest; the next run makes it whole."""
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
    expected, output = contents(tmp_path / "disk"), f"{gcs}/quickstart"
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


def test_what_is_replaced_leaves_nothing(tiny: QuickstartSettings, tmp_path: Path, gcs: str) -> None:
    left = "quickstart-train.array_record-00008-of-00009"
    storage.write_bytes(f"{gcs}/q/manifest.json", b"{}")
    for task in TASKS:
        storage.write_bytes(f"{gcs}/q/{task}/{left}", b"of another run")
    build(tiny, f"{gcs}/q", tmp_path / "cache")
    assert not [name for name in storage.files_below(f"{gcs}/q") if name.endswith(left)]
    assert all(len(RecordReader(f"{gcs}/q/{task}", "heldout")) == 2 for task in TASKS)
