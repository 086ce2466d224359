"""A corpus that is built against an index of its own records loses them all, and the lists say so."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from data_pipelines.__main__ import main
from data_pipelines.duplicates import decontaminate, untouched
from tests.support.corpora.table import FIXTURES


@pytest.mark.slow
def test_a_corpus_loses_the_pairs_that_are_in_the_index(tmp_path: Path) -> None:
    FIXTURES["coco_captions"](tmp_path / "coco")
    build = ["coco_captions", f"--input={tmp_path}/coco", "--split=val", "--workers=1"]
    main([*build, f"--output={tmp_path}/first"])
    decontaminate.main([f"{tmp_path}/first/caption:val", f"--output={tmp_path}/index"])
    main([*build, f"--output={tmp_path}/second", f"--evaluation_index={tmp_path}/index"])
    manifest = json.loads((tmp_path / "second/manifest.json").read_text())
    counts = next(rule for rule in manifest["rules"] if rule["rule"] == "not_in_evaluation")
    assert counts["seen"] == counts["dropped"][decontaminate.PICTURE] > 0 and manifest["kept"] == 0
    path = tmp_path / "second/report/decontaminated.jsonl"
    listed = [json.loads(line) for line in path.read_text().splitlines()]
    assert len(listed) == counts["seen"]
    assert {"evaluation_picture", "picture", "distance"} <= listed[0]["evidence"][0].keys()
    page = (tmp_path / "second/report.html").read_text()
    assert page.count("<figcaption>evaluation picture") == sum(len(each["evidence"][:3]) for each in listed)
    untouched.main([f"{tmp_path}/second", f"--index={tmp_path}/index", f"--output={tmp_path}/clean.json"])
    lists = json.loads((tmp_path / "clean.json").read_text())
    assert lists["clean"] == [] and set(lists["touched"]) == set(counts["causes"])
