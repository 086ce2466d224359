"""Questions that cannot be scored are refused at once; a prompt that is too long costs only its question."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from qwenvl_jax.config import Config
from qwenvl_jax.data.record_writer import write_records
from qwenvl_jax.data.tokenizer import Tokenizer
from qwenvl_jax.evaluation.asking.questions import QuestionSet
from qwenvl_jax.evaluation.asking.records import reader_of
from qwenvl_jax.evaluation.benchmarks.benchmark import Asking
from qwenvl_jax.evaluation.benchmarks.registry import BENCHMARKS
from qwenvl_jax.evaluation.config import BenchmarkConfig
from qwenvl_jax.evaluation.sweep import sweep
from qwenvl_jax.runtime.errors import UserError
from tests.evaluation.samples import eval_config, noise, record_of, rows_of


def _records(folder: Path, benchmark: str, *questions: dict[str, Any]) -> BenchmarkConfig:
    """A folder with one record per question."""
    records = [
        record_of("evaluation", {"questions": [question]}, name=f"r{number}", image=noise(number))
        for number, question in enumerate(questions)
    ]
    write_records(folder, {BENCHMARKS[benchmark].split: records}, name="tests")
    return BenchmarkConfig(benchmark, str(folder))


OPTIONS = [str(number) for number in range(27)]


@pytest.mark.parametrize(
    ("benchmark", "question", "message"),
    [
        ("vqav2_testdev", {"id": "a7", "text": "dog"}, "is not a number"),
        ("mmbench_test", {"id": "a7", "text": "dog", "options": ["a", "b"]}, "is not a number"),
        ("grit_refexp", {"id": "7", "text": "dog"}, "lacks the size of its picture"),
        ("mme", {"id": "7", "text": "dog", "answers": ["maybe"], "category": "OCR"}, "neither yes nor no"),
        ("scienceqa_img_test", {"id": "7", "text": "dog", "options": OPTIONS, "right": 1}, "27 options"),
    ],
)
def test_an_answer_that_could_not_be_scored_is_never_asked_for(
    benchmark: str, question: dict[str, Any], message: str, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    item = _records(tmp_path, benchmark, question)
    with pytest.raises(UserError, match=message) as refusal:
        QuestionSet(BENCHMARKS[benchmark], reader_of(item), range(1), tokenizer, Asking())
    assert "record 'r0' of" in str(refusal.value)


@pytest.mark.parametrize("benchmark", ["vqav2_val", "scienceqa_img_test"])
def test_a_prompt_beyond_the_model_costs_only_its_question(
    benchmark: str, config: Config, checkpoint: Path, tmp_path: Path
) -> None:
    """Its length decides about the memory of all."""
    positions = config.model.decoder.max_positions
    short = {"id": "short", "text": "dog", "answers": ["net"], "options": ["a", "b"], "right": 0}
    item = _records(tmp_path / "records", benchmark, short, {**short, "id": "long", "text": "dog " * positions * 20})
    scores = sweep(eval_config(config, checkpoint, tmp_path / "out", item))
    asked, refused = rows_of(tmp_path / "out", benchmark)
    assert "unanswered" not in asked
    assert f"the model takes at most {positions:,}" in refused["unanswered"]
    assert scores["a"]["unanswered"][benchmark]["questions"] == 1
    assert {key: asked[key] for key in ("raw", "tokens")} == {
        key: row[key] for row in _alone(config, checkpoint, tmp_path, benchmark, short) for key in ("raw", "tokens")
    }


def _alone(
    config: Config, checkpoint: Path, folder: Path, benchmark: str, question: dict[str, Any]
) -> list[dict[str, Any]]:
    item = _records(folder / "alone", benchmark, question)
    sweep(eval_config(config, checkpoint, folder / "alone_out", item))
    return rows_of(folder / "alone_out", benchmark)
