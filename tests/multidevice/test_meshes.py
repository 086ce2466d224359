"""Every split of the work over eight devices gives the numbers of one device, within float32 rounding."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
MESHES = {
    "data": (8, 1, 1, 1),
    "fsdp": (1, 8, 1, 1),
    "two slices, fsdp x tensor": (1, 2, 2, 2),
}


def run(folder: Path, name: str, mesh: tuple[int, ...], *workdir: str) -> dict[str, np.ndarray]:
    output = folder / f"{name}.npz"
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        # Compiling is what takes the time here, and rounding is allowed for.
        "XLA_FLAGS": "--xla_force_host_platform_device_count=8 --xla_backend_optimization_level=0",
        "JAX_PLATFORMS": "cpu",
    }
    command = [sys.executable, str(HERE / "eight_devices.py"), str(output), *map(str, mesh), *workdir]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return dict(np.load(output))


@pytest.fixture(scope="module")
def one_device(tmp_path_factory: pytest.TempPathFactory) -> dict[str, np.ndarray]:
    return run(tmp_path_factory.mktemp("one"), "one", (1, 1, 1, 1))


def assert_close(answers: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> None:
    for key, value in expected.items():
        if key.startswith(("loss", "grad_norm")):
            np.testing.assert_allclose(answers[key], value, rtol=2e-5, err_msg=key)
        elif key.startswith("mu/"):
            scale = np.abs(value).max()
            np.testing.assert_allclose(answers[key], value, atol=1e-4 * scale + 1e-9, err_msg=key)
        elif key.startswith(("tokens", "images", "supervised", "skipped", "learning_rate")):
            np.testing.assert_array_equal(answers[key], value, err_msg=key)


@pytest.mark.slow
@pytest.mark.parametrize("name", MESHES)
def test_mesh_equals_one_device(name: str, tmp_path: Path, one_device: dict[str, np.ndarray]) -> None:
    answers = run(tmp_path, "mesh", MESHES[name])
    assert_close(answers, one_device)
    _, fsdp, tensor, _ = MESHES[name]
    layers, width, hidden = one_device["shard"]
    assert tuple(answers["shard"]) == (layers, width // fsdp, hidden // tensor)


@pytest.mark.slow
def test_a_checkpoint_of_one_mesh_continues_on_another(tmp_path: Path) -> None:
    workdir = str(tmp_path / "run")
    first = run(tmp_path, "first", (1, 4, 2, 1), workdir)
    elsewhere = run(tmp_path, "second", (4, 2, 1, 1), workdir)
    same = run(tmp_path, "third", (1, 4, 2, 1), workdir)
    assert_close(elsewhere, same)
    assert float(elsewhere["learning_rate_2"]) != float(first["learning_rate_1"])
