"""Answers on meshes of 8 devices, of one process and of two, equal those on one device (`generation_on_meshes.py`)."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.support.ports import free_port

HERE = Path(__file__).parent
ROOT = HERE.parents[1]


def start(devices: int, **variables: str) -> subprocess.Popen[str]:
    flags = f"--xla_force_host_platform_device_count={devices} --xla_backend_optimization_level=0"
    environment = os.environ | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)} | variables
    command = [sys.executable, str(HERE / "generation_on_meshes.py")]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, env=environment, cwd=ROOT, text=True, stdout=pipe, stderr=pipe)


def result_of(process: subprocess.Popen[str]) -> dict[str, Any]:
    output, errors = process.communicate(timeout=500)
    assert process.returncode == 0, errors[-3000:]
    return json.loads(output.splitlines()[-1])


@pytest.mark.slow
def test_answers_do_not_depend_on_the_mesh_or_the_processes() -> None:
    result = result_of(start(8))
    alone = result["answers"].pop("(1, 1, 1)")
    beams_alone = result["beams"].pop("(1, 1, 1)")
    scores_alone = result["scores"]["(1, 1, 1)"]
    assert len({len(answer) for answer in alone}) > 2
    served_alone = result["served"]["(1, 1, 1)"]
    assert len(served_alone) == 12 and set(map(len, result["served"].values())) == {12}
    for mesh, answers in result["served"].items():
        assert answers == served_alone, mesh
    variables = {"JAX_CPU_COLLECTIVES_IMPLEMENTATION": "gloo", "JAX_NUM_PROCESSES": "2"}
    variables["JAX_COORDINATOR_ADDRESS"] = f"127.0.0.1:{free_port()}"
    processes = [start(4, **variables, JAX_PROCESS_ID=str(index)) for index in range(2)]
    results = [result, *(result_of(process) for process in processes)]
    assert [len(each["answers"]) for each in results] == [5, 3, 3]
    for each in results:
        for mesh, answers in each["answers"].items():
            assert answers == alone, mesh
            assert each["beams"][mesh] == beams_alone, mesh
            np.testing.assert_allclose(each["scores"][mesh], scores_alone, atol=2e-5, err_msg=mesh)
            assert np.argmax(each["scores"][mesh], axis=1).tolist() == np.argmax(scores_alone, axis=1).tolist(), mesh
        # One prefix, rounded up to 256 tokens, and two batches of 8 rows of 32 tokens.
        assert set(each["computed"].values()) == {256 + 2 * 8 * 32}
        assert set(each["encoded"].values()) == {11}
