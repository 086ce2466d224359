"""Synthetic pages as a corpus: orders in JSON, rows that are pages, bad orders refused in one sentence."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from data_pipelines.corpora.table import CORPORA
from data_pipelines.ocr.font_families import FAMILIES
from data_pipelines.pair import FailedRow, RawPair
from qwenvl_jax.runtime.errors import UserError
from tests.support.corpora.rendered import write_synthetic_pages

CORPUS = CORPORA["synthetic_pages"]


@pytest.fixture
def orders(tmp_path: Path) -> Path:
    """A folder that orders five pages."""
    write_synthetic_pages(tmp_path / "orders", pages=5)
    return tmp_path / "orders"


def test_pages_do_not_depend_on_how_they_are_shared_out(orders: Path) -> None:
    rows = list(CORPUS.read(orders))
    assert sorted(path.name for path in orders.glob("*.json")) == ["en-00000.json", "en-00001.json", "en-00002.json"]
    assert len(rows) == 5
    pairs = [row for row in rows if isinstance(row, RawPair)]
    assert len({pair.id for pair in pairs}) == 5
    assert all(pair.lines and pair.pictures[0].encoded and pair.language == "en" for pair in pairs)
    whole = json.loads((orders / "en-00000.json").read_text()) | {"pages": 5}
    for path in orders.glob("*.json"):
        path.unlink()
    (orders / "all.json").write_text(json.dumps(whole))
    again = [row for row in CORPUS.read(orders) if isinstance(row, RawPair)]
    assert [pair.pictures for pair in again] == [pair.pictures for pair in pairs]


def test_a_text_without_words_fails_the_page(orders: Path) -> None:
    (orders / "texts/texts.jsonl").write_text('{"caption": "no text"}\n')
    rows = list(CORPUS.read(orders))
    assert [row.reason for row in rows if isinstance(row, FailedRow)] == ["text or photograph unreadable"] * 5


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"language": "fr"}, "has 'fr' as language; write en or zh"),
        ({"language": ["en"]}, "has ['en'] as language; write en or zh"),
        ({"pages": "5"}, "has '5' as pages; write a whole number of 0 or more"),
        ({"pages": -1}, "has -1 as pages; write a whole number of 0 or more"),
        ({"page": 5}, "has an unknown key 'page'; did you mean 'pages'?"),
        ({"zzz": 5}, "has an unknown key 'zzz'; remove it, or write one of backgrounds, cache"),
        ({"texts": 3}, "has 3 as texts; write a text in quotation marks"),
        ({"backgrounds": [4]}, "has [4] as backgrounds; write a list of paths"),
        ({"settings": {"nose": 1}}, "has an unknown setting 'nose'; did you mean 'noise'?"),
        ({"settings": []}, "has [] as settings; write an object"),
        ({"texts": "missing.jsonl"}, "missing.jsonl does not exist; name a file of texts"),
        ({"fonts": ["texts/texts.jsonl"]}, "texts.jsonl is not a readable font"),
        ({"backgrounds": ["missing"]}, "missing"),
    ],
)
def test_a_wrong_order_is_refused_with_a_remedy(orders: Path, change: dict[str, Any], message: str) -> None:
    values = json.loads((orders / "en-00000.json").read_text()) | change
    (orders / "en-00000.json").write_text(json.dumps(values))
    with pytest.raises(UserError) as refused:
        list(CORPUS.read(orders))
    assert message in str(refused.value) and str(orders) in str(refused.value)


def test_an_order_without_a_cache_takes_that_of_the_run(orders: Path, tmp_path: Path) -> None:
    """Without a listed font, the fonts of the table come from the cache."""
    values = json.loads((orders / "en-00000.json").read_text())
    (orders / "en-00000.json").write_text(json.dumps({**values, "fonts": []}))
    family = FAMILIES["en"][0]
    (tmp_path / "cache/page_fonts" / family.package).mkdir(parents=True)  # fetched, but without the file of the font
    corpus = dataclasses.replace(CORPUS, layout=CORPUS.layout.with_cache(str(tmp_path / "cache")))
    with pytest.raises(UserError, match=f"package {family.package} has no {family.file}"):
        list(corpus.read(orders))


def test_an_order_that_lacks_keys_is_refused(orders: Path) -> None:
    (orders / "en-00000.json").write_text('{"language": "en"}')
    with pytest.raises(UserError, match=r"has no pages and no texts; add what docs/ocr.md shows"):
        list(CORPUS.read(orders))


def test_a_folder_without_orders_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="that orders synthetic pages"):
        list(CORPUS.read(tmp_path))
    (tmp_path / "a.json").write_text("{")
    with pytest.raises(UserError, match="is not JSON"):
        list(CORPUS.read(tmp_path))
