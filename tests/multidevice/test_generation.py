"""Answers on meshes of 8 devices equal those on one device (`generation_on_meshes.py`), in a separate process."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
FLAGS = "--xla_force_host_platform_device_count=8 --xla_backend_optimization_level=0"


@pytest.mark.slow
def test_answers_do_not_depend_on_the_mesh() -> None:
    environment = os.environ | {"XLA_FLAGS": FLAGS, "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, str(HERE / "generation_on_meshes.py")]
    done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    result = json.loads(done.stdout.splitlines()[-1])
    alone = result["answers"].pop("(1, 1, 1)")
    assert len({len(answer) for answer in alone}) > 2
    for mesh, answers in result["answers"].items():
        assert answers == alone, mesh
    assert set(result["encoded"].values()) == {11}
