"""A sweep by the command on one device, on eight, and on two processes, killed and resumed: the same bytes."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from qwenvl_jax.checkpoint import imported
from qwenvl_jax.config import MeshConfig
from qwenvl_jax.data.record_writer import write_records
from qwenvl_jax.evaluation.config import BenchmarkConfig, CheckpointConfig, EvalConfig
from qwenvl_jax.models import qwen_vl
from tests.evaluation.samples import noise, record_of
from tests.support import tiny_run
from tests.support.ports import free_port

ROOT = Path(__file__).parents[2]
BENCHMARKS = ("vqav2_val", "nocaps_val", "scienceqa_img_test")


def records(count: int, first: int = 0) -> list[Any]:
    """Pictures with one to three questions; the fourth cannot be decoded."""
    made = []
    for index in range(first, first + count):
        questions = [
            {
                "id": f"{index}-{number}",
                "text": f"What is {'so ' * (number + index % 5)}it?",
                "answers": ["red", "net"],
                "options": ["red", "green", "a blue one"],
                "right": index % 3,
            }
            for number in range(1 + index % 3)
        ]
        image = noise(index)[:300] if index == 3 else noise(index)
        made.append(record_of("evaluation", {"questions": questions}, name=f"picture-{index}", image=image))
    return made


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, EvalConfig]:
    """A checkpoint, records, and the config that asks it for them."""
    folder = tmp_path_factory.mktemp("sweep")
    config = tiny_run.make_config(tiny_run.write_data(folder / "data"))
    rng = np.random.default_rng(3)
    fresh = qwen_vl.init_params(config.model, jax.random.key(0))
    params = jax.tree.map(lambda leaf: leaf + 0.1 * rng.normal(size=leaf.shape).astype(np.float32), fresh)
    imported.save_params(folder / "run", params, config)
    write_records(folder / "asked", {"val": records(17), "test": records(17)}, name="asked")
    write_records(folder / "shown", {"train": records(9, 100)}, name="shown")
    asked = tuple(
        BenchmarkConfig(name, str(folder / "asked"), max_new_tokens=12, min_new_tokens=1) for name in BENCHMARKS[:2]
    )
    few_shot = dataclasses.replace(
        asked[0], label="two_shots", shots=2, exemplars=str(folder / "shown"), exemplar_split="train"
    )
    compared = BenchmarkConfig(BENCHMARKS[2], str(folder / "asked"))
    return folder, EvalConfig(
        (CheckpointConfig("a", str(folder / "run"), 28),),
        config.tokenizer,
        (*asked, few_shot, compared),
        batch_size=1,
        prompt_style="released",
        output="",
    )


def start(path: Path, devices: int, **variables: str) -> subprocess.Popen[str]:
    flags = f"--xla_force_host_platform_device_count={devices} --xla_backend_optimization_level=0"
    environment = os.environ | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)} | variables
    command = [sys.executable, "-m", "qwenvl_jax.evaluate", f"--config=tests/multidevice/sweep_config.py:path={path}"]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, env=environment, cwd=ROOT, text=True, stdout=pipe, stderr=subprocess.STDOUT)


def start_two(path: Path, devices: int) -> list[subprocess.Popen[str]]:
    variables = {"JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{free_port()}", "JAX_NUM_PROCESSES": "2"}
    return [start(path, devices, **variables, JAX_PROCESS_ID=str(index)) for index in range(2)]


def write_settings(folder: Path, config: EvalConfig, name: str, batch: int, mesh: tuple[int, int, int]) -> Path:
    data, fsdp, tensor = mesh
    changed = dataclasses.replace(
        config, batch_size=batch, output=str(folder / name), mesh=MeshConfig(data, fsdp, tensor, 1, 0)
    )
    path = folder / f"{name}.json"
    path.write_text(json.dumps(dataclasses.asdict(changed)))
    return path


def finish(*processes: subprocess.Popen[str]) -> None:
    for process in processes:
        output, _ = process.communicate(timeout=500)
        assert process.returncode == 0, output[-3000:]


def contents(output: Path) -> dict[str, bytes]:
    """All rows, submissions and scores. Likelihoods lose the digits that rounding changes."""
    files = [*output.rglob("*.jsonl"), *(output / "submissions").rglob("*.*"), output / "scores.json"]
    return {str(path.relative_to(output)): rounded(path.read_bytes()) for path in files}


def rounded(content: bytes) -> bytes:
    """Likelihoods with four digits."""
    return re.sub(rb"(?<=[\[ ])-[0-9.]+(?=[],])", lambda number: b"%.4f" % float(number.group()), content)


@pytest.mark.slow
def test_a_sweep_does_not_depend_on_batch_devices_processes_and_kills(prepared: tuple[Path, EvalConfig]) -> None:
    folder, config = prepared
    finish(start(write_settings(folder, config, "alone", 1, (1, 1, 1)), 1))
    alone = contents(folder / "alone")
    rows = [json.loads(line) for line in alone["predictions/a/vqav2_val.jsonl"].splitlines()]
    assert len(rows) == 33 and len({row["prediction"] for row in rows}) > 5
    assert [row["id"] for row in rows if "unanswered" in row] == ["3-0"]
    assert len(alone) == 5 and not list(folder.glob("alone/predictions/a/*.parts"))

    finish(start(write_settings(folder, config, "eight", 8, (2, 2, 2)), 8))
    assert contents(folder / "eight") == alone

    several = write_settings(folder, config, "several", 32, (-1, 1, 2))
    running = start_two(several, 4)
    parts = folder / "several/predictions/a"
    until = time.monotonic() + 400
    while not list(parts.glob("*/*/*.json")):  # a part, or a finished benchmark
        assert time.monotonic() < until and all(process.poll() is None for process in running)
        time.sleep(0.05)
        if list(parts.glob("*.json")):
            break
    for process in running:
        process.send_signal(signal.SIGKILL)
        process.communicate()
    finish(start(several, 2))  # one process goes on
    assert contents(folder / "several") == alone

    finish(*start_two(write_settings(folder, config, "two", 3, (-1, 1, 1)), 2))
    assert contents(folder / "two") == alone
