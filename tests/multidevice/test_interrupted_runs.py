"""Signals that reach a run of one or two processes at awkward moments: real processes of the training command."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
from etils import epath

from qwenvl_jax.checkpoint import lineage
from qwenvl_jax.checkpoint.steps import finished_steps, temporary_of
from qwenvl_jax.runtime import artifacts
from tests.checkpoint.saved_run import lines
from tests.runtime.processes import FOREIGN, joined

ROOT = Path(__file__).parents[2]

# The main of training. With TEST_COMPILE, the first step takes so many seconds within the C library, as a compiler
# does; with TEST_SAVE, the end of every save is held up as by a slow disk; with TEST_READ, the reader hangs at a batch;
# with TEST_EVALUATE, the state is evaluated, after this step for minutes.
MAIN = """
import ctypes, itertools, os, time
from orbax.checkpoint._src.checkpointers import async_checkpointer
from qwenvl_jax import train
from qwenvl_jax.training import loop
finish, make, fetch = async_checkpointer._on_commit_callback, loop.make_train_step, loop.put_batch
def finish_slowly(*arguments):
    time.sleep(float(os.environ.get("TEST_SAVE", "0")))
    return finish(*arguments)
def make_slowly(*arguments):
    step = make(*arguments)
    def first(*values):
        if "TEST_COMPILE" in os.environ:
            print("compiling", flush=True)
            ctypes.CDLL(None).sleep(int(os.environ.pop("TEST_COMPILE")))
        return step(*values)
    return first
batches = itertools.count()
def read_slowly(*arguments):
    if next(batches) == int(os.environ.get("TEST_READ", "-1")):
        time.sleep(1000)
    return fetch(*arguments)
def evaluate_slowly(step, state):
    print(f"evaluating step {step}", flush=True)
    time.sleep(300 * (step == int(os.environ["TEST_EVALUATE"])))
    return {"figure": float(step)}
if "TEST_EVALUATE" in os.environ:
    train._observers = lambda: [lambda *of_run: evaluate_slowly]
