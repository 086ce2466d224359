"""The reports of a sweep that was killed: finished benchmarks are shown, the others are named with their counts."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import pytest

from qwenvl_jax.config import Config
from qwenvl_jax.data.record_writer import write_records
from qwenvl_jax.evaluation.config import BenchmarkConfig, CheckpointConfig, EvalConfig
from qwenvl_jax.evaluation.report.everything import write_reports
from qwenvl_jax.evaluation.results.entries import read_results
from qwenvl_jax.evaluation.results.progress import Asked, unfinished, write_progress
from qwenvl_jax.evaluation.sweep import sweep
from qwenvl_jax.runtime import storage
from qwenvl_jax.runtime.errors import UserError
from tests.evaluation import samples
from tests.evaluation.killed import kill_after_the_first_part
from tests.evaluation.samples import record_of, vqa_record


def settings(config: Config, checkpoint: Path, folder: Path) -> EvalConfig:
    """Two checkpoints are asked a published benchmark, captions, and thirty questions."""
    questions = [{"questions": [{"id": str(number), "text": "What?", "answers": ["net"]}]} for number in range(3)]
    asked = [record_of("evaluation", content, name=f"okvqa-{number}") for number, content in enumerate(questions)]
    write_records(folder / "okvqa", {"val": asked}, name="okvqa")
    captions = [record_of("caption", {"caption": "A net."}, name=f"caption-{number}") for number in range(2)]
    write_records(folder / "captions", {"train": captions}, name="captions")
    write_records(folder / "many", {"train": [vqa_record(number) for number in range(30)]}, name="many")
    benchmarks = (
        BenchmarkConfig("okvqa_val", str(folder / "okvqa"), "val", max_new_tokens=3),
        BenchmarkConfig("caption", str(folder / "captions"), "train", max_new_tokens=3, min_new_tokens=1),
        BenchmarkConfig("vqa", str(folder / "many"), "train", max_new_tokens=4),
    )
    one = samples.eval_config(config, checkpoint, folder / "output", benchmarks[0])
    checkpoints = tuple(CheckpointConfig(name, str(checkpoint), 28) for name in ("a", "b"))
    return dataclasses.replace(one, checkpoints=checkpoints, benchmarks=benchmarks)


def test_a_killed_sweep_has_reports_of_its_answers_so_far(config: Config, checkpoint: Path, tmp_path: Path) -> None:
    asked = settings(config, checkpoint, tmp_path)
    output = storage.path(asked.output)
    kill_after_the_first_part(asked, tmp_path / "output/predictions/a/vqa.parts", tmp_path)
    write_reports(output)

    text = (output / "tables.md").read_text()
    (answered,) = re.findall(r"- a, vqa: (\d+) of 30 questions answered", text)
    assert 1 <= int(answered) < 30
    for line in ("b, okvqa_val: 0 of 3", "b, caption: 0 of 2", "b, vqa: 0 of 30"):
        assert f"- {line} questions answered" in text.replace("\\", "")
    assert text.count("questions answered") == 4
    assert [(entry.checkpoint, entry.label) for entry in read_results(output)] == [("a", "okvqa_val"), ("a", "caption")]
    assert "OKVQA val" in text
    assert f"<li>a, vqa: {answered} of 30 questions answered</li>" in (output / "tables.html").read_text()
    page = (output / "report.html").read_text()
    assert "Not finished" in page and '<section id="caption">' in page and '<section id="vqa">' not in page

    sweep(asked)
    assert not (output / "progress.json").exists()
    write_reports(output)
    assert len(read_results(output)) == 6
    for name in ("tables.md", "tables.html", "report.html"):
        assert "Not finished" not in (output / name).read_text()


def test_results_of_an_earlier_sweep_are_not_those_of_the_killed_one(
    config: Config, checkpoint: Path, tmp_path: Path
) -> None:
    """The list names a fingerprint, and rows with another one answer other questions."""
    asked = settings(config, checkpoint, tmp_path)
    output = storage.path(asked.output)
    sweep(dataclasses.replace(asked, checkpoints=asked.checkpoints[:1]))
    assert unfinished(output) == []
    write_progress(output, [Asked("a", "vqa", 40, "other settings", "other fingerprint")])
    write_reports(output)
    assert "a, vqa: 0 of 40 questions answered" in (output / "tables.md").read_text()
    assert [entry.label for entry in read_results(output)] == ["okvqa_val", "caption"]


@pytest.mark.parametrize("content", ["[]", "{}", '{"asked": [{}]}', '{"asked": 3}'])
def test_a_list_that_no_sweep_has_written_is_refused(content: str, tmp_path: Path) -> None:
    (tmp_path / "progress.json").write_text(content)
    with pytest.raises(UserError, match=r"progress\.json is not what an evaluation writes"):
        unfinished(storage.path(tmp_path))
