"""`python -m qwenvl_jax.train` as a user types it: tables of --dry_run, and one sentence for every mistake."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.commands import assert_refused, run_commands

ROOT = Path(__file__).parents[2]
TINY = f"--config={ROOT / 'tests' / 'support' / 'tiny_config.py'}"

MISTAKES = {
    "unknown key": ([TINY, "--config.optimizer.peak_learning_rat=1"], "did you mean 'peak_learning_rate'"),
    "former name": (
        [TINY, "--config.data.global_batch_size=8"],
        "config.data.global_batch_size is now named config.data.rows_per_step; write that",
    ),
    "no such entry": ([TINY, "--config.data.mixture[7].weight=1"], "config.data.mixture has no entry 7"),
    "key of an entry": ([TINY, "--config.data.mixture[0].wait=1"], "config.data.mixture[0] has no key 'wait'"),
    "unknown group": ([TINY, "--config.optimzer.b1=1"], "config has no key 'optimzer'; did you mean 'optimizer'"),
    "unknown key, negated": ([TINY, "--noconfig.train.stepz"], "config.train has no key 'stepz'"),
    "key below a value": ([TINY, "--config.train.steps.x=1"], "config.train.steps has no key 'x'"),
    "not a number": ([TINY, "--config.train.steps=many"], "many"),
    "unknown flag": ([TINY, "--workdi=x"], "unknown flag --workdi; did you mean 'workdir'"),
    "no config": (["--workdir=x"], "--config is missing"),
    "override without config": (["--config.train.steps=3"], "--config is missing"),
    "no such file": (["--config=configs/nothing.py"], "configs/nothing.py cannot be loaded"),
    "no such mesh": (["--config=configs/stage1_pretrain.py:mesh=v9"], "the mesh 'v9' is not one of cpu, gpu"),
    "arguments without names": (
        ["--config=configs/stage2_multitask.py:v5p,gs://b/data,gs://b/runs"],
        "write --config=configs/stage2_multitask.py:mesh=v5p,data=gs://b/data,runs=gs://b/runs",
    ),
    "unknown argument": (["--config=configs/stage2_multitask.py:mseh=v5p"], "did you mean 'mesh'?"),
    "no workdir": ([TINY], "--workdir is missing"),
    "stray argument": ([TINY, "steps=3"], "unexpected argument 'steps=3'"),
    "bad range": ([TINY, "--config.train.steps=0"], "config.train.steps must be positive"),
    "bad mesh": ([TINY, "--workdir={tmp}/w", "--config.mesh.data=3"], "devices"),
    "rows over the mesh": (
        [TINY, "--workdir={tmp}/w", "--config.data.accumulation=4"],
        "a microbatch of 2 rows (config.data.rows_per_step / accumulation) cannot be split over",
    ),
    "heads over the mesh": (
        [TINY, "--workdir={tmp}/w", "--config.mesh.data=1", "--config.mesh.tensor=4"],
        "config.mesh.tensor 4 does not divide the attention heads of every tower (vit 2, resampler 2, decoder 2)",
    ),
    "width over the mesh": (
        [TINY, "--workdir={tmp}/w", "--config.mesh.data=1", "--config.mesh.fsdp=4", "--config.model.vit.width=34"],
        "cannot be split 4 ways over fsdp along its axis of 34",
    ),
    "nothing split": (
        [TINY, "--workdir={tmp}/w", "--config.mesh.max_replicated_bytes=1000"],
        "is held whole by every device",
    ),
    "no such kernel": (
        [TINY, "--workdir={tmp}/w", "--config.compute.attention=splash"],
        "attention 'splash' does not run on the backend 'cpu'",
    ),
    "no such memory": ([TINY, "--config.optimizer.moments_memory=host"], "which is not one of device, pinned_host"),
    "streams do not divide": ([TINY, "--config.data.streams=2"], "must divide the 1 image groups"),
    "rows do not divide": ([TINY, "--config.data.accumulation=3"], "multiple of"),
    "no vocabulary": ([TINY + ":{tmp}/none", "--workdir={tmp}/w"], "none/tiny.model"),
    "no start": ([TINY, "--workdir={tmp}/w", "--config.init.vit={tmp}/none"], "none"),
}


def test_mistakes_end_with_one_sentence_and_exit_code_2(tmp_path: Path) -> None:
    lines = [[argument.replace("{tmp}", str(tmp_path)) for argument in line] for line, _ in MISTAKES.values()]
    devices = {"XLA_FLAGS": "--xla_force_host_platform_device_count=4", "JAX_PLATFORMS": "cpu"}
    answers = run_commands("qwenvl_jax.train", lines, environment=devices)
    for answer, (_, words) in zip(answers, MISTAKES.values(), strict=True):
        assert_refused(answer, words)
    assert not list(tmp_path.rglob("*.json")), "a refused run must leave nothing"


def test_dry_run_of_the_full_model_prints_its_tables() -> None:
    run = subprocess.run(
        [sys.executable, "-m", "qwenvl_jax.train", "--config=configs/stage1_pretrain.py:mesh=v5p", "--dry_run"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    assert run.stderr == ""
    text = run.stdout
    for words in ("9,656,935,168", "1,842,770,688", "7,721,324,544", "14.4 GiB bfloat16", "vit block 47", "30,720"):
        assert words in text, words
    # 2e-4 at the top block, 2e-4 * 0.95^47 at the lowest; 280 of 1417.4 million pairs from LAION-en.
    assert "2.000e-04" in text and "1.795e-05" in text and "19.75%" in text
    assert re.search(r"decoder .*openclip|qwen_7b .*not there yet", text)


@pytest.mark.parametrize("stage", ["stage2_multitask", "stage3_sft"])
def test_dry_run_of_the_other_stages(stage: str, capsys: pytest.CaptureFixture[str]) -> None:
    import importlib

    from qwenvl_jax.checkpoint.restore import check_init
    from qwenvl_jax.config import load_config
    from qwenvl_jax.runtime import log
    from qwenvl_jax.training import summary
    from qwenvl_jax.training.state import abstract_state

    values = importlib.import_module(f"configs.{stage}").get_config()
    config = load_config(values)
    log.console.cache_clear()
    summary.show(config, check_init(config, missing_ok=True), abstract_state(config))
    text = capsys.readouterr().out
    trainable = {"stage2_multitask": "9,655,886,592", "stage3_sft": "7,796,330,496"}[stage]
    assert trainable in text and "9,656,935,168" in text
    log.console.cache_clear()


@pytest.mark.parametrize("seconds", ["soon", "nan"])
def test_a_patience_that_is_no_number_is_said_before_anything_can_fail(seconds: str) -> None:
    environment = {**os.environ, "QWENVL_STORAGE_PATIENCE": seconds}
    run = subprocess.run(
        [sys.executable, "-m", "qwenvl_jax.train", TINY, "--dry_run"],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert (run.returncode, run.stderr.count("\n")) == (2, 1)
    assert f"QWENVL_STORAGE_PATIENCE is {seconds!r}; it must be a number of seconds" in run.stderr
