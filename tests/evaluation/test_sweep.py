"""A sweep over one checkpoint and the report made from it."""

from __future__ import annotations

import dataclasses
import html.parser
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from qwenvl_jax.config import Config
from qwenvl_jax.data.record_writer import write_records
from qwenvl_jax.evaluation.config import BenchmarkConfig, CheckpointConfig, EvalConfig
from qwenvl_jax.evaluation.report.page import write_report
from qwenvl_jax.evaluation.sweep import sweep
from qwenvl_jax.runtime import folder_lock
from qwenvl_jax.runtime.errors import UserError
from tests.evaluation.samples import record_of


def eval_config(config: Config, checkpoint: Path, tiny_data: Path, output: Path) -> EvalConfig:
    tasks = tuple(BenchmarkConfig(name, str(tiny_data / name), "train", 5, 4, 1) for name in ("vqa", "caption"))
    return EvalConfig(
        checkpoints=(
            CheckpointConfig("stage0_text", str(checkpoint), 28),
            CheckpointConfig("stage1_pretrain", str(checkpoint), 28),
        ),
        tokenizer=config.tokenizer,
        benchmarks=tasks,
        batch_size=5,
        prompt_style="training",
        output=str(output),
    )


class Swept(NamedTuple):
    """The folder, the config and the scores of a finished sweep."""

    output: Path
    settings: EvalConfig
    scores: dict[str, Any]


