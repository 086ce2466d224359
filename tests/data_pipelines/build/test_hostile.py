"""A corpus made to break a pipeline ends with every row counted, and nothing outside its folder is read."""

from __future__ import annotations

import io
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from benchmarks import hostile_rows
from qwenvl_jax.data.readers.record_folder import RecordReader


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """2,000 rows in 20 files: every kind of file and of damage."""
    folder = tmp_path_factory.mktemp("hostile") / "corpus"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(hostile_rows, "PER_FILE", 100)
        hostile_rows.write(folder, 2000)
    return folder


def settings() -> dict[str, Any]:
    job = hostile_rows.job(Path("x"), Path("y"))
    return {name: getattr(job, name) for name in ("corpus", "recipe", "across", "composers")}


@pytest.mark.slow
def test_hostile_rows_are_counted_and_never_fatal(hostile: Path, run_small: Callable[..., Any], tmp_path: Path) -> None:
    manifest = run_small(hostile, tmp_path / "output", **settings())
    dropped = {each["rule"]: sum(each["dropped"].values()) for each in manifest["rules"]}
    assert manifest["rows"] == manifest["failed"]["rows"] + sum(dropped.values()) + manifest["kept"]
    assert manifest["rows"] > 1500 and manifest["kept"] > 900
    reasons = set(manifest["failed"]["reasons"])
    assert {"file damaged", "no picture", "not JSON", "picture missing", "refused name"} <= reasons
    assert "download failed" not in reasons
    for name in (
        "download",
        "score_at_least",
        "emoji",
        "english_or_chinese",
        "text_length",
        "open_pictures",
        "longest_text",
    ):
        assert dropped[name], name
    for record in RecordReader(tmp_path / "output" / "caption", verify=True):
        with Image.open(io.BytesIO(record.images[0])) as image:
            image.load()
            assert min(image.size) >= 64
        assert "root:" not in json.dumps(record.content)


@pytest.mark.slow
def test_hostile_rows_give_the_same_bytes_twice(
    hostile: Path, run_small: Callable[..., Any], contents: Any, tmp_path: Path
) -> None:
    """With workers and after a retry, in which the same rows fail again."""
    run_small(hostile, tmp_path / "one", **settings())
    before = contents(tmp_path / "one")
    run_small(hostile, tmp_path / "one", retry=True, **settings())
    assert contents(tmp_path / "one") == before
    run_small(hostile, tmp_path / "two", workers=2, **settings())
    assert contents(tmp_path / "two") == before


@pytest.mark.parametrize(
    "name", [b"not-utf-8-\xff.jsonl", b"line\nbreak.jsonl", b"\xe2\x80\xaereversed.jsonl", b"%41.jsonl"]
)
def test_names_of_files_are_only_names(
    name: bytes, run_small: Callable[..., Any], contents: Any, tmp_path: Path
) -> None:
    folder = tmp_path / "corpus"
    folder.mkdir()
    (folder / os.fsdecode(name)).write_text('{"id": "row-0", "text": "a kite over hills"}\n{broken\n')
    manifest = run_small(folder, tmp_path / "output")
    assert manifest["rows"] == 2 and manifest["kept"] == 1 and manifest["failed"]["rows"] == 1
    (failed,) = (json.loads(line) for line in (tmp_path / "output" / "failed.jsonl").read_text().splitlines())
    assert failed["file"] == os.fsdecode(name)
    before = contents(tmp_path / "output")
    assert run_small(folder, tmp_path / "output")["inputs"] == manifest["inputs"]  # it is found again, and up to date
    run_small(folder, tmp_path / "output", retry=True)
    assert contents(tmp_path / "output") == before
