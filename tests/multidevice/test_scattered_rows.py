"""Three processes whose rows are scattered over a mesh of 3 x 4 take the step of one device."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.ports import free_port

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
DEVICES = 12


@pytest.mark.slow
def test_rows_scattered_over_processes_reach_their_devices() -> None:
    processes, address = 3, f"127.0.0.1:{free_port()}"
    count = DEVICES // processes
    environment = os.environ | {
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={count} --xla_backend_optimization_level=0",
        "JAX_PLATFORMS": "cpu",
        "JAX_CPU_COLLECTIVES_IMPLEMENTATION": "gloo",
        "PYTHONPATH": str(ROOT),
    }
    running = [
        subprocess.Popen(
            [sys.executable, str(HERE / "scattered_rows.py"), address, str(processes), str(index)],
            env=environment,
            cwd=ROOT,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        for index in range(processes)
    ]
    outputs = [process.communicate(timeout=500) for process in running]
    for process, (_, errors) in zip(running, outputs, strict=True):
        assert process.returncode == 0, errors[-3000:]
    answer = json.loads(outputs[0][0].splitlines()[-1])
    assert answer["worst"]["mu"] < 2e-4 and answer["streams"]
