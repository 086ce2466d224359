"""A bucket that fails for a while during a run: nothing is lost and nothing repeated."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from etils import epath

from qwenvl_jax.checkpoint.steps import latest_step
from tests.checkpoint.saved_run import assert_same_run
from tests.support import faulty_gcs
from tests.support.gcs_server import environment

ROOT = Path(__file__).parents[2]
OUTAGE = 5.0  # seconds


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["503"])
def test_a_run_outlasts_an_outage_of_its_bucket_to_the_bit(
    tmp_path: Path, tiny_data: Path, gcs: str, gcs_server: str, kind: str
) -> None:
    config = f"{ROOT / 'tests' / 'support' / 'tiny_config.py'}:{tiny_data}"
    changes = [f"--config.train.{each}" for each in ("steps=60", "checkpoint_every=10", "log_every=3")]
    command = [sys.executable, "-m", "qwenvl_jax.train", f"--config={config}", *changes]
    variables = {**os.environ, "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}
    variables.setdefault("JAX_COMPILATION_CACHE_DIR", str(tmp_path / "cache"))
    on_gs = epath.Path(gcs) / "run"
    with faulty_gcs.faulty(gcs_server, rate=0) as proxy:
        running = subprocess.Popen(
            [*command, f"--workdir={on_gs}"],
            cwd=ROOT,
            env=variables | environment(proxy),
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        try:
            while (latest_step(on_gs) or 0) < 10:
                assert running.poll() is None, running.communicate()
                time.sleep(0.1)
            faulty_gcs.outage(proxy, kind, OUTAGE)
            out, errors = running.communicate(timeout=300)
        finally:
            running.kill()
        assert running.returncode == 0, errors
        assert faulty_gcs.told(proxy)["faults"].get(kind, 0) > 0  # the outage met the run
    assert "continuing" not in out  # it was one attempt
    subprocess.run([*command, f"--workdir={tmp_path / 'whole'}"], cwd=ROOT, env=variables, check=True)
    assert_same_run(tmp_path / "whole", on_gs, 60)
