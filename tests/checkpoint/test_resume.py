"""A run that was stopped or killed and continued equals one that never stopped, bitwise."""

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
from etils import epath

from qwenvl_jax.checkpoint.restore import load_params
from qwenvl_jax.checkpoint.steps import finished_steps, latest_step
from qwenvl_jax.training.loop import train
from tests.checkpoint.saved_run import assert_same_run, lines
from tests.support import tiny_run

ROOT = Path(__file__).parents[2]


def wait_for_step(workdir: Path, step: int, alive: Callable[[], bool]) -> None:
    """Waits until the metrics show `step`."""
    while alive():
        path = workdir / "metrics.jsonl"
        if path.exists() and any(f'"step": {step},' in line for line in path.read_text().splitlines()):
            return
        time.sleep(0.005)
    raise AssertionError("the run ended before it could be stopped")


@pytest.mark.slow
def test_sigterm_saves_and_the_next_start_continues(tmp_path: Path, tiny_data: Path) -> None:
    config = tiny_run.make_config(tiny_data, train__steps=150, train__checkpoint_every=40, train__log_every=7)
    assert train(config, tmp_path / "whole") == 150

    def terminate() -> None:
        wait_for_step(tmp_path / "parts", 14, lambda: True)
        os.kill(os.getpid(), signal.SIGTERM)

    thread = threading.Thread(target=terminate)
    thread.start()
    stopped = train(config, tmp_path / "parts")
    thread.join()
    assert 14 <= stopped < 150
    assert load_params(tmp_path / "parts")[2] == stopped  # saved where it stopped, on no boundary
    assert train(config, tmp_path / "parts") == 150
    assert_same_run(tmp_path / "whole", tmp_path / "parts", 150)
    assert train(config, tmp_path / "parts") == 150  # a finished run is left alone
    assert (tmp_path / "parts" / "frozen").exists() and list((tmp_path / "parts" / "events").iterdir())
    steps = [line["step"] for line in lines(tmp_path / "whole")]
    assert steps == [*range(7, 150, 7), 150]
    assert lines(tmp_path / "whole")[-1]["loss"] < lines(tmp_path / "whole")[0]["loss"]


@pytest.mark.slow
def test_kill_9_and_the_next_start_continues_on_a_disk_and_on_gs(
    tmp_path: Path, tiny_data: Path, gcs: str, gcs_environment: dict[str, str]
) -> None:
    environment = {**gcs_environment, "PYTHONPATH": str(ROOT)}
    environment.setdefault("JAX_COMPILATION_CACHE_DIR", str(tmp_path / "cache"))
    whole, on_disk, on_gs = tmp_path / "whole", tmp_path / "parts", epath.Path(gcs) / "parts"

    def command(workdir: Path | epath.Path) -> list[str]:
        config = f"{ROOT / 'tests' / 'support' / 'tiny_config.py'}:{tiny_data}"
        overrides = ["--config.train.steps=200", "--config.train.checkpoint_every=20", "--config.train.log_every=3"]
        return [sys.executable, "-m", "qwenvl_jax.train", f"--config={config}", f"--workdir={workdir}", *overrides]

    def killed_once(workdir: Path | epath.Path, there: Callable[[], bool]) -> None:
        running = subprocess.Popen(command(workdir), cwd=ROOT, env=environment)
        try:
            while not there():
                assert running.poll() is None, "the run ended before it could be killed"
                time.sleep(0.002)
        finally:
            running.kill()
            running.wait()

    def while_a_checkpoint_is_written() -> bool:
        return 40 in finished_steps(on_disk) and any((on_disk / "checkpoints").glob("*.orbax-checkpoint-tmp"))

    subprocess.run(command(whole), cwd=ROOT, env=environment, check=True)
    killed_once(on_disk, while_a_checkpoint_is_written)
    killed_once(on_gs, lambda: (latest_step(on_gs) or 0) >= 60)
    for workdir in (on_disk, on_gs):
        subprocess.run(command(workdir), cwd=ROOT, env=environment, check=True)
        assert_same_run(whole, workdir, 200)
