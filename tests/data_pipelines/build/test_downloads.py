"""Rows of web corpora that were not downloaded are counted by reason; they do not fail, and nothing is retried."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from data_pipelines.build.table import table
from data_pipelines.clean.image import open_pictures
from data_pipelines.clean.rule import rule
from data_pipelines.compose.composers import COMPOSERS
from data_pipelines.corpora.table import CORPORA
from tests.support.corpora import web

SETTINGS: dict[str, Any] = {
    "corpus": CORPORA["laion_en"],
    "recipe": (rule(open_pictures),),
    "across": (),
    "composers": {"caption": COMPOSERS["caption"]},
}


def test_they_are_counted_and_leave_nothing_to_retry(run_small: Any, contents: Any, tmp_path: Path) -> None:
    rows = [web.facts(number, f"caption {number}", {}) for number in range(30)]  # every third is a dead link
    rows[2]["error_message"] = None
    web.write_inside(tmp_path / "corpus", rows)
    manifest = run_small(tmp_path / "corpus", tmp_path / "output", **SETTINGS)
    first = manifest["rules"][0]
    assert first["rule"] == "download" and first["dropped"] == {"HTTP error 404": 9, "download failed": 1}
    assert (manifest["rows"], manifest["failed"]["rows"]) == (30, 0)
    assert (first["seen"], manifest["rules"][1]["seen"]) == (30, 20)
    dropped = sum(sum(each["dropped"].values()) for each in manifest["rules"])
    assert manifest["rows"] == manifest["failed"]["rows"] + dropped + manifest["kept"]
    assert (tmp_path / "output" / "failed.jsonl").read_text() == ""
    assert "HTTP error 404" in table(manifest) and "HTTP error 404" in (tmp_path / "output/report.html").read_text()
    assert not (tmp_path / ".output.work").exists()
    before = contents(tmp_path / "output")
    run_small(tmp_path / "corpus", tmp_path / "output", retry=True, **SETTINGS)
    assert contents(tmp_path / "output") == before


def test_a_retry_of_other_rows_counts_them_once(run_small: Any, contents: Any, tmp_path: Path) -> None:
    rows = [web.facts(number, f"caption {number}", {}) for number in range(8)]
    web.write_files(tmp_path / "corpus", rows)
    picture = next((tmp_path / "corpus").glob("*/*.jpg"))
    payload = picture.read_bytes()
    picture.unlink()
    first = run_small(tmp_path / "corpus", tmp_path / "output", **SETTINGS)
    assert first["failed"] == {"rows": 1, "reasons": {"picture missing": 1}}
    assert first["rules"][0]["seen"] == 7
    [failed] = (json.loads(line) for line in (tmp_path / "output" / "failed.jsonl").read_text().splitlines())
    assert failed["reason"] == "picture missing"
    picture.write_bytes(payload)
    retried = run_small(tmp_path / "corpus", tmp_path / "output", retry=True, **SETTINGS)
    run_small(tmp_path / "corpus", tmp_path / "fresh", **SETTINGS)
    assert retried["rules"][0]["dropped"] == {"HTTP error 404": 2} and retried["rules"][0]["seen"] == 8
    assert contents(tmp_path / "output") == contents(tmp_path / "fresh")


def test_corpora_without_them_have_no_such_line(built: Path) -> None:
    manifest = json.loads((built / "manifest.json").read_text())
    assert manifest["rules"][0]["rule"] == "not_short"
