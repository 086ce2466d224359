"""The rows of RefCOCO and GRIT on their fixtures, in every form in which they are published."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import pytest

from data_pipelines.clean.grounding import boxes_in_picture, flat_spans, spans_in_text
from data_pipelines.clean.rule import judge, rule
from data_pipelines.corpora.table import CORPORA
from data_pipelines.pair import AbsentRow, FailedRow, RawPair, Region, Row
from qwenvl_jax.runtime.errors import UserError
from tests.support.corpora import grounded
from tests.support.corpora.grounded import COCO, GRIT_CAPTION, refs
from tests.support.corpora.pictures import HEIGHT, WIDTH, picture
from tests.support.corpora.table import FIXTURES
from tests.support.corpora.tables import write_json

LEFT = (0.0, 0.0, 12.0, 16.0)


def regions(rows: list[Row]) -> dict[str, tuple[Region, ...]]:
    return {row.id: row.regions for row in rows if isinstance(row, RawPair)}


def reasons(rows: list[Row]) -> list[str]:
    return [row.reason for row in rows if isinstance(row, FailedRow)]


EXPECTED = {
    "25": (
        Region("the left dog", (LEFT,)),
        Region("dog on left", (LEFT,)),
        Region("the right dog", ((12.0, 0.0, 24.4, 16.0),)),
    ),
    "9": (Region("café sign", ((1.0, 2.0, 11.0, 10.5),)),),
}


@pytest.mark.parametrize("name", ["refcoco", "refcoco_plus", "refcocog"])
def test_phrases_of_one_picture_are_one_pair(name: str, tmp_path: Path) -> None:
    FIXTURES[name](tmp_path)
    for split in CORPORA[name].splits:
        rows = list(CORPORA[name].read(tmp_path, split))
        assert regions(rows) == EXPECTED
        assert reasons(rows) == ["missing value", "unknown box"]
        first = next(row for row in rows if isinstance(row, RawPair))
        assert first.pictures[0].path == f"{tmp_path}/images/mscoco/images/train2014/{COCO[1]}"
        assert (first.pictures[0].width, first.pictures[0].height) == (WIDTH, HEIGHT)


def test_every_form_of_the_list_gives_the_same_rows(tmp_path: Path) -> None:
    FIXTURES["refcoco"](tmp_path)
    published = list(CORPORA["refcoco"].read(tmp_path))
    file = tmp_path / "refcoco" / "refs(unc).p"
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        file.write_bytes(pickle.dumps(refs(("train", "val")), protocol))
        assert list(CORPORA["refcoco"].read(tmp_path)) == published
    file.unlink()
    write_json(tmp_path / "refcoco" / "refs(unc).json", refs(("train", "val")))
    assert list(CORPORA["refcoco"].read(tmp_path)) == published


def test_a_hostile_list_is_refused_in_one_sentence(tmp_path: Path) -> None:
    FIXTURES["refcoco"](tmp_path)
    file = tmp_path / "refcoco" / "refs(unc).p"
    for payload in (b"cos\nsystem\n(S'true'\ntR.", b"N.", b"I1\n."):
        file.write_bytes(payload)
        with pytest.raises(UserError, match="pickle"):
            list(CORPORA["refcoco"].read(tmp_path))
    file.write_bytes(pickle.dumps([None, {"split": "train"}, {"split": 3}, {"split": "train", "ann_id": []}]))
    assert reasons(list(CORPORA["refcoco"].read(tmp_path))) == [
        "wrong form",
        "missing value",
        "wrong type",
        "wrong type",
    ]


def test_mdetr(tmp_path: Path) -> None:
    grounded.write_mdetr(tmp_path)
    rows = list(CORPORA["refcoco"].read(tmp_path))
    assert regions(rows) == {
        COCO[0]: (Region("the left dog", (LEFT,)), Region("dog on left", ((4.0, 0.0, 16.0, 16.0),))),
        COCO[1]: (Region("a sign", ((2.0, 0.0, 14.0, 16.0),)),),
    }
    assert [row.pictures[0].read() for row in rows if isinstance(row, RawPair)] == [picture(0), picture(1)]


def test_grit_has_a_region_per_entry_in_pixels(tmp_path: Path) -> None:
    FIXTURES["grit"](tmp_path)
    rows = list(CORPORA["grit"].read(tmp_path))
    pair = rows[0]
    assert isinstance(pair, RawPair)
    assert pair.texts == (GRIT_CAPTION,)
    assert pair.scores["clip_similarity_vitb32"] == 0.353
    assert [(region.start, region.end) for region in pair.regions[:4]] == [(14, 22), (14, 22), (35, 46), (0, 46)]
    assert all(GRIT_CAPTION[region.start : region.end] == region.phrase for region in pair.regions[:5])
    assert pair.regions[0] == Region("two dogs", ((0.0, 8.0, 6.0, 16.0),), 14, 22, 0.8)
    assert not reasons(rows) and AbsentRow("HTTP error 404") in rows


def test_grit_in_tables(tmp_path: Path) -> None:
    grounded.write_grit_table(tmp_path)
    rows = list(CORPORA["grit"].read(tmp_path))
    assert reasons(rows) == ["no regions", "malformed box"]
    assert [len(row.regions) for row in rows if isinstance(row, RawPair)] == [6]


def test_grit_cleaned(tmp_path: Path) -> None:
    FIXTURES["grit"](tmp_path)
    pair = next(row for row in CORPORA["grit"].read(tmp_path) if isinstance(row, RawPair))
    judged = judge((rule(spans_in_text), rule(boxes_in_picture), rule(flat_spans)), pair)
    assert dict(judged.rewritten) == {
        "spans_in_text": ("span outside the text",),
        "boxes_in_picture": ("box clipped",),
        "flat_spans": ("equal spans joined", "equal box under a longer span", "nested span"),
    }
    dogs = ((0.0, 8.0, 6.0, 16.0), (12.0, 8.0, 18.0, 16.0))
    assert judged.pair.regions == (
        Region("two dogs", dogs, 14, 22, 0.8),
        Region("a red house", ((3.0, 0.0, 24.0, 12.0),), 35, 46, 0.9),
        Region(GRIT_CAPTION, ((0.0, 0.0, 24.0, 16.0),), -1, -1, 0.6),
        Region("two dogs in front of a red house", (dogs[0],), -1, -1, 0.8),
    )


def test_the_fixture_is_json_as_the_downloader_writes_it(tmp_path: Path) -> None:
    row = json.loads(json.dumps(grounded.grit_row(0)))
    assert row["noun_chunks"][0][:2] == [14.0, 22.0]
