"""Samples that share a picture give the loss and the gradients of samples with a picture each."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent
ROOT = HERE.parents[1]


def test_shared_pictures_change_neither_loss_nor_gradients(tiny_data: Path, tmp_path: Path) -> None:
    """Within 1e-5 of the norm of every array, on one device and on two meshes of eight."""
    folder = tmp_path / "data"
    shutil.copytree(tiny_data, folder)
    environment = os.environ | {
        "XLA_FLAGS": "--xla_force_host_platform_device_count=8 --xla_backend_optimization_level=0",
        "JAX_PLATFORMS": "cpu",
        "PYTHONPATH": str(ROOT),
    }
    command = [sys.executable, str(HERE / "shared_pictures.py"), str(folder)]
    done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    result = json.loads(done.stdout.splitlines()[-1])
    assert result["pictures"] < 0.7 * result["samples"]
    assert len(result["worst"]) == 3
    assert max(result["worst"].values()) < 1e-5
    assert result["key_bias"] < 1e-8
