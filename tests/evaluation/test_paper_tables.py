"""All published benchmarks, from the publishers' files to tables, with a tiny model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from configs.evaluation import few_shot, paper_tables
from data_pipelines.clean.evaluation import evaluation_pictures
from data_pipelines.clean.rule import Rewritten
from data_pipelines.compose.evaluation import evaluation
from data_pipelines.corpora.table import CORPORA
from data_pipelines.pair import RawPair
from qwenvl_jax.config import Config, from_config_dict
from qwenvl_jax.data.record_writer import write_records
from qwenvl_jax.data.schema import Record
from qwenvl_jax.evaluation.benchmarks.registry import PUBLISHED
from qwenvl_jax.evaluation.config import EvalConfig, validate
from qwenvl_jax.evaluation.judging.judge import JudgeSettings
from qwenvl_jax.evaluation.judging.judge_sweep import judge_sweep
from qwenvl_jax.evaluation.report.everything import write_reports
from qwenvl_jax.evaluation.sweep import sweep
from tests.support.corpora.table import FIXTURES
from tests.support.server_process import serving

pytestmark = pytest.mark.slow


def _records(corpus: str, split: str, raw: Path) -> list[Record]:
    records = []
    for row in CORPORA[corpus].read(raw, split):
        if isinstance(row, RawPair):
            verdict = evaluation_pictures(row)
            assert isinstance(verdict, Rewritten)
            record = evaluation(verdict.pair)
            if record is not None:
                records.append(record)
    return records


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`<corpus>_<split>/evaluation` for every benchmark and its exemplars."""
    root = tmp_path_factory.mktemp("benchmarks")
    wanted = {(benchmark.corpus, split) for benchmark in PUBLISHED.values() for split in _splits(benchmark)}
    for corpus, split in sorted(wanted):
        raw = root / "raw" / corpus
        if not raw.exists():
            FIXTURES[corpus](raw)
        write_records(root / f"{corpus}_{split}" / "evaluation", {split: _records(corpus, split, raw)}, name=corpus)
    return root


def _splits(benchmark: Any) -> list[str]:
    return [split for split in (benchmark.split, benchmark.exemplar_split) if split]


def _checked(values: Any) -> EvalConfig:
    return validate(from_config_dict(EvalConfig, values))


def test_every_benchmark_is_asked_scored_and_tabulated(
    data: Path, config: Config, checkpoint: Path, tmp_path: Path
) -> None:
    values = paper_tables.get_config(
        data=str(data), runs=str(tmp_path), checkpoints=str(checkpoint), mesh="cpu", vocabulary=config.tokenizer.path,
        image_size=28.0,
    )  # fmt: skip
    for benchmark in values.benchmarks:
        benchmark["shots"] = min(1, PUBLISHED[benchmark["name"]].shots)  # the small corpora have few exemplars
    output = tmp_path / "evaluation/paper_tables"
    scores = sweep(_checked(values))[checkpoint.name]
    for name, benchmark in PUBLISHED.items():
        rows = (output / "predictions" / checkpoint.name / f"{name}.jsonl").read_text().splitlines()
        assert rows
        reasons = [why for row in rows if (why := json.loads(row).get("unanswered"))]
        too_long = benchmark.table == "11" and all("tokens" in why for why in reasons)  # for the tiny model's bytes
        assert not reasons or name == "seed_bench" or too_long, (name, reasons[:1])
        figures = [key for key in scores if key.startswith(f"{name}.")]
        assert bool(figures) == (not benchmark.hidden and not benchmark.judged), name
        files = output / "submissions" / checkpoint.name / name
        assert files.exists() == (benchmark.submission is not None), name
    with serving("tests.support.judge_server", log=tmp_path / "log") as url:
        judge_sweep(output, JudgeSettings(url, "judge", timeout=5))
    write_reports(str(output))
    page = (output / "tables.md").read_text()
    for name, benchmark in PUBLISHED.items():
        assert benchmark.title in page, name
    assert "ChartQA test |" in page


def test_few_shot_prompts_are_longer_and_asked(data: Path, config: Config, checkpoint: Path, tmp_path: Path) -> None:
    values = few_shot.get_config(
        data=str(data), runs=str(tmp_path), checkpoints=str(checkpoint), mesh="cpu", vocabulary=config.tokenizer.path,
        image_size=28.0,
    )  # fmt: skip
    values.benchmarks = tuple(item for item in values.benchmarks if item["shots"] <= 1)
    sweep(_checked(values))
    predictions = tmp_path / "evaluation/few_shot/predictions" / checkpoint.name
    assert len(values.benchmarks) == 8
    for item in values.benchmarks:
        rows = (predictions / f"{item['label']}.jsonl").read_text().splitlines()
        assert rows
        assert not any("unanswered" in json.loads(row) for row in rows)
