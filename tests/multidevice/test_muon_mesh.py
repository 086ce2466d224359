"""Muon on several devices computes what it does on one (`muon_mesh.py`), in a separate process."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
FLAGS = "--xla_force_host_platform_device_count=4 --xla_backend_optimization_level=0"


@pytest.mark.slow
def test_updates_on_meshes_equal_one_device() -> None:
    environment = os.environ | {"XLA_FLAGS": FLAGS, "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, str(HERE / "muon_mesh.py")]
    done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    answer = json.loads(done.stdout.splitlines()[-1])
    assert len(answer) == 3
    for figures in answer.values():
        assert figures["updates"] < 1e-4
    assert "fsdp" in answer["fsdp 2"]["split"] and "tensor" in answer["fsdp 2, tensor 2"]["split"]
