"""A run of two processes with four devices each is the run of one process with one device, up to rounding."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from qwenvl_jax.checkpoint.restore import load_params
from qwenvl_jax.checkpoint.steps import finished_steps
from qwenvl_jax.config import TokenizerConfig
from qwenvl_jax.data.record_writer import write_records
from qwenvl_jax.evaluation.config import BenchmarkConfig, CheckpointConfig, EvalConfig
from qwenvl_jax.evaluation.sweep import sweep
from qwenvl_jax.params import flatten
from tests.checkpoint.saved_run import assert_same_run
from tests.multidevice.test_sweep import records, rounded
from tests.support.ports import free_port

ROOT = Path(__file__).parents[2]
CONFIG = ROOT / "tests" / "support" / "tiny_config.py"
MESH = ("mesh.data=2", "mesh.fsdp=2", "mesh.tensor=2")


def start(
    workdir: Path, data: Path, *overrides: str, flags: tuple[str, ...] = (), **variables: str
) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "qwenvl_jax.train", f"--config={CONFIG}:{data}", f"--workdir={workdir}"]
    steps = ("train.steps=6", "train.checkpoint_every=3", "train.log_every=1")
    parts = ("data.image_groups=4", "data.streams=4", "data.decode_workers=1")  # each process builds two streams
    overrides = (*steps, *parts, *overrides)
    command += [f"--config.{override}" for override in overrides] + list(flags)
    environment = os.environ | {"JAX_PLATFORMS": "cpu"} | variables
    return subprocess.Popen(
        command, cwd=ROOT, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )


def finish(processes: list[subprocess.Popen[str]]) -> None:
    for process in processes:
        output, _ = process.communicate(timeout=300)
        assert process.returncode == 0, output[-3000:]


def two_processes(workdir: Path, data: Path, *overrides: str, flags: tuple[str, ...] = ()) -> None:
    address = f"127.0.0.1:{free_port()}"
    variables = {
        "XLA_FLAGS": "--xla_force_host_platform_device_count=4 --xla_backend_optimization_level=0",
        "JAX_CPU_COLLECTIVES_IMPLEMENTATION": "gloo",
        "JAX_COORDINATOR_ADDRESS": address,
        "JAX_NUM_PROCESSES": "2",
    }
    finish(
        [start(workdir, data, *overrides, flags=flags, **variables, JAX_PROCESS_ID=str(index)) for index in range(2)]
    )


def losses(workdir: Path) -> list[float]:
    rows = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return [row["loss"] for row in rows if "loss" in row]


@pytest.mark.slow
def test_two_processes_train_what_one_does_and_one_continues_what_two_began(tmp_path: Path, tiny_data: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    finish([start(one, tiny_data)])
    # No checkpoint by number of steps: the processes agree on those that the clock asks for.
    two_processes(two, tiny_data, *MESH, "train.checkpoint_every=100", "checkpoint.minutes=0.0001")
    assert len(finished_steps(two)) > 1 and finished_steps(two)[0] < 6
    assert len(losses(one)) == 6
    np.testing.assert_allclose(losses(two), losses(one), rtol=1e-4)
    ours, theirs = flatten(load_params(two)[0]), flatten(load_params(one)[0])
    for path, leaf in theirs.items():
        np.testing.assert_allclose(ours[path], leaf, atol=2e-3, err_msg="/".join(path))

    # The last checkpoint taken away, one process goes on from the middle of what two did.
    shutil.rmtree(two / "checkpoints" / "6")
    finish([start(two, tiny_data)])
    again = flatten(load_params(two)[0])
    for path, leaf in theirs.items():
        np.testing.assert_allclose(again[path], leaf, atol=2e-3, err_msg="/".join(path))


@pytest.mark.slow
def test_two_processes_with_benchmarks_train_as_without_and_answer_as_a_sweep(tmp_path: Path, tiny_data: Path) -> None:
    """Training is equal to the bit; answers are those of one process that asks the finished checkpoint."""
    write_records(tmp_path / "asked", {"val": records(9), "test": records(9)}, name="asked")
    asked = tuple(
        BenchmarkConfig(name, str(tmp_path / "asked"), max_new_tokens=8, min_new_tokens=1)
        for name in ("vqav2_val", "nocaps_val")
    )
    compared = BenchmarkConfig("scienceqa_img_test", str(tmp_path / "asked"))
    tokenizer = TokenizerConfig("sentencepiece", str(tiny_data / "tiny.model"))
    checkpoint = CheckpointConfig("last", str(tmp_path / "with"), 28, 6)
    settings = EvalConfig((checkpoint,), tokenizer, (*asked, compared), 3, "released", str(tmp_path / "sweep"))
    (tmp_path / "evaluation.json").write_text(json.dumps(dataclasses.asdict(settings)))
    flag = f"--benchmarks=tests/multidevice/sweep_config.py:path={tmp_path / 'evaluation.json'}"
    two_processes(tmp_path / "without", tiny_data, *MESH)
    two_processes(tmp_path / "with", tiny_data, *MESH, "evaluation.every=3", flags=(flag,))
    assert_same_run(tmp_path / "without", tmp_path / "with", 6)

    scores = sweep(settings)["last"]
    lines = [json.loads(line) for line in (tmp_path / "with/evaluations.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [3, 6]
    assert {key: lines[1][key] for key in scores if key != "unanswered"} == {
        key: value for key, value in scores.items() if key != "unanswered"
    }
    for item in settings.benchmarks:
        together = (tmp_path / f"with/answers/00000006/{item.label}.jsonl").read_bytes()
        alone = (tmp_path / f"sweep/predictions/last/{item.label}.jsonl").read_bytes()
        assert rounded(together) == rounded(alone), item.label