async_checkpointer._on_commit_callback, loop.make_train_step = finish_slowly, make_slowly
loop.put_batch = read_slowly
train.commandline.run(train.main)
"""
ENDLESS = ("train.steps=100000", "train.checkpoint_every=100000", "train.log_every=1")
OF_TWO = ("data.image_groups=2", "data.streams=2", "mesh.data=2")


class Run:
    """One process of a run, in a process group with its decoders."""

    def __init__(self, workdir: Path, data: Path, *overrides: str, **variables: str) -> None:
        config = f"--config={ROOT / 'tests' / 'support' / 'tiny_config.py'}:{data}"
        command = [sys.executable, "-c", MAIN, config, f"--workdir={workdir}"]
        command += [f"--config.{override}" for override in (*ENDLESS, *overrides)]
        environment = {name: value for name, value in os.environ.items() if not name.startswith(FOREIGN)}
        environment |= {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"} | variables
        log = workdir.with_name(f"output{variables.get('JAX_PROCESS_ID', '')}.txt")
        with log.open("w") as file:
            self.process = subprocess.Popen(
                command, cwd=ROOT, env=environment, stdout=file, stderr=file, start_new_session=True
            )
        self._log = log

    @property
    def output(self) -> str:
        return self._log.read_text()

    def wait_until(self, there: Callable[[], bool], seconds: float = 400) -> None:
        deadline = time.monotonic() + seconds
        while not there():
            assert self.process.poll() is None and time.monotonic() < deadline, self.output
            time.sleep(0.05)

    def signal_group(self, number: signal.Signals) -> None:
        os.killpg(self.process.pid, number)

    def ended(self, seconds: float) -> int:
        """Its exit code, once it and all processes of its group have ended."""
        code = self.process.wait(seconds)
        deadline = time.monotonic() + 10
        while time.monotonic() < deadline:
            try:
                os.killpg(self.process.pid, 0)
            except ProcessLookupError:
                return code
            time.sleep(0.1)
        raise AssertionError(f"processes of the group are left: {self.output}")


@pytest.fixture
def runs() -> Iterator[list[Run]]:
    """Runs that are killed when the test ends."""
    started: list[Run] = []
    yield started
    for run in started:
        try:
            run.signal_group(signal.SIGKILL)
        except ProcessLookupError:
            continue
        run.process.wait()


def two(runs: list[Run], workdir: Path, data: Path, *overrides: str, **variables: str) -> tuple[Run, Run]:
    common = {"JAX_CPU_COLLECTIVES_IMPLEMENTATION": "gloo", "XLA_FLAGS": "--xla_backend_optimization_level=0"}
    runs += [Run(workdir, data, *OF_TWO, *overrides, **of_one) for of_one in joined(2, **common, **variables)]
    return runs[-2], runs[-1]


def steps_done(workdir: Path, count: int) -> bool:
    return (workdir / "metrics.jsonl").exists() and (workdir / "metrics.jsonl").read_text().count("\n") > count


def being_written(workdir: Path) -> bool:
    return any((workdir / "checkpoints").glob("*.orbax-checkpoint-tmp"))


@pytest.mark.slow
def test_sigterm_during_compilation_ends_all_at_once(tmp_path: Path, tiny_data: Path, runs: list[Run]) -> None:
    workdir = tmp_path / "run"
    first, second = two(runs, workdir, tiny_data, TEST_COMPILE="300")
    for run in (first, second):
        run.wait_until(lambda run=run: "compiling" in run.output)  # type: ignore[misc]
    second.signal_group(signal.SIGTERM)
    assert second.ended(20) == -signal.SIGTERM  # 143 for a shell
    assert first.ended(40) == 42
    assert re.search(r"error: process 1 \(host .+\) ended without a word", first.output), first.output
    assert finished_steps(workdir) == []


@pytest.mark.slow
def test_sigterms_to_all_groups_while_a_checkpoint_is_written(tmp_path: Path, tiny_data: Path, runs: list[Run]) -> None:
    """Two signals to every process and its decoders: the checkpoint is whole, and both end with 143."""
    workdir = tmp_path / "run"
    both = two(runs, workdir, tiny_data, "data.decode_workers=1", TEST_SAVE="3")
    both[0].wait_until(lambda: steps_done(workdir, 3))
    for run in both:
        run.signal_group(signal.SIGTERM)
    both[0].wait_until(lambda: being_written(workdir))
    for run in both:
        run.signal_group(signal.SIGTERM)
    assert being_written(workdir)
    assert [run.ended(120) for run in both] == [143, 143], [run.output for run in both]
    (step,) = finished_steps(workdir)
    assert f"stopped by SIGTERM after step {step}; run the same command again" in both[0].output


@pytest.mark.slow
def test_a_stopped_host_is_named_and_the_stacks_are_kept(tmp_path: Path, tiny_data: Path, runs: list[Run]) -> None:
    workdir = tmp_path / "run"
    first, second = two(runs, workdir, tiny_data, QWENVL_SILENCE_SECONDS="8")
    first.wait_until(lambda: steps_done(workdir, 3))
    second.signal_group(signal.SIGSTOP)
    assert first.ended(60) == 42, first.output
    assert re.search(r"error: process 1 \(host .+\) has not answered for 8 s; it was stopped", first.output)
    (stacks,) = (workdir / "stacks").iterdir()
    assert stacks.name.endswith("_process0.txt")
    assert "thread MainThread" in stacks.read_text() and "in train" in stacks.read_text()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("hanging", "sentence", "function", "saved"),
    [
        (
            {"TEST_READ": "9"},
            r"no step has ended for \d+ s after step 8, in the phase 'next batch'",
            "read_slowly",
            [8],
        ),
        ({"TEST_SAVE": "1000"}, r"the checkpoint of step 4 is not written after \d+ s", "finish_slowly", []),
    ],
)
def test_a_reader_or_a_save_that_hangs_ends_a_run_of_one_process(
    tmp_path: Path,
    tiny_data: Path,
    runs: list[Run],
    hanging: dict[str, str],
    sentence: str,
    function: str,
    saved: list[int],
) -> None:
    workdir = tmp_path / "run"
    limits = ("least_seconds=10.0", "factor=2.0", "first_checkpoint_seconds=12.0")
    settings = (*(f"watchdog.{each}" for each in limits), "train.checkpoint_every=4")
    runs.append(Run(workdir, tiny_data, *settings, **hanging, XLA_FLAGS="--xla_backend_optimization_level=0"))
    assert runs[0].ended(400) == 42, runs[0].output
    assert re.search(f"error: the run hangs: {sentence}; the stacks of all threads are in", runs[0].output)
    (stacks,) = (workdir / "stacks").iterdir()
    assert f"in {function}" in stacks.read_text()
    assert finished_steps(workdir)[-1:] == saved


@pytest.mark.slow
def test_a_local_disk_that_blocks_ends_all_processes(tmp_path: Path, tiny_data: Path, runs: list[Run]) -> None:
    """A pipe that nobody reads, in the place of a file, blocks its writer as a disk does that does not answer."""
    workdir = tmp_path / "run"
    limits = ("watchdog.least_seconds=10.0", "watchdog.factor=2.0", "watchdog.first_checkpoint_seconds=10.0")
    local = (f"checkpoint.local={tmp_path / 'disk'}", "checkpoint.local_every=60")
    both = two(runs, workdir, tiny_data, *limits, *local)
    both[0].wait_until(lambda: steps_done(workdir, 2))
    name, _ = lineage.identity(workdir)
    unfinished = temporary_of(epath.Path(tmp_path / f"disk/run_{name}/process_1/checkpoints/60"))
    unfinished.mkdir(parents=True)
    os.mkfifo(unfinished / "0.bin")
    assert [run.ended(120) for run in both] == [42, 42], [run.output for run in both]
    for run in both:
        assert re.search(
            r"error: the run hangs: the local checkpoint of step 60 is not written after \d+ s on process 1", run.output
        )
    stacks = sorted((workdir / "stacks").iterdir())
    assert [path.name[-12:-4] for path in stacks] == ["process0", "process1"]
    assert "in write_leaf" in stacks[1].read_text() and "in write_leaf" not in stacks[0].read_text()


@pytest.mark.slow
@pytest.mark.parametrize(("processes", "step"), [(1, 4), (2, 2)])
def test_sigterm_in_an_evaluation_loses_nothing(
    tmp_path: Path, tiny_data: Path, runs: list[Run], processes: int, step: int
) -> None:
    """Nor after the last step: the next start repeats the evaluation, and no step."""
    workdir = tmp_path / "run"
    settings = ("train.steps=4", "evaluation.every=2", "optimizer.warmup_steps=1")

    def start(slow_step: int) -> Sequence[Run]:
        if processes == 2:
            return two(runs, workdir, tiny_data, *settings, TEST_EVALUATE=str(slow_step))
        runs.append(Run(workdir, tiny_data, *settings, TEST_EVALUATE=str(slow_step)))
        return runs[-1:]

    stopped = start(step)
    for run in stopped:
        run.wait_until(lambda run=run: f"evaluating step {step}" in run.output)  # type: ignore[misc]
    for run in stopped:
        run.signal_group(signal.SIGTERM)
    assert [run.ended(60) for run in stopped] == [143] * processes, [run.output for run in stopped]
    assert f"stopped by SIGTERM in the evaluation after step {step}, whose state is saved" in stopped[0].output
    assert finished_steps(workdir)[-1] == step
    continued = start(0)
    assert [run.ended(400) for run in continued] == [0] * processes, [run.output for run in continued]
    assert [line["step"] for line in lines(workdir)] == [1, 2, 3, 4]
    assert [json.loads(line)["step"] for line in (workdir / "evaluations.jsonl").read_text().splitlines()] == [2, 4]


@pytest.mark.slow
def test_two_processes_that_overflow_end_with_one_sentence_and_their_batch_is_replayed_on_one(
    tmp_path: Path, tiny_data: Path, runs: list[Run]
) -> None:
    workdir = tmp_path / "run"
    rules = ("optimizer.peak_learning_rate=1e20", "anomalies.max_in_a_row=4", "mesh.fsdp=1")
    for run in two(runs, workdir, tiny_data, *rules):
        assert run.ended(400) == 2, run.output
        assert run.output.count("error: 4 steps in a row up to step 5 were left out") == 1, run.output
    (checkpoint,) = finished_steps(workdir)  # after the step that had begun meanwhile
    assert checkpoint in (5, 6)
    assert artifacts.read_json(workdir / "anomalies/step_5/anomaly.json")["updates"] == 1

    def replay(step: int) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "qwenvl_jax.replay", f"--workdir={workdir}", f"--step={step}"]
        environment = {**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)}
        return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)

    shown = replay(5)
    assert shown.returncode == 0, shown.stderr[-2000:]
    assert "exactly its parameters" in shown.stdout and "loss nan (recorded nan)" in shown.stdout
    assert "first operation that is not finite: " in shown.stdout and "is not finite: none" not in shown.stdout
    missing = replay(1)
    assert missing.returncode == 2 and "steps that were written: 2, 3, 4, 5" in missing.stderr
