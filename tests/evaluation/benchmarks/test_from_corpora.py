"""Every benchmark on a small corpus in the files of its publisher: read, composed, asked, answered and scored."""

from __future__ import annotations

from pathlib import Path

import pytest

from data_pipelines.clean.evaluation import evaluation_pictures
from data_pipelines.clean.rule import Rewritten
from data_pipelines.compose.evaluation import evaluation
from data_pipelines.corpora.table import CORPORA
from data_pipelines.pair import RawPair
from qwenvl_jax.data.schema import Record
from qwenvl_jax.evaluation.benchmarks.benchmark import Asking, Question
from qwenvl_jax.evaluation.benchmarks.registry import PUBLISHED
from tests.evaluation.benchmarks.published_records import row_of
from tests.support.corpora.table import FIXTURES


def records_of(corpus: str, split: str, folder: Path) -> list[Record]:
    """The evaluation records of a split, as a build makes them."""
    if not folder.exists():
        FIXTURES[corpus](folder)
    records = []
    for row in CORPORA[corpus].read(folder, split):
        if isinstance(row, RawPair):
            verdict = evaluation_pictures(row)
            assert isinstance(verdict, Rewritten)
            record = evaluation(verdict.pair)
            assert record is not None
            records.append(record)
    return records


def right_answer(question: Question) -> str:
    """An answer that equals the truth, as a model writes it."""
    truth = question.about["truth"]
    if question.options:
        return next((option for option in question.options if option.strip() in truth.get("answers", ())), "")
    if "box" in truth:
        (x1, y1, x2, y2), (width, height) = truth["box"], truth["size"]
        return f"({1000 * x1 / width},{1000 * y1 / height}),({1000 * x2 / width},{1000 * y2 / height})</box>"
    answers = truth.get("answers", ["x"])
    return f" {max(answers, key=answers.count)}<|endoftext|>"


@pytest.mark.parametrize("name", list(PUBLISHED))
def test_records_of_the_publishers_files_are_asked_and_scored(name: str, tmp_path: Path) -> None:
    benchmark = PUBLISHED[name]
    records = records_of(benchmark.corpus, benchmark.split, tmp_path / "raw")
    asked = [question for record in records for question in benchmark.questions(record, Asking())]
    assert asked
    assert len({question.id for question in asked}) == len(asked)
    rows = [row_of(benchmark, question, right_answer(question)) for question in asked]
    scores = benchmark.score(rows)
    if benchmark.hidden or benchmark.judged:
        assert scores == {}
    main = next(iter(scores), "")
    # CIDEr is zero for a single picture, and the VQA rule for a single annotator.
    if main and main not in ("cider", "vqa_accuracy"):
        assert min(scores[main].per_question) > 0
    if benchmark.submission:
        assert all(benchmark.submission(rows).values())


@pytest.mark.parametrize("name", [name for name, benchmark in PUBLISHED.items() if benchmark.exemplar_split])
def test_exemplar_splits_have_answers(name: str, tmp_path: Path) -> None:
    benchmark = PUBLISHED[name]
    records = records_of(benchmark.corpus, benchmark.exemplar_split, tmp_path / "raw")
    questions = [question for record in records for question in record.content["questions"]]  # type: ignore[typeddict-item]
    assert questions
    assert any(question.get("answers") for question in questions)
