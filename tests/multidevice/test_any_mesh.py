"""Random meshes of up to 24 devices compute what one device computes (`any_mesh.py`), in a separate process.

A few here; two hundred take twenty minutes of two idle cores: any_mesh.py 75 SEED with three seeds.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
FLAGS = "--xla_force_host_platform_device_count=24 --xla_backend_optimization_level=0"


@pytest.mark.slow
def test_random_meshes_equal_one_device() -> None:
    environment = os.environ | {
        "XLA_FLAGS": FLAGS,
        "JAX_PLATFORMS": "cpu",
        "PYTHONPATH": str(ROOT),
    }
    command = [sys.executable, str(HERE / "any_mesh.py"), "3", "4"]
    done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    answer = json.loads(done.stdout.splitlines()[-1])
    assert answer["cases"] >= 2 and answer["meshes"] >= 2 and not answer["failed"]
