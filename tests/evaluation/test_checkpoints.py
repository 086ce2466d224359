"""Which checkpoint a sweep and a chat use, and what happens if it is removed or damaged."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from qwenvl_jax.checkpoint import lineage, restore
from qwenvl_jax.checkpoint.manager import Checkpoints, save_frozen
from qwenvl_jax.config import TOWERS, Config
from qwenvl_jax.data.tokenizer import vocabulary_digest
from qwenvl_jax.evaluation import placement
from qwenvl_jax.evaluation.config import BenchmarkConfig, EvalConfig
from qwenvl_jax.evaluation.report.page import write_report
from qwenvl_jax.evaluation.sweep import sweep
from qwenvl_jax.models.qwen_vl import Params
from qwenvl_jax.params import split
from qwenvl_jax.runtime import storage
from qwenvl_jax.runtime.errors import UserError
from tests.evaluation import samples

ROOT = Path(__file__).parents[2]


def add_step(folder: Path, config: Config, params: Params, step: int) -> None:
    """The parameters of step n are `params` times 1 + n / 100."""
    trainable, frozen = split(params, config.train.trainable)
    if not (folder / "frozen").exists():
        lineage.write(folder, config, dict.fromkeys(TOWERS))
        save_frozen(folder, frozen)
    with Checkpoints(folder, keep=5) as checkpoints:
        checkpoints.save(
            step, jax.tree.map(lambda leaf: leaf * (1 + step / 100), trainable), {"count": jnp.zeros(())}, {}
        )
    with (folder / "metrics.jsonl").open("a") as file:
        file.write(json.dumps({"step": step, "loss": 1.0}) + "\n")


@pytest.fixture
def run(params: Params, config: Config, tmp_path: Path) -> Path:
    for step in (3, 40):
        add_step(tmp_path / "run", config, params, step)
    return tmp_path / "run"


def settings(config: Config, run: Path | str, tiny_data: Path, output: Path | str, *, step: int = -1) -> EvalConfig:
    task = BenchmarkConfig("vqa", str(tiny_data / "vqa"), "train", 8, 6, 1)
    return samples.eval_config(config, Path(run), output, task, step=step, batch_size=8)


def answers(output: Path) -> str:
    return (output / "predictions/a/vqa.jsonl").read_text()


def test_a_step_is_evaluated_and_stays_so_while_its_run_goes_on(
    run: Path, config: Config, params: Params, tiny_data: Path, tmp_path: Path
) -> None:
    """The default is the newest; the figures of a named step stand whatever the run logs afterwards."""
    named = settings(config, run, tiny_data, tmp_path / "three", step=3)
    sweep(named)
    alone = tmp_path / "alone"
    add_step(alone, config, params, 3)
    sweep(settings(config, alone, tiny_data, tmp_path / "only"))
    assert answers(tmp_path / "three") == answers(tmp_path / "only")
    newest = settings(config, run, tiny_data, tmp_path / "newest")
    sweep(newest)
    assert answers(tmp_path / "newest") != answers(tmp_path / "three")
    before = (tmp_path / "three/predictions/a/vqa.json").stat().st_mtime_ns
    add_step(run, config, params, 60)
    sweep(named)
    assert (tmp_path / "three/predictions/a/vqa.json").stat().st_mtime_ns == before
    mark = json.loads((tmp_path / "newest/predictions/a/vqa.json").read_text())["fingerprint"]
    sweep(newest)
    assert json.loads((tmp_path / "newest/predictions/a/vqa.json").read_text())["fingerprint"] != mark
    with pytest.raises(UserError, match="no checkpoint of step 5; its newest is 60"):
        sweep(settings(config, run, tiny_data, tmp_path / "five", step=5))


def test_minus_one_is_the_newest(run: Path) -> None:
    newest = max(int(path.name) for path in (run / "checkpoints").iterdir())
    assert restore.find_starting_point(run).step == newest
    assert restore.find_starting_point(run, -1).step == newest
    for step in (-2, newest + 1):
        with pytest.raises(UserError, match=f"no checkpoint of step {step}; its newest is {newest}"):
            restore.find_starting_point(run, step)


def test_a_checkpoint_that_is_removed_while_it_is_read_is_named(run: Path) -> None:
    source = restore.find_starting_point(run, 3)
    storage.remove(run / "checkpoints/3")
    with pytest.raises(UserError, match=r"step 3 of .*run was removed while it was read, because the run there keeps"):
        placement.load(source)


@pytest.mark.slow
def test_the_chat_takes_a_step(run: Path, config: Config, tiny_data: Path) -> None:
    def said(*flags: str) -> str:
        command = [sys.executable, "-m", "qwenvl_jax.chat", f"--workdir={run}", "--max_new_tokens=8", *flags]
        done = subprocess.run(command, cwd=ROOT, input=b"What?\n", capture_output=True)
        return (done.stdout + done.stderr).decode()

    newest, third = said(), said("--step=3")
    assert f"step 40 of {run}" in newest and f"step 3 of {run}" in third
    absent = said("--step=4")
    assert absent.startswith("error: ") and "no checkpoint of step 4" in absent


def test_a_home_in_any_path_is_found(
    run: Path, config: Config, tiny_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "data").symlink_to(tiny_data)
    at_home = settings(config, "~/run", Path("~/data"), "~/output")
    tokenizer = dataclasses.replace(config.tokenizer, path="~/data/tiny.model")
    scores = sweep(dataclasses.replace(at_home, tokenizer=tokenizer))
    assert json.loads((tmp_path / "output/scores.json").read_text()) == scores
    assert write_report("~/output") == storage.path(tmp_path / "output/report.html")


def test_a_damaged_checkpoint_is_named(run: Path, config: Config, tiny_data: Path, tmp_path: Path) -> None:
    """With the step that could be named instead, which then is evaluated."""
    for path in (run / "checkpoints/40/params").rglob("d/*"):
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(
        UserError, match=r"checkpoint of step 40 of .* is damaged .*; the newest whole one is of step 3"
    ):
        sweep(settings(config, run, tiny_data, tmp_path / "output"))
    assert not (tmp_path / "output/scores.json").exists()
    sweep(settings(config, run, tiny_data, tmp_path / "output", step=3))


def test_another_vocabulary_and_broken_patches_are_refused_before_anything_is_read(
    run: Path, config: Config, tiny_data: Path, tmp_path: Path
) -> None:
    """Of the same size, another vocabulary would give other words to every row."""
    written = json.loads((run / "lineage.json").read_text())
    (run / "lineage.json").write_text(json.dumps({**written, lineage.VOCABULARY: vocabulary_digest(config.tokenizer)}))
    asked = settings(config, run, tiny_data, tmp_path / "output")
    sweep(asked)
    changed = bytearray((tiny_data / "tiny.model").read_bytes())
    start = changed.index("▁red".encode())
    changed[start : start + len("▁red".encode())] = "▁rad".encode()
    (tmp_path / "other.model").write_bytes(changed)
    other = dataclasses.replace(config.tokenizer, path=str(tmp_path / "other.model"))
    with pytest.raises(UserError, match=r"was trained with another vocabulary .* name that one"):
        sweep(dataclasses.replace(asked, tokenizer=other))
    item = dataclasses.replace(asked.checkpoints[0], image_size=30)
    with pytest.raises(UserError, match=r"images of 30 pixels cannot be cut into the patches of .* trained with 28"):
        sweep(dataclasses.replace(asked, checkpoints=(item,)))
