"""TensorStore, which keeps the arrays of checkpoints, outlives the faults of an object store."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from tests.support.faulty_gcs import faulty, told
from tests.support.gcs_server import environment

_PROGRAM = """
import os, sys
import qwenvl_jax.runtime.storage
assert os.environ["TENSORSTORE_CURL_LOW_SPEED_TIME_SECONDS"] == "60"
os.environ["TENSORSTORE_CURL_LOW_SPEED_TIME_SECONDS"] = "2"  # the test has less time
import tensorstore as ts
for number in range(8):
    store = ts.KvStore.open(f"{sys.argv[1]}/{number}/").result()
    store.write("a", bytes(100_000)).result()
    assert store.read("a").result().value == bytes(100_000)
print("done")
"""


def _clean() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if not name.startswith("TENSORSTORE_CURL")}


@pytest.mark.slow
@pytest.mark.parametrize("kinds", ["408,429,500,502,503,504,reset,lost,short", "hang"])
def test_arrays_under_faults(gcs: str, gcs_server: str, kinds: str) -> None:
    with faulty(gcs_server, rate=0.2, seed=1, kinds=kinds) as url:
        program = [sys.executable, "-c", _PROGRAM, gcs]
        run = subprocess.run(program, env={**_clean(), **environment(url)}, capture_output=True, text=True, timeout=200)
        assert run.stdout == "done\n", run.stderr
        assert sum(told(url)["faults"].values())
