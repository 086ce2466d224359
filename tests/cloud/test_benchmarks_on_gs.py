"""Exemplars, and the judge with its replies, on an object store, equal to those on a disk."""

from __future__ import annotations

import json
from pathlib import Path

from qwenvl_jax.data.readers.record_folder import RecordReader
from qwenvl_jax.data.record_writer import write_records
from qwenvl_jax.evaluation.asking.few_shot import Exemplars
from qwenvl_jax.evaluation.judging.judge import JudgeSettings
from qwenvl_jax.evaluation.judging.judge_sweep import judge_sweep
from qwenvl_jax.runtime import storage
from tests.evaluation.asking.test_few_shot import asked, picture_record, texts
from tests.evaluation.judging.test_judge_sweep import swept
from tests.support.server_process import serving


def test_exemplars(gcs: str, tmp_path: Path) -> None:
    records = {"train": [picture_record(number, 2) for number in range(12)]}
    for folder in (f"{gcs}/train", str(tmp_path / "train")):
        write_records(folder, records, name="few", records_per_shard=5)
    remote = Exemplars(RecordReader(f"{gcs}/train", "train"), 5)
    local = Exemplars(RecordReader(tmp_path / "train", "train"), 5)
    for number in range(8):
        assert texts(remote(asked(f"q{number}"), 0)) == texts(local(asked(f"q{number}"), 0))


def test_the_judge(gcs: str, tmp_path: Path) -> None:
    """The instruction, the replies and the verdicts are on the store."""
    swept(Path(tmp_path))
    for path in tmp_path.rglob("*.json*"):
        storage.write_bytes(f"{gcs}/sweep/{path.relative_to(tmp_path)}", path.read_bytes())
    text = "{human_annotation} {question}\nAnswer of assistant 1:\n{answer_1}\n\nAnswer of assistant 2:\n{answer_2}\n\n"
    instruction = f"{gcs}/judge.json"
    storage.write_bytes(instruction, json.dumps({"system": "Be strict.", "user": text}).encode())
    with serving("tests.support.judge_server", log=tmp_path / "log") as url:
        settings = JudgeSettings(url, "judge", timeout=5, instruction_file=instruction)
        judge_sweep(f"{gcs}/sweep", settings)
        asked_once = (tmp_path / "log").read_text()
        judge_sweep(f"{gcs}/sweep", settings)
    assert (tmp_path / "log").read_text() == asked_once
    scores = json.loads(storage.read_bytes(f"{gcs}/sweep/scores.json"))
    assert scores["b"]["touchstone_en.touchstone"] > 1
    rows = storage.read_bytes(f"{gcs}/sweep/predictions/a/touchstone_cn.jsonl").decode().splitlines()
    assert all(len(json.loads(row)["verdict"]["scores"]) == 2 for row in rows)