@pytest.fixture(scope="module")
def swept(config: Config, checkpoint: Path, tiny_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Swept:
    output = tmp_path_factory.mktemp("sweep")
    settings = eval_config(config, checkpoint, tiny_data, output)
    return Swept(output, settings, sweep(settings))


def test_scores_and_predictions_are_written(swept: Swept) -> None:
    output, _, scores = swept
    assert json.loads((output / "scores.json").read_text()) == scores
    assert set(scores) == {"stage0_text", "stage1_pretrain"}
    assert set(scores["stage0_text"]) == {"vqa_acc", "caption_cider_ptb"}
    assert scores["stage0_text"] == scores["stage1_pretrain"]  # the same checkpoint
    rows = [json.loads(line) for line in (output / "predictions/stage0_text/vqa.jsonl").read_text().splitlines()]
    assert [row["id"] for row in rows] == [f"vqa-{k}" for k in range(5)]
    assert all(row["prediction"] for row in rows)


def test_a_second_sweep_into_the_same_folder_is_refused(swept: Swept, tmp_path: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in swept.output.rglob("*")}
    with folder_lock.locked(swept.output, ""), pytest.raises(UserError, match="another process evaluates into"):
        sweep(swept.settings)
    assert before == {path: path.stat().st_mtime_ns for path in swept.output.rglob("*")}
    nowhere = (CheckpointConfig("stage0_text", str(tmp_path / "nowhere"), 28),)
    with pytest.raises(UserError, match="nowhere"):
        sweep(dataclasses.replace(swept.settings, output=str(tmp_path / "new"), checkpoints=nowhere))
    assert not (tmp_path / "new").exists()


def test_finished_tasks_are_kept_and_changed_ones_asked_again(swept: Swept) -> None:
    output, settings, scores = swept
    files = {name: output / f"predictions/stage0_text/{name}.jsonl" for name in ("vqa", "caption")}
    before = {name: path.stat().st_mtime_ns for name, path in files.items()}
    assert sweep(settings) == scores
    assert {name: path.stat().st_mtime_ns for name, path in files.items()} == before
    vqa, caption = settings.benchmarks
    changed = dataclasses.replace(settings, benchmarks=(dataclasses.replace(vqa, limit=4), caption))
    sweep(changed)
    assert files["vqa"].stat().st_mtime_ns != before["vqa"]
    assert files["caption"].stat().st_mtime_ns == before["caption"]
    sweep(settings)


def test_a_vocabulary_too_large_for_the_model_is_refused(swept: Swept) -> None:
    _, settings, _ = swept
    other = dataclasses.replace(settings, tokenizer=dataclasses.replace(settings.tokenizer, kind="qwen", path=""))
    with pytest.raises(UserError, match="151860 ids"):
        sweep(other)


def test_missing_records_and_checkpoints_are_named(swept: Swept, tmp_path: Path) -> None:
    _, settings, _ = swept
    gone = dataclasses.replace(settings.benchmarks[0], records=str(tmp_path / "gone"))
    with pytest.raises(UserError, match="gone"):
        sweep(dataclasses.replace(settings, benchmarks=(gone,)))
    absent = dataclasses.replace(settings.checkpoints[0], workdir=str(tmp_path / "absent"))
    with pytest.raises(UserError, match="absent"):
        sweep(dataclasses.replace(settings, checkpoints=(absent,)))


def test_a_clean_list_that_is_missing_is_named_before_anything_is_asked(swept: Swept, tmp_path: Path) -> None:
    _, settings, _ = swept
    records = [record_of("evaluation", {"questions": [{"id": "1", "text": "What?", "answers": ["net"]}]})]
    write_records(tmp_path / "asked", {"val": records}, name="asked")
    item = BenchmarkConfig("vqav2_val", str(tmp_path / "asked"), clean=str(tmp_path / "clean.json"))
    changed = dataclasses.replace(settings, benchmarks=(item,), output=str(tmp_path / "output"))
    with pytest.raises(UserError, match=r"clean\.json"):
        sweep(changed)
    assert not (tmp_path / "output").exists()


class _Balanced(html.parser.HTMLParser):
    """Checks that tags close in order, and collects addresses and text."""

    VOID = frozenset({"meta"})

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.addresses: list[str | None] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.addresses += [value for name, value in attrs if name in ("src", "href")]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.addresses += [value for name, value in attrs if name in ("src", "href")]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def test_the_report_is_one_sound_page_without_a_network(swept: Swept) -> None:
    output, _, _ = swept
    page = write_report(output).read_text()
    checker = _Balanced()
    checker.feed(page)
    assert checker.open == []
    addresses = [str(address) for address in checker.addresses]
    assert all(address.startswith(("data:image/", "#")) for address in addresses)
    assert not re.search(r"url\(|@import|<script", page)
    assert sum(address.startswith("data:") for address in addresses) == 10  # five pictures per task
    assert "What colour is it?" in checker.text and "1 · pretrain" in checker.text


def test_predictions_that_are_none_have_no_report(swept: Swept) -> None:
    output, _, _ = swept
    path = output / "predictions/stage1_pretrain/vqa.jsonl"
    whole = path.read_text()
    for broken in (whole[:-20], "[]\n", '{"no": "id"}\n'):
        path.write_text(broken)
        with pytest.raises(UserError, match=r"vqa\.jsonl is not what an evaluation writes; remove it and run"):
            write_report(output)
    path.write_text(whole)


def test_a_folder_without_an_evaluation_has_no_report(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"evaluation\.json"):
        write_report(tmp_path)


def test_a_wrong_command_ends_with_one_sentence(tmp_path: Path) -> None:
    run = subprocess.run(
        [sys.executable, "-m", "qwenvl_jax.evaluate", "--report", f"--output={tmp_path}"],
        capture_output=True, text=True,
    )  # fmt: skip
    assert run.returncode == 2
    assert run.stderr.count("\n") == 1 and run.stderr.startswith("error: ") and "evaluation.json" in run.stderr


def test_a_chat_among_several_processes_does_not_wait_for_the_others(tmp_path: Path) -> None:
    """Not even on a host whose launcher has made it the second of two."""
    several = {"JAX_COORDINATOR_ADDRESS": "127.0.0.1:9", "JAX_NUM_PROCESSES": "2", "JAX_PROCESS_ID": "1"}
    run = subprocess.run(
        [sys.executable, "-m", "qwenvl_jax.chat", f"--workdir={tmp_path}"],
        capture_output=True,
        text=True,
        env={**os.environ, **several},
    )
    assert run.returncode == 2
    assert run.stderr.count("\n") == 1 and "works as one process, but this is one of several" in run.stderr
