"""The command that judges the answers of a finished sweep and scores them anew."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from qwenvl_jax.config import TokenizerConfig, to_dict
from qwenvl_jax.evaluation.config import BenchmarkConfig, CheckpointConfig, EvalConfig
from qwenvl_jax.evaluation.judging.judge import JudgeSettings
from qwenvl_jax.evaluation.judging.judge_sweep import judge_sweep
from qwenvl_jax.evaluation.results import answers
from qwenvl_jax.evaluation.results.collected import collect
from qwenvl_jax.runtime import artifacts, storage
from qwenvl_jax.runtime.errors import UserError
from tests.evaluation.judging.test_judge import rows
from tests.support.server_process import serving

_SERVER = "tests.support.judge_server"


def swept(output: Path, names: tuple[str, ...] = ("touchstone_en", "touchstone_cn")) -> EvalConfig:
    """A finished sweep over two checkpoints; the second one has answers to the first benchmark alone."""
    config = EvalConfig(
        checkpoints=(CheckpointConfig("a", "runs/a", 28), CheckpointConfig("b", "runs/b", 28)),
        tokenizer=TokenizerConfig("qwen", ""),
        benchmarks=tuple(BenchmarkConfig(name, "records") for name in names),
        batch_size=4,
        prompt_style="released",
        output=str(output),
    )
    folder = storage.path(output)
    artifacts.write_json(folder / "evaluation.json", to_dict(config))
    artifacts.write_json(folder / "scores.json", {"a": {"other": 0.5}, "b": {}})
    for checkpoint, count in (("a", len(names)), ("b", 1)):
        for name in names[:count]:
            summary = {"questions": 6, "tokens": 3, "seconds": 1.0, "scores": {}, "fingerprint": "f"}
            answers.finish(folder / "predictions" / checkpoint, name, "s", rows(6), summary)
    return config


def read(path: Path) -> Any:
    return json.loads(path.read_text())


def test_answers_of_all_checkpoints_are_judged_and_scored(tmp_path: Path) -> None:
    """Answers of 1 to 5 words and one word score (n, n + 1) in the two rounds."""
    config = swept(tmp_path)
    with serving(_SERVER, log=tmp_path / "log") as url:
        sentences = judge_sweep(tmp_path, JudgeSettings(url, "judge", timeout=2))
        asked = len((tmp_path / "log").read_text().splitlines())
        judge_sweep(tmp_path, JudgeSettings(url, "judge", timeout=2))
    assert len((tmp_path / "log").read_text().splitlines()) == asked == 12  # the same answers are judged once
    mean = (1.5 + 2.5 + 3.5 + 4.5 + 5.5 + 1.5) / 6
    scores = read(tmp_path / "scores.json")
    assert scores["a"]["other"] == 0.5
    assert set(scores["a"]) == {"other", "touchstone_en.touchstone", "touchstone_cn.touchstone"}
    assert scores["b"]["touchstone_en.touchstone"] == pytest.approx(mean)
    summary = read(tmp_path / "predictions/b/touchstone_en.json")
    assert summary["judge"] == {"model": "judge", "rounds": 12, "scored": 12, "failed": []}
    assert (summary["fingerprint"], summary["settings"], summary["questions"]) == ("f", "s", 6)
    assert [sentence.partition(":")[0] for sentence in sentences] == [
        "a, touchstone_en", "a, touchstone_cn", "b, touchstone_en",
    ]  # fmt: skip
    entries = collect(config, storage.path(tmp_path) / "predictions")
    figure = entries[0].figures["touchstone"]
    assert figure.value == pytest.approx(mean)
    assert figure.low is not None and figure.low < figure.value
    assert len(entries) == 3


def test_folders_without_such_answers_are_refused(tmp_path: Path) -> None:
    settings = JudgeSettings("http://127.0.0.1:9/v1", "judge")
    with pytest.raises(UserError, match=r"holds no evaluation\.json"):
        judge_sweep(tmp_path, settings)
    swept(tmp_path, ("mme",))
    with pytest.raises(UserError, match="has no finished answers that are to be judged"):
        judge_sweep(tmp_path, settings)


@pytest.mark.slow
def test_answers_that_were_changed_by_hand_are_not_judged(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Otherwise the judge's verdict would vouch for them."""
    swept(tmp_path)
    file = tmp_path / "predictions/a/touchstone_en.jsonl"
    file.write_text(file.read_text().replace('"prediction": "', '"prediction": "better ', 1))
    before = (tmp_path / "predictions/a/touchstone_en.json").read_bytes()
    with serving("tests.support.judge_server", log=tmp_path / "log") as url:
        sentences = judge_sweep(tmp_path, JudgeSettings(url, "judge", timeout=5))
    assert [sentence.split(":")[0] for sentence in sentences] == ["a, touchstone_cn", "b, touchstone_en"]
    assert (tmp_path / "predictions/a/touchstone_en.json").read_bytes() == before
    assert "a/touchstone_en.jsonlwaschangedordamaged" in "".join("".join(capsys.readouterr()).split())


def test_the_command(tmp_path: Path) -> None:
    swept(tmp_path)

    def run(*flags: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "qwenvl_jax.evaluate", "--judge", *flags]
        return subprocess.run(command, capture_output=True, text=True)

    with serving(_SERVER, log=tmp_path / "log", replies="mixed") as url:
        done = run(f"--output={tmp_path}", f"--endpoint={url}", "--model=judge", "--timeout=2")
    assert done.returncode == 0, done.stderr
    assert "a, touchstone_en: touchstone_en.touchstone" in done.stdout.replace("\n", " ")
    assert "have no score, the first is round 1 of 4" in " ".join(done.stdout.split())
    assert "TouchStone, English" in (tmp_path / "tables.md").read_text()
    refused = run(f"--output={tmp_path}")
    assert refused.returncode == 2
    assert refused.stderr.strip() == (
        "error: `evaluate --judge` needs --output, the folder that an evaluation wrote, and --endpoint"
    )
