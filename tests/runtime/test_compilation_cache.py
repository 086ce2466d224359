"""Compiled programs are kept for the next process, on a disk and in a bucket, and a damaged one is compiled anew."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from etils import epath

ROOT = Path(__file__).parents[2]

# Compiles one program and says whether it was read from the cache.
PROGRAM = """
import sys, jax
from qwenvl_jax.runtime import compilation_cache, storage
compilation_cache.use(sys.argv[1], storage.path(sys.argv[2]))
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
hits = []
jax.monitoring.register_event_listener(lambda name, **_: name.endswith("cache_hits") and hits.append(name))
print(float(jax.jit(lambda x: x * 3 + 1)(2.0)), bool(hits))
"""


def run(setting: str, default: Path | epath.Path, **changes: str) -> str:
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)}
    environment.pop("JAX_COMPILATION_CACHE_DIR", None)
    command = [sys.executable, "-c", PROGRAM, setting, str(default)]
    process = subprocess.run(command, cwd=ROOT, env=environment | changes, capture_output=True, text=True, check=True)
    return process.stdout.strip()


@pytest.mark.slow
def test_the_second_process_reads_what_the_first_has_compiled(tmp_path: Path) -> None:
    default = tmp_path / "run" / "compilation_cache"
    assert run("", default) == "7.0 False" and not default.exists()
    assert run("workdir", default) == "7.0 False" and list(default.iterdir())
    assert run("workdir", default) == "7.0 True"
    for entry in default.glob("*-cache"):
        entry.write_bytes(entry.read_bytes()[:40])  # as by a kill
    assert run("workdir", default) == "7.0 False"
    assert run(str(tmp_path / "shared"), default) == "7.0 False" and list((tmp_path / "shared").iterdir())
    assert run("workdir", tmp_path / "unused", JAX_COMPILATION_CACHE_DIR=str(tmp_path / "shared")) == "7.0 True"
    assert not (tmp_path / "unused").exists()


@pytest.mark.slow
def test_a_cache_in_a_bucket(gcs: epath.Path) -> None:
    default = epath.Path(gcs) / "run" / "compilation_cache"
    assert [run("workdir", default), run("workdir", default)] == ["7.0 False", "7.0 True"]
