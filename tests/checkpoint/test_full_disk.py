"""A disk without space: one sentence, nothing older lost, and the same command goes on once there is some."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest
from etils import epath

from qwenvl_jax.checkpoint import steps
from qwenvl_jax.checkpoint.manager import Checkpoints, save_frozen
from qwenvl_jax.checkpoint.restore import newest_state
from qwenvl_jax.data.loader import make_loader
from qwenvl_jax.data.tokenizer import load_tokenizer
from qwenvl_jax.runtime.errors import exit_on_user_error
from qwenvl_jax.runtime.events import EventWriter
from qwenvl_jax.runtime.growing_file import GrowingFile
from qwenvl_jax.training.anomalies import Anomalies
from tests.checkpoint.saved_run import MOMENTS
from tests.support import tiny_run

ROOT = Path(__file__).parents[2]


def mounted(folder: Path, size: str) -> Iterator[Path]:
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
    if os.geteuid() or subprocess.run(command, capture_output=True).returncode:
        pytest.skip("a small file system cannot be mounted here")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Path]:
    """A file system of 2 MB."""
    yield from mounted(tmp_path / "small", "2m")


@pytest.fixture
def run_sized(tmp_path: Path) -> Iterator[Path]:
    """A file system in which two of three checkpoints of the tiny config fit."""
    yield from mounted(tmp_path / "sized", "3500k")  # one takes 1.3 to 1.5 MB, as Orbax divides its arrays among files


def big(step: int) -> dict[str, dict[str, jax.Array]]:
    return {"decoder": {"a": jax.random.normal(jax.random.key(step), (300, 1000))}}  # 1.2 MB that do not compress


def test_a_checkpoint_that_finds_no_space_leaves_the_older_ones_and_no_rest(
    small: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = small / "run"
    with Checkpoints(run, keep=9) as checkpoints:
        checkpoints.save(3, big(3), MOMENTS, {"at": 3})
    with pytest.raises(SystemExit) as code, exit_on_user_error(), Checkpoints(run, keep=9) as checkpoints:
        checkpoints.save(6, big(6), MOMENTS, {"at": 6})
        checkpoints.wait()
    assert code.value.code == 2
    said = capsys.readouterr().err
    assert said == f"error: no space left on the disk of {run}/checkpoints; free some and run the same command again\n"
    assert [path.name for path in (run / "checkpoints").iterdir()] == ["3"]
    assert newest_state(run, big(0), MOMENTS)[0] == 3
    steps.remove(run, 3)
    with Checkpoints(run, keep=9) as checkpoints:
        checkpoints.save(6, big(6), MOMENTS, {"at": 6})
    assert newest_state(run, big(0), MOMENTS)[0] == 6


def test_the_error_of_a_save_in_the_background_is_raised_when_the_block_ends(small: Path) -> None:
    with pytest.raises(OSError, match="No space left") as error, Checkpoints(small / "run", keep=9) as checkpoints:
        checkpoints.save(
            3,
            {"decoder": {"a": jnp.concatenate([*big(3)["decoder"].values(), *big(4)["decoder"].values()])}},
            MOMENTS,
            {},
        )
    assert str(error.value.filename) == f"{small}/run/checkpoints"
    assert steps.finished_steps(small / "run") == []


def test_frozen_weights_and_a_growing_file(small: Path) -> None:
    both = {"decoder": {"a": jnp.concatenate([big(1)["decoder"]["a"], big(2)["decoder"]["a"]])}}
    with pytest.raises(OSError, match="No space left"):
        save_frozen(small / "run", both)
    assert [path.name for path in (small / "run").iterdir()] == []
    file = GrowingFile(small / "metrics.jsonl", b"first\n")
    with pytest.raises(OSError, match="No space left") as error:
        for _ in range(40):
            file.add(b"x" * 99_999 + b"\n")
    file.close()
    assert error.value.filename == str(small / "metrics.jsonl")


def test_events_and_the_batch_of_an_anomaly(small: Path, tiny_data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    events = EventWriter(epath.Path(small / "run/events"))
    with (small / "filler").open("wb") as file, pytest.raises(OSError, match="No space left"):
        while True:
            os.write(file.fileno(), bytes(1024))
    with pytest.raises(OSError, match="No space left") as error:
        for step in range(10_000):
            events.add(step, {"train/loss": 1.0})
    events.close()
    assert str(error.value.filename).startswith(f"{small}/run/events/")
    config = tiny_run.make_config(tiny_data)
    anomalies = Anomalies(config, epath.Path(small / "run"), [0], {})
    metrics = {"loss": jnp.float32(jnp.nan), "grad_norm": jnp.float32(1), "skipped": jnp.int32(1)}
    with make_loader(config, load_tokenizer(config.tokenizer)) as loader:
        next(loader)
        anomalies.add(1, metrics, loader.last())
        assert anomalies.progress(()) == {"total": 1, "recent": [1]}
        assert "step 1 was left out (the loss is nan); its batch could not be written: " in capsys.readouterr().out
        assert [path.name for path in (small / "run/anomalies/step_1").iterdir()] == []
        (small / "filler").unlink()
        anomalies.add(2, metrics, loader.last())
        anomalies.progress(())
    assert (small / "run/anomalies/step_2/anomaly.json").exists()


@pytest.mark.slow
def test_a_run_on_a_full_disk_ends_with_one_sentence_and_goes_on_with_space(run_sized: Path, tiny_data: Path) -> None:
    config = f"--config={ROOT / 'tests' / 'support' / 'tiny_config.py'}:{tiny_data}"
    command = [sys.executable, "-m", "qwenvl_jax.train", config, f"--workdir={run_sized / 'run'}"]
    command.append("--config.compute.compilation_cache=")  # the compiled programs would fill the disk
    environment = {**os.environ, "JAX_PLATFORMS": "cpu"}
    full = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert full.returncode == 2
    assert full.stderr.startswith("error: no space left on the disk of ") and full.stderr.count("\n") == 1, full.stderr
    assert steps.finished_steps(run_sized / "run") == [8, 16]
    subprocess.run(["mount", "-o", "remount,size=20m", str(run_sized)], check=True)
    again = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert again.returncode == 0 and not again.stderr
    assert "after step 16 of 24" in again.stdout and steps.finished_steps(run_sized / "run") == [8, 16, 24]
    lines = (run_sized / "run/metrics.jsonl").read_text().splitlines()
    assert len(lines) == 5  # each once
