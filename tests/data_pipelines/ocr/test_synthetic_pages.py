"""Synthetic pages as a corpus: orders in JSON, rows that are pages, bad orders refused in one sentence."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from data_pipelines.corpora.table import CORPORA
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
    "change",
    [
        {"language": "fr"},
        {"pages": "5"},
        {"pages": -1},
        {"page": 5},
        {"texts": 3},
        {"backgrounds": [4]},
        {"settings": {"nose": 1}},
        {"settings": []},
        {"texts": "missing.jsonl"},
        {"fonts": ["texts/texts.jsonl"]},
        {"backgrounds": ["missing"]},
    ],
)
def test_a_wrong_order_is_refused(orders: Path, change: dict[str, Any]) -> None:
    values = json.loads((orders / "en-00000.json").read_text()) | change
    (orders / "en-00000.json").write_text(json.dumps(values))
    with pytest.raises(UserError):
        list(CORPUS.read(orders))


def test_a_folder_without_orders_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="that orders synthetic pages"):
        list(CORPUS.read(tmp_path))
    (tmp_path / "a.json").write_text("{")
    with pytest.raises(UserError, match="is not JSON"):
        list(CORPUS.read(tmp_path))
