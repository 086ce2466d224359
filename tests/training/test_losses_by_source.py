"""The losses by source and task that a run logs, and those of a run that was killed and continued."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from qwenvl_jax.training.loop import train
from tests.checkpoint.saved_run import assert_same_run, lines
from tests.support import tiny_run


def test_a_run_logs_them_and_a_continued_run_logs_the_same(tmp_path: Path, tiny_data: Path) -> None:
    """The first line after the restart covers steps before and after it."""
    sources = tiny_run.make_config(tiny_data).data.mixture
    mixture = [
        {"name": name, "task": source.task, "records": source.records, "weight": source.weight}
        for source, name in zip([*sources, sources[0]], ["caption", "vqa", "text", "more"], strict=True)
    ]
    config = tiny_run.make_config(
        tiny_data, data__mixture=tuple(mixture), train__steps=7, train__checkpoint_every=3, train__log_every=4
    )
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert train(config, whole) == 7
    shutil.copytree(whole, parts)
    for step in (6, 7):
        shutil.rmtree(parts / "checkpoints" / str(step))  # as if it had been killed after step 3
    assert train(config, parts) == 7
    assert_same_run(whole, parts, 7)

    supervised = 0.0
    for line in lines(whole):
        losses, tokens = line["loss_by_source"], line["supervised_by_source"]
        assert list(losses) == list(tokens) == ["caption", "vqa", "text", "more"]
        assert list(line["loss_by_task"]) == list(line["supervised_by_task"]) == ["caption", "vqa", "text"]
        assert sum(tokens.values()) == sum(line["supervised_by_task"].values()) == line["supervised_tokens"]
        assert line["supervised_by_task"]["caption"] == tokens["caption"] + tokens["more"]
        sums = {name: losses[name] * tokens[name] for name in losses if tokens[name]}
        assert sum(sums.values()) / sum(tokens.values()) == pytest.approx(line["loss"], rel=1e-5)
        captions = (sums["caption"] + sums["more"]) / line["supervised_by_task"]["caption"]
        assert line["loss_by_task"]["caption"] == pytest.approx(captions)
        supervised += line["supervised_tokens"]
        assert line["data"]["targets"] == supervised
    assert line["loss_by_task"]["text"] != line["loss_by_task"]["caption"]
    for text in (whole / "metrics.jsonl").read_text().splitlines():
        timing = json.loads(text)["timing"]
        assert timing["data_wait_seconds"] > 0 and 0 < timing["data_wait_share"] <= 1
